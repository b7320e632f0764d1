"""Recordings of any rate, channels and format come out as 16 kHz mono float32."""

import math
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fourm_ser.data.audio import SAMPLE_RATE, check_recording, read_audio
from fourm_ser.errors import InputError

Reader = Callable[[Path], object]

FORMATS = [
    # suffix, subtype, rate, how far an amplitude may be off
    ("wav", "PCM_U8", 8_000, 0.01),
    ("wav", "PCM_16", 16_000, 0.002),
    ("wav", "PCM_16", 22_050, 0.002),
    ("wav", "PCM_24", 44_100, 0.002),
    ("wav", "PCM_32", 48_000, 0.002),
    ("wav", "FLOAT", 44_100, 0.002),
    ("wav", "DOUBLE", 16_000, 0.002),
    ("wav", "ULAW", 8_000, 0.01),
    ("flac", "PCM_16", 22_050, 0.002),
    ("flac", "PCM_24", 48_000, 0.002),
    ("ogg", "VORBIS", 16_000, 0.02),
    ("ogg", "VORBIS", 44_100, 0.02),
    ("aiff", "PCM_16", 48_000, 0.002),
    ("mp3", "MPEG_LAYER_III", 16_000, 0.02),
    ("mp3", "MPEG_LAYER_III", 44_100, 0.02),
]


def sine(rate: int, seconds: float, hertz: float, amplitude: float) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


def spectrum(samples: np.ndarray) -> tuple[float, float, float]:
    """Frequency and amplitude of the loudest partial, and the next louder one that is not beside it.

    Of the middle half second, under a Hann window (mean 1/2): a bin is 2 Hz wide.
    """
    middle = len(samples) // 2
    part = samples[middle - 4000 : middle + 4000].astype(np.float64)
    levels = 4 / len(part) * np.abs(np.fft.rfft(part * np.hanning(len(part))))
    peak = int(levels.argmax())
    rest = np.delete(levels, slice(max(0, peak - 5), peak + 6))
    return peak * SAMPLE_RATE / len(part), float(levels[peak]), float(rest.max())


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    """A second of noise at 16 kHz, no two of whose samples' neighbourhoods are alike."""
    path = tmp_path / "tone.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.9, 0.9, SAMPLE_RATE), SAMPLE_RATE, subtype="FLOAT")
    return path


@pytest.mark.parametrize(("suffix", "subtype", "rate", "tolerance"), FORMATS)
def test_a_sine_keeps_its_frequency_and_amplitude(
    tmp_path: Path, suffix: str, subtype: str, rate: int, tolerance: float
) -> None:
    path = tmp_path / f"sine.{suffix}"
    soundfile.write(path, sine(rate, 1.0, hertz=1000.0, amplitude=0.5), rate, subtype=subtype)
    samples = read_audio(path)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert abs(len(samples) - SAMPLE_RATE) <= 1
    frequency, amplitude, other = spectrum(samples)
    assert frequency == pytest.approx(1000.0, abs=2.0)
    assert amplitude == pytest.approx(0.5, abs=tolerance)
    assert other < 0.02
    assert abs(float(samples.mean())) < 0.005


def test_full_scale_is_one_whatever_the_format(tmp_path: Path) -> None:
    steps = np.array([-1.0, -0.5, 0.0, 0.25, 0.75] * 100)
    for subtype, step in (("PCM_U8", 2**-7), ("PCM_16", 2**-15), ("PCM_24", 2**-23), ("FLOAT", 0.0)):
        soundfile.write(tmp_path / "steps.wav", steps, SAMPLE_RATE, subtype=subtype)
        np.testing.assert_allclose(read_audio(tmp_path / "steps.wav"), steps, rtol=0, atol=step)


