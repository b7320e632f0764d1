"""An audio encoder without weights: acoustic descriptors of each frame, as the sets of paralinguistics describe it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torchaudio
from torch import Tensor, nn

from fourm_ser import SAMPLE_RATE
from fourm_ser.checks import check_number
from fourm_ser.encoders.base import Encoder, Features, Inputs, Resources, length_mask, pad, require_random
from fourm_ser.encoders.frontends import OCTAVE_COST, count_windows, loud_ends, padded, span_of
from fourm_ser.encoders.prosody import liftered_cosines
from fourm_ser.errors import InputError

NAMES = (
    "pitch",
    "voicing",
    "harmonics_to_noise",
    "level",
    "loudness",
    "loudness_sum",
    "loudness_peak",
    "flux",
    "shape_flux",
    "alpha_ratio",
    "hammarberg",
    "slope_low",
    "slope_middle",
    "slope_high",
    "centroid",
    "spread",
    "entropy",
    "h1_h2",
    "h1_a1",
    "h1_a3",
    "a1_a2",
    "formant_1",
    "formant_2",
    "formant_3",
    "jitter",
    "shimmer",
    *(f"mfcc_{number}" for number in range(13)),
    "voiced",
)
"""The descriptors in their order; the last one, from 0 to 1, is whether the frame is voiced."""

QUIET = 1e-7  # under the power of a bin, about -70 dB of a full tone's: digital silence has no logarithm
FORMANTS = ((200.0, 1000.0), (1000.0, 2500.0), (2500.0, 4000.0))  # Hz: where the first three lie, of men and women
AMPLITUDES = ((300.0, 1000.0), (1000.0, 2000.0), (2000.0, 3500.0))  # Hz: where their strongest harmonics are


def decibels(power: Tensor) -> Tensor:
    return 10 * torch.log10(power)


class DescriptorFrames:
    """Front end: a waveform -> descriptors of each 10 ms, quiet ends cut off.

    They follow the Geneva set (eGeMAPS, Eyben et al. 2016, https://doi.org/10.1109/TAFFC.2015.2457417): pitch,
    harmonics-to-noise ratio, loudness, spectral flux, alpha ratio, Hammarberg index, slopes, differences of harmonics,
    cepstra, and where openSMILE measures single periods or roots of polynomials, measures of frames in their place:

    - `pitch`: semitones over 27.5 Hz, where the autocorrelation divided by its window's is highest (Boersma 1993),
      looked for once more near the quartiles of clearly voiced frames (De Looze and Hirst 2008), which mends octaves.
    - `voicing`: that height r; `harmonics_to_noise`: 10 log10(r / (1 - r)).
    - `level`: dB of the power; `loudness_sum`: the sum over 26 mel bands of power ** 0.33; `loudness`: its logarithm;
      `loudness_peak`: 1 where the smoothed sum has a peak above a quarter of its highest. `flux`: how far these bands
      move in a frame; `shape_flux`: how far their shares of the sum do.
    - `alpha_ratio`: dB of 50-1000 Hz over 1-5 kHz; `hammarberg`: of the strongest bin below 2 kHz over that of 2-5 kHz.
    - `slope_low`, `slope_middle`, `slope_high`: dB a kHz over 0-500 Hz, 500-1500 Hz and 1-5 kHz.
    - `centroid`, `spread` (kHz) and `entropy` of the power spectrum.
    - `h1_h2`, `h1_a1`, `h1_a3`, `a1_a2`: dB of the first harmonic (h1) over the second, and of the strongest bins of
      0.3-1 kHz (a1), 1-2 kHz (a2) and 2-3.5 kHz (a3).
    - `formant_1` to `formant_3`: centroids in kHz of the bands `FORMANTS`.
    - `jitter`: percent by which the period differs from the frame's before; `shimmer`: dB by which the level does.
    - `mfcc_0` to `mfcc_12`: liftered cepstra of the mel bands.

    Args:
        trim: The ends that are so many dB below the loudest 32 ms are left out; None to keep them.
        pitch_low: The lowest pitch that is looked for, in Hz.
        pitch_high: The highest pitch that is looked for, in Hz.

    Raises:
        InputError: No dB, a pitch range that is none or that two periods of do not fit the window.
    """

    PITCH_WINDOW, WINDOW, HOP = 960, 400, 160  # samples: 60, 25 and 10 ms, as openSMILE's
    PITCH_FFT, FFT = 2048, 512
    MELS, LOW, HIGH = 26, 20.0, 8000.0  # bands, and Hz, of openSMILE
    CLEAR = 0.6  # autocorrelation of frames that are surely voiced
    RANGE = (0.7, 1.6)  # of the quartiles of their pitch: how far the second search goes without a cost
    OUTSIDE = 0.3  # its cost beyond
    DYNAMICS = 40.0  # dB below the loudest frame, at which nothing is voiced

    def __init__(self, *, trim: float | None, pitch_low: float, pitch_high: float) -> None:
        key = "encoder.audio.frontend"
        check_number(f"{key}.trim", trim, "a number of dB above 0", above=True, null=True)
        least = 2 * SAMPLE_RATE / self.PITCH_WINDOW
        if not least <= pitch_low < pitch_high < SAMPLE_RATE / 8:
            raise InputError(
                f"{key}: pitch_low={pitch_low} and pitch_high={pitch_high}: expected a range in Hz from {least:.1f} "
                f"(two periods in a window of {self.PITCH_WINDOW} samples) to below {SAMPLE_RATE / 8:g}."
            )
        self.trim, self.pitch_low, self.pitch_high = trim, pitch_low, pitch_high
        self.shortest, self.longest = int(SAMPLE_RATE / pitch_high), math.ceil(SAMPLE_RATE / pitch_low)  # in samples
        self.pitch_window, self.window = torch.hann_window(self.PITCH_WINDOW), torch.hann_window(self.WINDOW)
        own = self._correlation(torch.fft.rfft(self.pitch_window, self.PITCH_FFT).abs().square())
        self.window_correlation = own / own[0]
        self.hertz = torch.linspace(0, SAMPLE_RATE / 2, self.FFT // 2 + 1)
        self.fine = torch.linspace(0, SAMPLE_RATE / 2, self.PITCH_FFT // 2 + 1)
        self.filters = torchaudio.functional.melscale_fbanks(
            len(self.hertz), self.LOW, self.HIGH, self.MELS, SAMPLE_RATE, norm=None, mel_scale="htk"
        )
        self.cosines = liftered_cosines(self.MELS, 13)

    def __call__(self, raw: np.ndarray) -> Inputs:
        """A waveform [samples] at 16 kHz -> `frames` [time, descriptors], as `NAMES` has them."""
        samples = padded(raw[slice(*loud_ends(raw, self.trim))], self.PITCH_WINDOW)
        long = samples.unfold(0, self.PITCH_WINDOW, self.HOP)
        even = long - long.mean(1, keepdim=True)  # an offset repeats itself at every lag
        margin = (self.PITCH_WINDOW - self.WINDOW) // 2  # frames of both lengths have the same middles
        short = long[:, margin : margin + self.WINDOW]
        power = torch.fft.rfft(short * self.window, self.FFT).abs().square()
        harmonics = torch.fft.rfft(even * self.pitch_window, self.PITCH_FFT).abs().square()
        lags, height = self._periods(harmonics)
        level = decibels(power.sum(1) + 1e-6)
        voiced = ((height - 0.4) / 0.2).clamp(0, 1) * (level > level.max() - self.DYNAMICS)
        own = {
            "pitch": 12 * torch.log2(SAMPLE_RATE / 27.5 / lags),
            "voicing": height,
            "harmonics_to_noise": decibels(height / (1 - height) + 1e-3),
            "jitter": 100 * (moves(lags).abs() / lags).clamp(max=0.2),
            "shimmer": moves(level).abs().clamp(max=20.0),
            "level": level,
            "voiced": voiced,
            **self._bands(power),
            **self._spectrum(power + QUIET),
            **self._harmonics(harmonics + QUIET, SAMPLE_RATE / lags),
        }
        return {"frames": torch.stack([own[name] for name in NAMES], dim=1)}

    def collate(self, items: Sequence[Inputs]) -> Inputs:
        """`frames` (batch, time, descriptors) and `lengths` (batch,) in frames."""
        rows = [item["frames"] for item in items]
        return {"frames": pad(rows), "lengths": torch.tensor([len(row) for row in rows])}

    def describe(self) -> dict[str, Any]:
        return {"trim": self.trim, "pitch_low": self.pitch_low, "pitch_high": self.pitch_high, "names": NAMES}

    def span(self, raw: np.ndarray) -> tuple[float, float]:
        first, last = loud_ends(raw, self.trim)
        frames = count_windows(last - first, self.PITCH_WINDOW, self.HOP)
        begin, end = span_of(frames, self.PITCH_WINDOW, self.HOP)
        return begin + first / SAMPLE_RATE, end + first / SAMPLE_RATE

    def _correlation(self, power: Tensor) -> Tensor:
        """Power spectra (..., bins) -> autocorrelations (..., lags), from lag 0 to one more than the longest."""
        return torch.fft.irfft(power)[..., : self.longest + 2]

    def _periods(self, power: Tensor) -> tuple[Tensor, Tensor]:
        """Power spectra of the long windows -> periods in samples, and how well frames repeat themselves there."""
        own = self._correlation(power)
        # A floor under the energy: what is all but silent has no voice.
        alike = own / (own[:, :1] + 1e-4) / self.window_correlation
        lags = torch.arange(self.shortest, self.longest + 1)
        near = alike[:, self.shortest : self.longest + 1]
        # What repeats itself after a period does so after two, as well.
        score = near - OCTAVE_COST * torch.log2(lags / self.shortest)
        best = score.argmax(1, keepdim=True)
        clear = lags[best[near.gather(1, best) > self.CLEAR]].float()
        if len(clear):
            shortest, longest = clear.quantile(torch.tensor([0.25, 0.75])).tolist()
            outside = (lags < shortest / self.RANGE[1]) | (lags > longest / self.RANGE[0])
            best = (score - self.OUTSIDE * outside).argmax(1, keepdim=True)
        # The top of the parabola through the best lag and its neighbours.
        before, top, behind = (alike.gather(1, best + self.shortest + step)[:, 0] for step in (-1, 0, 1))
        bend = (before - 2 * top + behind).clamp(max=-1e-6)
        moved = ((before - behind) / (2 * bend)).clamp(-0.5, 0.5)
        return lags[best[:, 0]] + moved, top.clamp(0, 0.9999)

    def _bands(self, power: Tensor) -> dict[str, Tensor]:
        """What the mel bands of power spectra (time, bins) say."""
        mel = power @ self.filters
        heard = (mel + 1e-9) ** 0.33
        loudness = heard.sum(1)
        cepstra = torch.log(mel + 1e-6) @ self.cosines
        return {
            "loudness": loudness.clamp(min=1e-3).log(),
            "loudness_sum": loudness,
            "loudness_peak": peaks(loudness),
            "flux": moves(heard).square().sum(1).sqrt(),
            "shape_flux": moves(heard / (loudness[:, None] + 1e-3)).square().sum(1).sqrt(),
            **{f"mfcc_{number}": cepstra[:, number] for number in range(13)},
        }

    def _spectrum(self, power: Tensor) -> dict[str, Tensor]:
        """What power spectra (time, bins) say, none of whose bins is 0."""
        level, kilohertz = decibels(power), self.hertz / 1000
        share = power / power.sum(1, keepdim=True)
        centroid = share @ kilohertz
        spread = (share * (kilohertz - centroid[:, None]).square()).sum(1).sqrt()

        def between(low: float, high: float) -> slice:
            return slice(*torch.searchsorted(self.hertz, torch.tensor([low, high])).tolist())

        def middle(low: float, high: float) -> Tensor:
            part = between(low, high)
            return power[:, part] @ kilohertz[part] / power[:, part].sum(1)

        def slope(low: float, high: float) -> Tensor:
            part = between(low, high)
            places = kilohertz[part] - kilohertz[part].mean()
            return level[:, part] @ places / places.square().sum()

        return {
            "alpha_ratio": decibels(power[:, between(50, 1000)].sum(1) / power[:, between(1000, 5000)].sum(1)),
            "hammarberg": level[:, between(0, 2000)].amax(1) - level[:, between(2000, 5000)].amax(1),
            "slope_low": slope(0, 500),
            "slope_middle": slope(500, 1500),
            "slope_high": slope(1000, 5000),
            "centroid": centroid,
            "spread": spread,
            "entropy": -(share * share.log()).sum(1),
            **{f"formant_{number}": middle(*band) for number, band in enumerate(FORMANTS, start=1)},
        }

    def _harmonics(self, power: Tensor, pitch: Tensor) -> dict[str, Tensor]:
        """What the long windows' power spectra (time, bins) say of the harmonics of a pitch (time,) in Hz."""

        def at(hertz: Tensor) -> Tensor:
            place = (hertz / SAMPLE_RATE * self.PITCH_FFT).round().long()[:, None]
            return decibels(torch.cat([power.gather(1, place + step) for step in (-1, 0, 1)], dim=1).amax(1))

        first = at(pitch)
        near = [(self.fine > low) & (self.fine < high) for low, high in AMPLITUDES]
        one, two, three = (decibels(power[:, part].amax(1)) for part in near)
        return {"h1_h2": first - at(2 * pitch), "h1_a1": first - one, "h1_a3": first - three, "a1_a2": one - two}


def moves(values: Tensor) -> Tensor:
    """By how much (time, ...) changed since the frame before: the same shape, 0 in the first."""
    return torch.diff(values, dim=0, prepend=values[:1])


def peaks(loudness: Tensor) -> Tensor:
    """Loudness (time,) -> 1 where it peaks, smoothed over five frames, above a quarter of its highest; else 0."""
    weights = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0]) / 9
    smooth = nn.functional.conv1d(loudness[None, None], weights[None, None], padding=2)[0, 0]
    before, behind = nn.functional.pad(smooth, (1, -1)), nn.functional.pad(smooth, (-1, 1))
    found = (smooth > before) & (smooth >= behind) & (smooth > smooth.max() / 4)
    found[0] = found[-1] = False
    return found.float()


