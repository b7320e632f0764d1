"""Voice activity: what counts as speech, which frames it falls on, alone and in a batch, and who is told."""

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fourm_ser import SAMPLE_RATE
from fourm_ser.encoders.activity import HOP, WithActivity, frame_activity, voice_activity
from fourm_ser.encoders.base import Encoder, Features
from fourm_ser.encoders.frontends import Waveform

Build = Callable[..., Encoder]


def spoken(*parts: tuple[float, float]) -> np.ndarray:
    """A waveform of parts, each so many seconds of noise so many dB below full scale."""
    rng = np.random.default_rng(0)
    noise = [rng.choice([-1.0, 1.0], round(length * SAMPLE_RATE)) * 10 ** (level / 20) for length, level in parts]
    return np.concatenate(noise).astype(np.float32)


def test_what_is_far_below_the_loudest_is_a_pause() -> None:
    found = voice_activity(spoken((0.5, -90), (0.5, -20), (0.5, -50), (0.5, -40)))
    assert len(found) == 200
    at = found[[25, 75, 125, 175]].tolist()  # the middle of each part
    assert at == pytest.approx([0.0, 1.0, 0.5, 1.0], abs=1e-3)  # 30 dB below: half way from 35 to 25
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("gain", [1e-3, 1.0, 8.0])
def test_the_recording_s_level_does_not_matter(gain: float) -> None:
    raw = spoken((0.3, -60), (0.4, -20), (0.3, -44))
    torch.testing.assert_close(voice_activity(raw * np.float32(gain)), voice_activity(raw), atol=1e-2, rtol=0)


@pytest.mark.parametrize("samples", [0, 1, HOP, HOP + 1, 1_000])
def test_where_nothing_is_heard_all_counts(samples: int) -> None:
    found = voice_activity(np.zeros(samples, dtype=np.float32))
    assert len(found) == max(1, -(-samples // HOP))
    assert (found == 1).all()


def test_a_frame_has_the_activity_in_its_middle() -> None:
    activity = torch.tensor([[0.0, 0.1, 0.2, 0.3, 0.4, 0.5], [1.0, 0.9, 0.0, 0.0, 0.0, 0.0]])
    span = torch.tensor([[-0.005, 0.055], [-0.005, 0.015]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    found = frame_activity(activity, span, mask)
    assert found[mask].tolist() == pytest.approx([0.0, 0.2, 0.4, 1.0])


def test_a_pause_falls_on_its_frames(speech_encoder: Build) -> None:
    encoder = speech_encoder().eval()
    raw = spoken((1.0, -20), (1.0, -70), (1.0, -20))
    features = encoder.stem_features(encoder.collate([encoder.frontend(raw)]))
    begin, end = encoder.frontend.span(raw)  # type: ignore[attr-defined]
    count = features.features.shape[1]
    middles = begin + (np.arange(count) + 0.5) * (end - begin) / count
    active = features.features[0, :, -1].detach().numpy()
    inside = (middles > 1.03) & (middles < 1.97)
    outside = (middles < 0.97) | (middles > 2.03)
    assert inside.sum() > 40
    assert (active[inside] == 0).all()
    assert (active[outside] == 1).all()


def test_alone_it_is_what_it_is_in_a_batch(speech_encoder: Build, waveforms: list[np.ndarray]) -> None:
    encoder = speech_encoder().eval()
    items = [encoder.frontend(raw) for raw in waveforms]
    together = encoder.stem_features(encoder.collate(items))
    for item, features, mask in zip(items, together.features, together.mask, strict=True):
        alone = encoder.stem_features(encoder.collate([item]))
        torch.testing.assert_close(features[mask][:, -1], alone.features[0, :, -1], rtol=0, atol=0)


@pytest.mark.parametrize("layer", ["last", "weighted"])
def test_the_encoder_hands_it_on_where_it_is_asked_to(
    speech_encoder: Build, waveforms: list[np.ndarray], layer: str
) -> None:
    plain, telling = (speech_encoder(layer=layer).eval() for _ in range(2))
    dim = plain.dim
    assert telling.hand_on_activity()
    inputs = plain.collate([plain.frontend(raw) for raw in waveforms])
    stored = plain.stem_features(inputs)
    assert stored.features.shape[2] == plain.stem_dim + 1
    for given in (inputs, stored):
        without, found = plain(given), telling(given)
        assert (without.features.shape[2], found.features.shape[2]) == (plain.dim, telling.dim) == (dim, dim + 1)
        torch.testing.assert_close(found.features[..., :-1], without.features, rtol=0, atol=0)
        torch.testing.assert_close(found.features[..., -1], stored.features[..., -1], rtol=0, atol=0)


def test_pooled_frames_have_none(speech_encoder: Build, waveforms: list[np.ndarray]) -> None:
    encoder = speech_encoder().eval()
    encoder.pool("mean_std")
    assert not encoder.hand_on_activity()
    found: Features = encoder(encoder.collate([encoder.frontend(raw) for raw in waveforms]))
    assert found.features.shape == (len(waveforms), 1, encoder.dim)


def test_a_front_end_is_the_same_where_it_was_sent_to_a_worker() -> None:
    raw = spoken((0.2, -20), (0.2, -60))
    frontend = WithActivity(Waveform(True, 400, 320))
    sent = pickle.loads(pickle.dumps(frontend))
    for name, value in frontend(raw).items():
        torch.testing.assert_close(sent(raw)[name], value, rtol=0, atol=0)
    assert sent.describe() == frontend.describe()
    assert not hasattr(frontend, "spectrogram")  # a waveform has none: what a front end lacks, it still lacks
