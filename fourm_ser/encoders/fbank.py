"""The front end of w2v-BERT: log-mel frames as Kaldi computes them, two side by side every 20 ms."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourm_ser import SAMPLE_RATE
from fourm_ser.encoders.base import Inputs, pad
from fourm_ser.encoders.frontends import count_windows, mel_middles, padded, span_of


class FilterBank:
    """Front end of wav2vec2-bert: a waveform -> log-mel frames by Kaldi, each mel band normalised over the utterance.

    It computes what `SeamlessM4TFeatureExtractor` of Transformers does, all frames at once. Frames that fill no group
    are left out, as there.

    Args:
        normalize: Scale each mel band to zero mean and unit variance over the utterance.
        mels: Number of mel bands.
        together: How many frames lie side by side in one of the model's.
    """

    WINDOW, HOP = 400, 160  # samples: 25 and 10 ms
    LOW, HIGH = 20.0, 8000.0  # Hz
    FFT = 512  # the power of two above the window
    FULL_SCALE = 32_768.0  # Kaldi reads 16-bit integers
    PREEMPHASIS = 0.97
    FLOOR = float(torch.finfo(torch.float32).eps)  # under the power of a band: digital silence has no logarithm

    def __init__(self, *, normalize: bool, mels: int, together: int) -> None:
        self.normalize, self.mels, self.together = normalize, mels, together
        self.least = self.WINDOW + (max(2, together) - 1) * self.HOP  # of one frame there is no variance
        # In double precision, as the original: the logarithm magnifies roundings of quiet bands.
        self.window = torch.hann_window(self.WINDOW, periodic=False, dtype=torch.float64).pow(0.85)  # Kaldi's own
        self.filters = self._mel_filters()  # (bins, mels)

    def __call__(self, raw: np.ndarray) -> Inputs:
        """A waveform [samples] at 16 kHz -> `frames` [time, together * mels]."""
        samples = padded(raw, self.least, torch.float64) * self.FULL_SCALE
        windows = samples.unfold(0, self.WINDOW, self.HOP)  # (frames, samples of a window)
        windows = windows - windows.mean(1, keepdim=True)
        before = torch.cat([windows[:, :1], windows[:, :-1]], dim=1)
        spectra = torch.fft.rfft((windows - self.PREEMPHASIS * before) * self.window, n=self.FFT)
        power = spectra.abs().square() @ self.filters  # (frames, mels)
        frames = power.clamp(min=self.FLOOR).log().float()
        if self.normalize:
            frames = (frames - frames.mean(0)) / torch.sqrt(frames.var(0) + 1e-7)
        groups = len(frames) // self.together
        return {"frames": frames[: groups * self.together].reshape(groups, -1)}

    def _mel_filters(self) -> Tensor:
        """Kaldi's mel filters (bins, mels): triangles over mel, not over Hz."""
        from transformers.audio_utils import mel_filter_bank  # the processes that load data need none of Transformers

        filters = mel_filter_bank(
            num_frequency_bins=self.FFT // 2 + 1,
            num_mel_filters=self.mels,
            min_frequency=self.LOW,
            max_frequency=self.HIGH,
            sampling_rate=SAMPLE_RATE,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
        return torch.from_numpy(filters)

    def collate(self, items: Sequence[Inputs]) -> Inputs:
        """`frames` (batch, time, together * mels) and `lengths` (batch,) in frames."""
        rows = [item["frames"] for item in items]
        return {"frames": pad(rows), "lengths": torch.tensor([len(row) for row in rows])}

    def describe(self) -> dict[str, Any]:
        about = {"spectrogram": "kaldi", "window": self.WINDOW, "hop": self.HOP, "mels": self.mels}
        return {**about, "together": self.together, "normalize": self.normalize}

    def span(self, raw: np.ndarray) -> tuple[float, float]:
        frames = count_windows(max(len(raw), self.least), self.WINDOW, self.HOP)
        return span_of(frames // self.together * self.together, self.WINDOW, self.HOP)

    def spectrogram(self, inputs: Inputs) -> tuple[Tensor, np.ndarray, float]:
        hertz = mel_middles(self.mels, self.LOW, self.HIGH, htk=True)
        return inputs["frames"].reshape(-1, self.mels), hertz, self.HOP / SAMPLE_RATE
