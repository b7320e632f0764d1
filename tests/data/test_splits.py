"""The protocols: who is trained on, who validates, who is tested."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fourm_ser.data.splits import (
    Protocol,
    Split,
    draw_validation,
    gives_validation,
    read_split,
    split_manifest,
    write_split,
)
from fourm_ser.errors import InputError

SEEDS = range(3)  # corpora of one, two and three speakers a session
SPLIT = re.compile(r"([0-9]+)").split


def protocol(split: str, **changes: Any) -> Protocol:
    """The defaults of the config, but for the changes."""
    made = Protocol(split, 0, (0.8, 0.1, 0.1), True, "speakers", 0.2, 0)
    return made._replace(**changes)


def manifest(seed: int, utterances: int | None = None) -> pd.DataFrame:
    """A corpus of a random shape: sessions of one to three speakers, unbalanced emotions, rows in any order."""
    generator = np.random.default_rng(seed)
    sessions = [f"S{number}" for number in generator.permutation(99)[: generator.integers(3, 7)]]
    pairs = [
        (f"{generator.integers(1000)}-{session}-{n}", session) for session in sessions for n in range(seed % 3 + 1)
    ]
    count = utterances or int(generator.integers(150, 400))
    # Each speaker speaks, and beyond that as often as it comes.
    spoken = generator.permutation([*range(len(pairs)), *generator.integers(len(pairs), size=count - len(pairs))])
    return pd.DataFrame(
        {
            "id": [f"u{number}" for number in generator.permutation(10 * count)[:count]],
            "speaker": [pairs[place][0] for place in spoken],
            "session": [pairs[place][1] for place in spoken],
            "emotion": generator.choice(["anger", "neutral", "sadness"], p=[0.5, 0.35, 0.15], size=count),
            "split": generator.choice(["train", "dev", "test"], size=count),
        }
    )


def in_order(names: Iterable[str]) -> list[str]:
    """Distinct names, numbers in them in the order of numbers."""
    return sorted(set(names), key=lambda name: [int(part) if part.isdigit() else part for part in SPLIT(name)])


def speakers(frame: pd.DataFrame, rows: np.ndarray, column: str = "speaker") -> set[str]:
    return set(frame[column].to_numpy()[rows])


def assert_each_row_once(split: Split, frame: pd.DataFrame) -> None:
    assert sorted(np.concatenate(split).tolist()) == list(range(len(frame)))
    for side in split:
        assert len(side)
        assert (np.diff(side) > 0).all()


def ids(split: Split, frame: pd.DataFrame) -> list[set[str]]:
    return [set(frame["id"].to_numpy()[side]) for side in split]


def refusal(frame: pd.DataFrame, how: Protocol) -> str:
    with pytest.raises(InputError) as caught:
        split_manifest(frame, how)
    return str(caught.value)


@pytest.mark.parametrize(
    ("seed", "fractions", "stratify"),
    [
        (0, (0.8, 0.1, 0.1), True),
        (1, (0.5, 0.2, 0.3), False),
        (2, (0.34, 0.33, 0.33), True),
        (3, (0.34, 0.33, 0.33), False),
        (4, (0.1, 0.1, 0.8), True),
        (5, (0.8, 0.1, 0.1), False),
    ],
)
def test_a_random_split_has_the_fractions(seed: int, fractions: tuple[float, float, float], stratify: bool) -> None:
    frame = manifest(seed)
    split = split_manifest(frame, protocol("random", fractions=fractions, stratify=stratify))
    assert_each_row_once(split, frame)
    for side, fraction in zip(split, fractions, strict=True):
        assert abs(len(side) - fraction * len(frame)) <= 2


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stratified_split_keeps_the_emotions_shares(seed: int) -> None:
    frame = manifest(seed)
    fractions = (0.6, 0.2, 0.2)
    split = split_manifest(frame, protocol("random", fractions=fractions))
    for emotion, count in frame["emotion"].value_counts().items():
        for side, fraction in zip(split, fractions, strict=True):
            assert abs((frame["emotion"].to_numpy()[side] == emotion).sum() - fraction * count) < 2


def test_without_stratification_the_shares_are_left_to_chance() -> None:
    frame = manifest(0, utterances=400)
    off = []
    for seed in range(10):
        split = split_manifest(frame, protocol("random", stratify=False, seed=seed, fractions=(0.6, 0.2, 0.2)))
        count = (frame["emotion"].to_numpy()[split.test] == "anger").sum()
        off.append(abs(count - 0.2 * (frame["emotion"] == "anger").sum()))
    assert max(off) > 3


@pytest.mark.parametrize(
    "how", [protocol("random"), protocol("random", stratify=False), protocol("speaker", validation="random")]
)
def test_what_is_drawn_at_random_depends_on_the_seed(how: Protocol) -> None:
    frame = manifest(1)
    first = ids(split_manifest(frame, how), frame)
    assert ids(split_manifest(frame.copy(), how), frame) == first
    others = [ids(split_manifest(frame, how._replace(seed=seed)), frame) for seed in range(1, 4)]
    assert all(other[1] != first[1] for other in others)
    assert others[0] != others[1] != others[2]


@pytest.mark.parametrize("column", ["speaker", "session"])
@pytest.mark.parametrize("validation", ["speakers", "session", "random"])
@pytest.mark.parametrize("seed", SEEDS)
def test_over_all_folds_each_utterance_is_tested_once(seed: int, validation: str, column: str) -> None:
    frame = manifest(seed)
    values = in_order(frame[column])
    tested: list[int] = []
    for fold, held_out in enumerate(values):
        split = split_manifest(frame, protocol(column, fold=fold, validation=validation))
        assert_each_row_once(split, frame)
        assert split.test.tolist() == np.flatnonzero(frame[column] == held_out).tolist()
        others = np.concatenate([split.train, split.val])
        assert speakers(frame, split.test).isdisjoint(speakers(frame, others))
        assert speakers(frame, split.test, column).isdisjoint(speakers(frame, others, column))
        assert split.speaker_independent(frame)
        tested += split.test.tolist()
    assert sorted(tested) == list(range(len(frame)))
    assert f"0 to {len(values) - 1} " in refusal(frame, protocol(column, fold=len(values), validation=validation))


@pytest.mark.parametrize("column", ["speaker", "session"])
@pytest.mark.parametrize(("seed", "fraction"), [(0, 0.2), (1, 0.01), (2, 0.4), (5, 0.2)])
def test_validation_speakers_are_not_trained_on(seed: int, fraction: float, column: str) -> None:
    frame = manifest(seed)
    validated: list[str] = []
    folds = frame[column].nunique()
    for fold in range(folds):
        split = split_manifest(frame, protocol(column, fold=fold, validation_fraction=fraction))
        train, val, test = (speakers(frame, side) for side in split)
        assert train.isdisjoint(val)
        remaining = frame["speaker"].nunique() - len(test)
        assert len(val) == max(1, round(fraction * remaining))
        validated += val
    if column == "speaker":  # each validates about equally often
        times = [validated.count(speaker) for speaker in set(frame["speaker"])]
        assert max(times) - min(times) <= 1


@pytest.mark.parametrize("seed", SEEDS)
def test_over_all_folds_each_session_validates_once(seed: int) -> None:
    frame = manifest(seed)
    validated: list[str] = []
    for fold in range(frame["session"].nunique()):
        split = split_manifest(frame, protocol("session", fold=fold, validation="session"))
        train, val, test = (speakers(frame, side, "session") for side in split)
        assert len(val) == len(test) == 1
        assert not train & val
        assert not train & test
        validated += val
    assert sorted(validated) == sorted(set(frame["session"]))


@pytest.mark.parametrize("seed", SEEDS)
def test_validation_on_a_session_works_with_one_tested_speaker(seed: int) -> None:
    frame = manifest(seed)
    validated: set[str] = set()
    for fold in range(frame["speaker"].nunique()):
        split = split_manifest(frame, protocol("speaker", fold=fold, validation="session"))
        session = speakers(frame, split.val, "session")
        assert len(session) == 1
        assert not session & speakers(frame, split.train, "session")
        validated |= session
    assert len(validated) > 1  # it goes with the fold


@pytest.mark.parametrize(("column", "fraction"), [("speaker", 0.25), ("session", 0.1)])
def test_validation_at_random_has_its_share_of_what_is_not_tested(column: str, fraction: float) -> None:
    frame = manifest(2)
    split = split_manifest(frame, protocol(column, validation="random", validation_fraction=fraction))
    assert abs(len(split.val) - fraction * (len(frame) - len(split.test))) <= 1
    rest = np.concatenate([split.train, split.val])
    for emotion, count in frame["emotion"].iloc[rest].value_counts().items():
        assert abs((frame["emotion"].to_numpy()[split.val] == emotion).sum() - fraction * count) < 2


@pytest.mark.parametrize(
    "how",
    [
        protocol("random"),
        protocol("random", stratify=False, seed=3),
        protocol("official"),
        protocol("speaker", fold=1, validation="speakers"),
        protocol("speaker", fold=1, validation="random"),
        protocol("session", fold=1, validation="speakers"),
        protocol("session", fold=1, validation="session"),
    ],
)
def test_a_split_does_not_depend_on_the_order_of_rows(how: Protocol) -> None:
    frame = manifest(4)
    first = ids(split_manifest(frame, how), frame)
    for seed in range(3):
        shuffled = frame.sample(frac=1, random_state=seed).reset_index(drop=True)
        assert ids(split_manifest(shuffled, how), shuffled) == first
    # What is returned are positions, whatever the index.
    reindexed = frame.set_index(frame.index[::-1] * 7 + 3)
    assert ids(split_manifest(reindexed, how), reindexed) == first


def test_the_official_split_is_the_columns() -> None:
    values = ["train", "val", "dev", "valid", "validation", "test", "train", "test"]
    frame = manifest(0, utterances=len(values) * 4).assign(split=values * 4)
    split = split_manifest(frame, protocol("official"))
    assert_each_row_once(split, frame)
    assert set(frame["split"].iloc[split.train]) == {"train"}
    assert set(frame["split"].iloc[split.val]) == {"val", "dev", "valid", "validation"}
    assert set(frame["split"].iloc[split.test]) == {"test"}
    assert not split.speaker_independent(frame)


def test_an_official_value_that_is_not_known_is_named() -> None:
    frame = manifest(0)
    frame.loc[3, "split"] = "eval"
    assert "'eval'" in refusal(frame, protocol("official"))
    assert "''" in refusal(frame.assign(split=""), protocol("official"))


@pytest.mark.parametrize("absent", ["train", "test"])
def test_an_empty_side_is_named(absent: str) -> None:
    frame = manifest(0)
    frame = frame[frame["split"] != absent].reset_index(drop=True)
    assert f"the {absent} side is empty" in refusal(frame, protocol("official"))


@pytest.mark.parametrize(("seed", "fraction"), [(0, 0.2), (1, 0.01), (2, 0.4), (5, 0.2)])
def test_an_official_split_without_validation_draws_it_by_speakers(seed: int, fraction: float) -> None:
    frame = manifest(seed)
    frame["split"] = frame["split"].replace("dev", "train")
    assert not gives_validation(frame, protocol("official"))
    split = split_manifest(frame, protocol("official", validation_fraction=fraction))
    assert_each_row_once(split, frame)
    assert split.test.tolist() == np.flatnonzero(frame["split"] == "test").tolist()
    train, val = speakers(frame, split.train), speakers(frame, split.val)
    assert train.isdisjoint(val)
    assert len(val) == max(1, round(fraction * len(train | val)))


def test_an_official_split_with_validation_draws_none() -> None:
    frame = manifest(0)
    assert gives_validation(frame, protocol("official"))
    for how in (protocol("official"), protocol("official", validation="random", validation_fraction=0.5)):
        split = split_manifest(frame, how)
        for side, name in zip(split, ("train", "dev", "test"), strict=True):
            assert side.tolist() == np.flatnonzero(frame["split"] == name).tolist()


@pytest.mark.parametrize("validation", ["speakers", "session"])
def test_too_few_sessions_leave_a_side_empty(validation: str) -> None:
    frame = manifest(0)  # of one speaker a session
    for count in (1, 2):
        few = frame[frame["session"].isin(in_order(frame["session"])[:count])].reset_index(drop=True)
        assert "the train side is empty" in refusal(few, protocol("session", validation=validation))


def test_a_corpus_without_utterances_is_refused() -> None:
    for split in ("random", "speaker", "session", "official"):
        assert "no utterances are left" in refusal(manifest(0).iloc[:0], protocol(split))


@pytest.mark.parametrize("column", ["speaker", "session"])
def test_a_fold_that_is_not_there_names_the_folds_there_are(column: str) -> None:
    frame = manifest(3)
    values = in_order(frame[column])
    for fold in (len(values), 99):
        message = refusal(frame, protocol(column, fold=fold))
        assert f"data.fold={fold}" in message
        assert f"0 to {len(values) - 1} ({', '.join(values[:12])}" in message


def test_a_split_without_folds_refuses_one() -> None:
    for split in ("random", "official"):
        assert "data.fold=1" in refusal(manifest(0), protocol(split, fold=1))


def test_fractions_that_leave_a_side_empty_are_refused() -> None:
    for fractions in ((1.0, 0.0, 0.0), (0.9, 0.1, 0.0), (0.9, 0.0, 0.1), (0.0, 0.5, 0.5), (0.0, 0.0, 1.0)):
        refusal(manifest(0), protocol("random", fractions=fractions))


def test_an_emotion_too_rare_to_be_on_every_side_is_refused() -> None:
    frame = manifest(0)
    frame.loc[0, "emotion"] = "boredom"
    assert "data.fractions" in refusal(frame, protocol("random"))
    assert_each_row_once(split_manifest(frame, protocol("random", stratify=False)), frame)


def test_missing_sessions_are_counted() -> None:
    frame = manifest(0, utterances=200)
    frame.loc[[3, 77, 130], "session"] = ""
    assert "3 of 200 utterances have no session" in refusal(frame, protocol("session"))
    assert "no session" in refusal(frame, protocol("speaker", validation="session"))
    assert_each_row_once(split_manifest(frame, protocol("speaker")), frame)


def test_a_speaker_of_two_sessions_is_named_under_the_session_split() -> None:
    frame = manifest(2)  # of three speakers a session
    sessions = in_order(frame["session"])
    stray = frame.index[frame["session"] == sessions[1]][0]
    guest = frame.loc[frame["session"] == sessions[0], "speaker"].iloc[0]
    frame.loc[stray, "speaker"] = guest
    for fold in (0, 1):
        message = refusal(frame, protocol("session", fold=fold))
        assert f"data.fold={fold}: {guest} would speak in the test side and outside it" in message
    split = split_manifest(frame, protocol("session", fold=2))  # which it does not touch
    assert speakers(frame, split.train).isdisjoint(speakers(frame, split.val))
    split = split_manifest(frame, protocol("speaker", fold=in_order(frame["speaker"]).index(guest)))
    assert split.speaker_independent(frame)


def test_a_random_split_knows_that_it_is_not_speaker_independent() -> None:
    frame = manifest(0)
    assert not split_manifest(frame, protocol("random")).speaker_independent(frame)
    by_speaker = frame.assign(speaker=frame["id"])
    assert split_manifest(by_speaker, protocol("random")).speaker_independent(by_speaker)


@pytest.mark.parametrize("validation", ["speakers", "session", "random"])
def test_validation_is_drawn_from_a_training_side_whatever_its_order(validation: str) -> None:
    frame = manifest(2)
    how = protocol("official", validation=validation)
    drawn = draw_validation(frame, how)
    assert (np.diff(drawn) > 0).all()
    rest = np.setdiff1d(np.arange(len(frame)), drawn)
    assert len(drawn)
    assert len(rest)
    if validation == "random":
        assert abs(len(drawn) - 0.2 * len(frame)) <= 1
    else:
        column = validation.removesuffix("s")
        assert speakers(frame, drawn, column).isdisjoint(speakers(frame, rest, column))
    shuffled = frame.sample(frac=1, random_state=0)
    again = draw_validation(shuffled, how)
    assert set(shuffled["id"].iloc[again]) == set(frame["id"].iloc[drawn])


# Split files


def split_refusal(path: Path, content: str | bytes | None) -> str:
    """What is said of a split file; always with the key and its path."""
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as caught:
        read_split(path)
    assert f"data.split_file={path}" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("how", [protocol("random"), protocol("speaker", fold=1), protocol("official")])
def test_a_split_that_is_written_is_read_again(tmp_path: Path, how: Protocol) -> None:
    frame = manifest(3)
    frame.loc[:3, "id"] = ['a, "b"', "NA", "Ça 你好", "007"]
    split = split_manifest(frame, how)
    write_split(frame, split, tmp_path / "new" / "split.csv")
    sides = read_split(tmp_path / "new" / "split.csv")
    assert len(sides) == len(frame)
    for side, rows in split._asdict().items():
        assert set(sides.index[sides == side]) == set(frame["id"].to_numpy()[rows])
    # The file is the split's, not the order of rows'.
    shuffled = frame.sample(frac=1, random_state=1)
    write_split(shuffled, split_manifest(shuffled, how), tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "new" / "split.csv").read_bytes()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["split.csv"]


def test_a_split_file_may_say_dev_and_hold_more_columns(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_bytes(b"\xef\xbb\xbfnote,split,id\nx,train,u1\n,dev,u2\n,valid,u3\n,validation,u4\n,val,u5\ny,test,NA\n")
    sides = {"u1": "train", **dict.fromkeys(("u2", "u3", "u4", "u5"), "val"), "NA": "test"}
    assert read_split(path).to_dict() == sides


def test_a_side_that_is_not_known_is_named_with_its_row(tmp_path: Path) -> None:
    for word in ("eval", "Train", "", "te st", "nan"):
        message = split_refusal(tmp_path / "split.csv", f"id,split\nu1,train\nu2,{word}\nu3,test\n")
        assert f"row 3 holds the split {word!r}" in message
        assert "train, val, dev" in message


def test_a_repeated_id_is_named_with_its_row(tmp_path: Path) -> None:
    message = split_refusal(tmp_path / "split.csv", "id,split\nu1,train\nu2,val\nu3,test\nu1,train\n")
    assert "row 5 repeats the id u1" in message


def test_missing_columns_of_a_split_file_are_named(tmp_path: Path) -> None:
    assert "no column split. Required: id, split; found: id, side." in split_refusal(
        tmp_path / "split.csv", "id,side\nu1,train\n"
    )
    assert "no column id, split. Required: id, split; found: u1, train." in split_refusal(
        tmp_path / "split.csv", "u1,train\nu2,test\n"
    )


def test_what_is_no_split_file_is_refused(tmp_path: Path) -> None:
    assert "no such file" in split_refusal(tmp_path / "nowhere.csv", None)
    assert "no such file" in split_refusal(tmp_path, None)
    assert "not a readable CSV" in split_refusal(tmp_path / "split.csv", "")
    assert "not a readable CSV" in split_refusal(tmp_path / "split.csv", "id,split\né,train\n".encode("latin-1"))
    assert "not a readable CSV" in split_refusal(tmp_path / "split.csv", 'id,split\n"u1,train\nu2,test\n')


def test_a_split_file_is_read_as_a_manifest_is(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text("id;split\n u1\u00a0; train\ne\u0301;test \n", encoding="utf-8")
    assert read_split(path).to_dict() == {"u1": "train", "é": "test"}
    assert "row 3 repeats the id é" in split_refusal(path, "id;split\né;train\ne\u0301;test\n")
    assert "row 2 has another number of cells" in split_refusal(path, "id\tsplit\nu1\ttrain\tx\n")
    assert "names a column twice" in split_refusal(path, "id,split,Split\nu1,train,test\n")


# The order of folds


@pytest.mark.parametrize(
    ("column", "name"), [("speaker", "{}"), ("session", "s{}"), ("speaker", "s {} b"), ("session", "{}.0")]
)
def test_folds_and_those_who_validate_follow_the_order_of_numbers(column: str, name: str) -> None:
    numbers = np.random.default_rng(0).permutation(np.repeat(np.arange(1, 13), 4))
    names = [name.format(number) for number in numbers]
    frame = pd.DataFrame(
        {
            "id": [f"u{place:03}" for place in range(48)],
            "speaker": names,
            "session": names,
            "emotion": ["anger", "neutral"] * 24,
            "split": "",
        }
    )
    for validation in ("speakers", "session"):
        for fold in range(12):
            how = protocol(column, fold=fold, validation=validation, validation_fraction=0.09)
            split = split_manifest(frame, how)
            assert speakers(frame, split.test) == {name.format(fold + 1)}
            assert speakers(frame, split.val) == {name.format((fold + 1) % 12 + 1)}
    assert "(" + ", ".join(name.format(number) for number in range(1, 13)) in refusal(frame, protocol(column, fold=12))


def test_a_value_that_no_corpus_can_be_split_by_is_refused_by_its_key() -> None:
    def refused(key: str, value: Any) -> None:
        field = "seed" if key == "split_seed" else key
        message = refusal(manifest(0), protocol("speaker")._replace(**{field: value}))
        assert message.startswith(f"data.{key}={value}: expected ")
        assert "\n" not in message

    wrong: dict[str, list[Any]] = {
        "split": ["kfold", 3],
        "fold": [-1, "abc", True, 1.0],
        "stratify": ["no", 1],
        "validation": ["speaker", None],
        "validation_fraction": [0, 0.0, 1.0, -0.2, 3.0, "half", float("nan")],
        "split_seed": [-1, "abc", 2**32],
        "fractions": [
            *(0.8, "abc", [0.8, 0.2], [0.8, 0.1, 0.2], [0.8, 0.1, "0.1"], [0.8, 0.3, -0.1], [0.0, 0.0, 0.0]),
            *([80, 10, 10], [0.8, 0.1, float("nan")]),
        ],
    }
    for key, values in wrong.items():
        for value in values:
            refused(key, value)
    assert "expected one of random, speaker, session, official" in refusal(manifest(0), protocol("kfold"))
