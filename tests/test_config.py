"""What a record says of places holds from any folder."""

import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fourm_ser.config import settle


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
