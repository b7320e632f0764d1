"""An audio encoder for small corpora, trained from nothing: cepstra, pitch and voicing, and one convolution on them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn

from fourm_ser.encoders.augment import SpecAugment
from fourm_ser.encoders.base import Encoder, Features, Inputs, Resources, length_mask, pad, require_random
from fourm_ser.encoders.mel_lstm import SAMPLE_RATE
from fourm_ser.errors import InputError

TRIM_WINDOW, TRIM_HOP = 512, 160  # samples
OCTAVE_COST = 0.01  # of Boersma: by so much a period twice as long has to be the better one
LIFTER = 22  # of HTK: brings the cepstral coefficients to like variances


class ProsodyFrames:
    """Front end: a waveform -> log-mel frames, and the pitch and voicing of each, quiet ends cut off.

    Pitch is where the autocorrelation of the frame, divided by that of its window, is highest but for a cost of long
    periods (Boersma 1993); how high it is there is the voicing. Frames of all three begin at the same samples.

    Args:
        trim: the ends that are so many dB below the loudest 32 ms are left out; None to keep them. Corpora are often
            cut or padded to lengths that give the emotion away: what is left has none of the padding.
        mels: number of mel bands.
        mel_window: length of the mel bands' Hann window in samples, in the middle of
        window: the pitch's, which has to hold two periods; also what a shorter utterance is padded to.
        hop: step between frames in samples.
        low, high: range of the mel bands in Hz.
        pitch_low, pitch_high: range of the pitch in Hz.
        mean: what log-mel frames are shifted by: a number, so that an utterance never depends on another.

    Raises:
        InputError: a window that is too short for what it should hold, a pitch range that is none.
    """

    def __init__(
        self,
        trim: float | None,
        mels: int,
        mel_window: int,
        window: int,
        hop: int,
        low: float,
        high: float,
        pitch_low: float,
        pitch_high: float,
        mean: float,
    ) -> None:
        if trim is not None and trim <= 0:
            raise InputError(f"encoder.audio.trim={trim}: expected a number of dB above 0, or null.")
        if mel_window > window:
            raise InputError(f"encoder.audio.mel_window={mel_window}: longer than encoder.audio.window={window}.")
        if not 2 * SAMPLE_RATE / window <= pitch_low < pitch_high < SAMPLE_RATE / 2:
            raise InputError(
                f"encoder.audio: pitch_low={pitch_low} and pitch_high={pitch_high}: expected a range in Hz from "
                f"{2 * SAMPLE_RATE / window:.1f} (two periods in a window of {window} samples)."
            )
        self.arguments = {
            "trim": trim,
            "mels": mels,
            "mel_window": mel_window,
            "window": window,
            "hop": hop,
            "low": low,
            "high": high,
            "pitch_low": pitch_low,
            "pitch_high": pitch_high,
            "mean": mean,
        }
        self.trim, self.mean, self.window, self.hop = trim, mean, window, hop
        self.spectrogram = torchaudio.transforms.MelSpectrogram(
            SAMPLE_RATE, window, mel_window, hop, f_min=low, f_max=high, n_mels=mels, center=False
        )
        self.shortest, self.longest = int(SAMPLE_RATE / pitch_high), int(SAMPLE_RATE / pitch_low)  # lags in samples
        self.hann = torch.hann_window(window)
        own = self._correlate(self.hann)
        self.hann_correlation = own / own[0]

    def __call__(self, raw: np.ndarray) -> Inputs:
        """A waveform [samples] at 16 kHz -> `frames` [time, mels + 2]: mel bands, pitch (octaves over 200 Hz), voicing.

        Voicing is 1 where a frame repeats itself exactly and 0 where it does not at all.
        """
        samples = self._cut(torch.from_numpy(np.asarray(raw, dtype=np.float32)))
        missing = self.window - len(samples)
        if missing > 0:
            samples = nn.functional.pad(samples, (0, missing))
        bands = torch.log(self.spectrogram(samples) + 1e-6).T - self.mean
        return {"frames": torch.cat([bands, self._pitch(samples)], dim=1)}

    def _cut(self, samples: Tensor) -> Tensor:
        if self.trim is None or len(samples) < TRIM_WINDOW:
            return samples
        level = 10 * torch.log10(samples.unfold(0, TRIM_WINDOW, TRIM_HOP).square().mean(1) + 1e-10)
        loud = torch.nonzero(level > level.max() - self.trim).flatten()
        return samples[int(loud[0]) * TRIM_HOP : int(loud[-1]) * TRIM_HOP + TRIM_WINDOW]

    def _correlate(self, frames: Tensor) -> Tensor:
        """Frames (..., window) -> their autocorrelation (..., lags), from lag 0 to the longest."""
        power = torch.fft.rfft(frames, 2 * self.window).abs().square()
        return torch.fft.irfft(power)[..., : self.longest]

    def _pitch(self, samples: Tensor) -> Tensor:
        """Samples -> (time, 2): octaves over 200 Hz, voicing."""
        own = self._correlate(samples.unfold(0, self.window, self.hop) * self.hann)
        # A floor under the energy: what is all but silent has no voice.
        alike = own / (own[:, :1] + 1e-4) / self.hann_correlation
        lags = torch.arange(self.shortest, self.longest)
        # What repeats itself after a period does so after two, as well.
        best = (alike[:, self.shortest :] - OCTAVE_COST * torch.log2(lags / self.shortest)).argmax(1)
        pitch = torch.log2(SAMPLE_RATE / 200 / lags[best])
        voicing = alike.gather(1, lags[best, None])[:, 0]
        return torch.stack([pitch, voicing.clamp(0, 1)], dim=1)

    def collate(self, items: Sequence[Inputs]) -> Inputs:
        """`frames` (batch, time, mels + 2) and `lengths` (batch,) in frames."""
        rows = [item["frames"] for item in items]
        return {"frames": pad(rows), "lengths": torch.tensor([len(row) for row in rows])}

    def describe(self) -> dict[str, Any]:
        return self.arguments


def liftered_cosines(mels: int, cepstra: int) -> Tensor:
    """The matrix (mels, cepstra) that makes liftered cepstral coefficients of log-mel bands (HTK's, orthonormal).

    The coefficients are brought to the size of one by fixed numbers, c0 by another than the rest.
    """
    coefficient = torch.arange(cepstra, dtype=torch.float64)
    band = torch.arange(mels, dtype=torch.float64)[:, None]
    cosines = torch.cos(math.pi / mels * (band + 0.5) * coefficient) * math.sqrt(2 / mels)
    cosines[:, 0] /= math.sqrt(2)
    lifter = 1 + LIFTER / 2 * torch.sin(math.pi * coefficient / LIFTER)
    scale = torch.where(coefficient == 0, 20.0, 12.0)
    return (cosines * lifter / scale).float()


class ProsodyStem(nn.Module):
    """Cepstra, pitch and voicing of each frame, what one convolution makes of them, and whether it is voiced.

    Args:
        augment: what training changes of speed and of the bands.
        cosines: the matrix (mels, cepstra) that makes cepstra of mel bands.
        convolution: over cepstra, pitch and voicing of neighbouring frames.
        dropout: share of the convolution's features that training drops.
        pitch_shift: octaves by which training moves an utterance's pitch at most.
    """

    cosines: Tensor

    def __init__(
        self, *, augment: SpecAugment, cosines: Tensor, convolution: nn.Conv1d, dropout: float, pitch_shift: float
    ) -> None:
        super().__init__()
        self.pitch_shift, self.augment, self.convolution = pitch_shift, augment, convolution
        self.register_buffer("cosines", cosines, persistent=False)
        self.layers = nn.Sequential(nn.LayerNorm(convolution.out_channels), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, inputs: Inputs) -> Features:
        """`frames` (batch, time, mels + 2), `lengths` (batch,) -> features (batch, time, cepstra + channels + 3)."""
        frames, lengths = inputs["frames"], inputs["lengths"]
        if self.augment.training:
            frames, lengths = self._change(frames, lengths)
        mask = length_mask(lengths, frames.shape[1])
        bands, pitch, voicing = torch.split(frames, [len(self.cosines), 1, 1], dim=2)
        # Where nothing is voiced the highest autocorrelation is no pitch: it counts by how voiced the frame is.
        voiced = ((voicing - 0.4) / 0.4).clamp(0, 1)
        own = torch.cat([bands @ self.cosines, 2 * pitch * voiced, (voicing - 0.5) / 0.3], dim=2)
        own = own * mask[..., None]  # see `zero_padding`
        hidden = self.layers(self.convolution(own.transpose(1, 2)).transpose(1, 2))
        return Features(torch.cat([own, hidden, voiced], dim=2), mask)

    def _change(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Another speed, another vocal tract, another pitch, drawn for each row."""
        if self.augment.stretch:
            frames, lengths = self.augment.change_speed(frames, lengths)
        bands, pitch, voicing = torch.split(frames, [len(self.cosines), 1, 1], dim=2)
        if self.augment.shift:
            bands = self.augment.move(bands)
        if self.pitch_shift:
            pitch = pitch + self.pitch_shift * (2 * torch.rand(len(pitch), 1, 1, device=pitch.device) - 1)
        return torch.cat([bands, pitch, voicing], dim=2), lengths


class ProsodyCnn(Encoder):
    """Cepstra, pitch and voicing a frame, beside what one convolution makes of them; all of it is the stem.

    A few thousand weights: it learns from some hundred utterances, where deeper networks over spectrograms remember
    them. What carries it are the statistics of its frames over an utterance: see `StatisticsFusion`. The last feature,
    from 0 to 1, is whether the frame is voiced.

    Args:
        name: the encoder's name in the store and in the log.
        weights: `random`: the architecture has no pretrained weights.
        init_seed: seed of the random weights.
        cepstra: cepstral coefficients of a frame, the level among them.
        channels: output channels of the convolution.
        kernel: the convolution's width in frames; odd.
        dropout: share of the convolution's features that training drops.
        stretch: how much training changes the speed, see `SpecAugment`.
        shift: bands by which training moves the spectrum at most, see `SpecAugment`.
        pitch_shift: octaves by which training moves an utterance's pitch at most.
        trim, mels, mel_window, window, hop, low, high, pitch_low, pitch_high, mean: see `ProsodyFrames`.
        resources: not used.

    Raises:
        InputError: other weights than `random`, more cepstra than bands, an even kernel, a negative shift, numbers
            that `SpecAugment` or `ProsodyFrames` refuses.
    """

    modality: ClassVar[str] = "audio"
    stem: ProsodyStem

    def __init__(
        self,
        *,
        name: str,
        weights: str,
        init_seed: int,
        cepstra: int,
        channels: int,
        kernel: int,
        dropout: float,
        stretch: float,
        shift: float,
        pitch_shift: float,
        trim: float | None,
        mels: int,
        mel_window: int,
        window: int,
        hop: int,
        low: float,
        high: float,
        pitch_low: float,
        pitch_high: float,
        mean: float,
        resources: Resources,
    ) -> None:
        super().__init__()
        require_random(weights, name)
        if not 1 <= cepstra <= mels:
            raise InputError(f"encoder.audio.cepstra={cepstra}: expected from 1 to encoder.audio.mels={mels}.")
        if kernel < 1 or kernel % 2 == 0:
            raise InputError(f"encoder.audio.kernel={kernel}: expected an odd number of frames.")
        if pitch_shift < 0:
            raise InputError(f"encoder.audio.pitch_shift={pitch_shift}: expected a number of octaves from 0.")
        self.name = name
        self.weights = weights
        self.frontend = ProsodyFrames(trim, mels, mel_window, window, hop, low, high, pitch_low, pitch_high, mean)
        augment = SpecAugment(
            stretch=stretch, shift=shift, time_masks=0, time_share=0.0, band_masks=0, band_width=0, bands=mels
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(init_seed)
            self.stem = ProsodyStem(
                augment=augment,
                cosines=liftered_cosines(mels, cepstra),
                convolution=nn.Conv1d(cepstra + 2, channels, kernel, padding=kernel // 2),
                dropout=dropout,
                pitch_shift=pitch_shift,
            )
        self.top = nn.Identity()
        self.stem_dim = self.dim = cepstra + channels + 3

    @classmethod
    def width(cls, arguments: Mapping[str, Any]) -> int | None:
        return int(arguments["cepstra"]) + int(arguments["channels"]) + 3

    def blocks(self) -> list[nn.Module]:
        """The convolution and its norm, as one."""
        return [nn.ModuleList([self.stem.convolution, self.stem.layers])]

    def describe(self) -> dict[str, Any]:
        """How many cepstra: the convolution's shape tells it, the lifter and the scale it does not."""
        return {"cepstra": self.stem.cosines.shape[1], "lifter": LIFTER}
