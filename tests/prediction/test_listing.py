"""What is predicted on: every recording of a folder or row of a table, with the reason why where one cannot be."""

import logging
import os
from pathlib import Path

import pytest

from fourm_ser.errors import InputError
from fourm_ser.prediction.listing import find_recordings, read_listing

BOTH = ("text", "audio")


def listing(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_names_are_cleaned_whatever_stands_between_cells(tmp_path: Path, sign: str) -> None:
    content = 'id,audio,text,start\n u1\u00a0, a.wav ," Oh, no; yes",0.5\ne\u0301,b.wav,NA,\n'.replace(",", sign)
    content = content.replace(f"Oh{sign}", "Oh,")
    found = read_listing(listing(tmp_path / "m.csv", content), BOTH)
    assert [entry.error for entry in found] == [None, None]
    assert [(entry.id, entry.item.audio, entry.item.text) for entry in found] == [
        ("u1", str(tmp_path.resolve() / "a.wav"), " Oh, no; yes"),
        ("é", str(tmp_path.resolve() / "b.wav"), "NA"),
    ]
    assert found[0].item.start == 0.5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("id,audio\nu1,a.wav\n u1,b.wav\n", "row 3 repeats the id u1"),
        ("id,audio\nu1,a.wav\n\u00a0,b.wav\n", "id is empty in row 3"),
        ("id,audio,Audio\nu1,a.wav,b.wav\n", "names a column twice"),
        ("id,audio\nu1,a.wav,b\n", "row 2 has another number of cells"),
        ('id,audio\nu1,"a.wav\n', "row 2: "),
        ("id|audio\nu1|a.wav\n", "has no column id, audio. Required: id, audio; found: id|audio. Between columns"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_by_its_row(tmp_path: Path, content: str, said: str) -> None:
    path = listing(tmp_path / "m.csv", content)
    with pytest.raises(InputError) as caught:
        read_listing(path, ("audio",))
    assert str(caught.value).startswith(f"manifest={path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("audio", "start", "said"),
    [
        (r"wav\a.wav", "", "backslashes"),
        ("~/a.wav", "", "~ stands for nobody's home"),
        (" \u00a0", "", "audio is empty"),
        ("a.wav", '"1,5"', "start=1,5 is no number of seconds. Write 1.5 instead of 1,5."),
    ],
)
def test_a_row_that_says_something_else_has_its_reason_and_the_others_are_taken(
    tmp_path: Path, audio: str, start: str, said: str
) -> None:
    path = listing(tmp_path / "m.csv", f"id,audio,start\nu1,a.wav,\nu2,{audio},{start}\nu3,c.wav,1\n")
    errors = [entry.error for entry in read_listing(path, ("audio",))]
    assert errors[0] is None
    assert errors[2] is None
    assert said in str(errors[1])


def found(folder: Path) -> dict[str, str]:
    """By name, what is wrong; "" where nothing is, and the item is the file."""
    entries = find_recordings(folder)
    assert [entry.id for entry in entries] == sorted(entry.id for entry in entries)
    for entry in entries:
        assert entry.item.audio == (folder / entry.id if entry.error is None else None)
    return {entry.id: str(entry.error or "") for entry in entries}


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_every_file_with_a_recording_s_name_is_found(tmp_path: Path) -> None:
    names = ["a.wav", "B.WAV", "c.wave", "D.WaVe", "e/f.MP3", "e/g.opus", "h.mp4", "i.m4a", "j.webm", "k.aac", "l.Flac"]
    assert found(fill(tmp_path, *names)) == dict.fromkeys(names, "")


def test_other_files_are_counted_and_hidden_ones_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, "a.wav", ".b.wav", "._a.wav", ".git/c.wav", "README.txt", "e/notes.md", "e/f.csv", "z")
    with caplog.at_level(logging.INFO):
        assert found(tmp_path) == {"a.wav": ""}
    (record,) = caplog.records
    assert "passed over 4 files that are no recordings by their names: README.txt, e/f.csv, e/notes.md and 1 more" in (
        record.getMessage()
    )


def test_links_are_followed_but_not_for_ever(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, elsewhere = fill(tmp_path / "takes", "sub/a.wav"), fill(tmp_path / "real", "b.wav", "deep/c.wav")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "twice").symlink_to(elsewhere / "deep")
    (folder / "one.wav").symlink_to(elsewhere / "b.wav")
    (folder / "sub" / "up").symlink_to(folder)
    (elsewhere / "deep" / "here").symlink_to(elsewhere / "deep")
    with caplog.at_level(logging.INFO):
        assert found(folder) == dict.fromkeys(
            ["linked/b.wav", "linked/deep/c.wav", "one.wav", "sub/a.wav", "twice/c.wav"], ""
        )
    assert caplog.text.count("a link to a folder that it lies in") == 3


def test_what_has_a_recording_s_name_and_is_none_has_its_reason(tmp_path: Path) -> None:
    fill(tmp_path, "a.wav", "sub.wav/b.wav")
    (tmp_path / "gone.wav").symlink_to("nowhere.wav")
    (tmp_path / "folder gone").symlink_to("nowhere")
    (tmp_path / "itself.mp3").symlink_to("itself.mp3")
    reasons = found(tmp_path)
    assert {name for name, reason in reasons.items() if not reason} == {"a.wav", "sub.wav/b.wav"}
    assert reasons.keys() == {"a.wav", "sub.wav/b.wav", "gone.wav", "folder gone", "itself.mp3"}
    assert "gone.wav: a link to nowhere.wav, where no file is" in reasons["gone.wav"]
    assert "a link to nowhere, where no file is" in reasons["folder gone"]
    assert "a link to itself.mp3" in reasons["itself.mp3"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders there")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    assert "neither a file nor a folder" in found(tmp_path)["pipe.wav"]


def test_a_folder_that_cannot_be_looked_into_has_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.wav", "closed/b.wav")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    reasons = found(tmp_path)
    assert reasons.keys() == {"a.wav", "closed"}
    assert "closed: this folder cannot be read (Permission denied)" in reasons["closed"]


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_names_that_are_no_utf_8_are_found_and_told(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    fill(tmp_path, "a.wav", name)
    (tmp_path / os.fsdecode(b"l\xe9.wav")).symlink_to(os.fsdecode(b"\xff.wav"))
    reasons = found(tmp_path)
    assert reasons[name] == ""
    assert r"l\xe9.wav: a link to \xff.wav" in reasons[os.fsdecode(b"l\xe9.wav")]


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no recording there"):
        find_recordings(fill(tmp_path, "notes.txt"))
