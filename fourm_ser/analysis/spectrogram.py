"""The log-mel spectrogram that an audio encoder's front end makes, with its seconds and its bands."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fourm_ser.analysis.clock import read_span
from fourm_ser.analysis.findings import UnsuitedError
from fourm_ser.data.audio import SAMPLE_RATE
from fourm_ser.encoders import panns, vggish
from fourm_ser.encoders.base import Encoder, Inputs
from fourm_ser.encoders.mel_lstm import LogMel
from fourm_ser.encoders.panns import LogMelDecibels
from fourm_ser.encoders.prosody import ProsodyFrames
from fourm_ser.encoders.vggish import Examples


class Spectrogram(NamedTuple):
    """A spectrogram as the network reads it.

    Attributes:
        values: (frames, bands), scaled as the front end scales them.
        times: (frames,) the middle of each frame's window in seconds of the utterance.
        hertz: (bands,) the middle of each mel band.
        step: seconds from a frame to the next.
        seen: frames that the last convolution's map stands for: those behind them are left out by its pooling.
    """

    values: np.ndarray
    times: np.ndarray
    hertz: np.ndarray
    step: float
    seen: int


def read_spectrogram(encoder: Encoder, samples: np.ndarray, inputs: Inputs) -> Spectrogram:
    """The spectrogram in an encoder's inputs.

    Args:
        encoder: the audio encoder.
        samples: the utterance [samples] at 16 kHz.
        inputs: what its front end makes of them.

    Raises:
        UnsuitedError: it reads no spectrogram.
    """
    frontend = encoder.frontend
    begin, _ = read_span(frontend, samples)
    if isinstance(frontend, Examples):
        values = inputs["examples"].reshape(-1, vggish.MELS)
        filters, hop, middle = frontend.filters, vggish.HOP, vggish.WINDOW / 2
    elif isinstance(frontend, LogMelDecibels):
        values, filters, hop, middle = inputs["frames"], frontend.filters, panns.HOP, 0.0
    elif isinstance(frontend, LogMel | ProsodyFrames):
        filters = frontend.spectrogram.mel_scale.fb
        values = inputs["frames"][:, : filters.shape[1]]
        hop, middle = frontend.spectrogram.hop_length, frontend.window / 2
    else:
        raise UnsuitedError(f"The audio encoder {encoder.name} reads the waveform itself: there is no spectrogram.")
    times = begin + (middle + hop * np.arange(len(values))) / SAMPLE_RATE
    seen = len(values) // panns.FRAMES * panns.FRAMES if isinstance(frontend, LogMelDecibels) else len(values)
    return Spectrogram(values.numpy(), times, _middles(filters), hop / SAMPLE_RATE, seen)


def _middles(filters: Tensor) -> np.ndarray:
    """Mel filters (bins, bands) -> the centre of mass of each in Hz (bands,)."""
    hertz = torch.linspace(0, SAMPLE_RATE / 2, len(filters), dtype=torch.float64)[:, None]
    weights = filters.double()
    middles = (weights * hertz).sum(0) / weights.sum(0)  # NaN where a band is narrower than the bins
    bands = np.arange(len(middles))
    known = torch.isfinite(middles).numpy()
    return np.interp(bands, bands[known], middles.numpy()[known])
