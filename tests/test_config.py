"""What a record says holds from any folder, and for later versions."""

import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fourm_ser.config import settle, upgrade


def config() -> dict[str, Any]:
    return {
        "cache": "cache",
        "data": {
            "manifest": "base/corpus.csv",
            "root": "~/corpora",
            "audio_root": None,
            "split_file": "/splits/a.csv",
            "language": "en",
            "train": {"root": "iemocap"},
            "test": {"root": "../esd", "split_file": None},
        },
        "encoder": {
            "text": {"checkpoint": "mine", "tokenizer": "roberta-base", "weights": "random", "name": "mine"},
            "audio": {"weights": "vggish.pth"},
        },
    }


@pytest.mark.parametrize("as_config", [False, True])
def test_relative_places_become_absolute_and_names_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_config: bool
) -> None:
    for name in ("mine", "random", "en"):
        (tmp_path / name).mkdir()
    (tmp_path / "vggish.pth").touch()
    monkeypatch.chdir(tmp_path)
    node = OmegaConf.create(config()) if as_config else config()
    settle(node)
    found = OmegaConf.to_container(node) if as_config else node
    here = str(tmp_path)
    assert found == {
        "cache": f"{here}/cache",
        "data": {
            "manifest": f"{here}/base/corpus.csv",
            "root": "~/corpora",
            "audio_root": None,
            "split_file": "/splits/a.csv",
            "language": "en",
            "train": {"root": f"{here}/iemocap"},
            "test": {"root": os.path.abspath("../esd"), "split_file": None},
        },
        "encoder": {
            "text": {"checkpoint": f"{here}/mine", "tokenizer": "roberta-base", "weights": "random", "name": "mine"},
            "audio": {"weights": f"{here}/vggish.pth"},
        },
    }
    again = OmegaConf.create(found)
    monkeypatch.chdir("/")
    settle(again)
    assert OmegaConf.to_container(again) == found


@pytest.mark.parametrize("as_config", [False, True])
def test_a_record_of_an_earlier_version_becomes_what_this_one_records(as_config: bool) -> None:
    def cosine(module: str) -> dict[str, Any]:
        return {"_target_": f"{module}.cosine", "_partial_": True}

    mel = {"mels": 40, "window": 400, "hop": 320, "low": 50.0, "high": 8000.0, "mean": -5.5, "std": 4.5}
    old: dict[str, Any] = {
        "encoder": {
            "text": {"_target_": "fourm_ser.encoders.text.TextEncoder", "hop": 1},
            "audio": {"_target_": "fourm_ser.encoders.lstm.MelLSTM", "channels": [64, 64], "hidden": 64, **mel},
        },
        "head": {"_target_": "fourm_ser.network.Head"},
        "stage": {"transfer": {"scheduler": cosine("fourm_ser.schedules")}},
        "logger": {"csv": {"_target_": "fourm_ser.loggers.CSV"}},
        "own": [{"_target_": "mine.network.Head"}, cosine("fourm_ser.schedules")],
    }
    node = OmegaConf.create(old) if as_config else old
    assert upgrade(node) is node
    now = {
        "encoder": {
            "text": {"_target_": "fourm_ser.encoders.text.TextEncoder", "hop": 1},
            "audio": {
                "_target_": "fourm_ser.encoders.mel_lstm.MelLSTM",
                "channels": [64, 64],
                "hidden": 64,
                "frontend": {"_target_": "fourm_ser.encoders.frontends.LogMel", **mel},
            },
        },
        "head": {"_target_": "fourm_ser.models.network.Head"},
        "stage": {"transfer": {"scheduler": cosine("fourm_ser.training.schedules")}},
        "logger": {"csv": {"_target_": "fourm_ser.training.loggers.CSV"}},
        "own": [{"_target_": "mine.network.Head"}, cosine("fourm_ser.training.schedules")],
    }
    assert (OmegaConf.to_container(node) if as_config else node) == now
    assert upgrade(node) == now  # what this version records stays as it is


@pytest.mark.parametrize("as_config", [False, True])
def test_a_stage_of_an_earlier_version_is_judged_and_lasts_as_it_did(as_config: bool) -> None:
    stage: dict[str, Any] = {"epochs": 10, "batch_size": 64, "unfreeze": {"text": "none"}, "patience": 8}
    plateau: dict[str, Any] = {"_target_": "fourm_ser.schedules.Plateau", "patience": 3}
    old = {"trainer": {}, "encode": {}, "stage": {"transfer": {**stage}, "own": {**stage, "ema": 0.9}}}
    node: Any = {**old, "scheduler": plateau}
    node = upgrade(OmegaConf.create(node) if as_config else node)
    was: dict[str, Any] = {"steps": None, "min_epochs": None, "max_epochs": None, "patience_steps": None}
    was |= {"monitor": "val/ua", "smooth": 1, "select": "best", "ema": None, "keep": "always"}
    was |= {"learning_rate": None, "layer_decay": None, "lora_learning_rate": None}
    assert node["stage"]["transfer"] == {**stage, **was}
    assert node["stage"]["own"] == {**stage, **was, "ema": 0.9}
    assert node["scheduler"]["patience_steps"] is None
    assert node["refit"] is False


def test_what_a_composed_config_waits_for_is_left_to_it() -> None:
    node = OmegaConf.create(
        {
            "a": "???",
            "b": "${a}",
            "head": {"_target_": "fourm_ser.network.Head", "dim": "${a}"},
            "own": ["???", "${a}", "${nowhere}"],
        }
    )
    OmegaConf.set_struct(node, True)
    assert OmegaConf.to_container(upgrade(node)) == {
        "a": "???",
        "b": "${a}",
        "head": {"_target_": "fourm_ser.models.network.Head", "dim": "${a}"},
        "own": ["???", "${a}", "${nowhere}"],
    }
