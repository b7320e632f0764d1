"""Where an encoder's frames lie in a recording, and the spectrogram that it reads: what its front end says of them."""

from typing import Any, NamedTuple

import numpy as np

from fourm_ser import SAMPLE_RATE
from fourm_ser.analysis.findings import UnsuitedError
from fourm_ser.encoders.activity import WithActivity
from fourm_ser.encoders.base import Encoder, Inputs


class Spectrogram(NamedTuple):
    """A spectrogram as the network reads it.

    Attributes:
        values: (frames, bands), scaled as the front end scales them.
        edges: (frames + 1,) the ends of the frames in seconds of the utterance.
        hertz: (bands,) the middle of each band.
        seen: Frames that the encoder's features stand for: those behind them are left out by its pooling.
    """

    values: np.ndarray
    edges: np.ndarray
    hertz: np.ndarray
    seen: int

    @property
    def times(self) -> np.ndarray:
        """(frames,) the middle of each frame in seconds of the utterance."""
        return (self.edges[:-1] + self.edges[1:]) / 2


def frame_edges(encoder: Encoder, samples: np.ndarray, frames: int) -> np.ndarray:
    """The ends in seconds, (frames + 1,), of the frames that an encoder makes of a waveform [samples] at 16 kHz.

    Raises:
        UnsuitedError: Its front end does not say where they lie.
    """
    begin, end = _ask(encoder, "span", samples)
    return np.clip(np.linspace(begin, end, frames + 1), 0.0, len(samples) / SAMPLE_RATE)


def read_spectrogram(encoder: Encoder, samples: np.ndarray, inputs: Inputs) -> Spectrogram:
    """The spectrogram in the inputs that an encoder's front end made of a waveform [samples] at 16 kHz.

    Raises:
        UnsuitedError: The front end has none, or does not say where its frames lie.
    """
    values, hertz, hop = _ask(encoder, "spectrogram", inputs)
    begin, end = _ask(encoder, "span", samples)
    edges = begin + hop * np.arange(len(values) + 1)
    return Spectrogram(np.asarray(values), edges, hertz, min(len(values), round((end - begin) / hop)))


def _ask(encoder: Encoder, method: str, of: Any) -> Any:
    """What a method that a front end need not have says."""
    frontend: Any = encoder.frontend
    if not hasattr(frontend, method):
        own = frontend.own if isinstance(frontend, WithActivity) else frontend
        what = {"span": "where its frames lie in time cannot be told", "spectrogram": "there is no spectrogram to show"}
        raise UnsuitedError(
            f"The audio encoder {encoder.name}: {what[method]}, for its front end {type(own).__name__} "
            f"has no method {method}."
        )
    return getattr(frontend, method)(of)
