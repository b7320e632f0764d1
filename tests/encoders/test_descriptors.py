"""The encoder of acoustic descriptors: what they say of known sounds, one frame against plain loops, padding."""

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fourm_ser.encoders.base import Encoder, Resources
from fourm_ser.encoders.descriptors import NAMES, QUIET, DescriptorFrames, Descriptors
from fourm_ser.errors import InputError
from tests.encoders.test_frontends import harmonics, sine

SETTINGS: dict[str, Any] = {"trim": 35.0, "pitch_low": 55.0, "pitch_high": 600.0}
Build = Callable[..., Descriptors]


@pytest.fixture(scope="module")
def descriptors(resources: Resources) -> Build:
    def build(weights: str = "random", **changes: Any) -> Descriptors:
        frontend = DescriptorFrames(**{**SETTINGS, **changes})
        return Descriptors(name="descriptors", weights=weights, frontend=frontend, resources=resources)

    return build


def describe(sound: np.ndarray, **changes: Any) -> dict[str, np.ndarray]:
    """Each descriptor of a sound over time."""
    frames = DescriptorFrames(**{**SETTINGS, **changes})(sound.astype(np.float32))["frames"]
    assert frames.shape[1] == len(NAMES)
    assert torch.isfinite(frames).all()
    return dict(zip(NAMES, frames.T.double().numpy(), strict=True))


def test_a_frame_is_what_plain_loops_make_of_it() -> None:
    sound = np.random.default_rng(0).normal(0, 0.05, 960) + harmonics(170.0, 0.06)
    found = {name: values[0] for name, values in describe(sound, trim=None).items()}
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    power = np.abs(np.fft.rfft(sound[280:680] * window, 512)) ** 2
    hertz = np.arange(257) * 16_000 / 512

    def chosen(low: float, high: float) -> list[int]:
        return [place for place in range(257) if low <= hertz[place] < high]

    def slope(low: float, high: float) -> float:
        part = chosen(low, high)
        return float(np.polyfit(hertz[part] / 1000, 10 * np.log10(power[part] + QUIET), 1)[0])

    def middle(low: float, high: float) -> float:
        part = chosen(low, high)
        return float(np.average(hertz[part] / 1000, weights=power[part] + QUIET))

    share = (power + QUIET) / (power + QUIET).sum()
    centroid = sum(share * hertz / 1000)
    strongest = [10 * math.log10(max(power[chosen(*band)])) for band in ((0, 2000), (2000, 5000))]
    expected = {
        "alpha_ratio": 10 * math.log10(sum(power[chosen(50, 1000)]) / sum(power[chosen(1000, 5000)])),
        "hammarberg": strongest[0] - strongest[1],
        "slope_low": slope(0, 500),
        "slope_middle": slope(500, 1500),
        "slope_high": slope(1000, 5000),
        "level": 10 * math.log10(sum(power)),
        "centroid": centroid,
        "spread": math.sqrt(sum(share * (hertz / 1000 - centroid) ** 2)),
        "entropy": -sum(part * math.log(part) for part in share),
        "formant_1": middle(200, 1000),
        "formant_2": middle(1000, 2500),
        "formant_3": middle(2500, 4000),
        "jitter": 0.0,
        "shimmer": 0.0,
        "flux": 0.0,
        "shape_flux": 0.0,
        "loudness_peak": 0.0,
    }
    # The mel bands' triangles over Hz, HTK's scale.
    mels = np.linspace(2595 * math.log10(1 + 20 / 700), 2595 * math.log10(1 + 8000 / 700), 28)
    edges = 700 * (10 ** (mels / 2595) - 1)
    bands = np.zeros(26)
    for band in range(26):
        left, top, right = edges[band : band + 3]
        for place, value in enumerate(power):
            bands[band] += (
                max(0.0, min((hertz[place] - left) / (top - left), (right - hertz[place]) / (right - top))) * value
            )
    expected["loudness"] = math.log(sum((value + 1e-9) ** 0.33 for value in bands))
    expected["loudness_sum"] = math.exp(expected["loudness"])
    for number in range(1, 13):
        cosines = [math.cos(math.pi * number * (band + 0.5) / 26) * math.sqrt(2 / 26) for band in range(26)]
        lifter = (1 + 11 * math.sin(math.pi * number / 22)) / 12
        expected[f"mfcc_{number}"] = lifter * sum(np.log(bands + 1e-6) * cosines)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name


@pytest.mark.parametrize("pitch", [80.0, 130.0, 220.0, 400.0])
def test_pitch_and_voicing_of_a_known_sound(pitch: float) -> None:
    found = describe(harmonics(pitch))
    np.testing.assert_allclose(27.5 * 2 ** (found["pitch"] / 12), pitch, rtol=0.004)
    assert found["harmonics_to_noise"].min() > 15
    assert found["voiced"].min() == 1
    assert found["jitter"].max() < 0.1
    assert found["shimmer"].max() < 1.2  # of the lowest voice, a window holds but two periods


def test_noise_and_silence_are_not_voiced() -> None:
    noise = describe(np.random.default_rng(0).normal(0.3, 0.1, 16_000), trim=None)  # on an offset
    assert noise["voiced"].mean() < 0.05
    assert noise["harmonics_to_noise"].max() < 5
    assert describe(np.zeros(16_000), trim=None)["voiced"].max() == 0


def test_what_is_far_below_the_loudest_is_not_voiced() -> None:
    sound = np.concatenate([harmonics(150.0), 0.001 * harmonics(150.0)])
    voiced = describe(sound, trim=None)["voiced"]
    assert voiced[:40].min() == 1
    assert voiced[-40:].max() == 0


