"""What reads an utterance's recording. Worker processes that are spawned import this and not Lightning."""

import numpy as np
import pandas as pd

from fourm_ser.data.audio import SAMPLE_RATE, read_audio


class AudioReader:
    """Reads waveforms [samples] at 16 kHz by position in the manifest, cropped to `max_seconds`."""

    def __init__(self, frame: pd.DataFrame, max_seconds: float | None) -> None:
        self.segments = list(frame[["file", "start", "end"]].itertuples(index=False, name=None))
        self.samples = None if max_seconds is None else round(max_seconds * SAMPLE_RATE)

    def __call__(self, index: int) -> np.ndarray:
        return read_audio(*self.segments[index])[: self.samples]
