"""MELD: films and sound, both layouts, what is bad in every copy, and what is said of a damaged one."""

import csv
import importlib.util
import io
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import assume, given, settings

from fourm_ser.data.corpora.meld import BAD_CLIP, COLUMNS, EMOTIONS, OTHER_NAME, TABLES, parse_table
from fourm_ser.data.release import CONFLICT, NO_RECORDING, NO_ROW, REPEATED, decode_text
from fourm_ser.errors import InputError
from tests import releases
from tests.data.corpora.conftest import (
    CHARACTERS,
    CheckFault,
    Harm,
    MakeCorpus,
    Train,
    ambiguous,
    cut,
    edited,
    found,
    line_of,
    meant,
    rewrite,
    sides_by_id,
    without,
)
from tests.releases import Told

Release = tuple[Path, list[Told]]


@pytest.fixture
def small(tmp_path: Path) -> Release:
    """A small release of sound alone, to damage."""
    root = tmp_path / "MELD.Raw"
    return root, releases.meld(root, (15, 8, 7), seconds=0.05, shared=True)


@pytest.mark.parametrize(
    ("nested", "video", "quirks"),
    [(False, False, False), (True, True, False), (True, False, True), (False, True, True)],
)
def test_a_release_is_read_as_it_was_written(
    nested: bool, video: bool, quirks: bool, tmp_path: Path, make_corpus: MakeCorpus
) -> None:
    told = releases.meld(tmp_path, (15, 8, 7), video, nested, quirks=quirks, seconds=0.2)
    corpus = make_corpus("meld", tmp_path, strict=True)
    corpus.load()
    assert found(corpus) == meant(told)
    assert sides_by_id(corpus) == {entry.id: entry.split for entry in told}
    strange = {("final_videos_testdia0_utt0", OTHER_NAME, False)} if quirks else set()
    assert {(item.id, item.reason, item.fault) for item in corpus.left_out} == strange | {
        ("train_dia125_utt3", BAD_CLIP, False),
        ("val_dia110_utt7", BAD_CLIP, False),
    }
    assert corpus.frame["seconds"].to_numpy() == pytest.approx(0.2, abs=0.05 if video else 1e-9)
    assert (corpus.frame["file"] == corpus.frame["audio"]).all() != video


