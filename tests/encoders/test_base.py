"""What all encoders share: packed features, and a stem that is kept aside."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fourm_ser.data.batch import ahead
from fourm_ser.encoders.base import Encoder, Packed
from fourm_ser.encoders.mel_lstm import MelLSTM
from fourm_ser.encoders.speech import SpeechEncoder

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_packed_features_are_padded_with_zeros(dtype: torch.dtype) -> None:
    rows = [torch.randn(count, 3).to(dtype) for count in (2, 5, 1)]
    packed = Packed(torch.cat([*rows, torch.zeros(1, 3, dtype=dtype)]), torch.tensor([2, 5, 1]), 5)
    features, mask = packed.padded(CPU)
    assert features.dtype == torch.float32
    assert mask.sum(1).tolist() == [2, 5, 1]
    for place, row in enumerate(rows):
        assert torch.equal(features[place, : len(row)], row.float())
        assert not features[place, len(row) :].any()


@pytest.fixture(params=["speech", "lstm"])
def encoder(
    request: pytest.FixtureRequest,
    speech_encoder: Callable[..., SpeechEncoder],
    mel_lstm: Callable[..., MelLSTM],
) -> Encoder:
    found = speech_encoder(layer="weighted") if request.param == "speech" else mel_lstm()
    found.unfreeze("none")
    return found


def test_a_stem_that_is_kept_aside_is_neither_moved_nor_saved(encoder: Encoder, waveforms: list[np.ndarray]) -> None:
    names, fingerprint, order = list(encoder.state_dict()), encoder.fingerprint(), list(encoder.parameters())
    inputs = encoder.collate([encoder.frontend(waveform) for waveform in waveforms[2:4]])
    with encoder.without_stem():
        assert all(one is other for one, other in zip(encoder.parameters(), encoder.top.parameters(), strict=True))
        encoder.to(torch.float64)
        encoder.train()
        assert encoder.frozen
        assert not any(module.training for module in encoder.stem.modules())
        encoder.to(torch.float32)
        with torch.no_grad():
            features = encoder.stem_features(inputs)  # it is there all the same
        assert features.features.dtype == torch.float32
    assert list(encoder.state_dict()) == names
    assert encoder.fingerprint() == fingerprint
    assert all(one is other for one, other in zip(encoder.parameters(), order, strict=True))


def test_a_stem_comes_back_after_a_failure(encoder: Encoder) -> None:
    names = list(encoder.state_dict())
    with pytest.raises(KeyError), encoder.without_stem():
        raise KeyError("a batch")
    assert list(encoder.state_dict()) == names


FINGERPRINTS: dict[tuple[Any, ...], str] = {
    ("bert",): "2f2bb7ff1361e00ff72b09d2",
    ("bert", "weighted"): "821b5cceff60cff678da6b17",
    ("bert", 1): "6459ec8697ee2d0abe1f75bd",
    ("roberta",): "f7473985b7e8890f12e3b168",
    ("distilbert",): "b408d73b5f3aadc46a791fd7",
    ("wav2vec2-group",): "2d40d74065d18f9b6106f769",
    ("wav2vec2-layer",): "19fbd17e701d279c6d32b8e1",
    ("wav2vec2-layer", "weighted"): "377d6bfec24566a08cdae916",
    ("wav2vec2-layer", 1): "6b17f094102297b39f917d6e",
    ("hubert-group",): "726b131735edff0a33e5414f",
    ("hubert-layer",): "e7a27693f06d648631c4c009",
    ("wavlm-group",): "e46bdb0b463b7a5700dd1188",
    ("wavlm-layer",): "65542a2f83336ed1624a31e1",
}
"""Of transformers and their layers, recorded: another key would leave all stores behind."""


def test_a_fingerprint_is_what_it_was(
    text_encoder: Callable[..., Encoder],
    speech_encoder: Callable[..., Encoder],
    known_fingerprint: Callable[[Encoder], str],
) -> None:
    found = {}
    for kind, *layer in FINGERPRINTS:
        build = speech_encoder if "-" in kind else text_encoder
        encoder = build(*kind.split("-"), layer=layer[0] if layer else "last")
        found[kind, *layer] = known_fingerprint(encoder)
    assert found == FINGERPRINTS


class Scale(nn.Module):
    """A stem with a weight of its own, which belongs to none of its parts."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor([factor]))


def test_a_stem_s_own_weights_are_in_its_fingerprint(mel_lstm: Callable[..., MelLSTM]) -> None:
    found = []
    for factor in (1.0, 2.0):
        encoder: Encoder = mel_lstm()
        encoder.stem = Scale(factor)
        found.append(encoder.fingerprint())
    assert found[0] != found[1]


@pytest.mark.parametrize("laid_over", [False, True])
def test_what_earlier_versions_saved_is_loaded(encoder: Encoder, laid_over: bool) -> None:
    top = "lstm" if isinstance(encoder, MelLSTM) else "layers"
    saved = {name: torch.rand_like(tensor) for name, tensor in encoder.state_dict().items()}
    names = {name: name.removeprefix("stem.").replace("top.", f"{top}.", 1) for name in saved}
    assert not set(names.values()) & set(saved)
    earlier = {names[name]: tensor for name, tensor in saved.items()}
    network = nn.ModuleDict({"audio": encoder})
    beneath = encoder.state_dict() if laid_over else {}
    network.load_state_dict({f"audio.{name}": tensor for name, tensor in {**beneath, **earlier}.items()})
    assert all(torch.equal(tensor, saved[name]) for name, tensor in encoder.state_dict().items())
    with pytest.raises(RuntimeError, match=r"audio\.other\.elsewhere"):
        network.load_state_dict({"audio.other.elsewhere": torch.zeros(1)})


def test_items_are_got_ready_ahead_in_their_order() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(9):
            made.append(number)
            yield number

    source = ahead(items())
    assert next(source) == 0
    source.close()  # type: ignore[attr-defined]
    assert len(made) <= 4  # two ahead of what was asked for, and no more
    assert list(ahead(items())) == list(range(9))


def test_what_goes_wrong_ahead_is_raised_in_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 0
        raise ValueError("a batch that cannot be read")

    source = ahead(items())
    assert next(source) == 0
    with pytest.raises(ValueError, match="cannot be read"):
        next(source)
