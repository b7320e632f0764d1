"""EMO-DB: names that say everything."""

import shutil
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from fourm_ser.data.corpora.emodb import EMOTIONS, IDENTITY, NO_SENTENCE, OTHER_NAME, SENTENCES, parse_name
from fourm_ser.data.release import CONFLICT, REPEATED
from fourm_ser.errors import InputError
from tests import releases
from tests.data.corpora.conftest import (
    EVERY,
    CheckFault,
    Harm,
    MakeCorpus,
    Train,
    assert_folds,
    cut,
    edited,
    found,
    meant,
    need_cases,
)
from tests.releases import Told

SEVEN = ["anger", "happiness", "sadness", "neutral", "fear", "disgust", "boredom"]

Release = tuple[Path, list[Told]]


@pytest.fixture
def small(tmp_path: Path) -> Release:
    return tmp_path / "wav", [
        entry._replace(audio=Path(entry.audio).name) for entry in releases.emodb(tmp_path, each=1, seconds=0.05)
    ]


@pytest.mark.parametrize("quirks", [False, True])
def test_a_release_is_read_as_it_was_written(quirks: bool, tmp_path: Path, make_corpus: MakeCorpus) -> None:
    told = releases.emodb(tmp_path / "EMO-DB", quirks=quirks, seconds=0.02, each=2)
    expected = [entry._replace(audio=Path(entry.audio).name) for entry in told]  # relative to the folder of recordings
    for root in (tmp_path, tmp_path / "EMO-DB", tmp_path / "EMO-DB/wav"):
        corpus = make_corpus("emodb", root, strict=True)
        corpus.load()
        assert corpus.audio_root == tmp_path / "EMO-DB/wav"
        assert corpus.emotions == SEVEN
        assert found(corpus) == meant(expected)
        assert corpus.left_out == []
    four = make_corpus("emodb", tmp_path, emotions=SEVEN[:4])
    four.load()
    assert found(four) == meant(expected, SEVEN[:4])


def test_in_ten_speaker_folds_no_speaker_is_on_two_sides(small: Release, make_corpus: MakeCorpus) -> None:
    assert_folds(lambda fold: make_corpus("emodb", small[0], fold=fold), folds=10, apart=["speaker"], tested="speaker")


def other_name(root: Path, told: list[Told]) -> Harm:
    shutil.copy(root / told[0].audio, root / f"{told[0].id} (1).wav")
    return Harm(OTHER_NAME, [f"{told[0].id} (1)"], f"{told[0].id} (1).wav", [])


def other_sentence(root: Path, told: list[Told]) -> Harm:
    key = f"{told[0].id[:2]}c99{told[0].id[5:]}"
    (root / told[0].audio).rename(root / f"{key}.wav")
    return Harm(NO_SENTENCE, [key], f"{key}.wav: c99", [told[0].id])


def same_recording_twice(root: Path, told: list[Told]) -> Harm:
    need_cases(root)
    shutil.copy(root / told[0].audio, root / f"{told[0].id}.WAV")  # sorts before .wav
    return Harm(REPEATED, [told[0].id], f"{told[0].id}.WAV", [])


def two_recordings(root: Path, told: list[Told]) -> Harm:
    need_cases(root)
    shutil.copy(root / told[1].audio, root / f"{told[0].id}.WAV")
    return Harm(CONFLICT, [told[0].id], f"{told[0].id}.WAV, {told[0].id}.wav", [told[0].id])


def truncated(root: Path, told: list[Told]) -> Harm:
    cut(root / told[0].audio)
    return Harm("recording that cannot be used", [told[0].id], "truncated", [told[0].id])


@pytest.mark.parametrize(
    "damage",
    [other_name, other_sentence, same_recording_twice, two_recordings, truncated],
    ids=lambda damage: damage.__name__,
)
def test_a_fault_is_named_and_left_out(
    damage: Callable[[Path, list[Told]], Harm], small: Release, check_fault: CheckFault
) -> None:
    check_fault("emodb", *small, damage(*small))


def test_a_letter_that_is_no_emotion_is_an_error_with_the_file(small: Release, make_corpus: MakeCorpus) -> None:
    root, told = small
    path = root / f"{told[0].id[:5]}X{told[0].id[6:]}.wav"
    (root / told[0].audio).rename(path)
    with pytest.raises(InputError, match=f"{path.name}: no emotion of EMO-DB: 'X'"):
        make_corpus("emodb", root, **EVERY).load()


@pytest.mark.slow
def test_a_run_ends_well(small: Release, train: Train) -> None:
    metrics = train("data=emodb", f"data.root={small[0]}")
    assert metrics["finished"] is True
    assert metrics["speaker_independent"] is True


NAMES = st.builds(
    "{:02}{}{}{}".format,
    st.integers(0, 99),
    st.sampled_from([*SENTENCES, "c01"]),
    st.sampled_from([*EMOTIONS, "X"]),
    st.sampled_from("abcdef"),
)


@settings(max_examples=100)
@given(st.one_of(st.text(), st.from_regex(IDENTITY), NAMES, edited(NAMES)))
def test_a_name_is_taken_apart_or_refused(stem: str) -> None:
    try:
        speaker, sentence, emotion = parse_name(stem, f"{stem}.wav")
    except InputError as error:
        message = str(error)
    else:
        assert (speaker, sentence, emotion) == (stem[:2], stem[2:5], releases.EMODB_EMOTIONS[stem[5]])
        message = ""
    assert message == "" or message.startswith(f"{InputError(stem)}.wav: ")
    told = len(stem) == 7 and stem.isascii() and stem[:2].isdigit() and stem[3:5].isdigit()
    assert bool(message) != (told and stem[2].islower() and stem[5] in releases.EMODB_EMOTIONS and stem[6].islower())
