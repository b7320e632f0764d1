"""What the readers share: text in any encoding, folders of any order, and where a release is looked for."""

import codecs
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given, settings

from fourm_ser.data.release import (
    CONFLICT,
    NO_LABEL,
    NO_RECORDING,
    NO_ROW,
    NO_TRANSCRIPT,
    REPEATED,
    ReleaseBuilder,
    Utterance,
    decode_text,
    files_in,
    find_root,
    folders_in,
    numbered_lines,
)
from fourm_ser.errors import InputError
from tests import releases
from tests.data.corpora.conftest import EVERY, MakeCorpus, ambiguous, found, meant, need_cases
from tests.data.corpora.conftest import make_corpus as make_corpus
from tests.data.corpora.conftest import node as node
from tests.data.corpora.conftest import shuffled as shuffled

SIGNS = st.characters(codec="utf-8", exclude_characters="\0")
# UTF-16 without a mark is known by the Latin letters in it, as a label or an id always has them.
LATIN = st.text(st.characters(min_codepoint=1, max_codepoint=127), min_size=12, max_size=20)


@settings(max_examples=40)
@given(
    LATIN,
    st.text(SIGNS, max_size=8),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "gb18030"]),
)
def test_text_comes_back_from_every_encoding(latin: str, text: str, encoding: str) -> None:
    text = (latin + text).encode(encoding, "ignore").decode(encoding).removeprefix("\ufeff")
    data = text.encode(encoding)
    assume(not ambiguous(data, encoding))
    assert decode_text(data, encoding if encoding == "gb18030" else "cp1252") == text


@settings(max_examples=100)
@given(st.binary(), st.sampled_from(["cp1252", "gb18030"]))
def test_no_bytes_break_decoding(data: bytes, fallback: str) -> None:
    text = decode_text(data, fallback)
    if text is None:
        # Bytes of one for a sign that is no UTF-16 are in `fallback`, or in nothing.
        one_byte = b"\0" not in data and data[:2] not in (b"\xff\xfe", b"\xfe\xff")
        assert not one_byte or "\ufffd" in data.decode(fallback, "replace")
    else:
        assert "\0" not in text
        encodings = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", fallback)
        assert any(data.decode(encoding, "replace") == text for encoding in encodings)


@pytest.mark.parametrize(("mark", "encoding"), [(codecs.BOM_UTF16_BE, "utf-16-be"), (codecs.BOM_UTF16_LE, "utf-16-le")])
def test_a_byte_order_mark_is_no_part_of_the_text(mark: bytes, encoding: str) -> None:
    for text in ("0001_000001\t一二三\t中立\n", "一", ""):
        assert decode_text(mark + text.encode(encoding), "gb18030") == text


def test_bytes_in_no_readable_encoding_are_told() -> None:
    assert decode_text(b"caf\x81", "cp1252") is None
    assert decode_text(b"\xff", "gb18030") is None
    assert decode_text("text".encode("utf-16")[:-1], "cp1252") is None
    assert decode_text("text".encode("utf-32"), "cp1252") is None
    assert decode_text(b"te\0xt", "cp1252") != "te\0xt"


@settings(max_examples=40)
@given(st.lists(st.tuples(st.text(SIGNS, max_size=6), st.sampled_from(["\n", "\r\n", "\r"])), max_size=8))
def test_lines_are_numbered_as_an_editor_does(parts: list[tuple[str, str]]) -> None:
    text = "".join(line + end for line, end in parts)
    lines = re.split(r"\r\n|\r|\n", text)
    assert numbered_lines(text) == [(number + 1, line.strip()) for number, line in enumerate(lines) if line.strip()]


