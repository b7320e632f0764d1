"""Fusion and head compiled: the same numbers. The compiler itself is tried on the head alone, for it takes its time."""

import shutil
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch import nn

from fourm_ser.config import build
from fourm_ser.encoders.base import Features, length_mask
from fourm_ser.errors import InputError
from fourm_ser.models.network import Head
from fourm_ser.prediction.predictor import Predictor
from fourm_ser.training.experiment import run
from tests.conftest import Compose

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> None:
    torch.compiler.reset()


def sequences(lengths: list[int], dim: int) -> Features:
    generator = torch.Generator().manual_seed(len(lengths))
    features = torch.randn(len(lengths), max(lengths), dim, generator=generator)
    return Features(features, length_mask(torch.tensor(lengths), max(lengths)))


@pytest.mark.slow(but=["audio_statistics"])
@pytest.mark.parametrize("name", ["cross_attention", "audio_statistics"])
def test_a_compiled_fusion_is_the_fusion(name: str, composed: Compose) -> None:
    config = composed(f"fusion={name}", "encoder=tiny")
    fusion = build(config.fusion, dims=dict.fromkeys(config.fusion.modalities, 32)).eval()
    given = {"text": sequences([3, 7, 1], 32), "audio": sequences([9, 21, 3], 32)}
    with torch.no_grad():
        expected = fusion(**given).embedding
        fusion.compile(dynamic=True, backend="aot_eager")
        torch.testing.assert_close(fusion(**given).embedding, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_head_that_is_compiled_for_this_processor_is_the_head() -> None:
    head = Head(dim=16, classes=4, layers=[8], dropout=0.0, activation="relu", last_dropout=0.0).eval()
    given = torch.randn(5, 16)
    expected = head(given)
    head.compile(dynamic=True)
    torch.testing.assert_close(head(given), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_run_trains_and_is_loaded_without_its_compiler(
    tmp_path: Path, composed: Compose, slice_of_demo: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    short = [word for word in slice_of_demo if not word.startswith("fusion.")]
    short += ["data.utterances=40", "fusion=concat", "head.dropout=0", "stage=transfer", "stage.transfer.epochs=2"]
    plain = run(composed(*short), tmp_path / "plain")
    metrics = run(composed(*short, "trainer.compile=true"), tmp_path / "compiled")
    assert metrics["test/loss"] == pytest.approx(plain["test/loss"], abs=1e-4)
    assert metrics["test/ua"] == plain["test/ua"]
    assert Predictor.load(tmp_path / "compiled", device="cpu").emotions


@pytest.mark.slow
def test_a_network_that_cannot_be_compiled_is_one_line(
    tmp_path: Path, composed: Compose, slice_of_demo: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: object, inputs: object) -> None:
        raise RuntimeError("no C++ compiler was found")

    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=broken))
    short = [*slice_of_demo, "data.utterances=40", "stage=transfer", "stage.transfer.epochs=1", "trainer.compile=true"]
    with pytest.raises(InputError, match=r"trainer\.compile=true: fusion or head cannot be compiled here: .*"):
        run(composed(*short), tmp_path / "run")
