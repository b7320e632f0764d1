"""Where frames lie in an utterance, and the spectrogram that an encoder reads, as far as its front end says so."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from fourm_ser.analysis.findings import UnsuitedError
from fourm_ser.analysis.spectrogram import frame_edges, read_spectrogram
from fourm_ser.encoders.base import Encoder, Inputs
from fourm_ser.encoders.frontends import Examples, LogMelDecibels, ProsodyFrames
from tests.encoders.test_frontends import PROSODY, sine

SAMPLES = sine(300.0, 0.5, 1.5)


class Own:
    """A user's front end, which leaves a quiet beginning out and does not say so."""

    def __call__(self, raw: np.ndarray) -> Inputs:
        return {"samples": torch.from_numpy(np.trim_zeros(raw, "f"))}


class Told(Own):
    """One that says what it leaves out."""

    def span(self, raw: np.ndarray) -> tuple[float, float]:
        return np.flatnonzero(raw)[0] / 16_000, len(raw) / 16_000


def encoder_of(frontend: Any) -> Encoder:
    return cast(Encoder, SimpleNamespace(name="mine", frontend=frontend))


def test_frames_share_what_the_front_end_says_within_the_utterance() -> None:
    assert frame_edges(encoder_of(Told()), SAMPLES, 3) == pytest.approx([0.5, 1.0, 1.5, 2.0], abs=1e-3)
    vggish = frame_edges(encoder_of(Examples(drop_tail=False)), SAMPLES, 3)
    assert vggish == pytest.approx([0.0075, 0.9675, 1.9275, 2.0])
    panns = frame_edges(encoder_of(LogMelDecibels()), SAMPLES, 6)
    assert panns == pytest.approx([0, *(0.32 * np.arange(1, 7) - 0.005)])


def test_a_front_end_that_does_not_say_where_its_frames_lie_is_named() -> None:
    with pytest.raises(UnsuitedError, match=r"mine: where its frames lie .* front end Own has no method span\.$"):
        frame_edges(encoder_of(Own()), SAMPLES, 3)
    with pytest.raises(UnsuitedError, match=r"mine: there is no spectrogram .* Told has no method spectrogram\.$"):
        read_spectrogram(encoder_of(Told()), SAMPLES, Told()(SAMPLES))


def test_a_spectrogram_begins_behind_what_is_cut_off() -> None:
    frontend = ProsodyFrames(**PROSODY)
    found = read_spectrogram(encoder_of(frontend), SAMPLES, frontend(SAMPLES))
    assert found.values.shape == (len(found.times), len(found.hertz)) == (len(found.edges) - 1, 20)
    assert found.seen == len(found.values)
    assert (found.edges[0], found.edges[-1]) == pytest.approx(frontend.span(SAMPLES))
    assert found.times[0] == pytest.approx(0.5, abs=0.05)
