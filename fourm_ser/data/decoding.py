"""Recordings decoded once, from the first sample to the last: what libsndfile estimates, guesses or does not read."""

import io
import os
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import soxr

from fourm_ser import SAMPLE_RATE
from fourm_ser.data.levels import mono, refuse_scale
from fourm_ser.data.ogg import PADDING, ogg_links
from fourm_ser.data.sound import (
    knows_length,
    open_sound,
    opens,
    refuse_no_numbers,
    refuse_rate,
    sound_blocks,
    unreadable,
)
from fourm_ser.errors import InputError
from fourm_ser.files import whole

SoundBlock = tuple[int, np.ndarray]
"""Samples a second, and [samples] of one channel."""

# What holds sound, and no list of other files or addresses to open.
DEMUXERS = "aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,tta,w64,wav,wv"
OPTIONS = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
ESTIMATES = ("aac", "ac3", "amr", "eac3", "mp3", "mpeg", "mpegts", "ogg")  # whose length FFmpeg estimates, or guesses
FIRST = 256  # bytes of an MP3's first frame in which the number of its frames may stand
BLOCK = 1 << 16  # samples: seconds of speech, so that the work on each block is not felt
DIFFER = 1  # frames: some that count an MP3's frames count the one in which they say so


def extract_audio(path: Path, target: Path) -> None:
    """Decode a recording, or the first sound track of a video, to a FLAC: 16 kHz, 16 bit, the mean of the channels.

    Raises:
        InputError: there is no such file, it holds no sound, it is damaged or truncated, or its samples are not scaled
            to full scale at 1.
    """
    count = 0
    with whole(target) as temporary:
        with soundfile.SoundFile(os.fsencode(temporary), "w", SAMPLE_RATE, 1, "PCM_16", format="FLAC") as flac:
            for samples in _resampled(path):
                flac.write(np.clip(samples, -1.0, 1.0))
                count += len(samples)
        if not count:
            raise InputError(f"{path}: the recording holds no samples.")


def _blocks(path: Path) -> Iterator[SoundBlock]:
    """A recording's sound as it is decoded: by libsndfile where that knows the length, else by FFmpeg."""
    if not path.is_file():  # nor a pipe, which would wait
        raise InputError(unreadable(path, ""))
    links = ogg_links(path)
    if links and opens(path):
        yield from _by_links(path, links)
    elif not links and opens(path, knows_length):
        with open_sound(path) as file:
            yield from ((file.samplerate, mono(block)) for block in sound_blocks(file, path))
    else:
        yield from _by_ffmpeg(path)


def _by_links(path: Path, links: list[tuple[int, int]]) -> Iterator[SoundBlock]:
    """An OGG's sound, each link as if it were a file."""
    for begin, end in links:
        with path.open("rb") as whole_file:
            whole_file.seek(begin)
            link = io.BytesIO(whole_file.read(end - begin))
        with open_sound(path, link) as file:
            yield from ((file.samplerate, mono(block)) for block in sound_blocks(file, path))


def _by_ffmpeg(path: Path) -> Iterator[SoundBlock]:
    """The first sound track, a frame at a time; its length is held against what is stated for sure."""
    seconds, promised, packets, frames = 0.0, 0.0, 0, 0
    try:
        with av.open(f"file:{path}", metadata_errors="replace", options=OPTIONS) as container:
            if not container.streams.audio:
                raise InputError(f"{path}: holds no sound.")
            stream, kind = container.streams.audio[0], container.format.name
            if kind not in ESTIMATES:
                promised = _promised(stream)
            parts: Iterable[av.Packet[Any]] = container.demux(stream)
            if kind == "mp3":
                parts, frames = _without_tags(parts), _stated_frames(path)
            for packet in parts:
                packets += packet.size > 0
                for frame in stream.codec_context.decode(packet if packet.size else None):
                    seconds += frame.samples / frame.sample_rate
                    yield frame.sample_rate, _floats(frame)
    except InputError:
        raise
    except Exception as error:  # of a damaged file, FFmpeg and PyAV raise whatever they met
        raise InputError(unreadable(path, _reason(error, seconds))) from error
    if not seconds:
        raise InputError(unreadable(path, "no sample is found"))
    if packets < frames - DIFFER:
        raise InputError(f"{path}: truncated: its header promises {frames} frames, {packets} are there.")
    if seconds < min(0.9 * promised, promised - 1.0):
        raise InputError(f"{path}: truncated: its header promises {promised:.1f} s, {seconds:.1f} s can be decoded.")


