"""IEMOCAP: what is read, who is kept apart, and what is said of a damaged release."""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import assume, given, settings

from fourm_ser.data.corpora.iemocap import EMOTIONS, parse_labels, parse_turns
from fourm_ser.data.release import (
    CONFLICT,
    MISSING_PART,
    NO_LABEL,
    NO_RECORDING,
    NO_ROW,
    NO_TRANSCRIPT,
    REPEATED,
    UNREADABLE_TEXT,
    decode_text,
)
from fourm_ser.data.splits import split_manifest
from fourm_ser.errors import InputError
from tests import releases
from tests.data.corpora.conftest import (
    EVERY,
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
FOLDED = {"excitement": "happiness"}
FEW = dict.fromkeys(("ang", "hap", "exc", "sad", "neu"), 12) | {"xxx": 4}
SMALL = {"ang": 10, "neu": 10}

Release = tuple[Path, list[Told]]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A small release that no test changes."""
    root = tmp_path_factory.mktemp("iemocap") / "IEMOCAP_full_release"
    return root, releases.iemocap(root, FEW, seconds=0.05, quirks=True)


@pytest.fixture
def small(tmp_path: Path) -> Release:
    """A small release to damage."""
    root = tmp_path / "IEMOCAP_full_release"
    return root, releases.iemocap(root, SMALL, seconds=0.05)


@pytest.mark.parametrize("quirks", [False, True])
def test_a_release_is_read_as_it_was_written(quirks: bool, tmp_path: Path, make_corpus: MakeCorpus) -> None:
    told = releases.iemocap(tmp_path, quirks=quirks, seconds=0.05)
    corpus = make_corpus("iemocap", tmp_path, **EVERY, strict=True)
    corpus.load()
    assert found(corpus) == meant(told)
    assert set(corpus.emotions) == {entry.emotion for entry in told}
    assert {(item.reason[-5:], item.fault) for item in corpus.left_out} == {("(xxx)", False)}
    assert len(corpus.left_out) == releases.IEMOCAP_FEW["xxx"]
    four = make_corpus("iemocap", tmp_path)
    four.load()
    assert four.emotions == FOUR
    assert found(four) == meant(told, FOUR, FOLDED)


@pytest.mark.slow
def test_the_whole_release_has_the_four_classes_of_nearly_all_papers(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    releases.iemocap(tmp_path, releases.IEMOCAP_LABELS, seconds=0.02, quirks=True, shared=True)
    corpus = make_corpus("iemocap", tmp_path)
    manifest = pd.read_csv(corpus.prepare() / "manifest.csv", keep_default_na=False)
    counts = manifest["emotion"].value_counts().to_dict()
    assert counts == {"anger": 1103, "happiness": 1636, "sadness": 1084, "neutral": 1708}
    assert len(manifest) == manifest["id"].nunique() == 5531
    assert (manifest["speaker"].nunique(), manifest["session"].nunique()) == (10, 5)
    assert not [item for item in corpus.left_out if item.fault]
    reasons = Counter(item.reason for item in corpus.left_out)
    assert sum(reasons.values()) + len(manifest) == 10_039
    assert reasons["the annotators agreed on no emotion (xxx)"] == 2507
    # On so many utterances, too, each is tested once.
    tested: Counter[str] = Counter()
    for fold in range(5):
        split = split_manifest(corpus.frame, corpus.protocol._replace(fold=fold))
        tested.update(corpus.frame["id"].iloc[split.test])
    assert tested == Counter(manifest["id"])


@pytest.mark.parametrize("validation", ["speakers", "session"])
def test_in_five_session_folds_no_session_and_no_speaker_is_on_two_sides(
    validation: str, few: Release, make_corpus: MakeCorpus
) -> None:
    assert_folds(
        lambda fold: make_corpus("iemocap", few[0], split="session", fold=fold, validation=validation),
        folds=5,
        apart=["session", "speaker"],
        tested="session",
    )


def test_in_ten_speaker_folds_no_speaker_is_on_two_sides(few: Release, make_corpus: MakeCorpus) -> None:
    assert_folds(
        lambda fold: make_corpus("iemocap", few[0], split="speaker", fold=fold),
        folds=10,
        apart=["speaker"],
        tested="speaker",
    )


@pytest.mark.parametrize("split", ["session", "speaker"])
def test_folds_do_not_depend_on_the_order_of_rows(split: str, few: Release, make_corpus: MakeCorpus) -> None:
    corpus = make_corpus("iemocap", few[0], split=split)
    corpus.load()
    for fold in (0, 3):
        for validation in ("speakers", "random"):
            protocol = corpus.protocol._replace(fold=fold, validation=validation)
            sides = split_manifest(corpus.frame, protocol)
            for seed in range(3):
                mixed = corpus.frame.sample(frac=1, random_state=seed)
                for rows, others in zip(sides, split_manifest(mixed, protocol), strict=True):
                    assert set(corpus.frame["id"].iloc[rows]) == set(mixed["id"].iloc[others])


def test_nothing_depends_on_the_order_in_which_folders_are_listed(
    small: Release, make_corpus: MakeCorpus, shuffled: Callable[[int], None]
) -> None:
    root, told = small
    # Copies and repeated rows, of which one has to be chosen.
    for entry, other in zip(told[:6], told[10:16], strict=True):
        shutil.copy(root / entry.audio, (root / other.audio).parent)
    first, second = (sorted((root / f"Session{n}/dialog/transcriptions").glob("*.txt"))[0] for n in (1, 2))
    second.write_bytes(second.read_bytes() + first.read_bytes())
    corpora = []
    for seed in (None, 1, 2, 3):
        if seed is not None:
            shuffled(seed)
        corpus = make_corpus("iemocap", root.parent, emotions=["anger", "neutral"], fold=1)
        corpora.append((corpus, sides_by_id(corpus)))
    (plain, sides), others = corpora[0], corpora[1:]
    assert Counter(item.reason for item in plain.left_out)[REPEATED] > 6
    for shuffled_corpus, its_sides in others:
        pd.testing.assert_frame_equal(shuffled_corpus.frame, plain.frame)
        assert shuffled_corpus.left_out == plain.left_out
        assert its_sides == sides


def label_file(root: Path, entry: Told) -> Path:
    return root / f"Session{entry.session[-1]}/dialog/EmoEvaluation/{entry.id[:-5]}.txt"


def transcript_file(root: Path, entry: Told) -> Path:
    return root / f"Session{entry.session[-1]}/dialog/transcriptions/{entry.id[:-5]}.txt"


def no_label(root: Path, told: list[Told]) -> Harm:
    entry = told[3]
    rewrite(label_file(root, entry), without(f"\t{entry.id}\t"))
    return Harm(NO_LABEL, [entry.id], entry.audio, [entry.id])


def no_transcript(root: Path, told: list[Told]) -> Harm:
    entry = told[3]
    rewrite(transcript_file(root, entry), without(entry.id))
    return Harm(NO_TRANSCRIPT, [entry.id], entry.audio, [entry.id])


def no_row(root: Path, told: list[Told]) -> Harm:
    entry = told[3]
    rewrite(label_file(root, entry), without(f"\t{entry.id}\t"))
    rewrite(transcript_file(root, entry), without(entry.id))
    return Harm(NO_ROW, [entry.id], entry.audio, [entry.id])


def no_recording(root: Path, told: list[Told]) -> Harm:
    entry, path = told[3], label_file(root, told[3])
    (root / entry.audio).unlink()
    where = f"{path.relative_to(root).as_posix()}:{line_of(path, entry.id)}"
    return Harm(NO_RECORDING, [entry.id], where, [entry.id])


def no_dialog(root: Path, told: list[Told]) -> Harm:
    folder = (root / told[0].audio).parent
    shutil.rmtree(folder)
    lost = [entry.id for entry in told if (root / entry.audio).parent == folder]
    return Harm(NO_RECORDING, lost, f"EmoEvaluation/{folder.name}.txt:", lost)


def broken_link(root: Path, told: list[Told]) -> Harm:
    harm = no_recording(root, told)
    (root / told[3].audio).symlink_to(root / "nowhere.wav")
    return harm


def same_label_twice(root: Path, told: list[Told]) -> Harm:
    entry, path = told[3], label_file(root, told[3])
    again = f"[1.0 - 2.0]\t{entry.id}\t{entry.emotion[:3]}\t[1.0, 1.0, 1.0]\n"
    rewrite(path, lambda lines: [*lines, again])
    number = len(path.read_text().splitlines())
    return Harm(REPEATED, [entry.id], f"{path.name}:{number}", [])


def two_labels(root: Path, told: list[Told]) -> Harm:
    entry, path = told[3], label_file(root, told[3])
    first = line_of(path, entry.id)
    rewrite(path, lambda lines: [*lines, f"[1.0 - 2.0]\t{entry.id}\tfru\t[1.0, 1.0, 1.0]\n"])
    last, name = len(path.read_text().splitlines()), path.relative_to(root).as_posix()
    return Harm(CONFLICT, [entry.id], f"{name}:{first}, {name}:{last}", [entry.id])


def disagreed_and_labelled(root: Path, told: list[Told]) -> Harm:
    entry, path = told[3], label_file(root, told[3])
    rewrite(path, lambda lines: [f"[1.0 - 2.0]\t{entry.id}\txxx\t[1.0, 1.0, 1.0]\n", *lines])
    return Harm(CONFLICT, [entry.id], f"{path.name}:1, ", [entry.id])


def same_transcript_twice(root: Path, told: list[Told]) -> Harm:
    entry, path = told[3], transcript_file(root, told[3])
    (line,) = [line for line in path.read_text().splitlines(keepends=True) if line.startswith(entry.id)]
    rewrite(path, lambda lines: [*lines, line])
    return Harm(REPEATED, [entry.id], f"{path.name}:{len(path.read_text().splitlines())}", [])


def two_transcripts(root: Path, told: list[Told]) -> Harm:
    entry, path = told[3], transcript_file(root, told[3])
    rewrite(path, lambda lines: [*lines, f"{entry.id} [006.2901-008.2357]: Something else.\n"])
    return Harm(CONFLICT, [entry.id], f"{path.name}:{len(path.read_text().splitlines())}", [entry.id])


def copied_recording(root: Path, told: list[Told]) -> Harm:
    entry, folder = told[-1], root / "Session1/sentences/wav/Ses01F_copies"
    folder.mkdir()
    shutil.copy(root / entry.audio, folder)
    return Harm(REPEATED, [entry.id], f"Ses01F_copies/{entry.id}.wav", [])


def other_recording(root: Path, told: list[Told]) -> Harm:
    entry, folder = told[-1], root / "Session1/sentences/wav/Ses01F_copies"
    folder.mkdir()
    shutil.copy(root / told[0].audio, folder / f"{entry.id}.wav")
    return Harm(CONFLICT, [entry.id], f"Ses01F_copies/{entry.id}.wav, {entry.audio}", [entry.id])


def unreadable_labels(root: Path, told: list[Told]) -> Harm:
    path = label_file(root, told[3])
    path.write_bytes(b"\x81\x8d" + path.read_bytes())
    lost = [entry.id for entry in told if label_file(root, entry) == path]
    return Harm(UNREADABLE_TEXT, lost, path.relative_to(root).as_posix(), lost)


def unreadable_transcript(root: Path, told: list[Told]) -> Harm:
    path = transcript_file(root, told[3])
    path.write_bytes(path.read_bytes().decode().encode("utf-16")[:-1])
    lost = [entry.id for entry in told if transcript_file(root, entry) == path]
    return Harm(UNREADABLE_TEXT, lost, path.relative_to(root).as_posix(), lost)


def unreadable_both(root: Path, told: list[Told]) -> Harm:
    unreadable_transcript(root, told)
    return unreadable_labels(root, told)


def truncated(root: Path, told: list[Told]) -> Harm:
    cut(root / told[3].audio)
    return Harm("recording that cannot be used", [told[3].id], "truncated", [told[3].id])


def empty_file(root: Path, told: list[Told]) -> Harm:
    (root / told[3].audio).write_bytes(b"")
    return Harm("recording that cannot be used", [told[3].id], str(root / told[3].audio), [told[3].id])


def no_samples(root: Path, told: list[Told]) -> Harm:
    soundfile.write(root / told[3].audio, np.zeros(0), 16_000)
    return Harm("recording that cannot be used", [told[3].id], "no samples", [told[3].id])


def missing_session(root: Path, told: list[Told]) -> Harm:
    shutil.rmtree(root / "Session3")
    lost = [entry.id for entry in told if entry.session == "Ses03"]
    return Harm(MISSING_PART, ["Session3"], "Session3: no such folder", lost)


FAULTS = [
    *(no_label, no_transcript, no_row, no_recording, no_dialog, broken_link, same_label_twice, two_labels),
    *(disagreed_and_labelled, same_transcript_twice, two_transcripts, copied_recording, other_recording),
    *(unreadable_labels, unreadable_transcript, unreadable_both, truncated, empty_file, no_samples, missing_session),
]


@pytest.mark.slow(
    but=[
        "no_label",
        "no_row",
        "no_dialog",
        "broken_link",
        "same_label",
        "two_tr",
        "copied",
        "unreadable_both",
        "truncated",
    ]
)
@pytest.mark.parametrize("damage", FAULTS, ids=lambda damage: damage.__name__)
def test_a_fault_is_named_and_left_out(
    damage: Callable[[Path, list[Told]], Harm], small: Release, check_fault: CheckFault
) -> None:
    check_fault("iemocap", *small, damage(*small))


def test_faults_of_several_kinds_are_counted_by_reason(small: Release, make_corpus: MakeCorpus) -> None:
    root, told = small
    for entry in told[:3]:
        (root / entry.audio).unlink()
    for entry in told[-2:]:
        cut(root / entry.audio)
    rewrite(label_file(root, told[8]), without(f"\t{told[8].id}\t"))
    corpus = make_corpus("iemocap", root, **EVERY)
    corpus.load()
    counts = Counter(item.reason for item in corpus.left_out)
    assert counts == {NO_RECORDING: 3, NO_LABEL: 1, "recording that cannot be used": 2}
    with pytest.raises(InputError, match=r"4 faults: 3 x label without a recording.* 1 x recording without a label"):
        make_corpus("iemocap", root, **EVERY, strict=True).load()


@pytest.mark.parametrize("line", ["[1.0 - 2.0]\t{}\tzzz\t[1, 1, 1]", "[1.0 - 2.0]\t{}\tNeutral;\t[1, 1, 1]"])
def test_a_label_that_is_not_the_corpus_s_is_an_error_with_file_and_line(
    line: str, small: Release, make_corpus: MakeCorpus
) -> None:
    root, told = small
    path = label_file(root, told[0])
    rewrite(path, lambda lines: [*lines[:2], line.format(told[0].id) + "\n", *lines[2:]])
    with pytest.raises(InputError, match=rf"^{path.relative_to(root).as_posix()}:3: no label of IEMOCAP: '(zzz|Neut)"):
        make_corpus("iemocap", root).load()


@pytest.mark.parametrize(
    "line", ["[1.0 - 2.0]\tSes01F_impro01_F000\n", "[x - y]\tSes01F_impro01_F000\tneu\t[1]\n", "[1 - 2]\tx\tneu\t[1]\n"]
)
def test_a_label_line_of_another_form_is_an_error_with_file_and_line(
    line: str, small: Release, make_corpus: MakeCorpus
) -> None:
    root, told = small
    path = label_file(root, told[0])
    rewrite(path, lambda lines: [*lines, line])
    number = len(path.read_text().splitlines())
    with pytest.raises(InputError, match=rf"^{path.relative_to(root).as_posix()}:{number}: "):
        make_corpus("iemocap", root).load()


def test_suffixes_in_capitals_links_and_paths_of_other_alphabets_are_read(
    tmp_path: Path, make_corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "Ünïcode 数据 [x], 'y'" / "a=b"
    told = releases.iemocap(root, SMALL, seconds=0.05)
    renamed = []
    for entry in told:
        (root / entry.audio).rename(root / f"{entry.audio[:-4]}.WAV")
        renamed.append(entry._replace(audio=f"{entry.audio[:-4]}.WAV"))
    link = tmp_path / "link"
    link.symlink_to(root.parent)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for given_root in (root, link, "link", "~/link", "./link/../link/a=b"):
        corpus = make_corpus("iemocap", given_root, **EVERY, strict=True)
        corpus.prepare()
        assert found(corpus) == meant(renamed)


def test_emotions_that_were_folded_stay_apart_when_they_are_asked_for(few: Release, make_corpus: MakeCorpus) -> None:
    six = ["anger", "happiness", "sadness", "neutral", "excitement"]
    corpus = make_corpus("iemocap", few[0], emotions=six, label_map={"excitement": "excitement"})
    corpus.load()
    assert found(corpus) == meant(few[1], six)


@pytest.mark.slow
def test_a_run_ends_well(few: Release, train: Train) -> None:
    metrics = train("data=iemocap", f"data.root={few[0]}")
    assert metrics["finished"] is True
    assert metrics["corpus"] == "iemocap"
    assert metrics["speaker_independent"] is True


IDS = st.builds(
    "Ses{:02}{}_{}_{}{:03}".format,
    st.integers(1, 5),
    st.sampled_from("FM"),
    st.sampled_from(["impro01", "script01_1b", "script03_2"]),
    st.sampled_from("FM"),
    st.integers(0, 999),
)
ROWS = st.lists(st.tuples(IDS, st.sampled_from([*EMOTIONS, "xxx"])), max_size=6)
TURNS = st.lists(st.tuples(IDS, TEXTS), max_size=6)


def label_lines(rows: list[tuple[str, str]], draw: random.Random) -> list[str]:
    lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]"]
    for key, word in rows:
        start = draw.random() * 400
        lines += ["", f"[{start:.4f} - {start + 2:.4f}]\t{key}\t{word}\t[{draw.random():.4f}, 2.5000, 3.0000]"]
        lines += ["C-E2:\tAnger; Neutral;\t()", "A-F1:\tval 3; act 2; dom  2;\t(it [was] so)"][: draw.randint(0, 2)]
    return lines


def turn_lines(rows: list[tuple[str, str]], draw: random.Random) -> list[str]:
    lines = []
    for key, text in rows:
        lines += ["M: sorry", f"{key[:-3]}XX0 [001.0000-002.0000]: [GARBAGE]", ""][: draw.randint(0, 3)]
        lines.append(f"{key} [{draw.random():08.4f}-{2 + draw.random():08.4f}]: {text}")
    return lines


@settings(max_examples=40)
@given(
    rows=ROWS,
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"]),
    end=st.sampled_from(LINE_ENDS),
    draw=st.randoms(use_true_random=False),
)
def test_labels_come_back_from_every_encoding_and_line_end(
    rows: list[tuple[str, str]], encoding: str, end: str, draw: random.Random
) -> None:
    lines = label_lines(rows, draw)
    text = decode_text("".join(line + end for line in lines).encode(encoding), "cp1252")
    assert text is not None
    numbers = [number for number, line in enumerate(lines) if line.startswith("[")]
    each = 2 if end == "\n\n" else 1
    assert parse_labels(text, "f.txt") == [
        (key, EMOTIONS.get(word, "xxx"), f"f.txt:{each * number + 1}")
        for (key, word), number in zip(rows, numbers, strict=True)
    ]


@settings(max_examples=40)
@given(
    rows=TURNS,
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"]),
    end=st.sampled_from(LINE_ENDS),
    draw=st.randoms(use_true_random=False),
)
def test_transcripts_come_back_from_every_encoding_and_line_end(
    rows: list[tuple[str, str]], encoding: str, end: str, draw: random.Random
) -> None:
    if encoding == "cp1252":
        rows = [(key, text.encode("cp1252", "ignore").decode("cp1252").strip()) for key, text in rows]
    data = "".join(line + end for line in turn_lines(rows, draw)).encode(encoding)
    assume(not ambiguous(data, encoding))
    text = decode_text(data, "cp1252")
    assert text is not None
    assert [(key, said) for key, said, _ in parse_turns(text, "f.txt")] == rows


VALID = st.builds(lambda rows, draw: "\n".join(label_lines(rows, draw)), ROWS, st.randoms(use_true_random=False))
VALID_TURNS = st.builds(lambda rows, draw: "\n".join(turn_lines(rows, draw)), TURNS, st.randoms(use_true_random=False))


@settings(max_examples=120)
@given(st.one_of(st.text(), edited(VALID), edited(VALID_TURNS)))
def test_no_text_breaks_the_parsers(text: str) -> None:
    try:
        rows = parse_labels(text, "f.txt")
    except InputError as error:
        message = str(error)
    else:
        message = ""
        assert all(word in (*EMOTIONS.values(), "xxx") for _, word, _ in rows)
    assert message == "" or message.startswith("f.txt:")
    for key, said, where in parse_turns(text, "f.txt"):
        number = int(where.removeprefix("f.txt:"))
        line = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")[number - 1]
        assert line.strip().startswith(key)
        assert line.strip().endswith(said)