def test_files_and_folders_are_sorted_and_hidden_ones_passed_over(
    tmp_path: Path, shuffled: Callable[[int], None]
) -> None:
    need_cases(tmp_path)
    for name in ("b.wav", "a.WAV", "c.txt", "._a.wav", ".DS_Store", "wav", "é.wav", "a b.Wav", "B.wav", "d.wav.part"):
        (tmp_path / name).touch()
    for name in ("two", "one", ".git", "x.wav"):
        (tmp_path / name).mkdir()
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link.wav").symlink_to(tmp_path / "c.txt")
    (tmp_path / "folder").symlink_to(tmp_path / "one")
    for seed in range(3):
        shuffled(seed)
        names = [path.name for path in files_in(tmp_path, ".wav")]
        assert names == sorted(["b.wav", "a.WAV", "é.wav", "a b.Wav", "B.wav", "link.wav"])
        assert [path.name for path in folders_in(tmp_path)] == ["folder", "one", "two", "x.wav"]
    assert files_in(tmp_path / "nowhere", ".wav") == folders_in(tmp_path / "c.txt") == []


def test_rows_of_one_id_stay_once_or_not_at_all() -> None:
    builder = ReleaseBuilder(Path("/"))
    rows = [
        *[("same", "x", "f:1"), ("other", "x", "f:2"), ("same", "x", "f:3"), ("other", "y", "f:4")],
        *[("alone", "x", "f:5"), ("same", "x", "f:6"), ("other", "x", "f:7")],
    ]
    assert builder.unique(rows) == {"same": ("x", "f:1"), "other": None, "alone": ("x", "f:5")}
    noted = [(item.id, item.reason, item.where) for item in builder.left_out]
    assert noted[:3] == [("same", REPEATED, "f:3"), ("other", CONFLICT, "f:2, f:4"), ("same", REPEATED, "f:6")]
    assert all(item.fault for item in builder.left_out)


def test_copies_of_a_recording_stay_once_or_not_at_all(tmp_path: Path) -> None:
    paths = [tmp_path / folder / f"{name}.wav" for folder in "abc" for name in ("same", "other")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"sound" if path.stem == "same" or path.parent.name != "b" else b"noise")
    builder = ReleaseBuilder(tmp_path)
    assert builder.by_id(paths) == {"same": tmp_path / "c/same.wav"}
    assert sorted((item.id, item.reason, item.where) for item in builder.left_out) == [
        ("other", CONFLICT, "a/other.wav, b/other.wav, c/other.wav"),
        ("same", REPEATED, "a/same.wav"),
        ("same", REPEATED, "b/same.wav"),
    ]


@given(st.lists(st.tuples(*[st.sampled_from(["there", "lacking", "left out"])] * 2, st.booleans()), max_size=12))
@settings(max_examples=60)
def test_a_join_keeps_what_is_whole_and_names_the_rest_once(entries: list[tuple[str, str, bool]]) -> None:
    builder = ReleaseBuilder(Path("/release"))
    labels, texts, recordings = {}, {}, {}
    expected: dict[str, str] = {}
    whole = []
    for number, (label, text, recorded) in enumerate(entries):
        key = f"u{number:02}"
        if label != "lacking":
            labels[key] = ("anger", f"labels:{number}") if label == "there" else None
        if text != "lacking":
            texts[key] = f"text {number}" if text == "there" else None
        if recorded:
            recordings[key] = Path(f"/release/{key}.wav")
        if "left out" in (label, text):
            continue
        if recorded and (label, text) == ("there", "there"):
            whole.append(key)
        elif recorded:
            reasons = {"lackingthere": NO_LABEL, "therelacking": NO_TRANSCRIPT, "lackinglacking": NO_ROW}
            expected[key] = reasons[label + text]
        elif label == "there":
            expected[key] = NO_RECORDING
    builder.join(recordings, labels, texts, utterance)
    assert {item.id: item.reason for item in builder.left_out} == expected
    assert len(builder.left_out) == len(expected)
    release = builder.release()
    assert release.frame["id"].tolist() == whole
    assert all(Path(item.where).suffix == ".wav" for item in release.left_out if item.reason != NO_RECORDING)


def utterance(key: str, audio: str, text: str, emotion: str, where: str) -> Utterance:
    return Utterance(key, audio, text, emotion, "speaker", where=where)