def _reason(error: Exception, seconds: float) -> str:
    """Why FFmpeg went no further, and where."""
    if isinstance(error, av.error.PatchWelcomeError):
        what = "its rate or its channels change in mid-stream"
    else:
        what = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"{what}, after {seconds:.2f} s" if seconds else what


def _floats(frame: av.AudioFrame) -> np.ndarray:
    """A frame's samples in float32, the mean of its channels."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype.kind == "u":
        return ((samples.astype(np.float32) - 128) / 128).mean(axis=0)
    if samples.dtype.kind == "i":
        return (samples / 2.0 ** (8 * samples.itemsize - 1)).mean(axis=0).astype(np.float32)
    return samples.mean(axis=0, dtype=samples.dtype).astype(np.float32)


def _promised(stream: av.AudioStream) -> float:
    """Seconds that a container states; 0 where it states none. Matroska does by a tag: `00:00:04.128000000`."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    found = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    return 0.0 if found is None else 3600 * int(found[1]) + 60 * int(found[2]) + float(found[3])


def _stated_frames(path: Path) -> int:
    """How many frames an MP3's first one says that there are; 0 where it does not say."""
    begin = 0
    with path.open("rb") as file:
        while length := _tag_length(file.read(16)):
            begin += length
            file.seek(begin)
        file.seek(begin)
        first = file.read(FIRST)
    position = max(first.find(b"Xing"), first.find(b"Info"))
    counts = position >= 0 and int.from_bytes(first[position + 4 : position + 8]) & 1
    return int.from_bytes(first[position + 8 : position + 12]) if counts else 0


def _without_tags(packets: Iterable["av.Packet[Any]"]) -> Iterator["av.Packet[Any]"]:
    """An MP3's packets without the tags that stand between MP3s which were joined, and without padding."""
    left = 0
    for packet in packets:
        data, begin = bytes(packet), left
        while begin < len(data) and (length := _tag_length(data[begin : begin + 16])):
            begin += length
        left = max(0, begin - len(data))
        if not data or (begin == 0 and data.strip(PADDING)):
            yield packet
        elif data[begin:].strip(PADDING):
            yield av.Packet(data[begin:])


def _tag_length(head: bytes) -> int:
    """Bytes of the tag (ID3v2, ID3v1, APEv2) that begins so; 0 where none does."""
    if head[:3] == b"ID3" and len(head) >= 10:
        size = sum((byte & 127) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        return 10 + size + (10 if head[5] & 16 else 0)
    if head[:8] == b"APETAGEX":
        return 32 + int.from_bytes(head[12:16], "little")
    return 128 if head[:3] == b"TAG" else 0


def _gathered(blocks: Iterator[SoundBlock]) -> Iterator[SoundBlock]:
    """The same sound in blocks of seconds: what is done with each of a codec's frames costs more than decoding it."""
    for rate, stretch in groupby(blocks, key=itemgetter(0)):
        held: list[np.ndarray] = []
        for _, samples in stretch:
            held.append(samples)
            if len(held) * len(samples) > BLOCK:
                yield rate, np.concatenate(held)
                held = []
        if held:
            yield rate, np.concatenate(held)


def _resampled(path: Path) -> Iterator[np.ndarray]:
    """Blocks at 16 kHz; where the rate changes in mid-stream, each stretch from its own."""
    for rate, stretch in groupby(_gathered(_blocks(path)), key=itemgetter(0)):
        refuse_rate(rate, path)
        stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        for _, samples in stretch:
            refuse_no_numbers(samples, path)
            refuse_scale(float(np.abs(samples).max(initial=0.0)), str(path))
            yield stream.resample_chunk(samples)
        yield stream.resample_chunk(np.empty(0, np.float32), last=True)
