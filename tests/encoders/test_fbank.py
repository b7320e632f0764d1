"""The front end of w2v-BERT against Transformers' own, utterance by utterance."""

import pickle

import numpy as np
import pytest
import torch
from transformers import SeamlessM4TFeatureExtractor

from fourm_ser.encoders.fbank import FilterBank


@pytest.fixture(scope="module")
def frontend() -> FilterBank:
    return FilterBank(normalize=True, mels=80, together=2)


@pytest.fixture(scope="module")
def extractor() -> SeamlessM4TFeatureExtractor:
    return SeamlessM4TFeatureExtractor()


def waves() -> list[np.ndarray]:
    """Noise that swells, of even and odd numbers of frames; silence behind; silence alone; loud and far off zero."""
    rng = np.random.default_rng(0)
    noises = [
        (rng.normal(0, 0.1, count) * np.sin(np.arange(count) / 400)).astype(np.float32)
        for count in (560, 719, 880, 16_000, 16_160, 40_000)
    ]
    behind = np.concatenate([noises[3], np.zeros(8_000, np.float32)])
    return [*noises, behind, np.zeros(8_000, np.float32), (noises[4] * 8 + 0.3).astype(np.float32)]


@pytest.mark.parametrize("normalize", [True, False])
def test_frames_are_those_of_transformers(normalize: bool, extractor: SeamlessM4TFeatureExtractor) -> None:
    frontend = FilterBank(normalize=normalize, mels=80, together=2)
    for wave in waves():
        expected = extractor(wave, sampling_rate=16_000, do_normalize_per_mel_bins=normalize, return_tensors="pt")
        own = expected["attention_mask"][0].bool()
        frames = frontend(wave)["frames"]
        assert frames.dtype == torch.float32
        torch.testing.assert_close(frames, expected["input_features"][0, own], rtol=0, atol=1e-4)


def test_an_utterance_shorter_than_two_windows_is_padded(frontend: FilterBank) -> None:
    for count in (0, 1, 559):
        frames = frontend(np.full(count, 0.1, np.float32))["frames"]
        assert frames.shape == (1, 160)
        assert torch.isfinite(frames).all()


def test_a_batch_is_padded_and_says_how_long_each_is(frontend: FilterBank) -> None:
    items = [frontend(wave) for wave in waves()[:5]]
    batch = frontend.collate(items)
    assert batch["frames"].shape == (5, 49, 160)
    assert batch["lengths"].tolist() == [len(item["frames"]) for item in items] == [1, 1, 2, 49, 49]


def test_it_is_picklable_and_says_what_it_computes(frontend: FilterBank) -> None:
    copy = pickle.loads(pickle.dumps(frontend))
    assert torch.equal(copy(waves()[3])["frames"], frontend(waves()[3])["frames"])
    assert copy.describe() == frontend.describe()
    assert FilterBank(normalize=False, mels=80, together=2).describe() != frontend.describe()


def test_the_spectrogram_shows_a_tone_where_it_sounds(frontend: FilterBank) -> None:
    tone = np.random.default_rng(0).normal(0, 1e-3, 16_000)
    tone[8_000:] += 0.5 * np.sin(2 * np.pi * 1_000 * np.arange(8_000) / 16_000)
    wave = tone.astype(np.float32)
    values, hertz, hop = frontend.spectrogram(frontend(wave))
    begin, end = frontend.span(wave)
    assert values.shape == (98, 80)
    assert len(hertz) == 80
    assert begin + len(values) * hop == pytest.approx(end)
    assert begin == pytest.approx(0.0075)
    band = int(np.abs(hertz - 1_000).argmin())
    rises = (values[80:] - values[:40].mean(0)).mean(0)
    raw = FilterBank(normalize=False, mels=80, together=2)
    louder = raw.spectrogram(raw(wave))[0]
    assert int((louder[60:].mean(0) - louder[:40].mean(0)).argmax()) == band
    assert rises[band] > 1
