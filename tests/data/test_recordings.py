"""Recordings are decoded once, known by their content, and their faults are told all at once."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from fourm_ser.data import recordings
from fourm_ser.data.audio import check_recording
from fourm_ser.data.manifest import read_manifest
from fourm_ser.data.recordings import scan_recordings
from fourm_ser.errors import InputError

RATE = 8000


def write_wav(path: Path, seconds: float = 0.1, seed: int = 0) -> Path:
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE))
    soundfile.write(path, samples, RATE, subtype="PCM_16")
    return path


def manifest(folder: Path, *audio: str, name: str = "manifest.csv") -> Path:
    lines = [f"u{place},{file},text,anger,S" for place, file in enumerate(audio)]
    (folder / name).write_text("\n".join(["id,audio,text,emotion,speaker", *lines, ""]))
    return folder / name


def scan(path: Path) -> pd.DataFrame:
    return scan_recordings(read_manifest(path), path, path.parent / "cache")


def spoil(path: Path) -> None:
    """Make a recording undecodable without a trace: the same size, the same time of modification."""
    before = path.stat()
    path.write_bytes(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        scan(path)
    return str(caught.value)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded, as they are."""
    names: list[str] = []

    def check(path: Path) -> float:
        names.append(path.name)
        return check_recording(path)

    monkeypatch.setattr(recordings, "check_recording", check)
    return names


