"""Reading recordings: any rate, any number of channels, any format -> 16 kHz mono float32.

libsndfile reads the formats whose length it knows and in which it finds any sample: WAV, FLAC, AIFF and their like.
What is compressed so that a length is only estimated, or a place only guessed (MP3, OGG, GSM, videos), is decoded once
from its first sample to its last, into a file that libsndfile reads so. The content says which it is, not the name.
"""

import errno
import functools
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soundfile
import soxr

from fourm_ser import SAMPLE_RATE as SAMPLE_RATE  # readers of recordings have it from here
from fourm_ser.data.levels import Levels, Meter, mono, refuse_scale
from fourm_ser.data.sound import blocks, empty, knows_length, open_sound, opens, refuse_cut, sound_blocks, unreadable
from fourm_ser.errors import InputError, brief
from fourm_ser.files import READ_ONLY

SOUNDS = (
    *(".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".aiff", ".aif", ".aifc", ".au", ".caf"),
    *(".w64", ".rf64", ".mp4", ".m4a", ".m4v", ".mov", ".mkv", ".mka", ".webm", ".avi", ".aac", ".wma", ".3gp"),
)


MARGIN = 1.0  # seconds beyond what is heard that are resampled with it: no filter reaches so far, to the last bit
MACHINE_S = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EROFS", "EMFILE", "ENFILE")}  # faults

Function = TypeVar("Function", bound=Callable[..., Any])


def _blamed(function: Function) -> Function:
    """Let a function that reads a recording raise nothing but an InputError of it, whatever its decoder raises."""

    @functools.wraps(function)
    def told(path: Path | str, *arguments: Any, **keywords: Any) -> Any:
        try:
            return function(path, *arguments, **keywords)
        except InputError:
            raise
        except Exception as error:
            if isinstance(error, OSError):
                is_place = error.errno in READ_ONLY and os.access(path, os.R_OK)  # not the recording: where it goes
                if error.errno in MACHINE_S or is_place:
                    raise
            said = "it takes more memory than there is" if isinstance(error, MemoryError) else brief(error)
            raise InputError(unreadable(path, said)) from error

    return told  # type: ignore[return-value]


@_blamed
def read_audio(
    path: Path | str, start: float = math.nan, end: float = math.nan, most: float | None = None
) -> np.ndarray:
    """Read a recording, or a segment of it.

    Args:
        path: a WAV, FLAC or AIFF; OGG, MP3, videos and others are decoded as a whole first.
        start: the segment's beginning in seconds; NaN for the recording's.
        end: the segment's end in seconds; NaN for the recording's.
        most: the seconds that are heard of it, from its beginning, at most; None for all. Of a longer one no more is
            held in memory, and its samples are the same to the last bit.

    Returns:
        [samples] at 16 kHz, float32, full scale at 1; channels are averaged.

    Raises:
        InputError: there is no such file, it cannot be decoded, or the segment has no sample or one that is no number.
    """
    with _exact(path) as file:
        rate, frames = file.samplerate, file.frames
        first = 0 if math.isnan(start) else round(start * rate)
        last = frames if math.isnan(end) else min(round(end * rate), frames)
        if most is not None:
            last = min(last, first + round((most + MARGIN) * rate))
        read = [np.empty(0, np.float32)]
        if first < last:
            file.seek(first)
            # No more memory at once than there are samples, whatever a damaged header promises.
            read += [mono(block) for block in blocks(file, path, last - first)]
    samples = resample(np.concatenate(read), rate)
    if not len(samples):
        raise InputError(empty(path, frames / rate, start, end))
    return samples if most is None else samples[: round(most * SAMPLE_RATE)]


def resample(samples: np.ndarray, rate: float) -> np.ndarray:
    """[samples] at `rate` Hz -> [samples] at 16 kHz; as they are where that is their rate already."""
    return samples if rate == SAMPLE_RATE else soxr.resample(samples, rate, SAMPLE_RATE)


@_blamed
def stated_seconds(path: Path | str) -> float:
    """The seconds that a recording's header states, of which the last sample alone is decoded.

    Raises:
        InputError: there is no such file, it cannot be decoded, it holds no samples, or it is plainly cut off.
    """
    with _exact(path) as file:
        refuse_cut(path, file.extra_info)
        if not file.frames:
            raise InputError(empty(path, 0.0, math.nan, math.nan))
        file.seek(file.frames - 1)
        if not len(file.read(1)):
            raise InputError(f"{path}: truncated: its header promises {file.frames} samples, the last is not there.")
        return file.frames / file.samplerate


@_blamed
def check_recording(path: Path | str) -> Levels:
    """Decode a whole recording, in blocks, and measure its length and how loud it is.

    Raises:
        InputError: there is no such file, it cannot be decoded, it holds no sample or one that is no number, or its
            samples are not scaled to full scale at 1.
    """
    with _exact(path) as file:
        meter = Meter(file.samplerate, file.subtype)
        for block in sound_blocks(file, path):
            meter.hear(block)
    levels = meter.levels()
    refuse_scale(levels.peak, str(path))
    return levels


@_blamed
def readable(path: Path | str, target: Path) -> Path:
    """What to read of a recording: itself where libsndfile finds any sample in it, else `target`, a FLAC of it.

    Raises:
        InputError: there is no such file, it holds no sound, or it is damaged or truncated.
    """
    return Path(path) if reads_exactly(path) else decode(path, target)


@_blamed
def decode(path: Path | str, target: Path) -> Path:
    """Decode a recording by `fourm_ser.data.decoding.extract_audio` to `target`, which is returned."""
    from fourm_ser.data.decoding import extract_audio  # not everybody's recordings need FFmpeg

    extract_audio(Path(path), target)
    return target


@_blamed
def reads_exactly(path: Path | str) -> bool:
    """Whether libsndfile knows a recording's length, and finds any sample of it. False of what is no recording."""
    return opens(path, _finds_any)


@contextmanager
def _exact(path: Path | str) -> Iterator[soundfile.SoundFile]:
    """A recording in which any sample is found, opened; where it is none such, what it is decoded to for the while."""
    with ExitStack() as stack:
        file = None
        try:
            file = stack.enter_context(open_sound(path))
        except InputError:
            if not os.path.isfile(path):
                raise
        if file is None or not _finds_any(file):
            scratch = stack.enter_context(tempfile.TemporaryDirectory())
            file = stack.enter_context(open_sound(decode(path, Path(scratch, "sound.flac"))))
        yield file


def _finds_any(file: soundfile.SoundFile) -> bool:
    return knows_length(file) and file.seekable()
