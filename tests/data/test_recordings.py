"""Recordings are decoded once, known by their content, and the bad ones among them do not hide each other."""

import os
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import soundfile

from fourm_ser.data import recordings
from fourm_ser.data.audio import check_recording, decode
from fourm_ser.data.decoding import extract_audio
from fourm_ser.data.levels import Levels
from fourm_ser.data.recordings import Recording, scan_recordings
from fourm_ser.errors import InputError

RATE = 8000


def write_wav(path: Path, seconds: float = 0.1, seed: int = 0) -> Path:
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE))
    soundfile.write(path, samples, RATE, subtype="PCM_16")
    return path


def scan(
    folder: Path, *names: str, table: str = "manifest.csv", verify: str = "quick"
) -> dict[str, Recording | InputError]:
    """What is said of the recordings of a folder, by name."""
    scanned = scan_recordings([str(folder / name) for name in names], folder / table, folder / "cache", verify)
    assert set(scanned) == {str(folder / name) for name in names}
    return {name: scanned[str(folder / name)] for name in names}


def sound(folder: Path, *names: str) -> list[Recording]:
    """The recordings of a folder, all of which can be used, in the order of names."""
    scanned = [recording for recording in scan(folder, *names).values() if isinstance(recording, Recording)]
    assert len(scanned) == len(set(names))
    return scanned


