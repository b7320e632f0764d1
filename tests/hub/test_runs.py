"""Runs with checkpoints of the hub: which commit it was is recorded, and serves whatever the hub has by then."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from huggingface_hub import constants
from omegaconf import DictConfig

from fourm_ser.errors import InputError, OtherRunError
from fourm_ser.files import write_text
from fourm_ser.prediction.predictor import Prediction, Predictor
from fourm_ser.runs.directory import RunDirectory
from fourm_ser.training.experiment import Experiment, resume, run
from fourm_ser.training.sweeps import has_finished
from tests.conftest import Compose
from tests.hub.server import Hub

pytestmark = pytest.mark.usefixtures("no_figures")


def encoder(folder: Path) -> dict[str, str]:
    """The text encoder's node in the config of a run or a model."""
    node: dict[str, str] = yaml.safe_load((folder / "config.yaml").read_text())["encoder"]["text"]
    return node


@pytest.fixture
def text_run(composed: Compose, slice_of_demo: list[str]) -> Callable[[str], DictConfig]:
    """The config of a short run on transcripts with a checkpoint."""

    half = ("encoder/text=bert", "encoder.text.weights=pretrained", "encoder.text.checkpoint=?")
    few = ("fusion=text_attention", "stage.transfer.epochs=1", "fusion.heads=4")
    kept = [word for word in slice_of_demo if not word.startswith(("encoder", "fusion"))]
    config = composed(*kept, *few, *half)

    def named(checkpoint: str) -> DictConfig:
        config.encoder.text.checkpoint = checkpoint
        return copy.deepcopy(config)

    return named


@pytest.mark.slow
def test_a_run_goes_on_with_the_commit_that_it_began_with(
    hub: Hub,
    saved: Callable[[str], Path],
    text_run: Callable[[str], DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit, path = hub.commit("lab/text", saved("text"), "main", "v1"), tmp_path / "run"
    directory = RunDirectory(path)
    with monkeypatch.context() as killed:
        killed.setattr(Experiment, "_test", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(text_run("lab/text"), path)
    assert {encoder(path)[key] for key in ("checkpoint", "tokenizer")} == {f"lab/text@{commit}"}

    shutil.copytree(saved("text"), tmp_path / "later")
    (tmp_path / "later" / "model.safetensors").write_bytes(b"quite other weights")
    hub.commit("lab/text", tmp_path / "later")
    hub.requests.clear()
    metrics = run(text_run("lab/text"), path)
    assert metrics["encoded/text"] == 0
    assert encoder(path / "model")["checkpoint"] == f"lab/text@{commit}"
    for name in ("lab/text", "lab/text@main", f"lab/text@{commit}"):
        assert has_finished(text_run(name), directory)
    assert not hub.requests
    assert not has_finished(text_run("lab/text@v1"), directory)  # which was never asked for here
    assert run(text_run("lab/text@v1"), path) == metrics
    with pytest.raises(OtherRunError):
        run(text_run(f"lab/text@{'0' * 40}"), path)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resume(path) == metrics
    assert has_finished(text_run("lab/text@v1"), directory)
    assert isinstance(Predictor.load(path, device="cpu")(text="every green ball"), Prediction)

    # An earlier version recorded what was asked for.
    write_text(path / "config.yaml", (path / "config.yaml").read_text().replace(f"@{commit}", ""))
    assert has_finished(text_run("lab/text"), directory)
    assert run(text_run("lab/text"), path) == metrics
    assert encoder(path)["checkpoint"] == "lab/text"


def test_a_checkpoint_that_cannot_be_had_ends_a_run_before_it_begins(
    hub: Hub, text_run: Callable[[str], DictConfig], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"lab/nowhere: .*encoder\.text\.checkpoint=PATH"):
        run(text_run("lab/nowhere"), tmp_path)
    assert not (tmp_path / "config.yaml").exists()
    assert RunDirectory(tmp_path).failure.is_file()