def test_a_film_s_sound_is_what_was_put_into_it(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    releases.meld(tmp_path, (9, 8, 7), True, seconds=0.5)
    corpus = make_corpus("meld", tmp_path)
    corpus.load()
    for file, emotion in zip(corpus.frame["file"], corpus.frame["emotion"], strict=True):
        samples, rate = soundfile.read(file, dtype="float32")
        assert rate == 16_000
        spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
        loudest = spectrum.argmax() * rate / len(samples)
        assert loudest == pytest.approx(110 + 12 * releases.EMOTIONS.index(emotion), abs=35)


def test_the_whole_release_has_the_counts_of_the_paper(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    releases.meld(tmp_path, releases.MELD_COUNTS, seconds=0.02, quirks=True, shared=True)
    release = make_corpus("meld", tmp_path).read()
    assert release.frame["split"].value_counts().to_dict() == {"train": 9988, "val": 1108, "test": 2610}
    assert not [item for item in release.left_out if item.fault]
    assert set(release.frame["emotion"]) == set(EMOTIONS.values())


def test_the_same_dialog_of_two_tables_is_two_dialogs(small: Release, make_corpus: MakeCorpus) -> None:
    corpus = make_corpus("meld", small[0])
    corpus.load()
    clips = Counter(key.partition("_")[2] for key in corpus.frame["id"])
    assert clips["dia0_utt0"] == 3
    assert corpus.frame["id"].is_unique


def test_nothing_depends_on_the_order_in_which_folders_are_listed(
    small: Release, make_corpus: MakeCorpus, shuffled: Callable[[int], None]
) -> None:
    root, told = small
    (root / "train/train_splits").mkdir(parents=True)
    for entry in told[:5]:
        shutil.copy(root / entry.audio, root / "train/train_splits")
    corpora = []
    for seed in (None, 1, 2):
        if seed is not None:
            shuffled(seed)
        corpus = make_corpus("meld", root.parent)
        corpora.append((corpus, sides_by_id(corpus)))
    (plain, sides), others = corpora[0], corpora[1:]
    assert Counter(item.reason for item in plain.left_out)[REPEATED] == 5
    for other, its_sides in others:
        pd.testing.assert_frame_equal(other.frame, plain.frame)
        assert other.left_out == plain.left_out
        assert its_sides == sides


def table_file(root: Path, entry: Told) -> Path:
    return root / TABLES[entry.split]


def mark(entry: Told) -> str:
    """What tells an utterance's row in its table."""
    dialog, number = re.findall("[0-9]+", entry.id)
    return f",{dialog},{number},"


def no_row(root: Path, told: list[Told]) -> Harm:
    rewrite(table_file(root, told[3]), without(mark(told[3])))
    return Harm(NO_ROW, [told[3].id], told[3].audio, [told[3].id])


def no_recording(root: Path, told: list[Told]) -> Harm:
    (root / told[3].audio).unlink()
    where = f"{TABLES[told[3].split]}:{line_of(table_file(root, told[3]), mark(told[3]))}"
    return Harm(NO_RECORDING, [told[3].id], where, [told[3].id])


def same_row_twice(root: Path, told: list[Told]) -> Harm:
    path = table_file(root, told[3])
    rewrite(path, lambda lines: [*lines, next(line for line in lines if mark(told[3]) in line)])
    return Harm(REPEATED, [told[3].id], f"{path.name}:17", [])


def two_rows(root: Path, told: list[Told]) -> Harm:
    path = table_file(root, told[3])
    first = line_of(path, mark(told[3]))
    other = f"99,Something else.,Ross,joy,positive{mark(told[3])}1,1,0,1\r\n"
    rewrite(path, lambda lines: [*lines, other])
    return Harm(CONFLICT, [told[3].id], f"{path.name}:{first}, {path.name}:17", [told[3].id])


def copied_recording(root: Path, told: list[Told]) -> Harm:
    (root / "train/train_splits").mkdir(parents=True)
    shutil.copy(root / told[3].audio, root / "train/train_splits")
    told[3] = told[3]._replace(audio=f"train/{told[3].audio}")  # of copies the last stays
    return Harm(REPEATED, [told[3].id], f"train_splits/{Path(told[3].audio).name}", [])


def other_recording(root: Path, told: list[Told]) -> Harm:
    (root / "train/train_splits").mkdir(parents=True)
    soundfile.write(root / "train" / told[3].audio, np.zeros(99), 16_000)
    return Harm(CONFLICT, [told[3].id], f"{told[3].audio}, train/{told[3].audio}", [told[3].id])


def truncated(root: Path, told: list[Told]) -> Harm:
    cut(root / told[3].audio)
    return Harm("recording that cannot be used", [told[3].id], "truncated", [told[3].id])


@pytest.mark.parametrize(
    "damage",
    [no_row, no_recording, same_row_twice, two_rows, copied_recording, other_recording, truncated],
    ids=lambda damage: damage.__name__,
)
def test_a_fault_is_named_and_left_out(
    damage: Callable[[Path, list[Told]], Harm], small: Release, check_fault: CheckFault
) -> None:
    harm = damage(*small)
    check_fault("meld", *small, harm)


@pytest.mark.parametrize("data", [b"", b"garbage \x00\xff" * 50], ids=["empty", "garbage"])
def test_a_film_that_cannot_be_decoded_is_a_fault_unless_it_is_known(
    data: bytes, tmp_path: Path, check_fault: CheckFault
) -> None:
    told = releases.meld(tmp_path, (9, 8, 7), True, seconds=0.1, shared=True)
    (tmp_path / told[3].audio).unlink()
    (tmp_path / told[3].audio).write_bytes(data)
    harm = Harm("recording that cannot be used", [told[3].id], str(tmp_path / told[3].audio), [told[3].id])
    check_fault("meld", tmp_path, told, harm)


def test_the_known_bad_clips_are_no_fault_whatever_is_there_of_them(small: Release, make_corpus: MakeCorpus) -> None:
    root, told = small
    (root / "train_splits/dia125_utt3.wav").unlink()
    shutil.copy(root / told[0].audio, root / "dev_splits_complete/dia110_utt7.wav")
    rewrite(root / TABLES["train"], without(",125,3,"))
    for change in (without(), without(",110,7,")):
        rewrite(root / TABLES["val"], change)
        corpus = make_corpus("meld", root, strict=True)
        corpus.load()
        assert found(corpus) == meant(told)
        assert {(item.id, item.reason) for item in corpus.left_out} == {("val_dia110_utt7", BAD_CLIP)}


def test_a_known_bad_clip_with_two_rows_is_no_failure(small: Release, make_corpus: MakeCorpus) -> None:
    root, told = small
    other = "99,Something else.,Ross,joy,positive,110,7,1,1,0,1\r\n"
    rewrite(root / TABLES["val"], lambda lines: [*lines, other])
    corpus = make_corpus("meld", root)
    corpus.load()
    assert found(corpus) == meant(told)
    assert "val_dia110_utt7" in {item.id for item in corpus.left_out}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,Hi.,Ross,jealousy,neutral,1,1,1,1,0,1", "no emotion of MELD: 'jealousy'"),
        ("1,Hi.,Ross,joy,neutral,one,1,1,1,0,1", "expected a Speaker and the numbers"),
        ("1,Hi.,,joy,neutral,1,1,1,1,0,1", "expected a Speaker and the numbers"),
        ("1,Hi, there.,Ross,joy,neutral,1,1,1,1,0,1", "expected 11 cells"),
        ("1,Hi.,Ross,joy", "expected 11 cells"),
        ('1,"Hi" Ross.,Ross,joy,neutral,1,1,1,1,0,1', "not a readable CSV"),
    ],
)
def test_a_row_that_is_none_is_an_error_with_file_and_line(
    row: str, message: str, small: Release, make_corpus: MakeCorpus
) -> None:
    rewrite(small[0] / TABLES["test"], lambda lines: [*lines[:3], f"{row}\r\n", *lines[3:]])
    with pytest.raises(InputError, match=rf"^test_sent_emo\.csv:4: {message}"):
        make_corpus("meld", small[0]).load()