def test_length_and_digest_stand_beside_each_row(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 0.25)
    write_wav(tmp_path / "b.wav", 0.5)
    (tmp_path / "copy.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    path = manifest(tmp_path, "b.wav", "a.wav", "copy.wav", "b.wav")
    read = read_manifest(path)
    scanned = scan_recordings(read, path, tmp_path / "cache")
    assert scanned["seconds"].tolist() == [0.5, 0.25, 0.25, 0.5]
    b, a, copy, again = scanned["digest"]
    assert a == copy != b == again
    pd.testing.assert_frame_equal(scanned.drop(columns=["digest", "seconds"]), read)
    assert "digest" not in read.columns


def test_the_digest_tells_files_of_the_same_samples_but_other_bytes_apart(tmp_path: Path) -> None:
    samples = np.zeros(800)
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    soundfile.write(tmp_path / "a.flac", samples, RATE)
    wav, flac = scan(manifest(tmp_path, "a.wav", "a.flac"))["digest"]
    assert wav != flac


def test_a_changed_file_gets_another_digest_and_length(tmp_path: Path) -> None:
    path = manifest(tmp_path, "a.wav", "b.wav")
    write_wav(tmp_path / "a.wav", 0.2)
    write_wav(tmp_path / "b.wav", 0.2)
    before = scan(path)
    write_wav(tmp_path / "b.wav", 0.3, seed=1)
    after = scan(path)
    assert after["digest"][0] == before["digest"][0]
    assert after["digest"][1] != before["digest"][1]
    assert after["seconds"].tolist() == [0.2, 0.3]


def test_a_change_that_keeps_the_size_is_seen_by_its_time(tmp_path: Path) -> None:
    path = manifest(tmp_path, "a.wav")
    before = write_wav(tmp_path / "a.wav").stat()
    first = scan(path)["digest"][0]
    write_wav(tmp_path / "a.wav", seed=1)
    os.utime(tmp_path / "a.wav", ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert (tmp_path / "a.wav").stat().st_size == before.st_size
    assert scan(path)["digest"][0] != first


def test_a_change_that_keeps_the_time_is_seen_by_its_size(tmp_path: Path) -> None:
    path = manifest(tmp_path, "a.wav")
    before = write_wav(tmp_path / "a.wav").stat()
    first = scan(path)["digest"][0]
    write_wav(tmp_path / "a.wav", 0.2)
    os.utime(tmp_path / "a.wav", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert scan(path)["digest"][0] != first


def test_a_file_that_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    names = ["a.wav", "b.wav", "c.wav"]
    path = manifest(tmp_path, *names)
    for name in names:
        write_wav(tmp_path / name)
    first = scan(path)
    for name in names:
        spoil(tmp_path / name)
    pd.testing.assert_frame_equal(scan(path), first)
    os.utime(tmp_path / "b.wav")
    assert "1 of 3" in refusal(path)


def test_a_remembered_length_is_exactly_the_measured_one(tmp_path: Path) -> None:
    names = [f"{count}.wav" for count in range(1000, 1060)]
    for count, name in enumerate(names, start=1000):
        soundfile.write(tmp_path / name, np.zeros(count), 44_100)
    path = manifest(tmp_path, *names)
    for _ in range(2):
        assert scan(path)["seconds"].tolist() == [count / 44_100 for count in range(1000, 1060)]


def test_an_audio_file_is_decoded_once_however_many_segments_it_has(tmp_path: Path, decoded: list[str]) -> None:
    write_wav(tmp_path / "a.wav")
    write_wav(tmp_path / "b.wav")
    scan(manifest(tmp_path, "a.wav", "b.wav", "a.wav", "a.wav"))
    assert sorted(decoded) == ["a.wav", "b.wav"]


def test_only_new_files_are_read_when_a_manifest_grows(tmp_path: Path, decoded: list[str]) -> None:
    for name in ("a.wav", "b.wav", "c.wav"):
        write_wav(tmp_path / name)
    scan(manifest(tmp_path, "a.wav", "b.wav"))
    decoded.clear()
    scan(manifest(tmp_path, "c.wav", "b.wav", "a.wav"))
    assert decoded == ["c.wav"]


def test_a_scan_of_some_rows_does_not_forget_the_others(tmp_path: Path, decoded: list[str]) -> None:
    # Runs with other emotions use other rows of one manifest.
    for name in ("a.wav", "b.wav", "c.wav"):
        write_wav(tmp_path / name)
    path = manifest(tmp_path, "a.wav", "b.wav", "c.wav")
    frame = read_manifest(path)
    for rows in (frame, frame[frame["id"] != "u1"], frame):
        scan_recordings(rows, path, tmp_path / "cache")
    assert sorted(decoded) == ["a.wav", "b.wav", "c.wav"]


def test_all_faults_are_counted_in_one_error_with_their_rows(tmp_path: Path) -> None:
    write_wav(tmp_path / "good.wav")
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    soundfile.write(tmp_path / "nan.wav", np.full(10, np.nan), RATE, subtype="FLOAT")
    path = manifest(tmp_path, "good.wav", "missing.wav", "text.wav", "good.wav", "empty.wav", "nan.wav")
    message = refusal(path)
    assert message.startswith(f"{path}: 4 of 6 recordings cannot be used")
    for row, key, name in ((3, "u1", "missing"), (4, "u2", "text"), (6, "u4", "empty"), (7, "u5", "nan")):
        assert f"row {row} (id {key}): {(tmp_path / name).resolve()}.wav" in message
    assert "good.wav" not in message
    assert "more" not in message


def test_of_many_faults_the_first_five_are_shown(tmp_path: Path) -> None:
    write_wav(tmp_path / "good.wav")
    message = refusal(manifest(tmp_path, "good.wav", *(f"missing{place}.wav" for place in range(9))))
    assert "9 of 10" in message
    assert message.count("no such recording") == 5
    assert "and 4 more" in message
    assert "row 7 " in message
    assert "row 8 " not in message


def test_a_fault_that_is_mended_is_no_fault_any_more(tmp_path: Path) -> None:
    path = manifest(tmp_path, "a.wav", "b.wav")
    write_wav(tmp_path / "a.wav")
    refusal(path)
    write_wav(tmp_path / "b.wav")
    assert len(scan(path)) == 2


def test_a_recording_that_vanishes_is_missed(tmp_path: Path) -> None:
    path = manifest(tmp_path, "a.wav", "b.wav")
    write_wav(tmp_path / "a.wav")
    write_wav(tmp_path / "b.wav")
    scan(path)
    (tmp_path / "b.wav").unlink()
    assert "no such recording" in refusal(path)


def test_two_manifests_do_not_disturb_each_other(tmp_path: Path, decoded: list[str]) -> None:
    for name in ("a.wav", "b.wav", "both.wav"):
        write_wav(tmp_path / name)
    one = manifest(tmp_path, "a.wav", "both.wav", name="one.csv")
    two = manifest(tmp_path, "both.wav", "b.wav", name="two.csv")
    first = [scan(one), scan(two)]
    assert set(decoded) == {"a.wav", "b.wav", "both.wav"}
    decoded.clear()
    for _ in range(2):
        for path, expected in zip((one, two), first, strict=True):
            pd.testing.assert_frame_equal(scan(path), expected, check_exact=True)
    assert decoded == []
    write_wav(tmp_path / "broken.wav").write_text("no audio")
    refusal(manifest(tmp_path, "broken.wav", name="three.csv"))
    pd.testing.assert_frame_equal(scan(one), first[0], check_exact=True)


def test_one_manifest_by_two_paths_is_one(tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write_wav(tmp_path / "a.wav")
    manifest(tmp_path, "a.wav")
    monkeypatch.chdir(tmp_path)
    for path in (Path("manifest.csv"), tmp_path / "manifest.csv"):
        scan_recordings(read_manifest(path), path, tmp_path / "cache")
    assert decoded == ["a.wav"]
