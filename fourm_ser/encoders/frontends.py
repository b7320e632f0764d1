"""Front ends of audio encoders: from a waveform to the inputs of a stem, and where in the recording these lie."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn

from fourm_ser import SAMPLE_RATE
from fourm_ser.checks import check_word
from fourm_ser.encoders.base import Inputs, pad
from fourm_ser.errors import InputError

LEVELS = ("kept", "utterance", "band")
FLOOR = 1e-6  # under the power of a band: digital silence has no logarithm
TRIM_WINDOW, TRIM_HOP = 512, 160  # samples: 32 ms hold two periods of a low voice, 10 ms are the usual step
OCTAVE_COST = 0.01  # of Boersma: by so much a period twice as long has to be the better one


def padded(raw: np.ndarray, least: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A waveform [samples] as a tensor, filled up with zeros to `least` samples."""
    samples = torch.from_numpy(np.ascontiguousarray(raw)).to(dtype)
    return nn.functional.pad(samples, (0, max(0, least - len(samples))))


def loud_ends(raw: np.ndarray, trim: float | None) -> tuple[int, int]:
    """Of a waveform [samples], the first sample that is read, and the first that is no longer.

    What is between lies less than `trim` dB below the loudest window; None for all of it.
    """
    if trim is None or len(raw) < TRIM_WINDOW:
        return 0, len(raw)
    windows = padded(raw, 0).unfold(0, TRIM_WINDOW, TRIM_HOP)
    level = 10 * torch.log10(windows.square().mean(1) + 1e-10)
    loud = torch.nonzero(level > level.max() - trim).flatten() * TRIM_HOP
    return int(loud[0]), int(loud[-1]) + TRIM_WINDOW


def count_windows(samples: int, window: int, hop: int) -> int:
    """How many frames a waveform makes: those whose windows it fills, and one where it fills none."""
    return max(samples - window, 0) // hop + 1


def span_of(frames: int, window: int, hop: int) -> tuple[float, float]:
    """From where to where frames reach, in seconds: each is a hop wide, about the middle of its window.

    The first window of so many samples begins with the waveform; it is 0 where they are centred on multiples of a hop.
    """
    begin = (window - hop) / 2 / SAMPLE_RATE
    return begin, begin + frames * hop / SAMPLE_RATE


def mel_middles(mels: int, low: float, high: float, htk: bool) -> np.ndarray:
    """The middle of each mel band in Hz (mels,), on HTK's scale or on Slaney's."""
    import librosa  # takes a second, and only pictures need it

    return librosa.mel_frequencies(mels + 2, fmin=low, fmax=high, htk=htk)[1:-1]


class Waveform:
    """Front end of the self-supervised models: a waveform, normalised to zero mean and unit variance if asked for.

    The model's frames need `receptive_field` samples, to which a shorter utterance is padded, every `stride` samples.
    """

    def __init__(self, normalize: bool, receptive_field: int, stride: int) -> None:
        self.normalize, self.receptive_field, self.stride = normalize, receptive_field, stride

    def __call__(self, raw: np.ndarray) -> Inputs:
        """A waveform [samples] at 16 kHz -> `samples` [samples]."""
        samples = padded(raw, 0)
        if self.normalize:
            samples = (samples - samples.mean()) / torch.sqrt(samples.var(unbiased=False) + 1e-7)
        return {"samples": nn.functional.pad(samples, (0, max(0, self.receptive_field - len(samples))))}

    def collate(self, items: Sequence[Inputs]) -> Inputs:
        """`samples` (batch, samples) and `lengths` (batch,) in samples."""
        rows = [item["samples"] for item in items]
        return {"samples": pad(rows), "lengths": torch.tensor([len(row) for row in rows])}

    def describe(self) -> dict[str, Any]:
        return {"normalize": self.normalize, "receptive_field": self.receptive_field}

    def span(self, raw: np.ndarray) -> tuple[float, float]:
        window, hop = self.receptive_field, self.stride
        return span_of(count_windows(len(raw), window, hop), window, hop)