def test_a_table_without_a_column_or_in_no_readable_encoding_is_an_error(
    small: Release, make_corpus: MakeCorpus
) -> None:
    path = small[0] / TABLES["val"]
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"Dialogue_ID", b"Dialog"))
    with pytest.raises(InputError, match=r"dev_sent_emo\.csv: has no column Dialogue_ID. Found Sr No., Utterance"):
        make_corpus("meld", small[0]).load()
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"dev_sent_emo\.csv: has no column .* Found nothing"):
        make_corpus("meld", small[0]).load()
    path.write_bytes(whole + b"\x81\x8d")
    with pytest.raises(InputError, match=r"dev_sent_emo\.csv: text in no readable encoding"):
        make_corpus("meld", small[0]).load()


@pytest.mark.slow
def test_a_run_ends_well(tmp_path: Path, train: Train) -> None:
    video = importlib.util.find_spec("av") is not None
    releases.meld(tmp_path / "MELD", (36, 15, 14), video, seconds=0.2, shared=True)
    metrics = train("data=meld", f"data.root={tmp_path}/MELD")
    assert metrics["finished"] is True
    assert metrics["split"] == metrics["validation"] == "official"


# Between 0x80 and 0x9F stand the leftovers of Windows-1252, which are mended.
CELLS = st.text(st.one_of(CHARACTERS, st.sampled_from('\r\n,"')), max_size=12).map(
    lambda text: "".join(sign for sign in text if not "\x80" <= sign <= "\x9f").strip()
)
ROWS = st.lists(
    st.tuples(CELLS, CELLS.filter(bool), st.sampled_from([*EMOTIONS, "Joy"]), st.integers(0, 1038), st.integers(0, 40)),
    max_size=5,
)


def written(rows: list[tuple[Any, ...]], end: str) -> tuple[str, list[int]]:
    """A table of the rows, and in which line each ends."""
    table = io.StringIO(newline="")
    lines = csv.writer(table, quoting=csv.QUOTE_ALL, lineterminator=end)
    lines.writerow(["Sr No.", *COLUMNS, "Season"])
    ends = []
    for row in rows:
        lines.writerow(["1", *row, "7"])
        ends.append(len(re.findall(r"\r\n|\r|\n", table.getvalue())))
    return table.getvalue(), ends


@pytest.mark.slow
@settings(max_examples=40)
@given(
    rows=ROWS,
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_rows_come_back_from_every_encoding_and_line_end(
    rows: list[tuple[str, str, str, int, int]], encoding: str, end: str
) -> None:
    if encoding == "cp1252":
        rows = [
            (*(cell.encode("cp1252", "replace").decode("cp1252").strip() for cell in row[:2]), *row[2:])  # type: ignore[misc]
            for row in rows
        ]
    text, ends = written(rows, end)
    data = text.encode(encoding)
    assume(not ambiguous(data, encoding))
    read = decode_text(data, "cp1252")
    assert read is not None
    assert parse_table(read, "t.csv", "val") == [
        (f"val_dia{dialog}_utt{number}", (said, EMOTIONS[word.lower()], speaker), f"t.csv:{line}")
        for (said, speaker, word, dialog, number), line in zip(rows, ends, strict=True)
    ]


def test_leftovers_of_windows_1252_are_mended() -> None:
    for code in range(0x80, 0xA0):
        text, _ = written([(f"a{chr(code)}b", "Ross", "joy", 0, 0)], "\n")
        ((_, (said, _, _), _),) = parse_table(text, "t.csv", "train")
        try:
            assert said == "a" + bytes([code]).decode("cp1252") + "b"
        except UnicodeDecodeError:
            assert said == "a\ufffdb"


@settings(max_examples=80)
@given(st.one_of(st.text(), edited(st.builds(lambda rows: written(rows, "\r\n")[0], ROWS))))
def test_no_text_breaks_the_parser(text: str) -> None:
    try:
        rows = parse_table(text, "t.csv", "test")
    except InputError as error:
        message, rows = str(error), []
    else:
        message = ""
    assert message == "" or message.startswith("t.csv:")
    lines = len(re.findall(r"\r\n|\r|\n", text)) + 1
    for key, (_, emotion, speaker), where in rows:
        assert re.fullmatch("test_dia[0-9]+_utt[0-9]+", key)
        assert emotion in EMOTIONS.values()
        assert speaker
        assert 2 <= int(where.removeprefix("t.csv:")) <= lines
