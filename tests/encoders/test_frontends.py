"""Front ends of audio: where their frames lie, their bands, and what they say of known sounds."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fourm_ser.encoders.base import Encoder
from fourm_ser.encoders.frontends import Examples, LevelledLogMel, LogMel, LogMelDecibels, ProsodyFrames, Waveform
from fourm_ser.errors import InputError

LOG_MEL: dict[str, Any] = {"mels": 20, "window": 400, "hop": 320, "low": 50.0, "high": 8000.0, "mean": 0.0, "std": 1.0}
PROSODY: dict[str, Any] = {
    "trim": 35.0,
    "mels": 20,
    "mel_window": 640,
    "window": 1024,
    "hop": 320,
    "low": 50.0,
    "high": 8000.0,
    "pitch_low": 60.0,
    "pitch_high": 500.0,
    "mean": 0.0,
}
# From what a front end returns to the power in it.
FRONTENDS: dict[str, tuple[Any, Callable[[np.ndarray], np.ndarray]]] = {
    "log_mel": (LogMel(**LOG_MEL), np.exp),
    "levelled": (LevelledLogMel(level="utterance", **{**LOG_MEL, "window": 1024}), np.exp),
    "prosody": (ProsodyFrames(**PROSODY), np.exp),
    "vggish": (Examples(drop_tail=False), lambda values: (np.exp(values) - 0.01) ** 2),
    "panns": (LogMelDecibels(), lambda values: 10 ** (values / 10)),
}


def sine(hertz: float, begin: float, end: float, level: float = 0.3) -> np.ndarray:
    """Two seconds of silence with a tone in them."""
    time = np.arange(32_000) / 16_000
    return (level * np.sin(2 * np.pi * hertz * time) * ((time >= begin) & (time < end))).astype(np.float32)


def harmonics(pitch: float, seconds: float = 0.5) -> np.ndarray:
    """A voice-like sound: ten harmonics, each weaker than the last."""
    time = np.arange(int(seconds * 16_000)) / 16_000
    parts = [np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 11)]
    return (0.1 * np.sum(parts, axis=0)).astype(np.float32)


@pytest.mark.parametrize("name", FRONTENDS)
def test_a_tone_stands_at_its_second_and_in_its_band(name: str) -> None:
    (frontend, power), moment = FRONTENDS[name], 1.307
    # A hum from 0.4 s on, and high above it a tone that swells and fades: quiet beginnings may be left out.
    swell = np.exp(-(((np.arange(32_000) / 16_000 - moment) / 0.04) ** 2)).astype(np.float32)
    samples = sine(200.0, 0.4, 1.8) + sine(3000.0, 0.4, 1.8) * swell
    values, hertz, hop = frontend.spectrogram(frontend(samples))
    begin, end = frontend.span(samples)
    assert len(hertz) == values.shape[1]
    assert round((end - begin) / hop) <= len(values)
    times = begin + (np.arange(len(values)) + 0.5) * hop
    heard = power(values[times < 2.0].double().numpy())[:, hertz > 1000.0]  # VGGish fills up behind the end
    times, band = times[times < 2.0], heard.sum(0).argmax()
    assert hertz[hertz > 1000.0][band] == pytest.approx(3000.0, rel=0.08)
    heard = heard[:, band]
    assert (heard * times).sum() / heard.sum() == pytest.approx(moment, abs=0.001)


def test_frames_of_a_model_over_waveforms_lie_where_its_convolutions_look(
    speech_encoder: Callable[..., Encoder],
) -> None:
    frontend = speech_encoder().frontend.own  # type: ignore[attr-defined]
    assert isinstance(frontend, Waveform)
    kernels, strides = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
    layers = [nn.Conv1d(1, 1, kernel, stride) for kernel, stride in zip(kernels, strides, strict=True)]
    for seconds in (0.03, 0.5):
        samples = torch.zeros(1, 1, int(16_000 * seconds), requires_grad=True)
        frames = nn.Sequential(*layers)(samples)[0, 0]
        edges = np.linspace(*frontend.span(samples[0, 0].detach().numpy()), len(frames) + 1)
        assert np.diff(edges) == pytest.approx(0.02)
        for frame in (0, len(frames) - 1):
            (slope,) = torch.autograd.grad(frames[frame], samples, retain_graph=True)
            seen = slope[0, 0].nonzero()
            middle = float(seen[0] + seen[-1] + 1) / 2 / 16_000
            assert edges[frame : frame + 2].mean() == pytest.approx(middle, abs=1e-6)


def test_what_stands_for_no_feature_is_not_in_the_span() -> None:
    samples = np.zeros(24_000, dtype=np.float32)
    assert LogMelDecibels().span(samples) == pytest.approx((-0.005, 4 * 0.32 - 0.005))
    assert LogMelDecibels().span(samples[:100]) == pytest.approx((-0.005, 0.315))
    assert Examples(drop_tail=True).span(samples) == pytest.approx((0.0075, 0.9675))
    assert Examples(drop_tail=False).span(samples) == pytest.approx((0.0075, 2 * 0.96 + 0.0075))
    assert LogMel(**LOG_MEL).span(samples[:100]) == pytest.approx((0.0025, 0.0225))


def test_what_is_cut_off_moves_the_span() -> None:
    frontend = ProsodyFrames(**PROSODY)
    samples = sine(300.0, 0.5, 1.5)
    begin, end = frontend.span(samples)
    # Windows of 32 ms every 10 ms are kept or not; a frame of 64 ms has its middle 32 ms within.
    assert begin == pytest.approx(0.5 + 0.032 - 0.01, abs=0.033)
    assert end == pytest.approx(1.5 - 0.032 + 0.01, abs=0.053)
    kept = ProsodyFrames(**{**PROSODY, "trim": None})
    assert kept.span(samples) == pytest.approx((0.022, 0.022 + 0.02 * len(kept(samples)["frames"])))


@pytest.mark.parametrize("frontend", [Waveform(True, 400, 320), *(frontend for frontend, _ in FRONTENDS.values())])
def test_front_ends_travel_to_workers(frontend: Any) -> None:
    copy = pickle.loads(pickle.dumps(frontend))
    for key, tensor in frontend(harmonics(120.0)).items():
        assert torch.equal(copy(harmonics(120.0))[key], tensor)
    assert copy.describe() == frontend.describe()


@pytest.mark.parametrize("frontend", [Waveform(True, 400, 320), *(frontend for frontend, _ in FRONTENDS.values())])
def test_a_waveform_may_lie_backwards_in_memory(frontend: Any) -> None:
    samples = harmonics(120.0)[::-1]
    for key, tensor in frontend(samples).items():
        assert torch.equal(frontend(samples.copy())[key], tensor)


def test_frames_are_log_mel_energies_with_their_level_kept() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 1_600).astype(np.float32)
    quiet, loud = (LogMel(**LOG_MEL)(gain * noise)["frames"] for gain in (1.0, 10.0))
    assert quiet.shape == ((1_600 - 400) // 320 + 1, 20)
    torch.testing.assert_close(loud - quiet, torch.full_like(quiet, 2 * float(np.log(10))), rtol=0, atol=0.05)
    scaled = LogMel(**{**LOG_MEL, "mean": -2.0, "std": 4.0})(noise)["frames"]
    torch.testing.assert_close(scaled, (quiet + 2.0) / 4.0)


def test_a_recording_shorter_than_a_window_is_padded() -> None:
    short = np.full(100, 0.1, dtype=np.float32)
    padded = np.concatenate([short, np.zeros(300, dtype=np.float32)])
    assert torch.equal(*(LogMel(**LOG_MEL)(raw)["frames"] for raw in (short, padded)))
    assert LogMel(**LOG_MEL)(short)["frames"].shape == (1, 20)


def test_the_level_is_the_utterance_s_own() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 8_000).astype(np.float32)
    plain = LogMel(**LOG_MEL)(noise)["frames"].numpy()
    for level, expected in (
        ("kept", plain / 2),
        ("utterance", (plain - plain.mean()) / 2),
        ("band", (plain - plain.mean(axis=0)) / 2),
    ):
        frontend = LevelledLogMel(level=level, **{**LOG_MEL, "std": 2.0})
        np.testing.assert_allclose(frontend(noise)["frames"].numpy(), expected, atol=1e-5)
    with pytest.raises(InputError, match=r"encoder\.audio\.frontend\.level=loud.*utterance"):
        LevelledLogMel(level="loud", **LOG_MEL)


@pytest.mark.parametrize("pitch", [80.0, 130.0, 220.0, 400.0])
def test_pitch_and_voicing_of_a_known_sound(pitch: float) -> None:
    frames = ProsodyFrames(**PROSODY)(harmonics(pitch))["frames"]
    assert frames.shape == ((8_000 - 1_024) // 320 + 1, 22)
    np.testing.assert_allclose(200 * 2 ** frames[:, 20].numpy(), pitch, rtol=0.03)
    assert frames[:, 21].min() > 0.8


def test_noise_is_less_voiced_than_a_voice_and_silence_not_at_all() -> None:
    frontend = ProsodyFrames(**{**PROSODY, "trim": None})
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    assert frontend(noise)["frames"][:, 21].max() < 0.5
    assert frontend(np.zeros(16_000, np.float32))["frames"][:, 21].max() == 0


def test_how_much_silence_surrounds_a_recording_does_not_matter() -> None:
    frontend = ProsodyFrames(**PROSODY)
    first, second = (
        np.concatenate([np.zeros(before, np.float32), harmonics(150.0), np.zeros(after, np.float32)])
        for before, after in ((1_600, 2_400), (4_800, 24_000))  # whole steps of the search for the ends
    )
    assert torch.equal(frontend(first)["frames"], frontend(second)["frames"])
    assert len(frontend(second)["frames"]) <= len(frontend(harmonics(150.0))["frames"]) + 3
    kept = ProsodyFrames(**{**PROSODY, "trim": None})
    assert len(kept(second)["frames"]) == (4_800 + 8_000 + 24_000 - 1_024) // 320 + 1


@pytest.mark.parametrize("samples", [0, 1, 300, 512, 1_023])
@pytest.mark.parametrize("level", [0.0, 0.1])
def test_short_and_silent_recordings_have_finite_frames(samples: int, level: float) -> None:
    sound = level * np.random.default_rng(0).normal(size=samples).astype(np.float32)
    frames = ProsodyFrames(**PROSODY)(sound.astype(np.float32))["frames"]
    assert len(frames) == 1
    assert torch.isfinite(frames).all()