class MelFrames:
    """What front ends have in common whose inputs are frames of mel bands.

    Args:
        about: All that changes what the front end returns, as JSON values.
        least: Samples that a shorter utterance is padded to with zeros.
        **spectrogram: What torchaudio's `MelSpectrogram` takes beyond the sample rate.
    """

    def __init__(self, about: dict[str, Any], least: int, **spectrogram: Any) -> None:
        self.about, self.least = about, least
        self.power = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, **spectrogram)
        self.mels: int = self.power.n_mels

    def logarithm(self, samples: Tensor) -> Tensor:
        """Samples -> the natural logarithm of the mel bands' power (time, mels)."""
        return torch.log(self.power(samples) + FLOOR).T

    def collate(self, items: Sequence[Inputs]) -> Inputs:
        """`frames` (batch, time, width) and `lengths` (batch,) in frames."""
        rows = [item["frames"] for item in items]
        return {"frames": pad(rows), "lengths": torch.tensor([len(row) for row in rows])}

    def describe(self) -> dict[str, Any]:
        return self.about

    def span(self, raw: np.ndarray) -> tuple[float, float]:
        window, hop = self.power.n_fft, self.power.hop_length
        return span_of(count_windows(len(raw), window, hop), window, hop)

    def spectrogram(self, inputs: Inputs) -> tuple[Tensor, np.ndarray, float]:
        scale = self.power.mel_scale
        hertz = mel_middles(self.mels, scale.f_min, scale.f_max, scale.mel_scale == "htk")
        return inputs["frames"][:, : self.mels], hertz, self.power.hop_length / SAMPLE_RATE


class LogMel(MelFrames):
    """Front end: a waveform -> natural logarithm of its mel power spectrogram, level kept, scaled by fixed numbers.

    Args:
        mels: Number of mel bands.
        window: Length of the Hann window in samples; also the length that a shorter utterance is padded to.
        hop: Step between frames in samples.
        low: Where the lowest mel band begins, in Hz.
        high: Where the highest mel band ends, in Hz.
        mean: What frames are shifted by: a number, so that an utterance never depends on another.
        std: What frames are divided by then.
    """

    def __init__(self, *, mels: int, window: int, hop: int, low: float, high: float, mean: float, std: float) -> None:
        scale = {"mels": mels, "window": window, "hop": hop, "low": low, "high": high}
        transform = {"n_fft": window, "hop_length": hop, "f_min": low, "f_max": high, "n_mels": mels}
        super().__init__({**scale, "mean": mean, "std": std}, window, **transform, center=False)
        self.mean, self.std = mean, std

    def __call__(self, raw: np.ndarray) -> Inputs:
        """A waveform [samples] at 16 kHz -> `frames` [time, mels]."""
        return {"frames": ((self.logarithm(padded(raw, self.least)) - self.mean) / self.std).contiguous()}


class LevelledLogMel(LogMel):
    """Front end: log-mel frames whose level is measured against the utterance itself.

    Args:
        level: What is subtracted before the fixed scaling: nothing (`kept`), the mean over all the utterance's frames
            and bands (`utterance`), or each band's own mean over its frames (`band`: cepstral mean normalisation,
            which takes the speaker's and the room's average spectrum out).
        **log_mel: What `LogMel` takes.

    Raises:
        InputError: Another `level`.
    """

    def __init__(self, *, level: str, **log_mel: Any) -> None:
        super().__init__(**log_mel)
        check_word("encoder.audio.frontend.level", level, LEVELS)
        self.level = level
        self.about["level"] = level

    def __call__(self, raw: np.ndarray) -> Inputs:
        """A waveform [samples] at 16 kHz -> `frames` [time, mels]."""
        frames = super().__call__(raw)["frames"]
        if self.level != "kept":
            frames = frames - (frames.mean() if self.level == "utterance" else frames.mean(0))
        return {"frames": frames}


