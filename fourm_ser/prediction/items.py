"""Recordings that emotions are predicted of: files, arrays, segments of either, windows over long ones."""

import math
import os
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from torch import Tensor

from fourm_ser.data.audio import SAMPLE_RATE, read_audio, readable, resample, stated_seconds
from fourm_ser.data.levels import refuse_scale
from fourm_ser.data.sound import RATES
from fourm_ser.errors import InputError, printable

SHORT = 0.1  # seconds that a header may promise too much: what codecs add and cut at a recording's ends

Audio = str | os.PathLike[str] | np.ndarray | Tensor
"""A file, or samples: floats of one channel, full scale at 1."""


class Item(NamedTuple):
    """One thing to predict the emotion of.

    Attributes:
        audio: The recording; None where nothing reads any.
        text: What is said; "" where it is known that there are no words, None where it is not known.
        rate: Samples a second, where `audio` is an array.
        start: Where the segment that counts begins, in seconds; NaN for the recording's beginning.
        end: Where the segment that counts ends, in seconds; NaN for the recording's end.
        called: What errors call it; "" for the file's own name.
    """

    audio: Audio | None = None
    text: str | None = None
    rate: float = SAMPLE_RATE
    start: float = math.nan
    end: float = math.nan
    called: str = ""

    @property
    def name(self) -> str:
        """What errors call it."""
        if self.called:
            return self.called
        if self.audio is None:
            return "the text"
        return printable(os.fspath(self.audio)) if isinstance(self.audio, str | os.PathLike) else "the array"


class Window(NamedTuple):
    """An item on its way through a model: the whole of it, or one window.

    Attributes:
        length: Its seconds, or characters where there is no recording.
        key: The number of the item among all, and of the window in it.
        item: What is heard and said in it.
    """

    length: float
    key: tuple[int, int]
    item: Item


def checked(item: Item) -> Item:
    """An item whose audio is a file or an array that can be used, as [samples] at 16 kHz.

    Raises:
        InputError: another kind of thing, an array of another shape or type, without samples or with some that are no
            numbers, a rate that is none.
    """
    audio = item.audio
    if audio is None or isinstance(audio, str | os.PathLike):
        return item
    if isinstance(audio, Tensor):
        audio = audio.detach().cpu()
        audio = (audio.float() if audio.is_floating_point() else audio).numpy()  # NumPy has no bfloat16
    if not isinstance(audio, np.ndarray):
        raise InputError(f"audio: a {type(audio).__name__} cannot be read. Expected a path, or an array [samples].")
    if audio.ndim != 1:
        raise InputError(f"audio: has the shape {list(audio.shape)}. Expected [samples]: average the channels first.")
    if audio.dtype.kind != "f":
        raise InputError(
            f"audio: has the type {audio.dtype}. Expected floats with full scale at 1: divide 16-bit samples by 32768."
        )
    if (
        isinstance(item.rate, bool)
        or not isinstance(item.rate, int | float | np.number)
        or not RATES[0] <= item.rate <= RATES[1]
    ):
        raise InputError(f"rate={item.rate}: expected the array's samples a second, {RATES[0]:,} to {RATES[1]:,}.")
    if not len(audio):
        raise InputError("audio: the array holds no samples.")
    if not np.isfinite(audio).all():
        raise InputError("audio: the array holds samples that are not numbers (NaN or infinite).")
    refuse_scale(float(np.abs(audio).max()), "audio")
    samples = resample(audio.astype(np.float32), float(item.rate))
    if not len(samples):
        raise InputError(f"audio: the array's {len(audio)} samples at {item.rate} Hz are too short to be read.")
    return item._replace(audio=samples, rate=SAMPLE_RATE)


def decoded(item: Item, target: Path) -> Item:
    """An item in whose audio any sample is found: an MP3 or a video is decoded to `target`, a FLAC.

    Raises:
        InputError: the recording is missing, damaged or of no known format.
    """
    if not isinstance(item.audio, str | os.PathLike):
        return item
    path = readable(Path(item.audio), target)
    return item._replace(audio=path, called=item.name) if path is target else item


