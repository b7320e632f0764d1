"""What libsndfile does not find its way in is decoded once, from its first sample to its last."""

import io
import math
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fourm_ser.data.audio import SAMPLE_RATE, check_recording, decode, read_audio, reads_exactly
from fourm_ser.data.decoding import extract_audio
from fourm_ser.errors import InputError
from tests.data.test_audio import sine, spectrum

# Videos


def film(path: Path, samples: np.ndarray | None, rate: int = 48_000, **options: str) -> Path:
    """A video of grey pictures with a sound track of `samples` [channels, time] in -1 to 1, or without one."""
    with av.open(str(path), "w", options=options) as container:
        picture = container.add_stream("mpeg4", rate=25)
        picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
        image = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 128, np.uint8), format="rgb24")
        if samples is None:
            container.mux([*picture.encode(image), *picture.encode()])
            return path
        layout = "mono" if len(samples) == 1 else "stereo"
        sound = container.add_stream("aac", rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(samples.astype(np.float32), format="fltp", layout=layout)
        frame.sample_rate = rate
        container.mux([*picture.encode(image), *picture.encode(), *sound.encode(frame), *sound.encode()])
    return path


def voices(seconds: float, rate: int, channels: int) -> np.ndarray:
    """Channels that differ: a sweep each, [channels, time]."""
    time = np.arange(round(seconds * rate)) / rate
    return np.stack([0.4 * np.sin(2 * np.pi * (200 + 150 * place + 300 * time) * time) for place in range(channels)])


def decode_by_hand(path: Path) -> np.ndarray:
    """A film's sound at 16 kHz: its frames as they are decoded, the mean of the channels, resampled as a whole."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    assert {frame.format.name for frame in frames} == {"fltp"}
    sound = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
    return soxr.resample(sound.mean(axis=0), frames[0].sample_rate, SAMPLE_RATE)


@pytest.mark.parametrize(
    ("suffix", "rate", "channels"), [("mp4", 48_000, 2), ("mkv", 44_100, 1), ("mp4", 16_000, 1), ("mkv", 22_050, 2)]
)
def test_a_videos_sound_is_decoded_averaged_and_resampled(
    tmp_path: Path, suffix: str, rate: int, channels: int
) -> None:
    sound = voices(1.3, rate, channels)
    path = film(tmp_path / f"a.{suffix}", sound, rate)
    extract_audio(path, tmp_path / "new" / "a.flac")
    about = soundfile.info(tmp_path / "new" / "a.flac")
    assert (about.samplerate, about.channels, about.format, about.subtype) == (SAMPLE_RATE, 1, "FLAC", "PCM_16")
    samples, expected = read_audio(tmp_path / "new" / "a.flac"), decode_by_hand(path)
    assert len(samples) == len(expected)
    np.testing.assert_allclose(samples, np.clip(expected, -1, 1), rtol=0, atol=1 / 2**15)
    # What was filmed is what is heard, but for what AAC drops and the packets that it begins and ends with.
    filmed, packet = soxr.resample(sound.mean(axis=0), rate, SAMPLE_RATE), 1024 * SAMPLE_RATE / rate
    assert 0 <= len(samples) - len(filmed) <= math.ceil(2 * packet)
    middle = filmed[4000:12_000]
    place = int(np.correlate(samples, middle, mode="valid").argmax())
    assert 0 <= place - 4000 <= math.ceil(packet)
    assert np.corrcoef(samples[place : place + 8000], middle)[0, 1] > 0.99
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.flac"]


def test_what_is_too_loud_is_clipped_and_not_wrapped(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", np.sign(voices(0.5, 16_000, 1)) * 0.99, 16_000)
    extract_audio(path, tmp_path / "a.flac")
    expected = decode_by_hand(path)
    assert np.abs(expected).max() > 1.0  # AAC overshoots
    np.testing.assert_allclose(read_audio(tmp_path / "a.flac"), np.clip(expected, -1, 1), rtol=0, atol=1 / 2**15)


def test_the_first_sound_track_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        tracks = [container.add_stream("aac", rate=16_000, layout="mono") for _ in range(2)]
        for track, hertz in zip(tracks, (500.0, 1000.0), strict=True):
            samples = sine(16_000, 1.5, hertz, 0.5)[None].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate = 16_000
            container.mux([*track.encode(frame), *track.encode()])
    extract_audio(path, tmp_path / "a.flac")
    assert spectrum(read_audio(tmp_path / "a.flac"))[0] == pytest.approx(500.0, abs=2.0)


class TestVideoFaults:
    """Whatever is wrong with a video is said with its path, and nothing is written."""

    def refusal(self, path: Path) -> str:
        target = path.parent / "new" / "a.flac"
        with pytest.raises(InputError) as caught:
            extract_audio(path, target)
        assert str(path) in str(caught.value)
        assert not target.parent.exists() or not list(target.parent.iterdir())
        return str(caught.value)

    def test_a_missing_video(self, tmp_path: Path) -> None:
        assert "no such recording" in self.refusal(tmp_path / "nowhere.mp4")

    def test_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "a.mp4").mkdir()
        self.refusal(tmp_path / "a.mp4")

    @pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"no video at all\n" * 100], ids=["empty", "zeros", "text"])
    def test_what_is_no_video(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.mp4").write_bytes(content)
        assert "cannot be decoded" in self.refusal(tmp_path / "a.mp4")

    def test_noise(self, tmp_path: Path) -> None:
        (tmp_path / "a.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
        self.refusal(tmp_path / "a.mp4")

    def test_a_silent_film(self, tmp_path: Path) -> None:
        assert "holds no sound" in self.refusal(film(tmp_path / "a.mp4", None))

    def test_a_download_that_stopped(self, tmp_path: Path) -> None:
        path = film(tmp_path / "a.mp4", voices(4.0, 16_000, 1), 16_000, movflags="faststart")
        content = path.read_bytes()
        extract_audio(path, tmp_path / "whole.flac")
        with av.open(str(path)) as container:
            packets = [packet.pos for packet in container.demux(audio=0) if packet.pos]
        path.write_bytes(content[:40])
        self.refusal(path)
        path.write_bytes(content[: len(content) // 2])
        assert "cannot be decoded" in self.refusal(path)
        path.write_bytes(content[: packets[len(packets) // 2]])  # what is there can be decoded
        assert "truncated" in self.refusal(path)

    def test_a_video_whose_table_of_contents_was_lost(self, tmp_path: Path) -> None:
        path = film(tmp_path / "a.mp4", voices(2.0, 16_000, 1), 16_000)  # it stands at the end
        path.write_bytes(path.read_bytes()[:-500])
        assert "cannot be decoded" in self.refusal(path)


# Compressed sound


def tune(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    """[samples] of a sound that is nowhere like itself, and that codecs keep."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    steps = np.interp(time, np.linspace(0, seconds, 12), generator.uniform(200, 1500, 12))
    return (0.4 * np.sin(2 * np.pi * np.cumsum(steps) / rate)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int, kind: str, subtype: str | None = None) -> bytes:
    """A file of libsndfile's."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


class Pipe(io.RawIOBase):
    """What is written into it, without a way back to mend a header."""

    def __init__(self) -> None:
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.content += bytes(data)  # type: ignore[call-overload]
        return len(bytes(data))  # type: ignore[call-overload]


def piped(samples: np.ndarray, rate: int, kind: str, codec: str, seekable: bool = False) -> bytes:
    """A file of FFmpeg's, written into a pipe unless `seekable`."""
    file = io.BytesIO() if seekable else Pipe()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = rate
        fit = av.AudioResampler(stream.format, "mono", rate, frame_size=stream.codec_context.frame_size or None)
        for part in [*fit.resample(frame), *fit.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return file.getvalue() if isinstance(file, io.BytesIO) else bytes(file.content)


def tagged(content: bytes, length: int = 300) -> bytes:
    """An MP3 behind an ID3 tag with a picture of `length` bytes."""
    size = bytes(length >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\x04\0\0" + size + np.random.default_rng(0).bytes(length) + content


def alike(heard: np.ndarray, meant: np.ndarray, least: float) -> None:
    """Hold two sounds of the same place and length against each other by their correlation."""
    assert len(heard) == len(meant)
    assert np.corrcoef(heard, meant)[0, 1] > least


LOSSLESS = [
    *(("WAV", kind, 1 / 2**15) for kind in ("PCM_16", "PCM_24", "FLOAT")),
    *((container, "PCM_16", 1 / 2**15) for container in ("AIFF", "FLAC", "AU", "CAF", "W64", "RF64", "WAVEX", "NIST")),
    ("CAF", "ALAC_16", 1 / 2**15),
    *(("WAV", law, 0.03) for law in ("ULAW", "ALAW")),
    *(("WAV", code, 1.0) for code in ("IMA_ADPCM", "MS_ADPCM")),
]
CODED = [
    ("MP3", "MPEG_LAYER_III", 44_100, 0.98),
    ("MP3", "MPEG_LAYER_III", 16_000, 0.98),
    ("OGG", "VORBIS", 44_100, 0.98),
    ("OGG", "OPUS", 48_000, 0.98),
    ("OGG", "OPUS", 16_000, 0.95),
    ("WAV", "GSM610", 8000, 0.9),
    ("AIFF", "GSM610", 8000, 0.9),
    ("AU", "G721_32", 16_000, 0.98),
    ("AU", "G723_40", 16_000, 0.98),
    ("WAV", "NMS_ADPCM_32", 16_000, 0.9),
]


@pytest.mark.parametrize(("kind", "subtype", "step"), LOSSLESS)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**20), seconds=st.floats(0.2, 0.5))
def test_what_libsndfile_finds_its_way_in_sounds_as_the_wav(
    tmp_path_factory: pytest.TempPathFactory, kind: str, subtype: str, step: float, seed: int, seconds: float
) -> None:
    folder = tmp_path_factory.mktemp("lossless")
    samples = tune(seconds, SAMPLE_RATE, seed)
    (folder / "any name").write_bytes(encoded(samples, SAMPLE_RATE, kind, subtype))
    assert reads_exactly(folder / "any name")
    heard = read_audio(folder / "any name")
    assert check_recording(folder / "any name").seconds == len(heard) / SAMPLE_RATE
    np.testing.assert_allclose(heard[: len(samples)], samples, rtol=0, atol=step)
    alike(heard[: len(samples)], samples, 0.9)
    first, last = len(samples) // 4, len(samples) // 2
    part = read_audio(folder / "any name", first / SAMPLE_RATE, last / SAMPLE_RATE)
    np.testing.assert_array_equal(part, heard[first:last])


@pytest.mark.parametrize(("kind", "subtype", "rate", "least"), CODED)
def test_what_is_coded_sounds_as_the_wav_to_within_the_codec(
    tmp_path: Path, kind: str, subtype: str, rate: int, least: float
) -> None:
    samples = tune(1.5, rate)
    path = tmp_path / "any name"
    path.write_bytes(encoded(samples, rate, kind, subtype))
    assert not reads_exactly(path)
    heard = read_audio(path)
    meant = samples if rate == SAMPLE_RATE else soxr.resample(samples, rate, SAMPLE_RATE)
    assert 0 <= len(heard) - len(meant) <= 0.03 * SAMPLE_RATE  # what a codec's last frame adds
    alike(heard[: len(meant)], meant, least)
    # A segment is a cut of the whole: it is cut out of what was decoded once.
    np.testing.assert_array_equal(read_audio(path, 0.25, 1.0), heard[4000:16_000])
    assert check_recording(path).seconds == len(heard) / SAMPLE_RATE
    np.testing.assert_array_equal(read_audio(decode(path, tmp_path / "a.flac")), heard)


@pytest.mark.parametrize(
    ("kind", "codec", "rate", "delay"),
    [
        ("wav", "pcm_s16le", 16_000, 0.0),
        ("au", "pcm_s16be", 16_000, 0.0),
        ("caf", "pcm_s16be", 16_000, 0.0),
        ("flac", "flac", 16_000, 0.0),
        ("mp3", "libmp3lame", 16_000, 0.1),  # a pipe has no place for how much was put in front
        ("mp3", "libmp3lame", 44_100, 0.08),
        ("wav", "mp3", 16_000, 0.1),
        ("adts", "aac", 16_000, 0.13),
        ("matroska", "aac", 16_000, 0.13),
        ("webm", "libopus", 48_000, 0.02),
        ("opus", "libopus", 48_000, 0.02),
        ("mpegts", "aac", 16_000, 0.13),
        ("avi", "pcm_s16le", 16_000, 0.0),
    ],
)
def test_what_was_written_into_a_pipe_is_read_to_its_end(
    tmp_path: Path, kind: str, codec: str, rate: int, delay: float
) -> None:
    samples = tune(2.0, rate)
    (tmp_path / "any name").write_bytes(piped(samples, rate, kind, codec))
    heard = read_audio(tmp_path / "any name")
    meant = samples if rate == SAMPLE_RATE else soxr.resample(samples, rate, SAMPLE_RATE)
    assert 0 <= len(heard) - len(meant) <= delay * SAMPLE_RATE
    middle = meant[4000:-4000]
    place = int(np.correlate(heard, middle, mode="valid").argmax())
    assert 0 <= place - 4000 <= delay * SAMPLE_RATE
    assert np.corrcoef(heard[place : place + len(middle)], middle)[0, 1] > 0.97
    assert check_recording(tmp_path / "any name").seconds == len(heard) / SAMPLE_RATE


@pytest.mark.parametrize(
    ("kind", "subtype", "between", "rate", "channels"),
    [
        ("MP3", None, 0.15, 16_000, 1),
        ("MP3", None, 0.15, 22_050, 2),
        ("OGG", "VORBIS", 0.0, 44_100, 1),
        ("OGG", "VORBIS", 0.0, 16_000, 2),
        ("OGG", "OPUS", 0.0, 16_000, 1),
        ("OGG", "OPUS", 0.0, 48_000, 2),
    ],
)
def test_what_was_joined_is_as_long_as_its_parts(
    tmp_path: Path, kind: str, subtype: str | None, between: float, rate: int, channels: int
) -> None:
    behind = tune(1.5, rate, 1)
    one = encoded(tune(1.0, 16_000), 16_000, kind, subtype)
    two = encoded(np.stack([behind] * channels, axis=1), rate, kind, subtype)
    (tmp_path / "joined").write_bytes(one + two)
    heard = read_audio(tmp_path / "joined")
    assert 0 <= len(heard) / SAMPLE_RATE - 2.5 <= between  # an MP3's own first frame and delay are heard in the middle
    alike(heard[:16_000], tune(1.0, 16_000), 0.98)
    meant = behind if rate == SAMPLE_RATE else soxr.resample(behind, rate, SAMPLE_RATE)
    place = int(np.correlate(heard, meant[4000:], mode="valid").argmax())
    assert np.corrcoef(heard[place : place + len(meant) - 4000], meant[4000:])[0, 1] > 0.98


@settings(max_examples=20)
@given(
    parts=st.lists(st.floats(0.2, 0.7), min_size=1, max_size=4),
    pictures=st.lists(st.sampled_from([None, 0, 20, 3000, 70_000]), min_size=4, max_size=4),
    behind=st.sampled_from([b"", b"TAG" + b"x" * 125, b"\0" * 500, b"\n"]),
)
@example(parts=[0.5, 0.5], pictures=[300_000] * 4, behind=b"TAG" + b"x" * 125)
def test_tags_and_padding_between_and_behind_mp3s_are_no_sound(
    tmp_path_factory: pytest.TempPathFactory, parts: list[float], pictures: list[int | None], behind: bytes
) -> None:
    path = tmp_path_factory.mktemp("mp3") / "a.mp3"
    files = [encoded(tune(seconds, 16_000, seed), 16_000, "MP3") for seed, seconds in enumerate(parts)]
    path.write_bytes(b"".join(files))
    plain = read_audio(path)
    marked = [file if size is None else tagged(file, size) for file, size in zip(files, pictures, strict=False)]
    path.write_bytes(b"".join(marked) + behind)
    # FFmpeg cuts what an encoder put behind the last sample where the file ends, and not in its middle.
    heard = read_audio(path)
    assert abs(len(heard) - len(plain)) <= 1200
    shared = min(len(heard), len(plain))
    np.testing.assert_allclose(heard[:shared], plain[:shared], rtol=0, atol=1e-3)


@pytest.mark.parametrize("loud_first", [True, False])
def test_an_mp3_of_changing_bit_rate_that_states_no_length_is_read_to_its_end(tmp_path: Path, loud_first: bool) -> None:
    parts = [np.random.default_rng(0).uniform(-0.9, 0.9, 16_000), 1e-3 * tune(1.0, 16_000)]
    content = encoded(np.concatenate(parts if loud_first else parts[::-1]), 16_000, "MP3")
    second = content.index(content[:2], 100)  # the first frame states the length
    (tmp_path / "a.mp3").write_bytes(content[second:])
    assert len(read_audio(tmp_path / "a.mp3")) / SAMPLE_RATE == pytest.approx(2.0, abs=0.12)


class TestDamage:
    def refusal(self, path: Path) -> str:
        for reader in (read_audio, check_recording):
            with pytest.raises(InputError) as caught:
                reader(path)
            assert str(caught.value).startswith(f"{path}: ")
            assert "\n" not in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize(
        ("kind", "subtype"), [("MP3", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("WAV", "GSM610")]
    )
    def test_what_is_cut_off_is_said_to_be(self, tmp_path: Path, kind: str, subtype: str | None) -> None:
        content = encoded(tune(2.0, 8000), 8000, kind, subtype)
        for share in (0.3, 0.6, 0.85):
            (tmp_path / "a").write_bytes(content[: round(len(content) * share)])
            assert "truncated" in self.refusal(tmp_path / "a"), share

    def test_noise_in_the_middle_of_an_mp3_is_no_tag(self, tmp_path: Path) -> None:
        content = encoded(tune(2.0, 16_000), 16_000, "MP3")
        noise = np.random.default_rng(0).bytes(3000)
        (tmp_path / "a.mp3").write_bytes(content[:3000] + noise + content[3000:])
        assert "cannot be decoded" in self.refusal(tmp_path / "a.mp3")

    def test_noise_in_the_middle_of_an_ogg(self, tmp_path: Path) -> None:
        content = encoded(tune(2.0, 16_000), 16_000, "OGG")
        (tmp_path / "a.ogg").write_bytes(content + b"noise" + content)
        assert "no page of the OGG begins" in self.refusal(tmp_path / "a.ogg")

    @settings(max_examples=50)
    @given(name=st.sampled_from(["a.mp3", "a.ogg", "a.wav", "a.m4a", "a"]), content=st.binary(max_size=600))
    @example(name="a.wav", content=b"#EXTM3U\n#EXTINF:9,\n/etc/hostname\n")  # names other files
    @example(name="a.mp3", content=b"ffconcat version 1.0\nfile other.mp3\n")
    @example(name="a.mp3", content=b"ID3\x04\0\0\x7f\x7f\x7f\x7f")
    def test_what_is_no_sound(self, tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes) -> None:
        path = tmp_path_factory.mktemp("none") / name
        path.write_bytes(content)
        self.refusal(path)

    @settings(max_examples=60)
    @given(kind=st.sampled_from(["MP3", "OGG", "FLAC", "WAV", "m4a"]), data=st.data())
    def test_whatever_is_damaged_is_read_or_refused_in_one_line(
        self, tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
    ) -> None:
        sound = tune(0.5, 16_000)
        content = bytearray(
            piped(sound, 16_000, "ipod", "aac", seekable=True) if kind == "m4a" else encoded(sound, 16_000, kind)
        )
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=30)):
            content[place] = data.draw(st.integers(0, 255))
        path = tmp_path_factory.mktemp("damaged") / "a"
        path.write_bytes(content)
        try:
            samples, refused = read_audio(path), ""
        except InputError as error:
            refused = str(error)
        assert refused.startswith(f"{path}: ") if refused else np.isfinite(samples).all()

    def test_samples_on_another_scale_are_not_cut_to_full_scale(self, tmp_path: Path) -> None:
        (tmp_path / "a.mkv").write_bytes(piped(32768 * tune(0.5, 16_000), 16_000, "matroska", "pcm_f32le"))
        assert "32768" in self.refusal(tmp_path / "a.mkv")

    def test_a_tag_that_is_no_utf_8_costs_nothing(self, tmp_path: Path) -> None:
        content = encoded(tune(0.5, 16_000), 16_000, "MP3")
        frame = b"TIT2\0\0\0\x05\0\0\x03caf\xe9"  # says that it is UTF-8
        (tmp_path / "a.mp3").write_bytes(b"ID3\x04\0\0\0\0\0" + bytes([len(frame)]) + frame + content)
        assert check_recording(tmp_path / "a.mp3").seconds == pytest.approx(0.5)
