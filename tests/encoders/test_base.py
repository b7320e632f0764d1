"""What all encoders share: packed features, and a stem that is kept aside."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

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
    names, fingerprint = list(encoder.state_dict()), encoder.fingerprint()
    inputs = encoder.collate([encoder.frontend(waveform) for waveform in waveforms[2:4]])
    stem = [id(parameter) for parameter in encoder.stem_parameters().values()]
    with encoder.without_stem():
        assert not {id(parameter) for parameter in encoder.parameters()} & set(stem)
        assert {id(parameter) for parameter in encoder.parameters()} == {id(p) for p in encoder.top_parameters()}
        encoder.to(torch.float64)
        encoder.train()
        assert encoder.frozen
        assert not any(module.training for part in encoder.stem_modules() for module in part.modules())
        encoder.to(torch.float32)
        with torch.no_grad():
            features = encoder.stem(inputs)  # it is there all the same
        assert features.features.dtype == torch.float32
    assert list(encoder.state_dict()) == names
    assert encoder.fingerprint() == fingerprint
    assert [id(parameter) for parameter in encoder.stem_parameters().values()] == stem


def test_a_stem_comes_back_after_a_failure(encoder: Encoder) -> None:
    names = list(encoder.state_dict())
    with pytest.raises(KeyError), encoder.without_stem():
        raise KeyError("a batch")
    assert list(encoder.state_dict()) == names


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