MAKERS: dict[str, Callable[[Path], list[releases.Told]]] = {
    "iemocap": lambda root: releases.iemocap(root, {"ang": 10, "neu": 10}, seconds=0.02, shared=True, quirks=True),
    "esd": lambda root: releases.esd(root, ["0001", "0011"], 3, seconds=0.02, shared=True, quirks=True),
    "meld": lambda root: releases.meld(root, (9, 8, 7), seconds=0.02, shared=True, quirks=True),
    "emodb": lambda root: releases.emodb(root, ["03", "08"], 1, seconds=0.02, shared=True, quirks=True),
}
WHERE = {
    "iemocap": "the IEMOCAP release.*Session1",
    "esd": "the ESD release.*0001",
    "meld": "the MELD release.*train_sent_emo",
    "emodb": "the EMO-DB release.*03a01Fa",
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_release_is_found_up_to_two_levels_below_the_root(
    name: str, tmp_path: Path, make_corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = tmp_path / "lent/disk/corpora/Release of the year"
    told = MAKERS[name](release)
    (tmp_path / "lent/disk/corpora/other").mkdir()
    (tmp_path / "lent/disk/._corpora").mkdir()
    if name == "emodb":
        told = [entry._replace(audio=Path(entry.audio).name) for entry in told]
    monkeypatch.chdir(tmp_path / "lent/disk")
    monkeypatch.setenv("HOME", str(tmp_path))
    below = 2 if name == "emodb" else 1  # EMO-DB's recordings lie in a folder of the release
    roots = [release, release.parent, release.parent.parent, Path("corpora"), Path("~/lent/disk/corpora")]
    for root in roots if below == 1 else [*roots[:2], *roots[3:]]:
        corpus = make_corpus(name, root, **EVERY)
        corpus.load()
        assert found(corpus) == meant(told)
    with pytest.raises(InputError, match="not " + WHERE[name]):
        make_corpus(name, tmp_path, **EVERY).load()


@pytest.mark.parametrize("name", MAKERS)
def test_a_root_that_is_not_the_release_says_what_was_looked_for_and_found(
    name: str, tmp_path: Path, make_corpus: MakeCorpus
) -> None:
    for folder in "abcdefghij":
        (tmp_path / f"folder {folder}").mkdir()
    found_there = ", ".join(f"folder {folder}" for folder in "abcdefgh")
    with pytest.raises(InputError, match=f"data.root={tmp_path}: not {WHERE[name]}.*; found {found_there} and 2 more"):
        make_corpus(name, tmp_path).load()
    with pytest.raises(InputError, match=f"data.root={tmp_path}/nowhere: no such folder.*{WHERE[name]}"):
        make_corpus(name, tmp_path / "nowhere").load()
    (tmp_path / "folder a/file").touch()
    with pytest.raises(InputError, match="no such folder"):
        make_corpus(name, tmp_path / "folder a/file").load()
    with pytest.raises(InputError, match="found nothing"):
        make_corpus(name, tmp_path / "folder b").load()


@pytest.mark.parametrize("name", MAKERS)
def test_two_releases_below_the_root_are_refused_by_name(name: str, tmp_path: Path, make_corpus: MakeCorpus) -> None:
    MAKERS[name](tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    with pytest.raises(InputError, match=rf"several times \({tmp_path}/one.*, {tmp_path}/two.*\)\. Choose one"):
        make_corpus(name, tmp_path).load()


def test_folders_that_may_not_be_read_are_no_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "release/mark").mkdir(parents=True)
    scandir = os.scandir

    def guarded(folder: Path) -> object:  # root may read everything
        if Path(folder).name == "lost+found":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    root = find_root("any", tmp_path, lambda folder: any(f.name == "mark" for f in folders_in(folder)), "a mark")
    assert root == tmp_path / "release"


def test_a_home_that_nobody_has_is_an_error_in_words() -> None:
    with pytest.raises(InputError, match="no such folder"):
        find_root("any", Path("~nobody-of-this-name/x"), lambda folder: True, "anything")
