"""Recordings as other rooms, microphones and speeds would have made them: changes at random, drawn by a seed."""

import hashlib
import json
import random
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import soxr
import torch
from scipy.fft import next_fast_len
from torch import Tensor, nn

from fourm_ser.checks import check_number
from fourm_ser.data.audio import SAMPLE_RATE
from fourm_ser.encoders.base import Frontend, Inputs, Packed
from fourm_ser.encoders.store import FeatureStore
from fourm_ser.errors import InputError

VERSION = 1  # of what the classes here make of a waveform: a part of the store's keys
LOWEST = 20.0  # Hz: below, noise that falls with frequency grows no further
DECAY = 60.0  # dB that a room's sound falls by in what is called its reverberation time


class Transform(nn.Module):
    """A change of a waveform with a probability; what it draws comes from torch's generator.

    It is called as the transforms of torch-audiomentations are, which may stand in its place.

    Args:
        p: the probability.

    Raises:
        InputError: it is none.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        check_number("augment.p", p, "a probability from 0 to 1", most=1)
        self.p = p

    def limits(self, key: str, value: Any, **rule: Any) -> tuple[float, float]:
        """A config's pair of the least and the greatest number, within the range of a `Number`."""
        place = f"augment.{key}"
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
            raise InputError(f"{place}={value}: expected the least and the greatest number: [0.5, 2.0].")
        for number in value:
            check_number(place, number, f"numbers from {rule['least']} to {rule['most']}", **rule)
        if value[0] > value[1]:
            raise InputError(f"{place}={list(value)}: the least number stands first: [{value[1]}, {value[0]}].")
        return float(value[0]), float(value[1])

    def forward(self, samples: Tensor, sample_rate: int) -> Tensor:
        """(1, 1, samples) -> the same, or changed."""
        return self.change(samples, sample_rate) if _draw((0.0, 1.0)) < self.p else samples

    @abstractmethod
    def change(self, samples: Tensor, sample_rate: int) -> Tensor:
        """(1, 1, samples) -> changed, with what is drawn now."""


class Speed(Transform):
    """Plays a recording faster or slower, which moves its pitch alike (Ko et al. 2015, "Audio augmentation for speech
    recognition").

    Args:
        p: the probability.
        factor: the least and the greatest factor on the speed.
    """

    def __init__(self, p: float, factor: Sequence[float]) -> None:
        super().__init__(p)
        self.factor = self.limits("factor", factor, least=0.1, most=10)

    def change(self, samples: Tensor, sample_rate: int) -> Tensor:
        found = soxr.resample(samples[0, 0].numpy(), sample_rate * _draw(self.factor), sample_rate)
        return torch.from_numpy(found)[None, None] if len(found) else samples


class Reverberation(Transform):
    """A room's sound behind the direct one: white noise that decays exponentially, as loud as `ratio` says.

    Polack's statistical model of a room's impulse response. The result is as long and as loud as the recording was.

    Args:
        p: the probability.
        seconds: the least and the greatest reverberation time, in which the room's sound falls by 60 dB.
        ratio: the least and the greatest ratio of the direct sound's energy to the room's, dB.
    """

    def __init__(self, p: float, seconds: Sequence[float], ratio: Sequence[float]) -> None:
        super().__init__(p)
        self.seconds = self.limits("seconds", seconds, least=0.01, most=10)
        self.ratio = self.limits("ratio", ratio, least=-60, most=60)

    def change(self, samples: Tensor, sample_rate: int) -> Tensor:
        seconds, ratio = _draw(self.seconds), _draw(self.ratio)
        count = max(2, round(seconds * sample_rate))
        response = torch.randn(count) * 10 ** (-DECAY / 20 * torch.arange(count) / count)
        response[0] = 0
        response *= 10 ** (-ratio / 20) / response.norm()
        response[0] = 1
        length = samples.shape[-1]
        whole = next_fast_len(length + count - 1, real=True)
        wet = torch.fft.irfft(torch.fft.rfft(samples, whole) * torch.fft.rfft(response, whole), whole)[..., :length]
        return wet * (_level(samples) / _level(wet).clamp(min=torch.finfo(wet.dtype).tiny))


class Noise(Transform):
    """Noise of some colour over the whole recording.

    Args:
        p: the probability.
        snr: the least and the greatest ratio of the recording's energy to the noise's, dB.
        color: the least and the greatest exponent by which the noise's power falls with frequency.
    """

    def __init__(self, p: float, snr: Sequence[float], color: Sequence[float]) -> None:
        super().__init__(p)
        self.snr = self.limits("snr", snr, least=-60, most=120)
        self.color = self.limits("color", color, least=-4, most=4)

    def change(self, samples: Tensor, sample_rate: int) -> Tensor:
        snr, color = _draw(self.snr), _draw(self.color)
        length = samples.shape[-1]
        whole = next_fast_len(length, real=True)
        frequencies = torch.fft.rfftfreq(whole, 1 / sample_rate).clamp(min=LOWEST)
        spectrum = torch.fft.rfft(torch.randn(whole)) * frequencies ** (-color / 2)
        noise = torch.fft.irfft(spectrum, whole)[:length]
        scale = _level(samples) / _level(noise).clamp(min=torch.finfo(noise.dtype).tiny)
        return samples + noise * scale * 10 ** (-snr / 20)


