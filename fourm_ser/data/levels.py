"""How loud recordings are: where nothing is heard, what is clipped, and what is not scaled to full scale at 1."""

import math
from typing import NamedTuple

import numpy as np

from fourm_ser.errors import InputError

SILENCE = 1e-4  # of full scale, -80 dB: three steps of a 16-bit recording
FULL_SCALE = 16.0  # beyond it samples are not scaled to 1: floats may be a little over it, never so far
SCALES = {2.0**15: "16-bit", 2.0**23: "24-bit", 2.0**31: "32-bit"}
QUIET = 0.02  # seconds: shorter pauses are not remembered
NEAR = 3e-5  # seconds, half a sample at 16 kHz: a segment's ends lie between samples
RUN = 3  # samples in a row at the largest number that can be written: one alone is a peak that just fits
TOP = 1 - 2**-15  # the largest number of 16 bits; deeper formats come from these, or are cut off where these are
TOPS = {"PCM_U8": 1 - 2**-7, "PCM_S8": 1 - 2**-7, "ULAW": 32124 / 2**15, "ALAW": 32256 / 2**15}


class SilentError(InputError):
    """A recording, or a part of one, in which nothing is heard."""


class Levels(NamedTuple):
    """What was measured of a recording while it was decoded.

    Attributes:
        seconds: its length.
        peak: the largest sample, up or down, of what is heard: the mean of the channels.
        clipped: samples at the end of the scale, in any channel, behind two others there.
        quiet: where nothing is heard for at least 0.02 s, in seconds: `0-0.5 2.25-3`.
    """

    seconds: float
    peak: float
    clipped: int
    quiet: str


class Meter:
    """Measures a recording block by block.

    Args:
        rate: samples a second.
        subtype: how samples are written, as libsndfile calls it: what their largest number is.
    """

    def __init__(self, rate: int, subtype: str) -> None:
        self.rate, self.top = rate, TOPS.get(subtype, TOP)
        self.count, self.clipped, self.peak = 0, 0, 0.0
        self.loud = -1  # the last sample that is heard
        self.quiet: list[tuple[int, int]] = []
        self.high: np.ndarray | None = None

    def hear(self, block: np.ndarray) -> None:
        """Measure the next [samples, channels]."""
        heard = np.abs(mono(block))
        self.peak = max(self.peak, float(heard.max()))
        loud = np.flatnonzero(heard >= SILENCE) + self.count
        before = np.concatenate([[self.loud], loud[:-1]]) if len(loud) else loud
        pauses = np.flatnonzero(loud - before - 1 >= self.rate * QUIET)
        self.quiet += zip((before[pauses] + 1).tolist(), loud[pauses].tolist(), strict=True)
        self.loud = int(loud[-1]) if len(loud) else self.loud
        self.count += len(block)
        size = np.abs(block)
        self._count_clipped((size >= self.top) & (size <= 1.0))  # floats that go on beyond are not cut off there

    def _count_clipped(self, high: np.ndarray) -> None:
        if self.high is not None:  # a run may go on from the block before
            high = np.concatenate([self.high, high])
        self.high = high[-(RUN - 1) :]
        if high.any():
            length = max(0, len(high) - RUN + 1)
            self.clipped += int(np.all([high[place : place + length] for place in range(RUN)], axis=0).sum())

    def levels(self) -> Levels:
        """What was measured, once all was heard."""
        spans = list(self.quiet)
        if self.count - self.loud - 1 >= min(self.rate * QUIET, self.count):
            spans.append((self.loud + 1, self.count))
        quiet = " ".join(f"{_written(first / self.rate)}-{_written(last / self.rate)}" for first, last in spans)
        return Levels(self.count / self.rate, self.peak, self.clipped, quiet)


def mono(block: np.ndarray) -> np.ndarray:
    """[samples, channels] -> [samples]: the mean of the channels."""
    return block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)  # a mean of one is slow


def is_silent(quiet: str, start: float, end: float) -> bool:
    """Whether nothing is heard in a part of a recording.

    Args:
        quiet: see `Levels`.
        start, end: the part, in seconds from the recording's beginning.
    """
    spans = (span.split("-") for span in quiet.split())
    return any(float(first) - NEAR <= start and end <= float(last) + NEAR for first, last in spans)


def silence(name: str, start: float = math.nan, end: float = math.nan) -> str:
    """What is said of a recording in which nothing is heard, or nothing from `start` to `end` seconds."""
    where = "" if math.isnan(start) and math.isnan(end) else f" from {start:g} s to {end:g} s"
    return (
        f"{name}: silent{where}: no sample is louder than {20 * math.log10(SILENCE):.0f} dB of full scale. Is it the "
        "right channel or file?"
    )


def refuse_silence(samples: np.ndarray, name: str, start: float = math.nan, end: float = math.nan) -> None:
    """Refuse samples in which nothing is heard.

    Args:
        samples: [samples].
        name: what errors call them.
        start, end: where they stand in their recording, in seconds; NaN for its beginning and end.

    Raises:
        SilentError: none is louder than -80 dB of full scale.
    """
    if max(samples.max(), -samples.min()) < SILENCE:
        raise SilentError(silence(name, start, end))


def refuse_scale(peak: float, name: str) -> None:
    """Refuse samples that are not scaled to full scale at 1.

    Args:
        peak: the largest, up or down.
        name: what errors call them.

    Raises:
        InputError: it is far beyond 1; the scale that it is likely to be on is named.
    """
    if peak <= FULL_SCALE:
        return
    factor = next((scale for scale in SCALES if peak <= scale), None)
    what = f"divide by {factor:.0f} what is on the scale of {SCALES[factor]} integers" if factor else "scale them"
    raise InputError(f"{name}: samples reach {peak:.0f}. Expected full scale at 1: {what}.")


def _written(seconds: float) -> str:
    return f"{seconds:.6f}".rstrip("0").rstrip(".")
