"""The check that an encoder gives an utterance alone what it gives it in a batch: what it catches, what it costs."""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fourm_ser.encoders import padding
from fourm_ser.encoders.base import Encoder, Features, Inputs, length_mask
from fourm_ser.encoders.frontends import LogMel
from fourm_ser.encoders.padding import TOLERANCE, check_padding, measure_padding
from fourm_ser.encoders.speech_models import KINDS
from fourm_ser.errors import InputError

Build = Callable[..., Any]


class Smoothing(nn.Module):
    """A stem with a convolution over time, which may put zeros behind each utterance's end before it."""

    def __init__(self, hides: bool, extra: int = 0) -> None:
        super().__init__()
        self.hides, self.extra, self.calls = hides, extra, 0
        self.linear: Any = nn.Linear(8, 8)
        self.convolution = nn.Conv1d(8, 8, 3, padding=1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, inputs: Inputs) -> Features:
        self.calls += 1
        hidden: Tensor = self.dropout(self.linear(inputs["frames"]))
        mask = length_mask(inputs["lengths"], hidden.shape[1])
        if self.hides:
            hidden = hidden * mask[..., None]
        features = self.convolution(hidden.transpose(1, 2)).transpose(1, 2)
        # Frames that only a padded row has room for.
        return Features(features, length_mask(inputs["lengths"] + self.extra, hidden.shape[1]))


class Smooth(Encoder):
    """A user's encoder."""

    modality: ClassVar[str] = "audio"
    stem: Smoothing

    def __init__(self, stem: Smoothing) -> None:
        super().__init__()
        self.name, self.weights, self.stem, self.top = "smooth", "random", stem, nn.Identity()
        self.frontend = LogMel(mels=8, window=400, hop=160, low=50.0, high=8000.0, mean=0.0, std=1.0)
        self.stem_dim = self.dim = 8

    def blocks(self) -> list[nn.Module]:
        return [self.stem]


def test_an_encoder_that_hides_padding_passes_once_and_is_remembered(tmp_path: Path) -> None:
    encoder = Smooth(Smoothing(hides=True))
    check_padding(encoder, "abc", tmp_path)
    calls = encoder.stem.calls
    assert calls == 3  # each alone, and both
    assert [path.name for path in (tmp_path / "padding").iterdir()] == ["smooth-abc.json"]
    check_padding(encoder, "abc", tmp_path)
    assert encoder.stem.calls == calls
    check_padding(encoder, "abd", tmp_path)
    assert encoder.stem.calls == 2 * calls


@pytest.mark.parametrize("change", ["version", "source", "damaged"])
def test_it_is_tried_again_where_something_changed(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Smooth(Smoothing(hides=True))
    check_padding(encoder, "abc", tmp_path)
    if change == "version":
        monkeypatch.setattr(padding, "__version__", "99")
    elif change == "source":
        monkeypatch.setattr(padding, "inspect", SimpleNamespace(getfile=lambda kind: padding.__file__))
    else:
        (tmp_path / "padding" / "smooth-abc.json").write_text("{", encoding="utf-8")
    encoder.stem.hides = False
    with pytest.raises(InputError):
        check_padding(encoder, "abc", tmp_path)


@pytest.mark.parametrize(("hides", "extra"), [(False, 0), (True, 1)])
def test_an_encoder_that_feels_its_neighbours_is_refused_and_not_remembered(
    hides: bool, extra: int, tmp_path: Path
) -> None:
    encoder = Smooth(Smoothing(hides, extra))
    for _ in range(2):
        with pytest.raises(InputError, match=r"encoder\.audio: smooth \(Smooth\) gives .* differ by .* Choose") as told:
            check_padding(encoder, "abc", tmp_path)
        assert "\n" not in str(told.value)
    assert not (tmp_path / "padding").exists()


def test_features_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    encoder = Smooth(Smoothing(hides=True))
    with torch.no_grad():
        encoder.stem.linear.bias[0] = torch.nan
    with pytest.raises(InputError, match="nan of their size"):
        check_padding(encoder, "abc", tmp_path)


def test_modes_gradients_and_random_numbers_are_left_alone() -> None:
    encoder = Smooth(Smoothing(hides=True))
    encoder.train()
    encoder.stem.linear.eval()
    modes = [module.training for module in encoder.modules()]
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    forward = encoder.stem.forward

    def drawing(inputs: Inputs) -> Features:
        torch.rand(1), np.random.rand(), random.random()
        return forward(inputs)

    encoder.stem.forward = drawing  # type: ignore[method-assign]
    assert measure_padding(encoder) <= TOLERANCE  # without dropout
    assert [module.training for module in encoder.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]
    assert random.getstate() == before[2]
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_longer_utterances_are_tried_where_short_ones_have_one_frame() -> None:
    encoder = Smooth(Smoothing(hides=True))
    encoder.frontend = LogMel(mels=8, window=400, hop=16_000, low=50.0, high=8000.0, mean=0.0, std=1.0)
    assert measure_padding(encoder) <= TOLERANCE
    assert encoder.stem.calls == 5
    encoder.stem.hides = False
    assert measure_padding(encoder) > 1e-2


@pytest.mark.parametrize("model_type", KINDS)
def test_speech_models_pass(model_type: str, speech_encoder: Build) -> None:
    assert measure_padding(speech_encoder(model_type)) < TOLERANCE / 10


def test_text_encoders_pass(text_encoder: Build) -> None:
    for model_type in ("bert", "roberta", "distilbert"):
        own = {"hidden_dim": 64} if model_type == "distilbert" else {}
        assert measure_padding(text_encoder(model_type, own)) < TOLERANCE / 10