class Gain(Transform):
    """A recording louder or quieter; a front end that normalises its waveform hears no difference.

    Args:
        p: the probability.
        decibels: the least and the greatest change, dB.
    """

    def __init__(self, p: float, decibels: Sequence[float]) -> None:
        super().__init__(p)
        self.decibels = self.limits("decibels", decibels, least=-60, most=60)

    def change(self, samples: Tensor, sample_rate: int) -> Tensor:
        return samples * 10 ** (_draw(self.decibels) / 20)


class Waveforms:
    """Changes of waveforms, one after the other; the same of the same waveform for the same word.

    Args:
        transforms: by name, those of this file, or others that are called like those of torch-audiomentations.
        settings: what the config says of them, as JSON values: another setting gives other keys.
    """

    def __init__(self, transforms: Mapping[str, nn.Module], settings: Mapping[str, Any]) -> None:
        self.transforms = dict(transforms)
        self.settings = json.dumps([VERSION, list(settings.items())], sort_keys=True)  # whose order counts

    def __call__(self, waveform: np.ndarray, word: str) -> np.ndarray:
        """A waveform [samples] at 16 kHz -> a changed one, of another length perhaps, drawn by a word."""
        samples = torch.from_numpy(np.ascontiguousarray(waveform, dtype=np.float32))[None, None]
        with _seeded(word), torch.no_grad():
            for transform in self.transforms.values():
                found = transform(samples, sample_rate=SAMPLE_RATE)
                samples = getattr(found, "samples", found)
        return samples[0, 0].numpy()


class Versions(NamedTuple):
    """The versions that training hears of each utterance of a manifest: number 0 is the recording as it is.

    Attributes:
        waveforms: What makes a version of a recording.
        keys: A hash of each recording's content, by position.
        seed: Seed of the versions.
        copies: How many there are beside the recording; None for another one at every turn.
        longest: Samples that a version may have; None for any.
    """

    waveforms: Waveforms
    keys: Sequence[str]
    seed: int
    copies: int | None
    longest: int | None = None

    def pick(self, turn: int) -> int:
        """The version that is heard at a turn of training, see `VersionSampler`; at turn 0 the recording as it is."""
        return turn if self.copies is None or not turn else (turn - 1) % (self.copies + 1)

    def key(self, index: int, version: int) -> str:
        """A hash of a version's content: the store's key, and what the version is drawn by."""
        if not version:
            return self.keys[index]
        content = f"{self.keys[index]} {self.waveforms.settings} {self.seed} {version}"
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class VersionReader:
    """Reads a version of each utterance, as `read` reads the recordings."""

    read: Callable[[int], np.ndarray]
    versions: Versions
    version: int

    def __call__(self, index: int) -> np.ndarray:
        waveform = self.read(index)
        if not self.version:
            return waveform
        changed = self.versions.waveforms(waveform, self.versions.key(index, self.version))
        return changed[: self.versions.longest]


class RawVersions(NamedTuple):
    """The version of each turn, through an encoder's front end."""

    read: Callable[[int], np.ndarray]  # picklable
    frontend: Frontend
    versions: Versions

    def load(self, index: int, turn: int = 0) -> Inputs:
        return self.frontend(VersionReader(self.read, self.versions, self.versions.pick(turn))(index))

    def collate(self, items: Sequence[Inputs]) -> Inputs:
        return self.frontend.collate(items)


class StoredVersions(NamedTuple):
    """Features of the version of each turn, from an encoder's store."""

    store: FeatureStore
    versions: Versions

    def load(self, index: int, turn: int = 0) -> str:
        return self.versions.key(index, self.versions.pick(turn))  # a batch is read at once

    def collate(self, items: Sequence[str]) -> Packed:
        return self.store.read_batch(items)


def _draw(limits: tuple[float, float]) -> float:
    """A number between two, from torch's generator."""
    low, high = limits
    return low + (high - low) * torch.rand((), dtype=torch.float64).item()


def _level(samples: Tensor) -> Tensor:
    """Root of the mean square over all samples."""
    return samples.square().mean().sqrt()


@contextmanager
def _seeded(word: str) -> Iterator[None]:
    """Random numbers by a word meanwhile; afterwards they go on as before. Other libraries draw from all three."""
    seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "big")
    own = torch.default_generator  # torch.manual_seed would seed those of devices, too
    before = own.get_state(), random.getstate(), np.random.get_state()
    own.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        own.set_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])
