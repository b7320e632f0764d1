"""Voice activity by energy: which frames of an utterance are speech, and which are pauses."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourm_ser import SAMPLE_RATE

HOP, WINDOW = 160, 512  # samples: 10 ms, and 32 ms, which hold two periods of a low voice
PAUSE, SPEECH = -35.0, -25.0  # dB from the loudest window: from where to where a window counts ever more
FLOOR = 1e-14  # under the power of a window: digital silence has no logarithm


def voice_activity(raw: np.ndarray) -> Tensor:
    """A waveform [samples] -> how far each 10 ms are speech [ceil(samples / 160)], float32, from 0 to 1.

    The power of the 32 ms around them is compared with that of the utterance's loudest: 0 where it is 35 dB below or
    less, 1 from 25 dB below. Where nothing is heard all is alike, and counts.
    """
    samples = torch.from_numpy(np.ascontiguousarray(raw, dtype=np.float32))
    before = (WINDOW - HOP) // 2
    behind = before + (-len(samples) % HOP if len(samples) else HOP)
    windows = nn.functional.pad(samples, (before, behind)).unfold(0, WINDOW, HOP)
    level = 10 * torch.log10(windows.square().mean(1) + FLOOR)
    return ((level - level.max() - PAUSE) / (SPEECH - PAUSE)).clamp(0, 1)


class WithActivity:
    """A front end of audio, and beside what it makes of an utterance the utterance's voice activity.

    Args:
        own: The front end; it tells its frames' `span`.
    """

    def __init__(self, own: Any) -> None:
        self.own = own

    def __call__(self, raw: np.ndarray) -> dict[str, Tensor]:
        """What the front end makes of a waveform, and `activity` [10 ms each] and `activity_span` [2] in seconds."""
        found, (begin, end) = voice_activity(raw), self.span(raw)
        missing = max(0, int(end * SAMPLE_RATE / HOP) + 1 - len(found))  # the last frame may end behind the recording
        activity = nn.functional.pad(found, (0, missing))
        return {**self.own(raw), "activity": activity, "activity_span": torch.tensor([begin, end])}

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The front end's batch, and `activity` (batch, longest) and `activity_span` (batch, 2)."""
        activity = nn.utils.rnn.pad_sequence([item["activity"] for item in items], batch_first=True)
        spans = torch.stack([item["activity_span"] for item in items])
        return {**self.own.collate(items), "activity": activity, "activity_span": spans}

    def span(self, raw: np.ndarray) -> tuple[float, float]:
        found: tuple[float, float] = self.own.span(raw)
        return found

    def describe(self) -> dict[str, Any]:
        return {**self.own.describe(), "activity": [PAUSE, SPEECH]}

    def __getattr__(self, name: str) -> Any:
        if name == "own" or name.startswith("__"):  # not there yet while it is unpickled
            raise AttributeError(name)
        return getattr(self.own, name)


def frame_activity(activity: Tensor, span: Tensor, mask: Tensor) -> Tensor:
    """Activity (batch, longest) every 10 ms, spans (batch, 2) and mask (batch, time) of frames -> (batch, time).

    A frame's is that of the 10 ms in its middle; an utterance's own frames share its span evenly.
    """
    middle = torch.arange(mask.shape[1], device=mask.device) + 0.5
    seconds = span[:, :1] + middle * (span[:, 1:] - span[:, :1]) / mask.sum(1, keepdim=True)
    places = (seconds * (SAMPLE_RATE / HOP)).long().clamp(0, activity.shape[1] - 1)
    return activity.gather(1, places)