def test_a_frame_of_another_octave_is_heard_with_its_neighbours() -> None:
    # Every second period a little weaker: twice the period fits better than one.
    time = np.arange(4_000) / 16_000
    weaker = harmonics(200.0, 0.25) * (1 + 0.3 * np.sin(2 * np.pi * 100.0 * time))
    alone = 27.5 * 2 ** (describe(weaker)["pitch"] / 12)
    among = 27.5 * 2 ** (describe(np.concatenate([harmonics(200.0, 1.0), weaker]))["pitch"] / 12)
    assert np.median(alone) == pytest.approx(100.0, rel=0.02)
    np.testing.assert_allclose(among[-15:], 200.0, rtol=0.05)


def test_the_first_harmonics_are_told_apart() -> None:
    time = np.arange(8_000) / 16_000
    parts = [level * np.sin(2 * np.pi * hertz * time) for level, hertz in ((0.2, 200), (0.05, 400), (0.01, 2600))]
    found = describe(np.sum(parts, axis=0) + harmonics(200.0) * 1e-4)
    assert np.median(found["h1_h2"]) == pytest.approx(20 * math.log10(4), abs=0.3)
    assert np.median(found["h1_a1"]) == pytest.approx(20 * math.log10(4), abs=0.3)
    assert np.median(found["h1_a3"]) == pytest.approx(20 * math.log10(20), abs=0.3)
    assert np.median(found["a1_a2"]) > 30


def test_a_voice_that_trembles_has_jitter_and_shimmer() -> None:
    time = np.arange(16_000) / 16_000
    phase = 2 * np.pi * np.cumsum(150 * (1 + 0.1 * np.sin(2 * np.pi * 6 * time))) / 16_000
    trembling = describe(0.1 * sum(np.sin(phase * k) / k for k in range(1, 8)))  # type: ignore[arg-type]
    fading = describe(harmonics(150.0, 1.0) * (1 + 0.8 * np.sin(2 * np.pi * 6 * time)))
    steady = describe(harmonics(150.0, 1.0))
    assert trembling["jitter"].mean() > 10 * steady["jitter"].mean()
    assert fading["shimmer"].mean() > 10 * steady["shimmer"].mean()


def test_loudness_peaks_are_counted() -> None:
    time = np.arange(32_000) / 16_000
    beats = harmonics(150.0, 2.0) * np.maximum(0, np.sin(2 * np.pi * 2.5 * time)) ** 2  # five in two seconds
    found = describe(beats, trim=None)
    assert found["loudness_peak"].sum() == 5
    assert found["loudness"].max() > found["loudness"].min() + 2


def test_how_much_silence_surrounds_a_recording_does_not_matter() -> None:
    frontend = DescriptorFrames(**SETTINGS)
    first, second = (
        np.concatenate([np.zeros(before, np.float32), harmonics(150.0), np.zeros(after, np.float32)])
        for before, after in ((1_600, 2_400), (4_800, 24_000))
    )
    assert torch.equal(frontend(first)["frames"], frontend(second)["frames"])
    begin, end = frontend.span(sine(300.0, 0.5, 1.5))
    assert begin == pytest.approx(0.5 + 0.03 - 0.005, abs=0.033)
    assert end == pytest.approx(1.5 - 0.03 + 0.005, abs=0.043)
    kept = DescriptorFrames(**{**SETTINGS, "trim": None})
    assert len(kept(second)["frames"]) == (4_800 + 8_000 + 24_000 - 960) // 160 + 1


@pytest.mark.parametrize("samples", [0, 1, 300, 512, 959, 1_130])
@pytest.mark.parametrize("level", [0.0, 1e-6, 0.1, 1.0])
def test_short_and_silent_recordings_have_finite_frames(samples: int, level: float) -> None:
    sound = level * np.random.default_rng(0).normal(size=samples)
    describe(sound)
    assert len(describe(sound, trim=None)["pitch"]) == (2 if samples >= 960 + 160 else 1)


def test_it_travels_to_workers() -> None:
    frontend = DescriptorFrames(**SETTINGS)
    copy = pickle.loads(pickle.dumps(frontend))
    assert torch.equal(copy(harmonics(120.0))["frames"], frontend(harmonics(120.0))["frames"])
    assert copy.describe() == frontend.describe()


def test_alone_and_in_a_padded_batch(
    descriptors: Build, waveforms: list[np.ndarray], check_padding: Callable[..., None]
) -> None:
    check_padding(descriptors(), waveforms)


def test_it_is_frozen_whatever_a_stage_says(descriptors: Build) -> None:
    encoder = descriptors()
    for what in ("none", "all"):
        encoder.unfreeze(what)
        assert encoder.frozen
    with pytest.raises(InputError, match=r"unfreeze\.audio=1"):
        encoder.unfreeze(1)


def test_the_fingerprint_changes_with_what_changes_features(
    descriptors: Build, known_fingerprint: Callable[[Encoder], str]
) -> None:
    first = descriptors().fingerprint()
    for change in ({"trim": 20.0}, {"trim": None}, {"pitch_low": 80.0}, {"pitch_high": 500.0}):
        assert descriptors(**change).fingerprint() != first, change
    assert known_fingerprint(descriptors()) == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "pretrained"}, r"encoder\.audio\.weights=pretrained.*weights=random"),
        ({"trim": 0.0}, r"encoder\.audio\.frontend\.trim=0\.0: expected a number of dB above 0, or null\.$"),
        ({"pitch_low": 20.0}, r"pitch_low=20.*from 33\.3"),
        ({"pitch_low": 700.0}, r"pitch_high=600"),
        ({"pitch_high": 3_000.0}, r"pitch_high=3000.*below 2000"),
    ],
)
def test_numbers_that_cannot_work_are_refused(descriptors: Build, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        descriptors(**change)
