"""How loud recordings are: where nothing is heard, what is clipped, and what is not scaled to full scale at 1."""

import math
from typing import NamedTuple

import numpy as np

from fourm_ser.errors import InputError

SILENCE = 1e-4  # of full scale, -80 dB: three steps of a 16-bit recording
FULL_SCALE = 16.0  # beyond it samples are not scaled to 1: floats may be a little over it, never so far
# Full scale of the integers that samples may still be on.
SCALES = {2.0**15: "16-bit", 2.0**23: "24-bit", 2.0**31: "32-bit"}
QUIET = 0.02  # seconds: shorter pauses, such as a stop's closure, are not remembered
NEAR = 3e-5  # seconds, half a sample at 16 kHz: a segment's ends lie between samples
RUN = 3  # samples in a row at the largest number that can be written: one alone is a peak that just fits
TOP = 1 - 2**-15  # the largest number of 16 bits; deeper formats come from these, or are cut off where these are
# The largest numbers of coarser formats.
TOPS = {"PCM_U8": 1 - 2**-7, "PCM_S8": 1 - 2**-7, "ULAW": 32124 / 2**15, "ALAW": 32256 / 2**15}


class SilentError(InputError):
    """A recording, or a part of one, in which nothing is heard."""


class Levels(NamedTuple):
    """What was measured of a recording while it was decoded."""

    seconds: float
    peak: float  # the largest sample, up or down, of what is heard: the mean of the channels
    clipped: int  # samples at the end of the scale, in any channel, behind two others there
    quiet: str  # the parts where nothing is heard for at least 0.02 s, in seconds: `0-0.5 2.25-3`


class Meter:
    """Measures a recording of `rate` samples a second block by block; libsndfile's `subtype` tells the top."""

    def __init__(self, rate: int, subtype: str) -> None:
        self.rate, self.top = rate, TOPS.get(subtype, TOP)
        self.count, self.clipped, self.peak = 0, 0, 0.0
        self.quiet: list[tuple[int, int]] = []
        self.begin: int | None = None  # of the pause that goes on
        self.high: np.ndarray | None = None  # the last samples that may begin a run

    def hear(self, block: np.ndarray) -> None:
        """Measure the next [samples, channels]."""
        size = np.abs(block)
        heard = size[:, 0] if size.shape[1] == 1 else np.abs(mono(block))
        self.peak = max(self.peak, float(heard.max()))
        self._note_pauses(heard < SILENCE)
        # Floats that go on beyond full scale are not cut off there.
        high = (size >= self.top) & (size <= 1.0) if size.max() >= self.top else np.zeros(size.shape, bool)
        self._count_clipped(high)
        self.count += len(block)

    def _note_pauses(self, quiet: np.ndarray) -> None:
        edges = np.flatnonzero(quiet[1:] != quiet[:-1]) + 1
        begins, ends = (edges[quiet[edges] == into] + self.count for into in (True, False))
        if self.begin is not None:
            begins = np.concatenate([[self.begin], begins])
            ends = ends if quiet[0] else np.concatenate([[self.count], ends])
        elif quiet[0]:
            begins = np.concatenate([[self.count], begins])
        self.begin = int(begins[-1]) if len(begins) > len(ends) else None
        begins = begins[: len(ends)]
        long = ends - begins >= self.rate * QUIET
        self.quiet += zip(begins[long].tolist(), ends[long].tolist(), strict=True)

    def _count_clipped(self, high: np.ndarray) -> None:
        if self.high is not None:
            high = np.concatenate([self.high, high])
        self.high = high[-(RUN - 1) :]
        if high.any():
            length = max(0, len(high) - RUN + 1)
            self.clipped += int(np.all([high[start : start + length] for start in range(RUN)], axis=0).sum())

    def levels(self) -> Levels:
        """What was measured, once all was heard."""
        spans = list(self.quiet)
        if self.begin is not None and self.count - self.begin >= min(self.rate * QUIET, self.count):
            spans.append((self.begin, self.count))
        quiet = " ".join(f"{_written(first / self.rate)}-{_written(last / self.rate)}" for first, last in spans)
        return Levels(self.count / self.rate, self.peak, self.clipped, quiet)


def mono(block: np.ndarray) -> np.ndarray:
    """[samples, channels] -> [samples]: the mean of the channels."""
    return block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)  # a mean of one is slow


def is_silent(quiet: str, start: float, end: float) -> bool:
    """Whether nothing is heard from `start` to `end` seconds, by the parts that `Levels` has as `quiet`."""
    spans = (span.split("-") for span in quiet.split())
    return any(float(first) - NEAR <= start and end <= float(last) + NEAR for first, last in spans)


def silence_message(name: str, start: float = math.nan, end: float = math.nan) -> str:
    """What is said of a recording in which nothing is heard, or nothing from `start` to `end` seconds."""
    where = "" if math.isnan(start) and math.isnan(end) else f" from {start:g} s to {end:g} s"
    return (
        f"{name}: silent{where}: no sample is louder than {20 * math.log10(SILENCE):.0f} dB of full scale. Is it the "
        "right channel or file?"
    )


def refuse_silence(samples: np.ndarray, name: str, start: float = math.nan, end: float = math.nan) -> None:
    """Refuse [samples] of one channel, from `start` to `end` seconds of a recording, in which nothing is heard.

    Raises:
        SilentError: none is louder than -80 dB of full scale.
    """
    if max(samples.max(), -samples.min()) < SILENCE:
        raise SilentError(silence_message(name, start, end))


def refuse_scale(peak: float, name: str) -> None:
    """Refuse samples whose `peak`, the largest one up or down, is far beyond full scale at 1 (InputError)."""
    if peak <= FULL_SCALE:
        return
    factor = next((scale for scale in SCALES if peak <= scale), None)
    what = f"divide by {factor:.0f} what is on the scale of {SCALES[factor]} integers" if factor else "scale them"
    raise InputError(f"{name}: samples reach {peak:.0f}. Expected full scale at 1: {what}.")


def _written(seconds: float) -> str:
    return f"{seconds:.6f}".rstrip("0").rstrip(".")