def seconds(item: Item) -> float:
    """Length of the segment of a checked item with audio, in seconds: a file's by its header, which is not decoded.

    Raises:
        InputError: there is no such recording, it cannot be decoded, or the segment is outside it.
    """
    if isinstance(item.audio, np.ndarray):
        whole = len(item.audio) / SAMPLE_RATE
    else:
        whole = stated_seconds(os.fspath(item.audio))  # type: ignore[arg-type]
    start = 0.0 if math.isnan(item.start) else item.start
    end = whole if math.isnan(item.end) else min(item.end, whole)
    if not 0 <= start < end:
        raise InputError(f"{item.name}: no samples from {start:g} s to {end:g} s in a recording of {whole:.3f} s.")
    return end - start


def read(item: Item, expected: float, most: float | None = None) -> np.ndarray:
    """The segment's [samples] at 16 kHz, float32, of a checked item with audio.

    Args:
        item: the item.
        expected: how many seconds of it there are.
        most: how many of them are heard, from its beginning, at most; None for all.

    Raises:
        InputError: the recording cannot be read to its end, or is not scaled to full scale at 1.
    """
    if isinstance(item.audio, np.ndarray):
        first = 0 if math.isnan(item.start) else round(item.start * SAMPLE_RATE)
        samples = item.audio[first : None if math.isnan(item.end) else round(item.end * SAMPLE_RATE)]
    else:
        samples = read_audio(os.fspath(item.audio), item.start, item.end, most)  # type: ignore[arg-type]
    if not len(samples):
        raise InputError(f"{item.name}: no samples from {item.start:g} s to {item.end:g} s.")
    samples = samples if most is None else samples[: round(most * SAMPLE_RATE)]
    expected = expected if most is None else min(expected, most)
    found = len(samples) / SAMPLE_RATE
    if found < expected - SHORT:
        raise InputError(
            f"{item.name}: truncated: its header promises {expected:.3f} s here, {found:.3f} s can be read."
        )
    refuse_scale(float(max(samples.max(), -samples.min())), item.name)
    return samples


class Cutting(NamedTuple):
    """How long recordings are cut into windows.

    Attributes:
        longest: Seconds of what stays whole, at most.
        window: Length of a window, in seconds.
        hop: Seconds from one window's start to the next one's.
    """

    longest: float
    window: float
    hop: float

    @classmethod
    def of(
        cls, window: float | str | None, hop: float | None, auto_window: float, max_seconds: float | None
    ) -> Self | None:
        """What the keys `window`, `hop` and `auto_window` of the command say; None where nothing is cut.

        Args:
            window: Seconds; `auto` for windows where an item is longer than in training; None for none.
            hop: Seconds; None for half the window.
            auto_window: The seconds of a window that is `auto`, at most.
            max_seconds: What the model was trained on, at most; None for any length.

        Raises:
            InputError: a hop has no windows.
        """
        if window is None and hop is not None:
            raise InputError(f"hop={hop}: with window=null there are no windows. Leave hop out.")
        if window is None or (isinstance(window, str) and max_seconds is None):
            return None
        longest = max_seconds or math.inf
        if isinstance(window, str):
            window = min(auto_window, longest)
        else:
            longest = window
        return cls(longest, window, window / 2 if hop is None else hop)

    def refuse_impossible(self, max_seconds: float | None) -> None:
        """Refuse numbers that make no windows, or windows longer than what a model was trained on.

        Raises:
            InputError: the number.
        """
        if not 0 < self.window < math.inf:
            raise InputError(f"window={self.window:g}: expected a number of seconds above 0.")
        if max_seconds is not None and self.window > max_seconds:
            raise InputError(
                f"window={self.window:g}: the model was trained on at most {max_seconds:g} s. Use shorter windows."
            )
        if not 0 < self.hop <= self.window:
            raise InputError(
                f"hop={self.hop:g}: expected seconds above 0 and not more than the window's {self.window:g}: what lies "
                "between windows would not be heard."
            )

    def parts(self, item: Item, length: float) -> list[Item]:
        """An item of a length in seconds in windows, the last of which ends where it does; itself where it is short."""
        if length <= max(self.longest, self.window):
            return [item]
        begin = 0.0 if math.isnan(item.start) else item.start
        count = math.ceil((length - self.window) / self.hop - 1e-6)
        starts = [begin + place * self.hop for place in range(count)] + [begin + length - self.window]
        return [item._replace(start=start, end=start + self.window) for start in starts]
