"""The encoder of cepstra, pitch and voicing: what its frames say of known sounds, padding, training."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fourm_ser.encoders.base import Encoder, Resources, length_mask
from fourm_ser.encoders.prosody import ProsodyCnn, ProsodyFrames, liftered_cosines
from fourm_ser.errors import InputError

Build = Callable[..., ProsodyCnn]

FRONTEND: dict[str, Any] = {
    "trim": 35.0,
    "mels": 20,
    "mel_window": 640,
    "window": 1024,
    "hop": 320,
    "low": 50.0,
    "high": 8000.0,
    "pitch_low": 60.0,
    "pitch_high": 500.0,
    "mean": -2.0,
}


@pytest.fixture(scope="module")
def prosody_cnn(resources: Resources) -> Build:
    """Builds a small `ProsodyCnn`; arguments change it."""

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
        return ProsodyCnn(**{**settings, **FRONTEND, **arguments})

    return build


def harmonics(pitch: float, seconds: float = 0.5) -> np.ndarray:
    """A voice-like sound: ten harmonics, each weaker than the last."""
    time = np.arange(int(seconds * 16_000)) / 16_000
    parts = [np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 11)]
    return (0.1 * np.sum(parts, axis=0)).astype(np.float32)


@pytest.mark.parametrize("pitch", [80.0, 130.0, 220.0, 400.0])
def test_pitch_and_voicing_of_a_known_sound(pitch: float) -> None:
    frames = ProsodyFrames(**FRONTEND)(harmonics(pitch))["frames"]
    assert frames.shape == ((8_000 - 1_024) // 320 + 1, 22)
    np.testing.assert_allclose(200 * 2 ** frames[:, 20].numpy(), pitch, rtol=0.03)
    assert frames[:, 21].min() > 0.8


def test_noise_is_less_voiced_than_a_voice_and_silence_not_at_all() -> None:
    frontend = ProsodyFrames(**{**FRONTEND, "trim": None})
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    assert frontend(noise)["frames"][:, 21].max() < 0.5
    assert frontend(np.zeros(16_000, np.float32))["frames"][:, 21].max() == 0


def test_how_much_silence_surrounds_a_recording_does_not_matter() -> None:
    frontend = ProsodyFrames(**FRONTEND)
    first, second = (
        np.concatenate([np.zeros(before, np.float32), harmonics(150.0), np.zeros(after, np.float32)])
        for before, after in ((1_600, 2_400), (4_800, 24_000))  # whole steps of the search for the ends
    )
    assert torch.equal(frontend(first)["frames"], frontend(second)["frames"])
    assert len(frontend(second)["frames"]) <= len(frontend(harmonics(150.0))["frames"]) + 3
    kept = ProsodyFrames(**{**FRONTEND, "trim": None})
    assert len(kept(second)["frames"]) == (4_800 + 8_000 + 24_000 - 1_024) // 320 + 1


@pytest.mark.parametrize("samples", [0, 1, 300, 512, 1_023])
@pytest.mark.parametrize("level", [0.0, 0.1])
def test_short_and_silent_recordings_have_finite_frames(samples: int, level: float) -> None:
    sound = level * np.random.default_rng(0).normal(size=samples).astype(np.float32)
    frames = ProsodyFrames(**FRONTEND)(sound.astype(np.float32))["frames"]
    assert len(frames) == 1
    assert torch.isfinite(frames).all()


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


def test_the_frontend_travels_to_workers() -> None:
    frontend = ProsodyFrames(**FRONTEND)
    copy = pickle.loads(pickle.dumps(frontend))
    assert torch.equal(copy(harmonics(120.0))["frames"], frontend(harmonics(120.0))["frames"])


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
        ({"cepstra": 21}, r"encoder\.audio\.cepstra=21.*mels=20"),
        ({"kernel": 4}, r"encoder\.audio\.kernel=4"),
        ({"pitch_shift": -0.1}, r"encoder\.audio\.pitch_shift"),
        ({"stretch": 1.0}, r"encoder\.audio\.augment"),
        ({"trim": 0.0}, r"encoder\.audio\.trim"),
        ({"mel_window": 2_048}, r"encoder\.audio\.mel_window=2048"),
        ({"pitch_low": 20.0}, r"pitch_low=20"),
        ({"pitch_low": 500.0}, r"pitch_high=500"),
    ],
)
def test_numbers_that_cannot_work_are_refused(prosody_cnn: Build, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prosody_cnn(**change)
