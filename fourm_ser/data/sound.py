"""Files that libsndfile opens: what it knows of them, their samples, and what is said of those that are damaged."""

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from fourm_ser.errors import InputError

BLOCK = 1 << 18  # samples of each channel held at once: 1 MB, whatever the length
MOST = 1 << 21  # samples of all channels held at once: 8 MB
RATES = (1_000, 768_000)  # Hz: beyond, a header is damaged, and resampling would make of little a lot
UNKNOWN = 0x7FFF0000  # at least so many bytes promises a WAV that was written into a pipe
ENDLESS = 1 << 40  # at least so many samples says libsndfile of a FLAC that was written into a pipe
ESTIMATED = ("MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III", "VORBIS", "OPUS")  # whose length libsndfile estimates
# What libsndfile notes of bytes that a header promises and that are not there.
CUT = re.compile(r"^ ?(?:data|SSND) ?: (\d+) \(should be (\d+)\)", re.MULTILINE)


def knows_length(file: soundfile.SoundFile) -> bool:
    """Whether libsndfile knows how many samples there are, and reads them all."""
    return file.subtype not in ESTIMATED and file.format != "OGG" and file.frames < ENDLESS


@contextmanager
def open_sound(path: Path | str, part: BinaryIO | None = None) -> Iterator[soundfile.SoundFile]:
    """A file opened by libsndfile, or a `part` of it.

    Raises:
        InputError: there is no such file, or it cannot be decoded, now or later.
    """
    if not os.path.isfile(path):  # nor a pipe, which would wait
        raise InputError(unreadable(path, ""))
    if _is_mpeg(path):  # libsndfile would guess, and its MP3 decoder writes warnings to the terminal
        raise InputError(unreadable(path, "MPEG audio"))
    try:
        file = soundfile.SoundFile(part or os.fsencode(path))  # as bytes: names need not be UTF-8
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a name that ends in .raw
        raise InputError(unreadable(path, getattr(error, "error_string", str(error)))) from error
    with file:
        refuse_rate(file.samplerate, path)
        try:
            yield file
        except soundfile.LibsndfileError as error:
            raise InputError(unreadable(path, error.error_string)) from error


def opens(path: Path | str, fits: Callable[[soundfile.SoundFile], bool] = lambda file: True) -> bool:
    """Whether libsndfile opens a file, and what it knows of it fits."""
    try:
        with open_sound(path) as file:
            return fits(file)
    except InputError:
        return False


def sound_blocks(file: soundfile.SoundFile, path: Path | str) -> Iterator[np.ndarray]:
    """The samples of an open file whose length is known, from the first to the last: [samples, channels] in float32.

    Raises:
        InputError: one is no number, or there are fewer than its header promises, or none.
    """
    count = 0
    for block in blocks(file, path, file.frames):
        count += len(block)
        yield block
    if not count:
        raise InputError(empty(path, 0.0, math.nan, math.nan))
    if count < file.frames:
        raise InputError(f"{path}: truncated: its header promises {file.frames} samples, {count} can be read.")
    refuse_cut(path, file.extra_info)


def unreadable(path: Path | str, reason: str) -> str:
    """What is said of a recording that cannot be decoded."""
    if not os.path.isfile(path):
        kind = " (a pipe, a device or a folder is none)" if os.path.exists(path) else ""
        return f"{path}: no such recording{kind}."
    if not os.access(path, os.R_OK):
        return f"{path}: cannot be read (permission denied)."
    return f"{path}: cannot be decoded ({reason.rstrip('.')}). Copy it from its source again, or convert it to WAV."


def refuse_no_numbers(samples: np.ndarray, path: Path | str) -> None:
    """Refuse NaN and infinite samples (InputError)."""
    if not np.isfinite(samples).all():
        raise InputError(f"{path}: the recording holds samples that are not numbers (NaN or infinite).")


def refuse_rate(rate: float, path: Path | str) -> None:
    """Refuse a rate in Hz that no recording has (InputError)."""
    if not RATES[0] <= rate <= RATES[1]:
        raise InputError(
            f"{path}: its header states {rate:,} samples a second: expected {RATES[0]:,} to {RATES[1]:,}. Is it "
            "damaged? Copy it from its source again."
        )


def _is_mpeg(path: Path | str) -> bool:
    """Whether a file begins as MPEG audio does, by a tag (ID3) or a frame's first bits."""
    try:
        with open(path, "rb") as file:
            head = file.read(3)
    except OSError:
        return False
    return head == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0)


def blocks(file: soundfile.SoundFile, path: Path | str, count: int) -> Iterator[np.ndarray]:
    """The next `count` samples, or as many as there are, in [samples, channels]."""
    most = max(1, min(BLOCK, MOST // file.channels))
    while count > 0 and len(block := file.read(min(most, count), dtype="float32", always_2d=True)):
        refuse_no_numbers(block, path)
        count -= len(block)
        yield block


def refuse_cut(path: Path | str, extra_info: str) -> None:
    """Refuse a file in which libsndfile found fewer bytes of samples than its header promises."""
    promised = CUT.search(extra_info)
    if promised and int(promised[2]) < int(promised[1]) < UNKNOWN:
        raise InputError(f"{path}: truncated: its header promises {promised[1]} bytes of samples, fewer are there.")


def empty(path: Path | str, seconds: float, start: float, end: float) -> str:
    if math.isnan(start) and math.isnan(end):
        return f"{path}: the recording holds no samples."
    return f"{path}: no samples from {start} s to {end} s in a recording of {seconds:.3f} s."