def refusal(folder: Path, name: str) -> str:
    """What is wrong with a recording; always with its path."""
    error = scan(folder, name)[name]
    assert isinstance(error, InputError)
    assert str(folder / name) in str(error)
    return str(error)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded, as they are."""
    names: list[str] = []

    def check(path: Path) -> Levels:
        names.append(path.name)
        return check_recording(path)

    monkeypatch.setattr(recordings, "check_recording", check)
    return names


def test_each_recording_has_its_length_and_a_digest_of_its_bytes(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 0.25)
    write_wav(tmp_path / "b.wav", 0.5)
    (tmp_path / "copy.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    b, a, copy = sound(tmp_path, "b.wav", "a.wav", "copy.wav", "b.wav")
    assert [b.seconds, a.seconds, copy.seconds] == [0.5, 0.25, 0.25]
    assert a.digest == copy.digest != b.digest
    for name, recording in (("a.wav", a), ("b.wav", b), ("copy.wav", copy)):
        status = (tmp_path / name).stat()
        assert recording.path == recording.file == str(tmp_path / name)
        assert (recording.size, recording.modified) == (status.st_size, status.st_mtime_ns)


def test_the_digest_tells_files_of_the_same_samples_but_other_bytes_apart(tmp_path: Path) -> None:
    samples = np.zeros(800)
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    soundfile.write(tmp_path / "a.flac", samples, RATE)
    wav, flac = sound(tmp_path, "a.wav", "a.flac")
    assert wav.digest != flac.digest


def test_a_changed_file_gets_another_digest_and_length(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 0.2)
    write_wav(tmp_path / "b.wav", 0.2)
    before = sound(tmp_path, "a.wav", "b.wav")
    write_wav(tmp_path / "b.wav", 0.3, seed=1)
    after = sound(tmp_path, "a.wav", "b.wav")
    assert after[0] == before[0]
    assert after[1].digest != before[1].digest
    assert [recording.seconds for recording in after] == [0.2, 0.3]


def test_a_change_that_keeps_the_size_is_seen_by_its_time(tmp_path: Path) -> None:
    before = write_wav(tmp_path / "a.wav").stat()
    (first,) = sound(tmp_path, "a.wav")
    write_wav(tmp_path / "a.wav", seed=1)
    os.utime(tmp_path / "a.wav", ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    assert (tmp_path / "a.wav").stat().st_size == before.st_size
    assert sound(tmp_path, "a.wav")[0].digest != first.digest


def test_a_change_that_keeps_the_time_is_seen_by_its_size(tmp_path: Path) -> None:
    before = write_wav(tmp_path / "a.wav").stat()
    (first,) = sound(tmp_path, "a.wav")
    write_wav(tmp_path / "a.wav", 0.2)
    os.utime(tmp_path / "a.wav", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sound(tmp_path, "a.wav")[0].digest != first.digest


def test_a_file_that_did_not_change_is_not_decoded_again(tmp_path: Path, decoded: list[str]) -> None:
    names = ["a.wav", "b.wav", "c.wav"]
    for name in names:
        write_wav(tmp_path / name)
    first = scan(tmp_path, *names)
    decoded.clear()
    assert scan(tmp_path, *names) == first
    assert decoded == []
    before = (tmp_path / "b.wav").stat()
    os.utime(tmp_path / "b.wav", ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    scan(tmp_path, *names)
    assert decoded == ["b.wav"]


PLACES = {"the first byte of sound": 44, "the middle": 30_044, "the last byte": -1}


@pytest.mark.parametrize(
    ("kind", "place", "verify"),
    [
        ("wav", "the first byte of sound", "quick"),
        ("wav", "the middle", "quick"),
        ("wav", "the middle", "full"),
        ("wav", "the last byte", "quick"),
        ("mp3", "the first byte of sound", "quick"),
        ("mp3", "the middle", "full"),
        ("mp3", "the last byte", "quick"),
        ("its flac", "the first byte of sound", "quick"),
        ("its flac", "the middle", "full"),
        ("its flac", "the last byte", "quick"),
    ],
)
def test_a_file_that_is_replaced_with_size_and_time_kept_is_noticed(
    tmp_path: Path, kind: str, place: str, verify: str
) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 30_000)
    name = "a.wav" if kind == "wav" else "a.mp3"
    soundfile.write(tmp_path / name, samples, RATE)
    before = scan(tmp_path, name, verify=verify)[name]
    assert isinstance(before, Recording)
    changed = Path(before.file) if kind == "its flac" else tmp_path / name
    content, status = bytearray(changed.read_bytes()), changed.stat()
    content[PLACES[place] if kind == "wav" else len(content) // 2 if place == "the middle" else PLACES[place]] ^= 1
    changed.write_bytes(content)
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = scan(tmp_path, name, verify=verify)[name]
    if place == "the middle" and verify == "quick":
        assert after == before
    elif kind == "its flac":  # is made anew
        assert after == before
        assert changed.read_bytes() != content
    else:
        assert isinstance(after, InputError) or after.source != before.source


def test_what_was_remembered_of_an_older_version_is_measured_anew(tmp_path: Path, decoded: list[str]) -> None:
    write_wav(tmp_path / "a.wav")
    first = scan(tmp_path, "a.wav")
    (table,) = (tmp_path / "cache" / "recordings").glob("*.csv")
    pd.read_csv(table).drop(columns=["quiet", "ends"]).to_csv(table, index=False)
    assert scan(tmp_path, "a.wav") == first
    assert decoded == ["a.wav", "a.wav"]


def test_what_was_measured_is_remembered(tmp_path: Path, decoded: list[str]) -> None:
    sound_then_none = np.concatenate([np.full(4000, 0.3), np.zeros(3001), np.full(10, 1.0)])
    soundfile.write(tmp_path / "a.wav", sound_then_none, RATE, subtype="PCM_16")
    for _ in range(2):
        (recording,) = sound(tmp_path, "a.wav")
        assert (recording.clipped, recording.quiet) == (8, "0.5-0.875125")
        assert recording.peak == pytest.approx(1.0, abs=1e-4)
    assert decoded == ["a.wav"]


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
@pytest.mark.parametrize("suffix", [b"wav", b"mp3"])
def test_a_name_that_is_no_utf_8_is_remembered_like_another(tmp_path: Path, suffix: bytes, decoded: list[str]) -> None:
    name = os.fsdecode(b"caf\xe9." + suffix)
    soundfile.write(tmp_path / "a.wav", np.full(800, 0.3), RATE)
    soundfile.write(tmp_path / "b.mp3", np.full(800, 0.3), RATE)
    (tmp_path / ("a.wav" if suffix == b"wav" else "b.mp3")).rename(tmp_path / name)
    first = scan(tmp_path, name)
    assert isinstance(first[name], Recording)
    assert scan(tmp_path, name) == first
    assert len(decoded) == 1


def test_a_remembered_length_is_exactly_the_measured_one(tmp_path: Path) -> None:
    names = [f"{count}.wav" for count in range(1000, 1060)]
    for count, name in enumerate(names, start=1000):
        soundfile.write(tmp_path / name, np.zeros(count), 44_100)
    for _ in range(2):
        found = [recording.seconds for recording in sound(tmp_path, *names)]
        assert found == [count / 44_100 for count in range(1000, 1060)]


def test_an_audio_file_is_decoded_once_however_many_segments_it_has(tmp_path: Path, decoded: list[str]) -> None:
    write_wav(tmp_path / "a.wav")
    write_wav(tmp_path / "b.wav")
    scan(tmp_path, "a.wav", "b.wav", "a.wav", "a.wav")
    assert sorted(decoded) == ["a.wav", "b.wav"]


def test_only_new_files_are_read_when_a_manifest_grows(tmp_path: Path, decoded: list[str]) -> None:
    for name in ("a.wav", "b.wav", "c.wav"):
        write_wav(tmp_path / name)
    scan(tmp_path, "a.wav", "b.wav")
    decoded.clear()
    scan(tmp_path, "c.wav", "b.wav", "a.wav")
    assert decoded == ["c.wav"]


def test_a_scan_of_some_rows_does_not_forget_the_others(tmp_path: Path, decoded: list[str]) -> None:
    # Runs with other emotions use other rows of one manifest.
    names = ["a.wav", "b.wav", "c.wav"]
    for name in names:
        write_wav(tmp_path / name)
    first = scan(tmp_path, "a.wav", "c.wav")
    scan(tmp_path, "b.wav")
    assert scan(tmp_path, "a.wav", "c.wav") == first
    assert sorted(decoded) == names


def test_every_fault_is_told_beside_the_good_recordings(tmp_path: Path) -> None:
    write_wav(tmp_path / "good.wav")
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    soundfile.write(tmp_path / "nan.wav", np.full(10, np.nan), RATE, subtype="FLOAT")
    torn = write_wav(tmp_path / "torn.wav")
    torn.write_bytes(torn.read_bytes()[:-100])
    (tmp_path / "folder.wav").mkdir()
    faults = {
        "missing.wav": "no such recording",
        "text.wav": "cannot be decoded",
        "empty.wav": "no samples",
        "nan.wav": "not numbers",
        "torn.wav": "truncated",
        "folder.wav": "",
    }
    scanned = scan(tmp_path, "good.wav", *faults)
    assert isinstance(scanned["good.wav"], Recording)
    for name, said in faults.items():
        assert isinstance(scanned[name], InputError)
        assert str(tmp_path / name) in str(scanned[name])
        assert said in str(scanned[name])


def test_a_fault_that_is_mended_is_no_fault_any_more(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav")
    assert isinstance(scan(tmp_path, "a.wav", "b.wav")["b.wav"], InputError)
    write_wav(tmp_path / "b.wav")
    assert len(sound(tmp_path, "a.wav", "b.wav")) == 2


def test_a_recording_that_vanishes_is_missed(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav")
    write_wav(tmp_path / "b.wav")
    sound(tmp_path, "a.wav", "b.wav")
    (tmp_path / "b.wav").unlink()
    assert "no such recording" in refusal(tmp_path, "b.wav")


def test_two_manifests_do_not_disturb_each_other(tmp_path: Path, decoded: list[str]) -> None:
    for name in ("a.wav", "b.wav", "both.wav"):
        write_wav(tmp_path / name)
    tables = {"one.csv": ["a.wav", "both.wav"], "two.csv": ["both.wav", "b.wav"]}
    first = {table: scan(tmp_path, *names, table=table) for table, names in tables.items()}
    assert set(decoded) == {"a.wav", "b.wav", "both.wav"}
    decoded.clear()
    for _ in range(2):
        for table, names in tables.items():
            assert scan(tmp_path, *names, table=table) == first[table]
    assert decoded == []
    (tmp_path / "broken.wav").write_text("no audio")
    scan(tmp_path, "broken.wav", table="three.csv")
    assert scan(tmp_path, *tables["one.csv"], table="one.csv") == first["one.csv"]


def test_one_manifest_by_two_paths_is_one(tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write_wav(tmp_path / "a.wav")
    monkeypatch.chdir(tmp_path)
    for source in (Path("manifest.csv"), tmp_path / "manifest.csv"):
        scan_recordings([str(tmp_path / "a.wav")], source, tmp_path / "cache")
    assert decoded == ["a.wav"]


# Videos


def write_video(path: Path, seconds: float = 1.0, hertz: float = 440.0) -> Path:
    with av.open(str(path), "w", format="mp4") as container:
        track = container.add_stream("aac", rate=16_000, layout="mono")
        samples = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * 16_000)) / 16_000)
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux([*track.encode(frame), *track.encode()])
    return path


@pytest.fixture
def extracted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the videos whose sound is decoded, as it is."""
    names: list[str] = []

    def extract(path: str, target: Path) -> Path:
        names.append(Path(path).name)
        return decode(path, target)

    monkeypatch.setattr(recordings, "decode", extract)
    return names


