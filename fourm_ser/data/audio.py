"""Reading recordings: any rate, any number of channels, any format -> 16 kHz mono float32.

libsndfile reads the formats whose length it knows and in which it finds any sample: WAV, FLAC, AIFF and their like.
What is compressed so that a length is only estimated, or a place only guessed (MP3, OGG, GSM, videos), is decoded once
from its first sample to its last, into a file that libsndfile reads so. The content says which it is, not the name.
"""

import math
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from fourm_ser.data.levels import Levels, Meter, mono, refuse_scale
from fourm_ser.errors import InputError

SAMPLE_RATE = 16_000
BLOCK = 1 << 18  # samples of each channel held at once: 1 MB, whatever the length
UNKNOWN = 0x7FFF0000  # at least so many bytes promises a WAV that was written into a pipe
ENDLESS = 1 << 40  # at least so many samples says libsndfile of a FLAC that was written into a pipe
SOUNDS = (
    *(".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".aiff", ".aif", ".aifc", ".au", ".caf"),
    *(".w64", ".rf64", ".mp4", ".m4a", ".m4v", ".mov", ".mkv", ".mka", ".webm", ".avi", ".aac", ".wma", ".3gp"),
)
ESTIMATED = ("MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III", "VORBIS", "OPUS")
CUT = re.compile(r"^ ?(?:data|SSND) ?: (\d+) \(should be (\d+)\)", re.MULTILINE)


def read_audio(path: Path | str, start: float = math.nan, end: float = math.nan) -> np.ndarray:
    """Read a recording, or a segment of it.

    Args:
        path: a WAV, FLAC or AIFF; OGG, MP3, videos and others are decoded as a whole first.
        start: the segment's beginning in seconds; NaN for the recording's.
        end: the segment's end in seconds; NaN for the recording's.

    Returns:
        [samples] at 16 kHz, float32, full scale at 1; channels are averaged.

    Raises:
        InputError: there is no such file, it cannot be decoded, or the segment has no sample or one that is no number.
    """
    with _exact(path) as file:
        rate, frames = file.samplerate, file.frames
        first = 0 if math.isnan(start) else round(start * rate)
        last = frames if math.isnan(end) else min(round(end * rate), frames)
        if first >= last:
            raise InputError(_empty(path, frames / rate, start, end))
        file.seek(first)
        # No more memory at once than there are samples, whatever a damaged header promises.
        blocks = [mono(block) for block in _blocks(file, path, last - first)]
    samples = blocks[0] if len(blocks) == 1 else np.concatenate(blocks) if blocks else np.empty(0, np.float32)
    if not len(samples):
        raise InputError(_empty(path, 0.0, start, end))
    samples = resample(samples, rate)
    if not len(samples):
        raise InputError(_empty(path, frames / rate, start, end))
    return samples


def resample(samples: np.ndarray, rate: float) -> np.ndarray:
    """[samples] at `rate` Hz -> [samples] at 16 kHz; as they are where that is their rate already."""
    return samples if rate == SAMPLE_RATE else soxr.resample(samples, rate, SAMPLE_RATE)


def stated_seconds(path: Path | str) -> float:
    """The length that a recording's header states, of which the last sample alone is decoded.

    Args:
        path: the recording; one of a format whose headers state no length is decoded as a whole first.

    Raises:
        InputError: there is no such file, it cannot be decoded, it holds no samples, or it is plainly cut off.
    """
    with _exact(path) as file:
        _refuse_cut(path, file.extra_info)
        if not file.frames:
            raise InputError(_empty(path, 0.0, math.nan, math.nan))
        file.seek(file.frames - 1)
        if not len(file.read(1)):
            raise InputError(f"{path}: truncated: its header promises {file.frames} samples, the last is not there.")
        return file.frames / file.samplerate


def check_recording(path: Path) -> Levels:
    """Decode a whole recording, in blocks, and measure its length and how loud it is.

    Args:
        path: the recording; one in which libsndfile does not find any sample is decoded as a whole first.

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


def readable(path: Path | str, target: Path) -> Path:
    """What to read of a recording: itself where libsndfile finds any sample in it, else `target`, decoded from it.

    Args:
        path: the recording.
        target: the FLAC that it is decoded to, where it has to be.

    Raises:
        InputError: there is no such file, it holds no sound, or it is damaged or truncated.
    """
    return Path(path) if reads_exactly(path) else decode(path, target)


def decode(path: Path | str, target: Path) -> Path:
    """Decode a recording as a whole to `target`, see `fourm_ser.data.decoding.extract_audio`; returns `target`."""
    from fourm_ser.data.decoding import extract_audio  # not everybody's recordings need FFmpeg

    extract_audio(Path(path), target)
    return target


def reads_exactly(path: Path | str) -> bool:
    """Whether libsndfile knows a recording's length, and finds any sample of it. False of what is no recording."""
    try:
        with open_sound(path) as file:
            return _finds_any(file)
    except InputError:
        return False


def knows_length(file: soundfile.SoundFile) -> bool:
    """Whether libsndfile knows how many samples there are, and reads them all."""
    return file.subtype not in ESTIMATED and file.format != "OGG" and file.frames < ENDLESS


@contextmanager
def open_sound(path: Path | str, part: BinaryIO | None = None) -> Iterator[soundfile.SoundFile]:
    """A file opened by libsndfile.

    Args:
        path: the file.
        part: the part of the file that is read; None for all.

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
        try:
            yield file
        except soundfile.LibsndfileError as error:
            raise InputError(unreadable(path, error.error_string)) from error


def sound_blocks(file: soundfile.SoundFile, path: Path | str) -> Iterator[np.ndarray]:
    """The samples of an open file whose length is known, from the first to the last.

    Yields:
        [samples, channels] in float32.

    Raises:
        InputError: one is no number, or there are fewer than its header promises, or none.
    """
    count = 0
    for block in _blocks(file, path, file.frames):
        count += len(block)
        yield block
    if not count:
        raise InputError(_empty(path, 0.0, math.nan, math.nan))
    if count < file.frames:
        raise InputError(f"{path}: truncated: its header promises {file.frames} samples, {count} can be read.")
    _refuse_cut(path, file.extra_info)


def unreadable(path: Path | str, reason: str) -> str:
    """What is said of a recording that cannot be decoded."""
    if not os.path.isfile(path):
        return f"{path}: no such recording."
    if not os.access(path, os.R_OK):
        return f"{path}: cannot be read (permission denied)."
    return f"{path}: cannot be decoded ({reason.rstrip('.')}). Copy it from its source again, or convert it to WAV."


def refuse_no_numbers(samples: np.ndarray, path: Path | str) -> None:
    """Refuse NaN and infinite samples.

    Raises:
        InputError: there are some.
    """
    if not np.isfinite(samples).all():
        raise InputError(f"{path}: the recording holds samples that are not numbers (NaN or infinite).")


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


def _is_mpeg(path: Path | str) -> bool:
    """Whether a file begins as MPEG audio does, by a tag (ID3) or a frame's first bits."""
    try:
        with open(path, "rb") as file:
            head = file.read(3)
    except OSError:
        return False
    return head == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0)


def _finds_any(file: soundfile.SoundFile) -> bool:
    return knows_length(file) and file.seekable()


def _blocks(file: soundfile.SoundFile, path: Path | str, count: int) -> Iterator[np.ndarray]:
    """The next `count` samples, or as many as there are, in [samples, channels]."""
    while count > 0 and len(block := file.read(min(BLOCK, count), dtype="float32", always_2d=True)):
        refuse_no_numbers(block, path)
        count -= len(block)
        yield block


def _refuse_cut(path: Path | str, extra_info: str) -> None:
    """Refuse a file in which libsndfile found fewer bytes of samples than its header promises."""
    promised = CUT.search(extra_info)
    if promised and int(promised[2]) < int(promised[1]) < UNKNOWN:
        raise InputError(f"{path}: truncated: its header promises {promised[1]} bytes of samples, fewer are there.")


def _empty(path: Path | str, seconds: float, start: float, end: float) -> str:
    if math.isnan(start) and math.isnan(end):
        return f"{path}: the recording holds no samples."
    return f"{path}: no samples from {start} s to {end} s in a recording of {seconds:.3f} s."
