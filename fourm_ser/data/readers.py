"""What reads an utterance's recording. Worker processes that are spawned import this and not Lightning."""

import numpy as np
import pandas as pd

from fourm_ser.data.audio import read_audio


class AudioReader:
    """Reads waveforms [samples] at 16 kHz by position in the manifest, cropped to `max_seconds`."""

    def __init__(self, frame: pd.DataFrame, max_seconds: float | None) -> None:
        self.segments = list(frame[["file", "start", "end"]].itertuples(index=False, name=None))
        self.max_seconds = max_seconds

    def __call__(self, index: int) -> np.ndarray:
        path, start, end = self.segments[index]
        return read_audio(path, start, end, self.max_seconds)