def test_a_video_is_read_from_the_flac_of_its_sound(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    (video,) = sound(tmp_path, "a.mp4")
    assert video.path == str(tmp_path / "a.mp4")
    assert video.size == (tmp_path / "a.mp4").stat().st_size
    assert Path(video.file).suffix == ".flac"
    assert Path(video.file).is_relative_to(tmp_path / "cache")
    extract_audio(tmp_path / "a.mp4", tmp_path / "mine.flac")
    assert Path(video.file).read_bytes() == (tmp_path / "mine.flac").read_bytes()
    assert video.seconds == soundfile.info(video.file).duration
    (mine,) = sound(tmp_path, "mine.flac")
    assert video.digest == mine.digest


def test_a_video_is_decoded_once(tmp_path: Path, extracted: list[str], decoded: list[str]) -> None:
    write_video(tmp_path / "a.mp4")
    write_video(tmp_path / "B.MP4", hertz=880.0)
    write_wav(tmp_path / "c.wav")
    names = ["a.mp4", "B.MP4", "c.wav"]
    first = scan(tmp_path, *names, "a.mp4")
    assert sorted(extracted) == ["B.MP4", "a.mp4"]
    for _ in range(2):
        assert scan(tmp_path, *names) == first
    assert len(extracted) == 2
    assert len(decoded) == 3
    assert len({str(recording) for recording in first.values()}) == 3


def test_a_decoded_sound_that_was_deleted_is_decoded_again(tmp_path: Path, extracted: list[str]) -> None:
    for name, hertz in (("a.mp4", 440.0), ("b.mp4", 880.0)):
        write_video(tmp_path / name, hertz=hertz)
    first = sound(tmp_path, "a.mp4", "b.mp4")
    Path(first[0].file).unlink()
    extracted.clear()
    assert sound(tmp_path, "a.mp4", "b.mp4") == first
    assert extracted == ["a.mp4"]
    assert all(Path(video.file).is_file() for video in first)


@pytest.mark.parametrize("known", [True, False])
def test_a_video_that_changed_is_decoded_anew(tmp_path: Path, extracted: list[str], known: bool) -> None:
    before = write_video(tmp_path / "a.mp4").stat()
    (first,) = sound(tmp_path, "a.mp4")
    if not known:  # what was decoded outlives the table
        for table in (tmp_path / "cache" / "recordings").iterdir():
            table.unlink()
    write_video(tmp_path / "a.mp4", seconds=2.0)
    os.utime(tmp_path / "a.mp4", ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    (second,) = sound(tmp_path, "a.mp4")
    assert extracted == ["a.mp4", "a.mp4"]
    assert second.digest != first.digest
    assert second.seconds > 1.5 > first.seconds
    assert soundfile.info(second.file).duration == second.seconds


def test_videos_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    for folder, hertz in (("train", 440.0), ("test", 880.0)):
        (tmp_path / folder).mkdir()
        write_video(tmp_path / folder / "dia0.mp4", hertz=hertz)
    one, two = sound(tmp_path, "train/dia0.mp4", "test/dia0.mp4")
    assert one.file != two.file
    assert one.digest != two.digest


def test_a_bad_video_is_told_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write_video(tmp_path / "good.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"no video" * 100)
    scanned = scan(tmp_path, "bad.mp4", "good.mp4", "gone.mp4")
    assert isinstance(scanned["good.mp4"], Recording)
    for name, said in (("bad.mp4", "cannot be decoded"), ("gone.mp4", "no such recording")):
        assert isinstance(scanned[name], InputError)
        assert str(tmp_path / name) in str(scanned[name])
        assert said in str(scanned[name])
    assert [str(path) for path in (tmp_path / "cache").rglob("*.flac")] == [scanned["good.mp4"].file]
