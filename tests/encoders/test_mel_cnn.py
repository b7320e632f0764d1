"""The convolutional encoder that is trained from nothing: padding, augmentation, what trains."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fourm_ser.encoders.augment import SpecAugment
from fourm_ser.encoders.base import Encoder, Resources, length_mask
from fourm_ser.encoders.frontends import LevelledLogMel
from fourm_ser.encoders.mel_cnn import MelCnn
from fourm_ser.errors import InputError
from tests.encoders.test_frontends import LOG_MEL

Build = Callable[..., MelCnn]

OFF = {"stretch": 0.0, "shift": 0.0, "time_masks": 0, "time_share": 0.0, "band_masks": 0, "band_width": 0}
MASKS = {"time_masks": 2, "time_share": 0.3, "band_masks": 2, "band_width": 4}


@pytest.fixture(scope="module")
def mel_cnn(resources: Resources) -> Build:
    """Builds a small `MelCnn`; arguments change it or its front end, `augment` key by key."""

    def build(augment: dict[str, Any] | None = None, **arguments: Any) -> MelCnn:
        settings: dict[str, Any] = {
            "name": "tiny_cnn",
            "weights": "random",
            "init_seed": 0,
            "channels": [4, 6, 8],
            "strides": [[2, 2], [2, 2], [1, 2]],
            "kernel": 5,
            "dim": 12,
            "dropout": 0.1,
            "resources": resources,
        }
        given = {key: arguments.pop(key) for key in [*arguments] if key in ("level", *LOG_MEL)}
        frontend = LevelledLogMel(**{**LOG_MEL, "level": "utterance", "hop": 160, "std": 3.0, **given})
        return MelCnn(**{**settings, "frontend": frontend, "augment": {**OFF, **(augment or {})}, **arguments})

    return build


@pytest.mark.parametrize("strides", [[[2, 2], [2, 2], [1, 2]], [[1, 1], [1, 4], [3, 1]], [[2, 1], [2, 3], [2, 2]]])
@pytest.mark.parametrize("level", ["utterance", "band"])
def test_alone_and_in_a_padded_batch(
    mel_cnn: Build,
    waveforms: list[np.ndarray],
    check_padding: Callable[..., None],
    strides: list[list[int]],
    level: str,
) -> None:
    check_padding(mel_cnn(strides=strides, level=level, augment=MASKS), waveforms)


def test_training_does_not_see_padding_either(mel_cnn: Build, waveforms: list[np.ndarray]) -> None:
    encoder = mel_cnn(dropout=0.0)
    encoder.unfreeze("all")
    encoder.train()
    assert encoder.stem.augment.training
    items = [encoder.frontend(waveform) for waveform in waveforms]
    batch = encoder(encoder.collate(items))
    for row, item in enumerate(items):
        alone = encoder(encoder.collate([item]))
        torch.testing.assert_close(batch.features[row, batch.mask[row]], alone.features[0], rtol=0, atol=1e-4)


def test_what_stands_in_the_padding_does_not_matter(mel_cnn: Build, waveforms: list[np.ndarray]) -> None:
    encoder = mel_cnn().eval()
    inputs = encoder.collate([encoder.frontend(waveform) for waveform in waveforms])
    found = encoder(inputs)
    padding = ~length_mask(inputs["lengths"], inputs["frames"].shape[1])
    noisy = encoder({**inputs, "frames": inputs["frames"].masked_fill(padding[..., None], 7.0)})
    assert torch.equal(found.mask, noisy.mask)
    torch.testing.assert_close(noisy.features[found.mask], found.features[found.mask], rtol=0, atol=1e-6)


def build_augment(**arguments: Any) -> SpecAugment:
    return SpecAugment(**{**OFF, **arguments}, bands=20)


def test_augmentation_belongs_to_training(mel_cnn: Build, waveforms: list[np.ndarray]) -> None:
    encoder = mel_cnn(dropout=0.0, augment={"stretch": 0.2, "shift": 2.0, **MASKS})
    encoder.unfreeze("all")
    inputs = encoder.collate([encoder.frontend(waveform) for waveform in waveforms])
    one, two = encoder.eval()(inputs), encoder(inputs)
    assert torch.equal(one.features, two.features)
    torch.manual_seed(0)
    first, second = encoder.train()(inputs), encoder(inputs)
    assert first.features.shape != second.features.shape or not torch.equal(first.features, second.features)
    torch.manual_seed(0)
    assert torch.equal(encoder(inputs).features, first.features)  # from torch's generator alone
    encoder.unfreeze("none")
    assert torch.equal(encoder.train()(inputs).features, one.features)  # a frozen stem stays as it is


def test_masks_stay_within_an_utterance_and_never_hide_all_of_it() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([1, 2, 7, 40])
    frames = torch.ones(4, 40, 20)
    mask = length_mask(lengths, 40)
    hidden_frames, hidden_bands = torch.zeros(4), torch.zeros(4)
    for _ in range(300):
        augment = build_augment(time_masks=2, time_share=0.3, band_masks=2, band_width=6)
        found, after = augment(frames, lengths)
        assert torch.equal(after, lengths)
        hidden = found == 0
        gone = (hidden.all(2) & mask).sum(1)  # frames of each
        assert (gone <= (2 * 0.3 * lengths).floor()).all()
        assert (hidden & mask[..., None]).flatten(1).sum(1).lt(lengths * 20).all()
        bands = (hidden | ~mask[..., None]).all(1).sum(1)
        assert (bands <= 12).all()
        hidden_frames, hidden_bands = torch.maximum(hidden_frames, gone), torch.maximum(hidden_bands, bands)
    assert hidden_frames[3] > 12
    assert hidden_bands.min() > 6  # two masks, and the widest of each


@pytest.mark.parametrize(
    "arguments",
    [
        {"time_masks": 2, "time_share": 0.5},
        {"band_masks": 1, "band_width": 20},
        {"stretch": 1.0},
        {"shift": -1.0},
    ],
)
def test_augmentation_that_could_hide_everything_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"encoder\.audio\.augment"):
        build_augment(**arguments)


def test_speed_changes_each_row_within_its_own_frames() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([1, 10, 50])
    ramp = torch.arange(50.0)[None, :, None].expand(3, 50, 20).clone()
    ramp[~length_mask(lengths, 50)] = float("nan")
    seen = set()
    for _ in range(50):
        found, after = build_augment(stretch=0.2)(ramp, lengths)
        assert found.shape[1] == after.max()
        assert after[0] == 1
        assert 40 <= after[2] <= 60
        seen.add(int(after[2]))
        for row, length in enumerate(after.tolist()):
            expected = np.interp(
                np.linspace(0, int(lengths[row]) - 1, length), np.arange(50), np.arange(50.0)
            )  # from the first frame to the last
            np.testing.assert_allclose(found[row, :length, 0].numpy(), expected, atol=1e-4)
    assert len(seen) > 5


def test_the_spectrum_moves_by_a_fraction_of_bands() -> None:
    torch.manual_seed(0)
    slope = torch.arange(20.0).expand(64, 5, 20)
    found, _ = build_augment(shift=3.0)(slope, torch.full((64,), 5))
    distance = found[:, 0, 10] - 10
    assert distance.abs().max() <= 3
    assert distance.min() < -2
    assert distance.max() > 2
    expected = (slope + distance[:, None, None]).clamp(0, 19)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_random_weights_come_from_their_own_seed(mel_cnn: Build) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = mel_cnn(init_seed=3)
    assert torch.equal(before, torch.get_rng_state())  # building drew nothing of the run's own
    torch.manual_seed(2)
    second, other = mel_cnn(init_seed=3), mel_cnn(init_seed=4)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    assert not torch.equal(*(next(encoder.stem.frames.parameters()) for encoder in (first, other)))


@pytest.mark.parametrize(
    ("what", "expected"), [("none", [False] * 4), ("all", [True] * 4), (1, [False, False, False, True])]
)
def test_the_whole_network_is_the_stem(mel_cnn: Build, what: str | int, expected: list[bool]) -> None:
    encoder = mel_cnn()
    encoder.unfreeze(what)
    trains = [{parameter.requires_grad for parameter in block.parameters()} for block in encoder.blocks()]
    assert trains == [{value} for value in expected]
    assert list(encoder.top.parameters()) == []
    assert encoder.frozen == (what == "none")
    encoder.train()
    assert encoder.stem.augment.training == (what != "none")
    with pytest.raises(InputError, match=r"unfreeze\.audio=5.*1 to 4 for tiny_cnn"):
        encoder.unfreeze(5)


def test_gradients_reach_every_parameter(mel_cnn: Build, waveforms: list[np.ndarray]) -> None:
    encoder = mel_cnn(augment={"stretch": 0.1, "shift": 1.0, **MASKS})
    encoder.unfreeze("all")
    encoder.train()
    torch.manual_seed(0)
    features, mask = encoder(encoder.collate([encoder.frontend(waveform) for waveform in waveforms]))
    features[mask].square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_the_fingerprint_changes_with_what_changes_features(
    mel_cnn: Build, known_fingerprint: Callable[[Encoder], str]
) -> None:
    first = mel_cnn().fingerprint()
    assert mel_cnn().fingerprint() == first
    assert mel_cnn(dropout=0.5, augment=MASKS).fingerprint() == first  # of training alone
    changes: list[dict[str, Any]] = [
        {"init_seed": 1},
        {"level": "band"},
        {"std": 2.0},
        {"hop": 200},
        {"channels": [4, 6, 9]},
        {"strides": [[2, 2], [1, 2], [1, 2]]},
        {"kernel": 3},
    ]
    for change in changes:
        assert mel_cnn(**change).fingerprint() != first, change
    encoder = mel_cnn()
    with torch.no_grad():
        next(encoder.stem.frames.parameters())[0, 0] += 1.0
    assert encoder.fingerprint() != first
    assert known_fingerprint(mel_cnn()) == "3bd7dab2228d16d8466a8d34"


@pytest.mark.parametrize("weights", ["pretrained", "some/folder"])
def test_other_weights_than_random_are_refused(mel_cnn: Build, weights: str) -> None:
    with pytest.raises(InputError, match=r"encoder\.audio\.weights.*weights=random"):
        mel_cnn(weights=weights)


def test_a_stride_is_needed_for_each_block(mel_cnn: Build) -> None:
    with pytest.raises(InputError, match="3 channels and 2 strides"):
        mel_cnn(strides=[[2, 2], [2, 2]])