@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_what_16_khz_cannot_hold_is_filtered_and_not_folded_back(tmp_path: Path, rate: int) -> None:
    both = sine(rate, 1.0, hertz=1000.0, amplitude=0.3) + sine(rate, 1.0, hertz=11_000.0, amplitude=0.3)
    soundfile.write(tmp_path / "both.wav", both, rate, subtype="FLOAT")
    frequency, amplitude, other = spectrum(read_audio(tmp_path / "both.wav"))
    assert frequency == pytest.approx(1000.0, abs=2.0)
    assert amplitude == pytest.approx(0.3, abs=0.002)
    assert other < 1e-3  # 11 kHz would come back at 5 kHz


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_channels_are_averaged(tmp_path: Path, rate: int) -> None:
    left, right = sine(rate, 1.0, 440.0, 0.6), sine(rate, 1.0, 440.0, 0.2)
    for name, channels in (("same", [left, right]), ("against", [left, -right]), ("three", [left, right, 0 * left])):
        soundfile.write(tmp_path / f"{name}.wav", np.stack(channels, axis=1), rate, subtype="FLOAT")
        soundfile.write(tmp_path / "mean.wav", np.mean(channels, axis=0), rate, subtype="FLOAT")
        samples = read_audio(tmp_path / f"{name}.wav")
        assert samples.ndim == 1
        np.testing.assert_allclose(samples, read_audio(tmp_path / "mean.wav"), atol=1e-6)
    assert spectrum(samples)[1] == pytest.approx(0.8 / 3, abs=0.002)


def test_at_16_khz_samples_are_those_of_the_file(tone: Path) -> None:
    np.testing.assert_array_equal(read_audio(str(tone)), soundfile.read(tone, dtype="float32")[0])


def test_a_segment_is_a_slice_of_the_whole(tone: Path) -> None:
    whole = read_audio(tone)
    for start, end, first, last in (
        (0.25, 0.75, 4000, 12_000),
        (math.nan, 0.5, 0, 8000),
        (0.5, math.nan, 8000, 16_000),
        (0.0, 1.0, 0, 16_000),
        (0.9, 5.0, 14_400, 16_000),
        (0.5, 0.5 + 1 / 16_000, 8000, 8001),
    ):
        part = read_audio(tone, start, end)
        np.testing.assert_array_equal(part, whole[first:last], err_msg=f"{start} s to {end} s")


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_segment_of_another_rate_and_format_is_a_slice_of_the_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"sweep.{suffix}"
    time = np.arange(2 * 48_000) / 48_000
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * (200 * time + 300 * time**2)), 48_000)
    part, whole = read_audio(path, 0.5, 1.25), read_audio(path)[8000:20_000]
    assert len(part) == len(whole)
    np.testing.assert_allclose(part[500:-500], whole[500:-500], atol=2e-3)  # the filter rings at a segment's ends


def test_a_segment_without_samples_is_refused(tone: Path) -> None:
    def refused(start: float, end: float) -> None:
        with pytest.raises(InputError, match=r"tone\.wav: no samples from .* in a recording of 1\.000 s"):
            read_audio(tone, start, end)

    for start, end in ((1.0, 2.0), (3.0, math.nan), (1.0, math.nan), (0.5, 0.5), (0.5, 0.500001)):
        refused(start, end)


def test_a_segment_too_short_for_a_sample_at_16_khz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fast.wav"
    soundfile.write(path, np.full(48_000, 0.1), 48_000)
    with pytest.raises(InputError, match=r"fast\.wav"):
        read_audio(path, 0.5, 0.5 + 1 / 48_000)


@pytest.mark.parametrize(("suffix", "rate"), [("wav", 8_000), ("flac", 44_100), ("ogg", 16_000), ("ogg", 44_100)])
def test_a_recording_is_as_long_as_it_is(tmp_path: Path, suffix: str, rate: int) -> None:
    path = tmp_path / f"long.{suffix}"
    soundfile.write(path, np.full((round(1.5 * rate), 2), 0.1), rate)
    assert check_recording(path).seconds == pytest.approx(1.5, abs=1e-9)


def test_a_recording_of_several_blocks_is_as_long_as_it_is(tmp_path: Path) -> None:
    count = 600_001
    soundfile.write(tmp_path / "long.wav", np.zeros(count), SAMPLE_RATE)
    assert check_recording(tmp_path / "long.wav").seconds == count / SAMPLE_RATE


