"""The small audio encoder: padding, the two directions, what trains."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fourm_ser.encoders.base import Encoder, Features, length_mask
from fourm_ser.encoders.mel_lstm import BidirectionalLSTM, MelLSTM
from fourm_ser.errors import InputError

Build = Callable[..., MelLSTM]


@pytest.mark.parametrize("channels", [[16], [16, 24], [8, 8, 8]])
def test_alone_and_in_a_padded_batch(
    mel_lstm: Build, waveforms: list[np.ndarray], check_padding: Callable[..., None], channels: list[int]
) -> None:
    check_padding(mel_lstm(channels=channels), waveforms)


def test_the_stem_alone_and_in_a_padded_batch(mel_lstm: Build, waveforms: list[np.ndarray]) -> None:
    encoder = mel_lstm().eval()
    items = [encoder.frontend(waveform) for waveform in waveforms]
    batch = encoder.stem(encoder.collate(items))
    for row, item in enumerate(items):
        alone = encoder.stem(encoder.collate([item]))
        assert alone.features.shape[2] == encoder.stem_dim == 24
        torch.testing.assert_close(batch.features[row, batch.mask[row]], alone.features[0], rtol=0, atol=1e-5)


def packed(layer: BidirectionalLSTM, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """What torch's own bidirectional LSTM makes of a packed sequence with the same weights."""
    width, hidden = layer.forwards.input_size, layer.forwards.hidden_size
    reference = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
    weights = dict(layer.forwards.named_parameters())
    weights |= {f"{name}_reverse": tensor for name, tensor in layer.backwards.named_parameters()}
    reference.load_state_dict(weights)
    sequence = nn.utils.rnn.pack_padded_sequence(features, lengths, batch_first=True, enforce_sorted=False)
    return nn.utils.rnn.pad_packed_sequence(reference(sequence)[0], batch_first=True)[0]


def test_both_directions_are_those_of_a_packed_lstm() -> None:
    torch.manual_seed(0)
    layer = BidirectionalLSTM(5, 7)
    features, lengths = torch.randn(4, 11, 5), torch.tensor([11, 1, 4, 8])
    mask = length_mask(lengths, 11)
    found, expected = layer(Features(features, mask)).features, packed(layer, features, lengths)
    assert found.shape == (4, 11, 14)
    torch.testing.assert_close(found[mask], expected[mask], rtol=0, atol=1e-6)
    garbage = features.masked_fill(~mask[..., None], float("nan"))
    torch.testing.assert_close(layer(Features(garbage, mask)).features[mask], expected[mask], rtol=0, atol=1e-6)


def test_gradients_are_those_of_a_packed_lstm() -> None:
    torch.manual_seed(0)
    layer = BidirectionalLSTM(5, 7)
    lengths = torch.tensor([3, 9])
    mask = length_mask(lengths, 9)
    one = torch.randn(2, 9, 5, requires_grad=True)
    two = one.detach().clone().requires_grad_()
    target = torch.randn(2, 9, 14)
    (found,) = torch.autograd.grad((layer(Features(one, mask)).features * target)[mask].sum(), one)
    (expected,) = torch.autograd.grad((packed(layer, two, lengths) * target)[mask].sum(), two)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_stored_features_go_through_the_top(mel_lstm: Build, waveforms: list[np.ndarray]) -> None:
    encoder = mel_lstm().eval()
    inputs = encoder.collate([encoder.frontend(waveform) for waveform in waveforms])
    stem = encoder.stem(inputs)
    assert isinstance(stem, Features)
    assert torch.equal(encoder(stem).features, encoder(inputs).features)


@pytest.mark.parametrize(
    ("what", "expected"), [("none", [False, False]), ("all", [True, True]), (1, [False, True]), (2, [True, True])]
)
def test_the_top_trains_always(mel_lstm: Build, what: str | int, expected: list[bool]) -> None:
    encoder = mel_lstm()
    encoder.unfreeze(what)
    assert [all(parameter.requires_grad for parameter in block.parameters()) for block in encoder.blocks()] == expected
    assert [any(parameter.requires_grad for parameter in block.parameters()) for block in encoder.blocks()] == expected
    assert all(parameter.requires_grad for parameter in encoder.top.parameters())
    encoder.train()
    assert encoder.training
    assert all(module.training for module in encoder.top.modules())
    assert all(module.training == any(expected) for module in encoder.stem.modules())
    encoder.eval()
    assert not any(module.training for module in encoder.modules())


@pytest.mark.parametrize("what", ["some", 0, -1, 3, None, True])
def test_nonsense_is_refused(mel_lstm: Build, what: Any) -> None:
    with pytest.raises(InputError, match=r"unfreeze\.audio=.*tiny_lstm"):
        mel_lstm().unfreeze(what)


@pytest.mark.parametrize("weights", ["pretrained", "some/folder"])
def test_other_weights_than_random_are_refused(mel_lstm: Build, weights: str) -> None:
    with pytest.raises(InputError, match=r"encoder\.audio\.weights.*weights=random"):
        mel_lstm(weights=weights)


def test_the_fingerprint_is_the_stem_s(mel_lstm: Build, known_fingerprint: Callable[[Encoder], str]) -> None:
    torch.manual_seed(1)
    encoder = mel_lstm()
    first = encoder.fingerprint()
    torch.manual_seed(2)
    assert mel_lstm().fingerprint() == first
    assert mel_lstm(hidden=8, layers=1).fingerprint() == first  # the top is not in the store
    assert mel_lstm(init_seed=1).fingerprint() != first
    for change in ({"channels": [16, 16]}, {"mean": 0.0}, {"hop": 160}, {"high": 7000.0}):
        assert mel_lstm(**change).fingerprint() != first
    with torch.no_grad():
        next(encoder.stem.parameters()).view(-1)[0] += 1.0
    assert encoder.fingerprint() != first
    assert known_fingerprint(mel_lstm()) == "0955ceb82dfbd1bb4dc4cb7a"


def test_the_seed_of_the_stem_leaves_the_global_generator_alone(mel_lstm: Build) -> None:
    torch.manual_seed(3)
    one = mel_lstm(init_seed=1)
    torch.manual_seed(3)
    two = mel_lstm(init_seed=2)
    tops = [[parameter.clone() for parameter in encoder.top.parameters()] for encoder in (one, two)]
    assert all(torch.equal(first, second) for first, second in zip(*tops, strict=True))
    stems = [next(encoder.stem.parameters()) for encoder in (one, two)]
    assert not torch.equal(*stems)
