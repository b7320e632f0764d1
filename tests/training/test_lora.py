"""Runs in which adapters train: what they keep, that they go on, and that their models need no peft."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

from fourm_ser.encoders import lora
from fourm_ser.errors import InputError
from fourm_ser.models.directory import load_model
from fourm_ser.runs.directory import RunDirectory
from fourm_ser.runs.finished import OpenRun
from fourm_ser.training.experiment import resume, run
from fourm_ser.training.loggers import EpochTable
from fourm_ser.training.record import record
from tests.accelerator.networks import WAV2VEC
from tests.conftest import Compose
from tests.training.runs import DiedError, evaluate, lasting, read_metrics

pytestmark = pytest.mark.usefixtures("no_figures")

ADAPTERS = {"text": 2 * 2 * 2 * 4 * 32, "audio": 2 * 2 * 2 * 4 * 32}  # layers, Q and V, A and B, r, width


@pytest.fixture(scope="module")
def config(composed: Compose, slice_of_demo: list[str]) -> DictConfig:
    """Transfer, then adapters of a small BERT and a small wav2vec 2.0."""
    stages = ["stage.transfer.epochs=1", "stage.finetune.epochs=2", "stage.finetune.unfreeze={text: lora, audio: lora}"]
    settings = ["lora.r=4", "lora.dropout=0.2", "stage.finetune.lora_learning_rate=0.01", "data.utterances=40"]
    settings = [*settings, "stage.finetune.keep=always", "stage.finetune.ema=0.8"]
    words = [word for word in slice_of_demo if not word.startswith("encoder.audio")]
    return composed(*words, *WAV2VEC, *stages, *settings, "encoder.audio.gradient_checkpointing=true")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, config: DictConfig) -> Path:
    run_dir = tmp_path_factory.mktemp("lora") / "run"
    run(config, run_dir)
    return run_dir


@pytest.fixture
def without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)


def test_checkpoints_and_the_model_hold_adapters_alone(finished: Path) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        state = torch.load(finished / "stages/1-finetune/checkpoints" / name, weights_only=True)["state_dict"]
        kept = {key: tensor for key, tensor in state.items() if ".stem." in key}
        assert all(map(lora.is_adapter, kept))
        assert sum(tensor.numel() for tensor in kept.values()) == sum(ADAPTERS.values())
        assert any(tensor.any() for key, tensor in kept.items() if ".lora_B." in key)
    before = torch.load(finished / "stages/0-transfer/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert not [key for key in before if ".stem." in key]
    written = load_file(finished / "model/model.safetensors")
    assert {key.removeprefix("network.") for key in kept} == {key for key in written if ".stem." in key}
    log = " ".join((finished / "train.log").read_text().split())
    assert f"lora: {ADAPTERS['text']:,} of 0.1 M weights of tiny_bert train (" in log
    settings = OmegaConf.to_container(OmegaConf.load(finished / "model/config.yaml").lora)
    assert settings == {"r": 4, "alpha": 16, "dropout": 0.2, "targets": "auto"}


@pytest.mark.slow
def test_a_run_that_died_in_any_epoch_ends_as_if_undisturbed(
    finished: Path, config: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = EpochTable.log_metrics

    def die(self: EpochTable, metrics: Any, step: Any = None) -> None:
        own(self, metrics, step)
        if self.path.parent.name == "1-finetune" and len(self.rows) == 1:
            raise DiedError

    with monkeypatch.context() as patched:
        patched.setattr(EpochTable, "log_metrics", die)
        with pytest.raises(DiedError):
            run(config, tmp_path / "run")
    assert lasting(resume(tmp_path / "run")) == lasting(read_metrics(finished))
    for name in ("stages/1-finetune/metrics.csv", "predictions.csv"):
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "run" / name), pd.read_csv(finished / name))


def test_without_peft_a_model_predicts_the_same_and_a_run_is_looked_into(
    finished: Path, tmp_path: Path, without_peft: None
) -> None:
    network = load_model(finished / "model", tmp_path).network
    assert not lora.adapters(network)
    found, metrics = evaluate(f"run={finished}", f"output={tmp_path / 'out'}"), read_metrics(finished)
    assert {name: found[name] for name in ("test/ua", "test/loss")} == {
        name: metrics[name] for name in ("test/ua", "test/loss")
    }
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "out/predictions.csv"), pd.read_csv(finished / "predictions.csv"), check_exact=True
    )
    states = {snapshot.name: snapshot.network for snapshot in OpenRun(finished).snapshots()}
    assert list(states) == ["before training", "after transfer", "after finetune"]
    for modality in ("text", "audio"):
        prints = [network.by_modality[modality].fingerprint() for network in states.values()]
        assert prints[0] == prints[1] != prints[2]


def test_where_peft_is_missing_nothing_is_prepared(config: DictConfig, tmp_path: Path, without_peft: None) -> None:
    with pytest.raises(InputError, match=r"^stage\.finetune\.unfreeze\.text=lora: peft is not installed"):
        run(config, tmp_path)
    assert not (tmp_path / "stages").exists()


@pytest.mark.slow
def test_adapters_stay_go_on_and_become_weights_from_stage_to_stage(
    composed: Compose, slice_of_demo: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed(*slice_of_demo, "data.utterances=40", "fusion=text_attention", "stage=finetune", "lora.r=4")
    rates = {"encoder_learning_rate": 0.01, "lora_learning_rate": 0.01}
    entry = {**config.stage.finetune, **rates, "epochs": 1, "keep": "always"}
    stages = {"first": "lora", "still": "none", "second": "lora", "whole": "all", "third": "lora"}
    config.stage = {name: {**entry, "unfreeze": {"text": what, "audio": "none"}} for name, what in stages.items()}
    metrics = run(config, tmp_path / "run")
    assert metrics["encoded/text"] > 0  # of the stage `still` alone
    state = {}
    for number, name in enumerate(stages):
        path = tmp_path / f"run/stages/{number}-{name}/checkpoints/best.ckpt"
        state[name] = torch.load(path, weights_only=True)["state_dict"]
    factors = {name: [state[name][key] for key in state[name] if ".lora_B." in key] for name in stages}
    assert all(map(torch.equal, factors["first"], factors["still"]))
    assert not any(map(torch.equal, factors["still"], factors["second"]))
    assert not any(tensor.any() for tensor in factors["whole"])
    assert all(tensor.any() for tensor in factors["third"])
    assert [any(".base_layer." in key for key in state[name]) for name in stages] == [False, False, False, True, True]
    # The model has all weights, and needs neither adapters nor what the encoder once was.
    written = load_file(tmp_path / "run/model/model.safetensors")
    assert not any(map(lora.is_adapter, written))
    monkeypatch.setitem(sys.modules, "peft", None)
    assert evaluate(f"run={tmp_path / 'run'}", f"output={tmp_path / 'out'}")["test/loss"] == metrics["test/loss"]
    opened = OpenRun(tmp_path / "run")
    prints = [snapshot.network.by_modality["text"].fingerprint() for snapshot in opened.snapshots()]
    assert prints[1] == prints[2]
    assert len(set(prints)) == len(prints) - 1


def test_a_run_without_adapters_records_none_of_their_keys(finished: Path, composed: Compose, tmp_path: Path) -> None:
    assert "lora" in OmegaConf.load(finished / "config.yaml")
    assert "lora" not in record(composed("trainer=cpu"), RunDirectory(tmp_path))
    assert "lora" not in OmegaConf.load(tmp_path / "config.yaml")