@pytest.mark.parametrize("reader", [read_audio, check_recording])
class TestFaults:
    """Whatever is wrong with a file is said with its path, by both readers."""

    def refusal(self, reader: Reader, path: Path) -> str:
        with pytest.raises(InputError) as caught:
            reader(path)
        assert str(path) in str(caught.value)
        return str(caught.value)

    def test_a_missing_recording(self, tmp_path: Path, reader: Reader) -> None:
        assert "no such recording" in self.refusal(reader, tmp_path / "nowhere.wav")
        assert "no such recording" in self.refusal(reader, tmp_path)

    @pytest.mark.parametrize("content", [b"", b"RIFF", b"not audio at all\n" * 100], ids=["empty", "torn", "text"])
    def test_what_is_not_audio(self, tmp_path: Path, reader: Reader, content: bytes) -> None:
        for name in ("a.wav", "a.flac", "a.ogg", "a.txt", "a.raw"):
            (tmp_path / name).write_bytes(content)
            assert "cannot be decoded" in self.refusal(reader, tmp_path / name)

    def test_no_samples(self, tmp_path: Path, reader: Reader) -> None:
        for name in ("a.wav", "a.flac"):
            soundfile.write(tmp_path / name, np.zeros(0), SAMPLE_RATE)
            self.refusal(reader, tmp_path / name)

    @pytest.mark.parametrize(("value", "place"), [(math.nan, 0), (math.inf, 300_000), (-math.inf, 0)])
    def test_samples_that_are_not_numbers(self, tmp_path: Path, reader: Reader, value: float, place: int) -> None:
        samples = np.zeros((300_001, 2), dtype=np.float32)
        samples[place, 1] = value
        soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE, subtype="FLOAT")
        assert "not numbers" in self.refusal(reader, tmp_path / "a.wav")


NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * SAMPLE_RATE)


@pytest.mark.parametrize("suffix", ["wav", "aiff", "flac", "mp3", "ogg"])
def test_a_truncated_recording_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, NOISE, SAMPLE_RATE)
    assert check_recording(path).seconds == pytest.approx(2.0)
    content = path.read_bytes()
    for share in (0.3, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InputError, match=rf"a\.{suffix}"):
            check_recording(path)


def test_a_truncated_wav_is_said_to_be_truncated(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, NOISE, SAMPLE_RATE, subtype="PCM_16")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"a\.wav: truncated"):
        check_recording(path)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF])
def test_a_wav_from_a_pipe_whose_header_knows_no_size_is_accepted(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, NOISE, SAMPLE_RATE, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = size.to_bytes(4, "little")
    path.write_bytes(content)
    assert check_recording(path).seconds == 2.0
    assert len(read_audio(path)) == len(NOISE)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 96_000])
@pytest.mark.parametrize("most", [0.25, 1.37, 9.0])
@pytest.mark.parametrize("start", [math.nan, 0.5])
def test_what_is_heard_of_a_longer_recording_is_the_same_to_the_last_bit(
    tmp_path: Path, rate: int, most: float, start: float
) -> None:
    samples = np.random.default_rng(rate).normal(0, 0.1, (rate * 4, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    heard = read_audio(tmp_path / "a.wav", start, most=most)
    assert np.array_equal(heard, read_audio(tmp_path / "a.wav", start)[: round(most * SAMPLE_RATE)])


def test_memory_follows_what_is_heard(tmp_path: Path) -> None:
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 8_000, 1) as file:
        for _ in range(20):
            file.write(np.full(8_000 * 60, 0.1))
    tracemalloc.start()
    try:
        assert len(read_audio(tmp_path / "long.flac", most=30.0)) == 30 * SAMPLE_RATE
        assert tracemalloc.get_traced_memory()[1] < 20e6  # of 40 MB at 8 kHz, and 80 MB at 16 kHz
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rate", [1, 999, 768_001, 2**31 - 1])
@pytest.mark.parametrize("read", [read_audio, check_recording])
def test_a_rate_that_no_recording_has_is_refused(tmp_path: Path, rate: int, read: Reader) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(300, 0.1), 16_000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[24:28] = struct.pack("<I", rate)
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.wav: .*samples a second: expected 1,000 to 768,000"):
        read(tmp_path / "a.wav")


@pytest.mark.parametrize("read", [read_audio, check_recording])
@pytest.mark.parametrize(
    "raised", [UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"), MemoryError(), KeyError("x"), OSError(5, "I/O")]
)
def test_whatever_a_decoder_raises_is_said_of_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Reader, raised: Exception
) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(300, 0.1), 16_000)

    def fail(*arguments: object, **keywords: object) -> None:
        raise raised

    monkeypatch.setattr(soundfile.SoundFile, "read", fail)
    with pytest.raises(InputError, match=r"a\.wav: cannot be decoded") as error:
        read(tmp_path / "a.wav")
    assert len(str(error.value).splitlines()) == 1


def test_a_full_disk_is_not_said_of_the_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(300, 0.1), 16_000)

    def fail(*arguments: object, **keywords: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(soundfile.SoundFile, "read", fail)
    with pytest.raises(OSError, match="No space left"):
        read_audio(tmp_path / "a.wav")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_no_recording(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(InputError, match="no such recording"):
        read_audio(tmp_path / "a.wav")
