"""The encoder of cepstra, pitch and voicing: what its frames say of known sounds, padding, training."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fourm_ser.encoders.base import Encoder, Resources, length_mask
from fourm_ser.encoders.frontends import ProsodyFrames
from fourm_ser.encoders.prosody import ProsodyCnn, liftered_cosines
from fourm_ser.errors import InputError
from tests.encoders.test_frontends import PROSODY, harmonics

Build = Callable[..., ProsodyCnn]


@pytest.fixture(scope="module")
def prosody_cnn(resources: Resources) -> Build:
    """Builds a small `ProsodyCnn`; arguments change it, or its front end."""

    def build(**arguments: Any) -> ProsodyCnn:
        settings: dict[str, Any] = {
            "name": "tiny_prosody",
            "weights": "random",
            "init_seed": 0,
            "cepstra": 6,
            "channels": 8,
            "kernel": 5,
            "dropout": 0.1,
            "stretch": 0.0,
            "shift": 0.0,
            "pitch_shift": 0.0,
            "resources": resources,
        }
        given = {key: arguments.pop(key) for key in [*arguments] if key in PROSODY}
        frontend = ProsodyFrames(**{**PROSODY, "mean": -2.0, **given})
        return ProsodyCnn(**{**settings, "frontend": frontend, **arguments})

    return build


def test_cepstra_are_liftered_orthonormal_cosine_sums() -> None:
    coefficient = np.arange(14)
    scale = (1 + 11 * np.sin(np.pi * coefficient / 22)) / np.where(coefficient == 0, 20.0, 12.0)
    bands = np.random.default_rng(0).normal(size=(7, 40))
    expected = np.zeros((7, 14))
    for k in range(14):
        for band in range(40):
            expected[:, k] += bands[:, band] * np.cos(np.pi * k * (2 * band + 1) / 80)
        expected[:, k] *= scale[k] * np.sqrt((1 if k == 0 else 2) / 40)
    found = torch.from_numpy(bands).float() @ liftered_cosines(40, 14)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_alone_and_in_a_padded_batch(
    prosody_cnn: Build, waveforms: list[np.ndarray], check_padding: Callable[..., None]
) -> None:
    check_padding(prosody_cnn(stretch=0.2, shift=2.0, pitch_shift=0.2), waveforms)


def test_what_stands_in_the_padding_does_not_matter(prosody_cnn: Build, waveforms: list[np.ndarray]) -> None:
    encoder = prosody_cnn().eval()
    inputs = encoder.collate([encoder.frontend(waveform) for waveform in waveforms])
    found = encoder(inputs)
    padding = ~length_mask(inputs["lengths"], inputs["frames"].shape[1])
    noisy = encoder({**inputs, "frames": inputs["frames"].masked_fill(padding[..., None], 7.0)})
    torch.testing.assert_close(noisy.features[found.mask], found.features[found.mask], rtol=0, atol=1e-6)


def test_the_last_feature_says_what_is_voiced(prosody_cnn: Build) -> None:
    encoder = prosody_cnn().eval()
    noise = np.random.default_rng(0).normal(0, 0.1, 8_000).astype(np.float32)
    inputs = encoder.collate([encoder.frontend(sound) for sound in (harmonics(150.0), noise)])
    features = encoder(inputs).features
    assert features.shape[2] == encoder.dim == 6 + 8 + 3
    assert features[0, :, -1].min() > 0.9
    assert features[1, :, -1].max() < 0.3


def test_augmentation_belongs_to_training(prosody_cnn: Build, waveforms: list[np.ndarray]) -> None:
    encoder = prosody_cnn(dropout=0.0, stretch=0.2, shift=2.0, pitch_shift=0.2)
    encoder.unfreeze("all")
    inputs = encoder.collate([encoder.frontend(waveform) for waveform in waveforms])
    before = encoder.eval()(inputs)
    torch.manual_seed(0)
    first, second = encoder.train()(inputs), encoder(inputs)
    assert first.features.shape != second.features.shape or not torch.equal(first.features, second.features)
    torch.manual_seed(0)
    assert torch.equal(encoder(inputs).features, first.features)  # from torch's generator alone
    encoder.unfreeze("none")
    assert torch.equal(encoder.train()(inputs).features, before.features)  # a frozen stem stays as it is


def test_pitch_moves_by_one_number_an_utterance(prosody_cnn: Build) -> None:
    encoder = prosody_cnn(dropout=0.0, pitch_shift=0.3)
    encoder.unfreeze("all")
    torch.manual_seed(0)
    inputs = encoder.collate([encoder.frontend(harmonics(150.0))] * 50)
    moved = (encoder.train()(inputs).features - encoder.eval()(inputs).features)[..., 6] / 2  # octaves, all voiced
    assert moved.std(1).max() < 1e-5
    assert 0.25 < moved.abs().max() <= 0.3 + 1e-5
    assert moved[:, 0].std() > 0.1


def test_gradients_reach_every_parameter(prosody_cnn: Build, waveforms: list[np.ndarray]) -> None:
    encoder = prosody_cnn(stretch=0.1, shift=1.0, pitch_shift=0.1)
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
    prosody_cnn: Build, known_fingerprint: Callable[[Encoder], str]
) -> None:
    first = prosody_cnn().fingerprint()
    assert prosody_cnn(dropout=0.5, stretch=0.1, shift=1.0, pitch_shift=0.1).fingerprint() == first
    for change in ({"init_seed": 1}, {"trim": 20.0}, {"trim": None}, {"cepstra": 7}, {"hop": 200}, {"pitch_low": 80.0}):
        assert prosody_cnn(**change).fingerprint() != first, change
    assert known_fingerprint(prosody_cnn()) == "d5e31ab6ff0bd5948c47d67c"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "pretrained"}, r"encoder\.audio\.weights=pretrained.*weights=random"),
        ({"cepstra": 21}, r"encoder\.audio\.cepstra=21.*frontend\.mels=20"),
        ({"kernel": 4}, r"encoder\.audio\.kernel=4"),
        ({"pitch_shift": -0.1}, r"encoder\.audio\.pitch_shift"),
        ({"stretch": 1.0}, r"encoder\.audio\.augment"),
        ({"trim": 0.0}, r"encoder\.audio\.frontend\.trim"),
        ({"mel_window": 2_048}, r"encoder\.audio\.frontend\.mel_window=2048"),
        ({"pitch_low": 20.0}, r"pitch_low=20"),
        ({"pitch_low": 500.0}, r"pitch_high=500"),
    ],
)
def test_numbers_that_cannot_work_are_refused(prosody_cnn: Build, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prosody_cnn(**change)
