"""Reading recordings: any rate, any number of channels, any format of libsndfile -> 16 kHz mono float32.

What libsndfile does not read, videos above all, is decoded to such a file first.
"""

import importlib.util
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile
import soxr

from fourm_ser.errors import InputError
from fourm_ser.files import whole

SAMPLE_RATE = 16_000
BLOCK = 1 << 18
UNKNOWN = 0x7FFF0000  # at least so many bytes promises a WAV that was written into a pipe
CONTAINERS = (".mp4", ".m4a", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".aac", ".wma")
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
            samples = file.read(last - first, dtype="float32", always_2d=True)
            samples = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)  # a mean of one is slow
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a name that ends in .raw
        raise InputError(_unreadable(path, error)) from error
    if not len(samples):
        raise InputError(_empty(path, 0.0, start, end))
    if not np.isfinite(samples).all():
        raise InputError(f"{path}: the recording holds samples that are not numbers (NaN or infinite).")
    samples = resample(samples, rate)
    if not len(samples):
        raise InputError(_empty(path, frames / rate, start, end))
    return samples


def resample(samples: np.ndarray, rate: float) -> np.ndarray:
    """[samples] at `rate` Hz -> [samples] at 16 kHz; as they are where that is their rate already."""
    return samples if rate == SAMPLE_RATE else soxr.resample(samples, rate, SAMPLE_RATE)


def stated_seconds(path: Path | str) -> float:
    """The length that a recording's header states, without decoding the recording.

    Raises:
        InputError: there is no such file, it cannot be decoded, it holds no samples, or it is plainly cut off.
    """
    try:
        with soundfile.SoundFile(path) as file:
            _refuse_cut(path, file.extra_info)
            if not file.frames:
                raise InputError(_empty(path, 0.0, math.nan, math.nan))
            return file.frames / file.samplerate
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a name that ends in .raw
        raise InputError(_unreadable(path, error)) from error


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
            _refuse_cut(path, file.extra_info)
            return count / file.samplerate
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a name that ends in .raw
        raise InputError(_unreadable(path, error)) from error


def need_decoder() -> None:
    """Make sure that videos and compressed audio beyond libsndfile's formats can be read.

    Raises:
        InputError: PyAV is not installed.
    """
    if importlib.util.find_spec("av") is None:
        raise InputError(
            f"recordings in {', '.join(CONTAINERS)} files need PyAV, which is not installed: "
            'pip install "fourm_ser[video]"'
        )


def extract_audio(path: Path, target: Path) -> None:
    """Decode the first audio stream of a video, or of audio that libsndfile cannot read, to 16 kHz mono FLAC.

    Args:
        path: a file that FFmpeg reads.
        target: the FLAC, 16 bit, written whole; channels are averaged.

    Raises:
        InputError: there is no such file, it holds no sound, or it is damaged.
    """
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise InputError(f"{path}: holds no sound.")
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="fltp")  # the type alone: rate and channels stay
            blocks = [
                block.to_ndarray().mean(axis=0)
                for frame in [*container.decode(stream), None]
                for block in resampler.resample(frame)
            ]
            rate = stream.rate
            promised = float((stream.duration or 0) * (stream.time_base or 0)) or _tagged(stream.metadata)
    except av.error.FileNotFoundError as error:
        raise InputError(f"{path}: no such recording.") from error
    except av.error.FFmpegError as error:
        raise InputError(f"{path}: cannot be decoded ({error.strerror}). Copy it from the release again.") from error
    if not sum(map(len, blocks)):
        raise InputError(_empty(path, 0.0, math.nan, math.nan))
    samples = soxr.resample(np.concatenate(blocks), rate, SAMPLE_RATE)
    seconds = len(samples) / SAMPLE_RATE
    if seconds < min(0.9 * promised, promised - 1.0):
        raise InputError(f"{path}: truncated: its header promises {promised:.1f} s, {seconds:.1f} s can be decoded.")
    if not np.isfinite(samples).all():
        raise InputError(f"{path}: the recording holds samples that are not numbers (NaN or infinite).")
    with whole(target) as temporary:
        soundfile.write(temporary, np.clip(samples, -1.0, 1.0), SAMPLE_RATE, subtype="PCM_16", format="FLAC")


def _tagged(metadata: Mapping[str, str]) -> float:
    """Seconds that a Matroska stream's tag promises (`00:00:04.128000000`); 0 where there is none."""
    found = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", metadata.get("DURATION", ""))
    return 0.0 if found is None else 3600 * int(found[1]) + 60 * int(found[2]) + float(found[3])


def _refuse_cut(path: Path | str, extra_info: str) -> None:
    """Refuse a file in which libsndfile found fewer bytes of samples than its header promises."""
    promised = CUT.search(extra_info)
    if promised and int(promised[1]) < UNKNOWN:
        raise InputError(f"{path}: truncated: its header promises {promised[1]} bytes of samples, fewer are there.")


def _unreadable(path: Path | str, error: Exception) -> str:
    if not Path(path).is_file():
        return f"{path}: no such recording."
    reason = getattr(error, "error_string", error)
    return f"{path}: cannot be decoded ({reason}). Expected WAV, FLAC, OGG, MP3 or AIFF: convert it to WAV."


def _empty(path: Path | str, seconds: float, start: float, end: float) -> str:
    if math.isnan(start) and math.isnan(end):
        return f"{path}: the recording holds no samples."
    return f"{path}: no samples from {start} s to {end} s in a recording of {seconds:.3f} s."
