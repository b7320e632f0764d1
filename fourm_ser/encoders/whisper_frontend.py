"""The front end of Whisper: a waveform -> log-mel frames, in stretches of what the network hears at once."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourm_ser import SAMPLE_RATE
from fourm_ser.encoders.base import Inputs, pad
from fourm_ser.encoders.frontends import mel_middles, padded, span_of

HOP = 160  # samples: 10 ms
WINDOW = 400  # samples: 25 ms
POOLED = 2  # frames in one of the network's features, 20 ms
TAIL = 2  # frames, 20 ms: half a window reaches 12.5 ms
LEAST = 1e-10  # power of a band: digital silence has no logarithm
RANGE = (0.0, 8000.0)  # Hz
REACH = 8.0  # of the logarithm to base 10: what is quieter than the loudest by more is raised to this


class WhisperMel:
    """Front end of Whisper: a waveform -> log-mel frames, in stretches of 30 s, which the network hears at once.

    They are those of the original: windows centred on multiples of 10 ms, Slaney's mel scale and normalisation,
    log10(max(mel, 1e-10)), no value more than 8 below the stretch's largest, then (x + 4) / 4. The original computes
    them of a recording that is filled up with silence to 30 s. Here are those whose middle is within the utterance, an
    even number of them. Radford et al., 2022, https://arxiv.org/abs/2212.04356.

    Args:
        mels: Number of mel bands, 80 or 128.
        longest: Frames of a stretch, 3,000 for 30 s.
        tail: Whether the frames are there, too, that lie behind the utterance and whose windows reach into it.
    """

    def __init__(self, mels: int, longest: int, tail: bool) -> None:
        from transformers.audio_utils import mel_filter_bank  # here: a worker that is spawned is sent the filters

        self.mels, self.longest, self.tail = mels, longest, TAIL if tail else 0
        scale = {"norm": "slaney", "mel_scale": "slaney"}
        filters = mel_filter_bank(WINDOW // 2 + 1, mels, *RANGE, SAMPLE_RATE, **scale)
        self.filters = torch.from_numpy(filters).float().T.contiguous()  # (mels, bins)
        self.window = torch.hann_window(WINDOW)

    def __call__(self, raw: np.ndarray) -> Inputs:
        """A waveform [samples] at 16 kHz -> frames of all its stretches.

        Returns:
            `frames` [time, mels]; `silence` [stretches], the value of a band that is quieter than the stretch's largest
            by 8 or more; and `count` [1], how many features the network makes of the utterance.
        """
        samples = padded(raw, 1)
        found = [self._stretch(part) for part in torch.split(samples, self.longest * HOP)]
        return {
            "frames": torch.cat([frames for frames, _ in found]),
            "silence": torch.stack([silence for _, silence in found]),
            "count": torch.tensor([_features(len(samples))]),
        }

    def _stretch(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Samples of 30 s at most -> frames (time, mels), and the value of silence."""
        behind = min(self.longest * HOP - len(samples), 2 * WINDOW)  # as far as any frame reaches, and mirrored there
        samples = nn.functional.pad(samples, (0, behind))
        spectrum = torch.stft(samples, WINDOW, HOP, window=self.window, return_complex=True)[:, :-1]
        levels = (self.filters @ (spectrum.abs() ** 2).contiguous()).clamp(min=LEAST).log10().T
        floor = levels.max() - REACH
        count = min(_features(len(samples) - behind) * POOLED + self.tail, self.longest)
        return (torch.maximum(levels, floor)[:count] + 4) / 4, (floor.clamp(min=math.log10(LEAST)) + 4) / 4

    def collate(self, items: Sequence[Inputs]) -> Inputs:
        """The stretches of all utterances as one batch, and where in it each utterance's features will be.

        Returns:
            `frames` (stretches, longest, mels), `lengths` (stretches,) in frames, `silence` (stretches,), `counts`
            (batch,) features of each utterance, and `places` (batch, most features) of these among those of all
            stretches (stretches * longest / 2), the first one's where an utterance has no more.
        """
        rows = [part for item in items for part in torch.split(item["frames"], self.longest)]
        frames = pad(rows)
        counts = torch.cat([item["count"] for item in items])
        stretches = torch.tensor([len(item["silence"]) for item in items])
        first = (stretches.cumsum(0) - stretches)[:, None] * (frames.shape[1] // POOLED)
        steps = torch.arange(int(counts.max()))
        return {
            "frames": frames,
            "lengths": torch.tensor([len(row) for row in rows]),
            "silence": torch.cat([item["silence"] for item in items]),
            "counts": counts,
            # What is followed by another stretch is as wide as the batch.
            "places": first + torch.where(steps < counts[:, None], steps, 0),
        }

    def span(self, raw: np.ndarray) -> tuple[float, float]:
        return span_of(_features(max(len(raw), 1)) * POOLED, 0, HOP)

    def spectrogram(self, inputs: Inputs) -> tuple[Tensor, np.ndarray, float]:
        frames = inputs["frames"][: POOLED * int(inputs["count"])]
        return frames, mel_middles(self.mels, *RANGE, htk=False), HOP / SAMPLE_RATE

    def describe(self) -> dict[str, Any]:
        return {"spectrogram": "whisper", "mels": self.mels, "longest": self.longest, "tail": self.tail}

    def seconds(self, seconds: np.ndarray) -> np.ndarray:
        """How long utterances of so many seconds are once they are filled up to whole stretches."""
        longest = self.longest * HOP / SAMPLE_RATE
        return np.ceil(np.maximum(seconds, 1 / SAMPLE_RATE) / longest) * longest


def _features(samples: int) -> int:
    """How many features the network makes of so many samples: one for each 20 ms that are begun."""
    return -(-samples // (POOLED * HOP))