class DescriptorStem(nn.Module):
    """The front end's frames as features."""

    def forward(self, inputs: Inputs) -> Features:
        """`frames` (batch, time, descriptors), `lengths` (batch,) -> features of the same shape."""
        return Features(inputs["frames"], length_mask(inputs["lengths"], inputs["frames"].shape[1]))


class Descriptors(Encoder):
    """Descriptors of frames as features: there is nothing in it that could train, and the store holds them.

    What carries them are their statistics over an utterance: see `StatisticsFusion`.

    Args:
        name: The encoder's name in the store and in the log.
        weights: `random`, as there are none.
        frontend: From waveforms to descriptors.
        resources: Not used.

    Raises:
        InputError: Other weights than `random`.
    """

    modality: ClassVar[str] = "audio"

    def __init__(self, *, name: str, weights: str, frontend: DescriptorFrames, resources: Resources) -> None:
        super().__init__()
        require_random(weights, name)
        self.name = name
        self.weights = weights
        self.frontend = frontend
        self.stem = DescriptorStem()
        self.top = nn.Identity()
        self.stem_dim = self.dim = len(NAMES)

    @classmethod
    def width(cls, arguments: Mapping[str, Any]) -> int | None:
        return len(NAMES)

    def blocks(self) -> list[nn.Module]:
        return []