class LogMelDecibels(MelFrames):
    """Front end: a waveform -> mel power spectrogram in dB, as torchlibrosa computes it for PANNs.

    Windows are centred on multiples of 10 ms, the waveform's ends mirrored; Slaney's mel scale and normalisation;
    10 log10(max(mel, 1e-10)), with no floor below the loudest.

    Attributes:
        MELS: Mel bands.
        POOLED: Frames in one of the network's features, 0.32 s; those that fill no feature are in none.
    """

    WINDOW, HOP = 512, 160  # samples: 32 and 10 ms
    MELS = 64
    LOW, HIGH = 50.0, 8000.0  # Hz
    POOLED = 32  # five poolings by 2

    def __init__(self) -> None:
        about = {"spectrogram": "panns", "window": self.WINDOW, "hop": self.HOP, "mels": self.MELS}
        about |= {"low": self.LOW, "high": self.HIGH}
        transform = {"n_fft": self.WINDOW, "hop_length": self.HOP, "n_mels": self.MELS}
        slaney = {"norm": "slaney", "mel_scale": "slaney"}
        least = (self.POOLED - 1) * self.HOP
        super().__init__(about, least, **transform, f_min=self.LOW, f_max=self.HIGH, **slaney)
        self.decibels = torchaudio.transforms.AmplitudeToDB("power")

    def __call__(self, raw: np.ndarray) -> Inputs:
        """A waveform [samples] at 16 kHz -> `frames` [time, 64] in dB, 32 of them at least."""
        return {"frames": self.decibels(self.power(padded(raw, self.least))).T.contiguous()}

    def span(self, raw: np.ndarray) -> tuple[float, float]:
        frames = count_windows(max(len(raw), self.least), 0, self.HOP)
        return span_of(frames // self.POOLED * self.POOLED, 0, self.HOP)


class Examples:
    """Front end of VGGish: a waveform -> log-mel spectrogram, cut into examples of 0.96 s.

    The spectrogram is that of the original: magnitudes, not powers; triangular filters over the HTK mel scale;
    log(mel + 0.01). An example that is not whole is filled up with log-mel values of zero, as 4M-SER does where an
    utterance is shorter than one: not silence, which would be log 0.01, but a noise about as loud as speech.

    Args:
        drop_tail: Whether to leave out what is behind the last whole example, as the original, SERVER, 3M-SER and
            4M-SER do; else that is an example more. An utterance that is shorter than one example is kept all the same.
    """

    WINDOW, HOP, FFT = 400, 160, 512  # samples: 25 and 10 ms, and the power of two above
    MELS = 64
    LOW, HIGH = 125.0, 7500.0  # Hz
    OFFSET = 0.01  # under the magnitude of a band: digital silence has no logarithm
    LENGTH = 96  # frames: 0.96 s

    def __init__(self, drop_tail: bool) -> None:
        self.drop_tail = drop_tail
        # In double precision, as the original: the logarithm magnifies roundings of quiet bands a hundredfold.
        self.window = torch.hann_window(self.WINDOW, periodic=True, dtype=torch.float64)
        self.filters = self.mel_filters()

    def __call__(self, raw: np.ndarray) -> Inputs:
        """A waveform [samples] at 16 kHz -> `examples` [examples, 96, 64]."""
        # [frames, samples of a window] -> [frames, bins] -> [frames, mels]
        windows = padded(raw, self.WINDOW, torch.float64).unfold(0, self.WINDOW, self.HOP) * self.window
        frames = torch.log(torch.fft.rfft(windows, n=self.FFT).abs() @ self.filters + self.OFFSET).float()
        count = self._count(len(frames))
        frames = frames[: count * self.LENGTH]
        frames = nn.functional.pad(frames, (0, 0, 0, count * self.LENGTH - len(frames)))
        return {"examples": frames.reshape(count, self.LENGTH, self.MELS)}

    def _count(self, frames: int) -> int:
        """How many examples so many frames make."""
        whole = frames / self.LENGTH
        return max(1, math.floor(whole) if self.drop_tail else math.ceil(whole))

    @classmethod
    def mel_filters(cls) -> Tensor:
        """The original's mel filters: (bins, mels), float64.

        The triangles' sides are straight over mel, mel(f) = 1127 ln(1 + f / 700), not over Hz as elsewhere, and the
        bin of 0 Hz belongs to none.
        """

        def mel(hertz: Tensor) -> Tensor:
            return 1127.0 * torch.log1p(hertz / 700.0)

        bins = mel(torch.linspace(0, SAMPLE_RATE / 2, cls.FFT // 2 + 1, dtype=torch.float64))[:, None]
        low, high = mel(torch.tensor([cls.LOW, cls.HIGH], dtype=torch.float64)).tolist()
        edges = torch.linspace(low, high, cls.MELS + 2, dtype=torch.float64)
        left, centre, right = edges[:-2], edges[1:-1], edges[2:]
        filters = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp(min=0.0)
        filters[0] = 0.0
        return filters

    def collate(self, items: Sequence[Inputs]) -> Inputs:
        """`examples` (examples of all utterances, 96, 64), `counts` (batch,), how many are whose, and `places`.

        `places` (batch, most examples) says where each utterance's examples are among all, with the first one's place
        where it has no more.
        """
        rows = [item["examples"] for item in items]
        counts = torch.tensor([len(row) for row in rows])
        first = (counts.cumsum(0) - counts)[:, None]
        steps = torch.arange(int(counts.max()))
        return {
            "examples": torch.cat(rows),
            "counts": counts,
            "places": first + torch.where(steps < counts[:, None], steps, 0),
        }

    def describe(self) -> dict[str, Any]:
        return {"spectrogram": "vggish", "drop_tail": self.drop_tail}

    def span(self, raw: np.ndarray) -> tuple[float, float]:
        examples = self._count(count_windows(len(raw), self.WINDOW, self.HOP))
        return span_of(examples * self.LENGTH, self.WINDOW, self.HOP)

    def spectrogram(self, inputs: Inputs) -> tuple[Tensor, np.ndarray, float]:
        hertz = mel_middles(self.MELS, self.LOW, self.HIGH, htk=True)
        return inputs["examples"].flatten(0, 1), hertz, self.HOP / SAMPLE_RATE


class ProsodyFrames(MelFrames):
    """Front end: a waveform -> log-mel frames, and the pitch and voicing of each, quiet ends cut off.

    Pitch is where the autocorrelation of the frame, divided by that of its window, is highest but for a cost of long
    periods (Boersma 1993); how high it is there is the voicing. Frames of all three begin at the same samples.

    Args:
        trim: The ends that are so many dB below the loudest 32 ms are left out; None to keep them. Corpora are often
            cut or padded to lengths that give the emotion away: what is left has none of the padding.
        mels: Number of mel bands.
        mel_window: Length of the mel bands' Hann window in samples, which lies in the middle of the pitch's.
        window: Length of the pitch's window in samples, which has to hold two periods; also the length that a shorter
            utterance is padded to.
        hop: Step between frames in samples.
        low: Where the lowest mel band begins, in Hz.
        high: Where the highest mel band ends, in Hz.
        pitch_low: The lowest pitch that is looked for, in Hz.
        pitch_high: The highest pitch that is looked for, in Hz.
        mean: What log-mel frames are shifted by: a number, so that an utterance never depends on another.

    Raises:
        InputError: A window that is too short for what it should hold, a pitch range that is none.
    """

    def __init__(
        self,
        *,
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
        key = "encoder.audio.frontend"
        if trim is not None and trim <= 0:
            raise InputError(f"{key}.trim={trim}: expected a number of dB above 0, or null.")
        if mel_window > window:
            raise InputError(f"{key}.mel_window={mel_window}: longer than {key}.window={window}.")
        if not 2 * SAMPLE_RATE / window <= pitch_low < pitch_high < SAMPLE_RATE / 2:
            raise InputError(
                f"{key}: pitch_low={pitch_low} and pitch_high={pitch_high}: expected a range in Hz from "
                f"{2 * SAMPLE_RATE / window:.1f} (two periods in a window of {window} samples)."
            )
        about = {"trim": trim, "mels": mels, "mel_window": mel_window, "window": window, "hop": hop, "low": low}
        about |= {"high": high, "pitch_low": pitch_low, "pitch_high": pitch_high, "mean": mean}
        transform = {"n_fft": window, "win_length": mel_window, "hop_length": hop, "n_mels": mels}
        super().__init__(about, window, **transform, f_min=low, f_max=high, center=False)
        self.trim, self.mean, self.hop = trim, mean, hop
        self.shortest, self.longest = int(SAMPLE_RATE / pitch_high), int(SAMPLE_RATE / pitch_low)  # lags in samples
        self.hann = torch.hann_window(window)
        own = self._correlate(self.hann)
        self.hann_correlation = own / own[0]

    def __call__(self, raw: np.ndarray) -> Inputs:
        """A waveform [samples] at 16 kHz -> `frames` [time, mels + 2]: mel bands, pitch (octaves over 200 Hz), voicing.

        Voicing is 1 where a frame repeats itself exactly and 0 where it does not at all.
        """
        samples = padded(raw[slice(*loud_ends(raw, self.trim))], self.least)
        return {"frames": torch.cat([self.logarithm(samples) - self.mean, self._pitch(samples)], dim=1)}

    def span(self, raw: np.ndarray) -> tuple[float, float]:
        first, last = loud_ends(raw, self.trim)
        begin, end = super().span(raw[first:last])
        return begin + first / SAMPLE_RATE, end + first / SAMPLE_RATE

    def _correlate(self, frames: Tensor) -> Tensor:
        """Frames (..., window) -> their autocorrelation (..., lags), from lag 0 to the longest."""
        power = torch.fft.rfft(frames, 2 * self.least).abs().square()
        return torch.fft.irfft(power)[..., : self.longest]

    def _pitch(self, samples: Tensor) -> Tensor:
        """Samples -> (time, 2): octaves over 200 Hz, voicing."""
        own = self._correlate(samples.unfold(0, self.least, self.hop) * self.hann)
        # A floor under the energy: what is all but silent has no voice.
        alike = own / (own[:, :1] + 1e-4) / self.hann_correlation
        lags = torch.arange(self.shortest, self.longest)
        # What repeats itself after a period does so after two, as well.
        best = (alike[:, self.shortest :] - OCTAVE_COST * torch.log2(lags / self.shortest)).argmax(1)
        pitch = torch.log2(SAMPLE_RATE / 200 / lags[best])
        voicing = alike.gather(1, lags[best, None])[:, 0]
        return torch.stack([pitch, voicing.clamp(0, 1)], dim=1)
