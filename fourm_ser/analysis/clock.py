"""Where an encoder's frames lie in an utterance, in seconds."""

import numpy as np
import torch

from fourm_ser.data.audio import SAMPLE_RATE
from fourm_ser.encoders.base import Frontend
from fourm_ser.encoders.prosody import ProsodyFrames
from fourm_ser.encoders.vggish import EXAMPLE, HOP, Examples


def read_span(frontend: Frontend, samples: np.ndarray) -> tuple[float, float]:
    """What of an utterance a front end reads, from and to, in seconds: all of it, unless it cuts quiet ends off.

    Args:
        frontend: the audio encoder's.
        samples: the waveform [samples] at 16 kHz.
    """
    begin, count = 0, len(samples)
    if isinstance(frontend, ProsodyFrames):
        cut = frontend._cut(torch.from_numpy(np.asarray(samples, dtype=np.float32)))
        begin, count = int(cut.storage_offset()), len(cut)  # a view of the samples: it knows where it begins
    return begin / SAMPLE_RATE, (begin + count) / SAMPLE_RATE


def frame_edges(frontend: Frontend, samples: np.ndarray, frames: int) -> np.ndarray:
    """The ends of an encoder's frames in seconds, (frames + 1,).

    Frames share what the front end reads evenly: a frame's centre is right to within a frame. VGGish's last as 0.96 s
    as all others, as far as the utterance goes.

    Args:
        frontend: the audio encoder's.
        samples: the waveform [samples] at 16 kHz.
        frames: how many there are.
    """
    begin, end = read_span(frontend, samples)
    step = EXAMPLE * HOP / SAMPLE_RATE if isinstance(frontend, Examples) else (end - begin) / frames
    return np.minimum(begin + step * np.arange(frames + 1), end)
