"""Reading recordings: any rate, any number of channels, any format of libsndfile -> 16 kHz mono float32."""

import math
import re
from pathlib import Path

import numpy as np
import soundfile
import soxr

from fourm_ser.errors import InputError

SAMPLE_RATE = 16_000
BLOCK = 1 << 18
UNKNOWN = 0x7FFF0000  # at least so many bytes promises a WAV that was written into a pipe
CUT = re.compile(r"^ ?(?:data|SSND) ?: (\d+) \(should be \d+\)", re.MULTILINE)


def read_audio(path: Path | str, start: float = math.nan, end: float = math.nan) -> np.ndarray:
    """Read a recording, or a segment of it.

    Args:
        path: a WAV, FLAC, OGG, MP3 or other file that libsndfile reads.
        start: where the segment begins, in seconds; NaN for the recording's beginning.
        end: where it ends, in seconds; NaN for the recording's end.

    Returns:
        [samples] at 16 kHz, float32, full scale at 1; channels are averaged.

    Raises:
        InputError: there is no such file, it cannot be decoded, or the segment has no sample or one that is no number.
    """
    try:
        with soundfile.SoundFile(path) as file:
            rate, frames = file.samplerate, file.frames
            first = 0 if math.isnan(start) else round(start * rate)
            last = file.frames if math.isnan(end) else min(round(end * rate), file.frames)
            if first >= last:
                raise InputError(_empty(path, file.frames / rate, start, end))
            file.seek(first)
            samples = file.read(last - first, dtype="float32", always_2d=True).mean(axis=1)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a name that ends in .raw
        raise InputError(_unreadable(path, error)) from error
    if not len(samples):
        raise InputError(_empty(path, 0.0, start, end))
    if not np.isfinite(samples).all():
        raise InputError(f"{path}: the recording holds samples that are not numbers (NaN or infinite).")
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE)
        if not len(samples):
            raise InputError(_empty(path, frames / rate, start, end))
    return samples


def check_recording(path: Path) -> float:
    """Decode a whole recording, in blocks, and return its length in seconds.

    Raises:
        InputError: there is no such file, it cannot be decoded, or it holds no sample or one that is no number.
    """
    try:
        with soundfile.SoundFile(path) as file:
            count = 0
            while len(block := file.read(BLOCK, dtype="float32")):
                if not np.isfinite(block).all():
                    raise InputError(f"{path}: the recording holds samples that are not numbers (NaN or infinite).")
                count += len(block)
            if count == 0:
                raise InputError(_empty(path, 0.0, math.nan, math.nan))
            if count < file.frames:
                raise InputError(f"{path}: truncated: its header promises {file.frames} samples, {count} can be read.")
            promised = CUT.search(file.extra_info)
            if promised and int(promised[1]) < UNKNOWN:
                raise InputError(
                    f"{path}: truncated: its header promises {promised[1]} bytes of samples, fewer are there."
                )
            return count / file.samplerate
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a name that ends in .raw
        raise InputError(_unreadable(path, error)) from error


def _unreadable(path: Path | str, error: Exception) -> str:
    if not Path(path).is_file():
        return f"{path}: no such recording."
    reason = getattr(error, "error_string", error)
    return f"{path}: cannot be decoded ({reason}). Expected WAV, FLAC, OGG, MP3 or AIFF: convert it to WAV."


def _empty(path: Path | str, seconds: float, start: float, end: float) -> str:
    if math.isnan(start) and math.isnan(end):
        return f"{path}: the recording holds no samples."
    return f"{path}: no samples from {start} s to {end} s in a recording of {seconds:.3f} s."
