"""ESD: both layouts, both languages, every encoding of its text files, and what is said of a damaged release."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pandas as pd
import pytest
from hypothesis import assume, given, settings

from fourm_ser.data.corpora.esd import CONTRADICTED, EMOTIONS, OTHER_LANGUAGE, official_side, parse_rows
from fourm_ser.data.release import (
    CONFLICT,
    MISSING_PART,
    NO_RECORDING,
    NO_ROW,
    REPEATED,
    UNREADABLE_TEXT,
    decode_text,
)
from fourm_ser.data.splits import split_manifest
from fourm_ser.errors import InputError
from tests import releases
from tests.data.corpora.conftest import (
    LINE_ENDS,
    TEXTS,
    CheckFault,
    Harm,
    MakeCorpus,
    Train,
    ambiguous,
    assert_folds,
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

FOUR = ["anger", "happiness", "sadness", "neutral"]
ENGLISH = releases.ESD_SPEAKERS[10:]
BAD = "recording that cannot be used"

Release = tuple[Path, list[Told]]


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The ten English speakers; no test changes it."""
    root = tmp_path_factory.mktemp("esd")
    return root, releases.esd(root, ENGLISH, 4, seconds=0.05)


@pytest.fixture(params=[False, True], ids=["flat", "nested"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Release:
    """A small release to damage: all speakers of English, or each would be missing."""
    root = tmp_path / "ESD"
    told = releases.esd(root, ENGLISH, 3, nested=request.param, seconds=0.02, shared=True)
    return root, told


@pytest.mark.slow(but=["True-True"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("quirks", [False, True])
def test_a_release_is_read_as_it_was_written(
    nested: bool, quirks: bool, tmp_path: Path, make_corpus: MakeCorpus
) -> None:
    told = releases.esd(tmp_path, nested=nested, sentences=5, quirks=quirks, seconds=0.02)
    for language in ("en", "zh", "all", None):
        expected = [entry for entry in told if language in (None, "all", entry.language)]
        corpus = make_corpus("esd", tmp_path, emotions=None, language=language)
        corpus.load()
        assert found(corpus) == meant(expected)
        spoken = {key for key in releases.ESD_SPEAKERS if language in (None, "all", "zh" if key <= "0010" else "en")}
        noted = {(item.id, item.reason, item.fault) for item in corpus.left_out}
        others = set(releases.ESD_FEW) - spoken
        assert noted == {(key, OTHER_LANGUAGE, False) for key in others} | {
            (key, MISSING_PART, True) for key in spoken - set(releases.ESD_FEW)
        }
    four = make_corpus("esd", tmp_path)
    four.load()
    assert four.emotions == FOUR
    assert found(four) == meant([entry for entry in told if entry.language == "en"], FOUR)


@pytest.mark.slow
def test_the_whole_english_half_has_the_counts_of_the_papers(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    releases.esd(tmp_path, ENGLISH, 350, seconds=0.02, shared=True)
    release = make_corpus("esd", tmp_path, strict=True).read()
    assert release.left_out == []
    assert release.frame["emotion"].value_counts().to_dict() == dict.fromkeys([*FOUR, "surprise"], 3500)
    assert release.frame.groupby("speaker").size().to_dict() == dict.fromkeys(ENGLISH, 1750)
    counts = {"val": 20, "test": 30, "train": 300}
    each = Counter(release.frame[["speaker", "emotion", "split"]].itertuples(index=False, name=None))
    assert all(many == counts[key[2]] for key, many in each.items())


def test_the_official_sides_are_those_of_the_release_s_folders() -> None:
    for block in range(5):
        numbers = range(350 * block + 1, 350 * block + 351)
        assert [official_side(number) for number in numbers] == 20 * ["val"] + 30 * ["test"] + 300 * ["train"]


def test_a_folder_of_a_side_says_more_than_the_number(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    told = releases.esd(tmp_path, ENGLISH, 4, nested=True, seconds=0.02, shared=True)
    moved = {}
    for entry in told:
        if entry.split == "train":
            target = entry.audio.replace("/train/", "/test/")
            (tmp_path / entry.audio).rename(tmp_path / target)
            moved[entry.id] = entry._replace(audio=target, split="test")
    corpus = make_corpus("esd", tmp_path, emotions=None)
    corpus.load()
    assert found(corpus) == meant([moved.get(entry.id, entry) for entry in told])


def test_in_ten_speaker_folds_no_speaker_is_on_two_sides(english: Release, make_corpus: MakeCorpus) -> None:
    assert_folds(
        lambda fold: make_corpus("esd", english[0], split="speaker", fold=fold),
        folds=10,
        apart=["speaker"],
        tested="speaker",
    )


def test_folds_do_not_depend_on_the_order_of_rows(english: Release, make_corpus: MakeCorpus) -> None:
    corpus = make_corpus("esd", english[0], split="speaker")
    corpus.load()
    for fold in range(10):
        protocol = corpus.protocol._replace(fold=fold)
        mixed = corpus.frame.sample(frac=1, random_state=fold)
        pairs = zip(split_manifest(corpus.frame, protocol), split_manifest(mixed, protocol), strict=True)
        for rows, others in pairs:
            assert set(corpus.frame["id"].iloc[rows]) == set(mixed["id"].iloc[others])


def test_nothing_depends_on_the_order_in_which_folders_are_listed(
    small: Release, make_corpus: MakeCorpus, shuffled: Callable[[int], None]
) -> None:
    root, told = small
    copies = root / "0011/Neutral"
    for entry in told[-9:]:
        shutil.copy(root / entry.audio, copies)
    with (root / "0011/0011.txt").open("a") as rows:
        rows.write((root / "0012/0012.txt").read_text())
    corpora = []
    for seed in (None, 1, 2):
        if seed is not None:
            shuffled(seed)
        corpus = make_corpus("esd", root.parent, split="speaker", fold=2)
        corpora.append((corpus, sides_by_id(corpus)))
    (plain, sides), others = corpora[0], corpora[1:]
    assert Counter(item.reason for item in plain.left_out)[REPEATED] == 9 + 15
    for other, its_sides in others:
        pd.testing.assert_frame_equal(other.frame, plain.frame)
        assert other.left_out == plain.left_out
        assert its_sides == sides


def text_file(root: Path, entry: Told) -> Path:
    return root / f"{entry.speaker}/{entry.speaker}.txt"


def no_row(root: Path, told: list[Told]) -> Harm:
    entry = told[50]
    rewrite(text_file(root, entry), without(entry.id))
    return Harm(NO_ROW, [entry.id], entry.audio, [entry.id])


def no_recording(root: Path, told: list[Told]) -> Harm:
    entry = told[50]
    (root / entry.audio).unlink()
    where = f"{entry.speaker}/{entry.speaker}.txt:{line_of(text_file(root, entry), entry.id)}"
    return Harm(NO_RECORDING, [entry.id], where, [entry.id])


def same_row_twice(root: Path, told: list[Told]) -> Harm:
    entry = told[50]
    again = f"{entry.id}\t{entry.text}\t{entry.emotion}\n".replace("happiness", "Happy").replace("anger", "Angry")
    again = again.replace("sadness", "Sad")
    rewrite(text_file(root, entry), lambda lines: [*lines, "\n", again])
    return Harm(REPEATED, [entry.id], f"{entry.speaker}.txt:17", [])


def two_texts(root: Path, told: list[Told]) -> Harm:
    entry = told[45]  # neutral
    rewrite(text_file(root, entry), lambda lines: [f"{entry.id}\tSomething else.\tNeutral\n", *lines])
    where = f"{entry.speaker}/{entry.speaker}.txt:1, {entry.speaker}/{entry.speaker}.txt:2"
    return Harm(CONFLICT, [entry.id], where, [entry.id])


def two_emotions(root: Path, told: list[Told]) -> Harm:
    entry = told[50]
    rewrite(text_file(root, entry), lambda lines: [*lines, f"{entry.id}\t{entry.text}\tSurprise\n"])
    return Harm(CONFLICT, [entry.id], f"{entry.speaker}.txt:16", [entry.id])


def contradicted(root: Path, told: list[Told]) -> Harm:
    entry = told[46]  # neutral
    rewrite(
        text_file(root, entry),
        lambda lines: [line.replace("Neutral", "Sad") if entry.id in line else line for line in lines],
    )
    where = f"{entry.speaker}/{entry.speaker}.txt:{line_of(text_file(root, entry), entry.id)}"
    return Harm(CONTRADICTED, [entry.id], f"{where}: sadness, but {entry.audio}", [entry.id])


def copied_recording(root: Path, told: list[Told]) -> Harm:
    entry = told[55]  # sadness: the emotions' folders are gone through in order, and the last copy is kept
    shutil.copy(root / entry.audio, root / f"{entry.speaker}/Angry")
    return Harm(REPEATED, [entry.id], f"{entry.speaker}/Angry/{entry.id}.wav", [])


def other_recording(root: Path, told: list[Told]) -> Harm:
    entry = told[55]
    shutil.copy(root / told[46].audio, root / f"{entry.speaker}/Angry/{entry.id}.wav")
    return Harm(CONFLICT, [entry.id], f"{entry.speaker}/Angry/{entry.id}.wav, {entry.audio}", [entry.id])


def unreadable_text(root: Path, told: list[Told]) -> Harm:
    path = text_file(root, told[50])
    path.write_bytes(b"\xff" + path.read_bytes())
    lost = [entry.id for entry in told if entry.speaker == told[50].speaker]
    return Harm(UNREADABLE_TEXT, lost, path.relative_to(root).as_posix(), lost)


def empty_text(root: Path, told: list[Told]) -> Harm:
    text_file(root, told[50]).write_bytes(b"")
    lost = [entry.id for entry in told if entry.speaker == told[50].speaker]
    return Harm(NO_ROW, lost, told[50].speaker, lost)


def missing_speaker(root: Path, told: list[Told]) -> Harm:
    shutil.rmtree(root / "0013")
    return Harm(MISSING_PART, ["0013"], "0013: no such folder", [entry.id for entry in told if entry.speaker == "0013"])


def truncated(root: Path, told: list[Told]) -> Harm:
    cut(root / told[50].audio)
    return Harm(BAD, [told[50].id], "truncated", [told[50].id])


def empty_recording(root: Path, told: list[Told]) -> Harm:
    (root / told[50].audio).unlink()
    (root / told[50].audio).touch()
    return Harm(BAD, [told[50].id], str(root / told[50].audio), [told[50].id])


FAULTS = [
    *(no_row, no_recording, same_row_twice, two_texts, two_emotions, contradicted, copied_recording, other_recording),
    *(unreadable_text, empty_text, missing_speaker, truncated, empty_recording),
]


@pytest.mark.slow(but=["nested-no", "nested-truncated", "nested-copied"])
@pytest.mark.parametrize("damage", FAULTS, ids=lambda damage: damage.__name__)
def test_a_fault_is_named_and_left_out(
    damage: Callable[[Path, list[Told]], Harm], small: Release, check_fault: CheckFault
) -> None:
    check_fault("esd", *small, damage(*small), language="en")


def test_a_missing_text_file_is_named_beside_the_recordings_that_lack_it(
    small: Release, make_corpus: MakeCorpus
) -> None:
    root, told = small
    (root / "0013/0013.txt").unlink()
    corpus = make_corpus("esd", root, emotions=None)
    corpus.load()
    lost = [entry for entry in told if entry.speaker == "0013"]
    reasons = Counter((item.reason, item.fault) for item in corpus.left_out)
    assert reasons == {(MISSING_PART, True): 1, (NO_ROW, True): len(lost)}
    assert "0013/0013.txt: no such file" in [item.where for item in corpus.left_out]
    assert found(corpus) == meant([entry for entry in told if entry not in lost])
    with pytest.raises(InputError, match=r"1 x part of the release .* 0013 \(0013/0013\.txt: no such file\)"):
        make_corpus("esd", root, emotions=None, strict=True).load()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0013_000001\tText.\tFrightened\n", "no emotion of ESD: 'Frightened'"),
        ("0013_000001\tText without an emotion.\n", "no emotion of ESD"),
        ("0013_000001\n", "expected an id, a transcript and an emotion"),
        ("13_1\tText.\tNeutral\n", "expected an id, a transcript and an emotion"),
    ],
)
def test_a_row_that_is_none_is_an_error_with_file_and_line(
    line: str, message: str, tmp_path: Path, make_corpus: MakeCorpus
) -> None:
    releases.esd(tmp_path, ["0013"], 3, seconds=0.02, shared=True)
    rewrite(tmp_path / "0013/0013.txt", lambda lines: [*lines[:3], "\n", line, *lines[3:]])
    with pytest.raises(InputError, match=rf"^0013/0013\.txt:5: {message}"):
        make_corpus("esd", tmp_path).load()


def test_a_language_that_nobody_speaks_is_named(english: Release, make_corpus: MakeCorpus) -> None:
    for emotions in (FOUR, None):
        corpus = make_corpus("esd", english[0], language="fr", emotions=emotions)
        with pytest.raises(InputError, match=f"{english[0]}.*no"):
            corpus.prepare()


def test_suffixes_in_capitals_and_emotions_without_a_folder_of_that_name_are_read(
    tmp_path: Path, make_corpus: MakeCorpus
) -> None:
    told, renamed = releases.esd(tmp_path, ["0011"], 3, seconds=0.02, shared=True), []
    (tmp_path / "0011/Neutral").rename(tmp_path / "0011/rest")
    (tmp_path / "0011/Sad").rename(tmp_path / "0011/SAD")
    for entry in told:
        audio = entry.audio.replace("Neutral", "rest").replace("Sad", "SAD")
        (tmp_path / audio).rename(tmp_path / f"{audio[:-4]}.Wav")
        renamed.append(entry._replace(audio=f"{audio[:-4]}.Wav"))
    corpus = make_corpus("esd", tmp_path, emotions=None)
    corpus.load()
    assert found(corpus) == meant(renamed)


def test_a_run_ends_well(english: Release, train: Train) -> None:
    metrics = train("data=esd", f"data.root={english[0]}")
    assert metrics["finished"] is True
    assert metrics["speaker_independent"] is False
    assert metrics["split"] == metrics["validation"] == "official"


IDS = st.builds("{:04}_{:06}".format, st.integers(1, 20), st.integers(1, 1750))
ROWS = st.lists(st.tuples(IDS, TEXTS, st.sampled_from([*EMOTIONS, "Neutral", "Angry", "Happy", "Sad"])), max_size=6)


def lines_of(rows: list[tuple[str, str, str]]) -> list[str]:
    return ["\t".join(row) for row in rows]


@settings(max_examples=40)
@given(
    rows=ROWS,
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "gb18030"]),
    end=st.sampled_from(LINE_ENDS),
)
def test_rows_come_back_from_every_encoding_and_line_end(
    rows: list[tuple[str, str, str]], encoding: str, end: str
) -> None:
    data = "".join(line + end for line in lines_of(rows)).encode(encoding)
    assume(not ambiguous(data, encoding))
    text = decode_text(data, "gb18030")
    assert text is not None
    each = 2 if end == "\n\n" else 1
    assert parse_rows(text, "0011.txt") == [
        (key, (said, EMOTIONS[word.lower()]), f"0011.txt:{each * number + 1}")
        for number, (key, said, word) in enumerate(rows)
    ]


@settings(max_examples=100)
@given(st.one_of(st.text(), edited(st.builds(lambda rows: "\r\n".join(lines_of(rows)), ROWS))))
def test_no_text_breaks_the_parser(text: str) -> None:
    try:
        rows = parse_rows(text, "0011.txt")
    except InputError as error:
        message, rows = str(error), []
    else:
        message = ""
    assert message == "" or message.startswith("0011.txt:")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if not message:
        assert len(rows) == sum(bool(line.strip()) for line in lines)
    for key, (said, emotion), where in rows:
        line = lines[int(where.removeprefix("0011.txt:")) - 1].strip()
        assert line.startswith(key)
        assert said in line
        assert emotion in EMOTIONS.values()
