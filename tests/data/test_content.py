"""What a run saw of its corpus is recorded by content: every change of it is found and named, and nothing else is."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourm_ser.data.content import (
    COLUMNS,
    changes,
    digest_of,
    seen,
    shared,
)
from fourm_ser.errors import InputError
from tests.data.test_corpus import Make
from tests.data.test_corpus import make as make
from tests.data.test_corpus import recorded as recorded

WORDS = {"speaker": "speaker", "session": "session", "emotion": "label", "text": "transcript", "audio": "recording"}


def table(speakers: str = "aabbcc", sides: str = "", corpus: str = "manifest", ids: str = "u") -> pd.DataFrame:
    """An utterance a letter of `speakers`, its side a letter of `sides` (t, v, e), everything of its own."""
    rows = [
        (
            f"{ids}{n}",
            {"v": "val", "e": "test"}.get(side, "train"),
            corpus,
            speaker,
            "",
            "anger",
            f"t{n}",
            f"{ids} a{n}",
        )
        for n, (speaker, side) in enumerate(zip(speakers, sides or "t" * len(speakers), strict=True))
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


@settings(max_examples=25)
@given(st.sampled_from(list(WORDS)), st.sets(st.integers(0, 5), min_size=1), st.randoms())
def test_every_change_of_a_row_is_found_counted_and_named(column: str, places: set[int], order: Any) -> None:
    before = table()
    now = before.copy()
    for place in places:
        now.loc[place, column] = "another"
    shuffled = list(range(len(now)))
    order.shuffle(shuffled)
    now = now.iloc[shuffled].reset_index(drop=True)
    told = changes(before, now)
    plural = "" if len(places) == 1 else "s"
    assert told.startswith(f"{len(places)} {WORDS[column]}{plural} changed (u{min(places)}")
    assert told.count("u") >= min(3, len(places))
    assert digest_of(before) != digest_of(now.sort_values("id"))


@settings(max_examples=25)
@given(st.sets(st.integers(0, 5), max_size=5), st.integers(0, 3))
def test_rows_that_are_gone_or_new_are_counted(gone: set[int], new: int) -> None:
    before = table()
    more = [before.iloc[[0]].assign(id=f"v{n}") for n in range(new)]
    now = pd.concat([before.drop(index=list(gone)), *more])
    told = changes(before, now)
    assert (f"{len(gone)} utterance" in told and "gone (u" in told) == bool(gone)
    assert (f"{new} utterance" in told and "new (v0" in told) == bool(new)
    assert (told == "") == (not gone and not new)
    assert changes(before, now, rows=False) == ""


def test_sides_are_no_part_of_what_a_corpus_holds(tmp_path: Path) -> None:
    before, now = table(sides="tttvve"), table(sides="ttevve")
    assert digest_of(before) == digest_of(now)
    assert changes(before, now) == "1 side changed (u2: train, now test)"
    assert changes(before, now, sides=False) == ""


def test_a_recording_that_was_replaced_is_another_content(make: Make, tmp_path: Path, recorded: pd.DataFrame) -> None:
    before = make(recorded).content
    other = recorded.assign(audio=[recorded["audio"].iloc[-1], *recorded["audio"].iloc[1:]])
    assert changes(before, make(other, strict=False).content, sides=False) == "1 recording changed (u00)"


def test_a_recording_on_two_sides_is_named(
    make: Make, recorded: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    assert make(recorded).protocol_record()["shared_recordings"] == 0
    audio = recorded["audio"].tolist()
    twice = recorded.assign(audio=[*audio[:-1], audio[0]])  # u00 of the first session, and u47 of the last
    with pytest.raises(InputError, match=r"1 recording is on two sides .* u00 and u47.*data\.strict=false"):
        make(twice)
    corpus = make(twice, strict=False)
    assert corpus.shared == [("u00", "u47")]
    assert corpus.protocol_record()["shared_recordings"] == 1
    assert "u00 and u47" in caplog.text
    summary = json.loads((corpus.prepare() / "summary.json").read_text(encoding="utf-8"))
    assert summary["repeated"] == {"count": 1, "first": [["u00", "u47"]]}
    within = recorded.assign(audio=[audio[1], *audio[1:]])  # both on one side
    assert make(within).shared == []


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["train", "val", "test"])), max_size=9))
def test_shared_recordings_are_those_that_a_plain_search_finds(rows: list[tuple[str, str]]) -> None:
    frame = pd.DataFrame(
        [(f"u{n}", side, sound) for n, (sound, side) in enumerate(rows)], columns=["id", "side", "audio"]
    )
    expected = {sound for sound, side in rows for other, place in rows if sound == other and side != place}
    found = shared(frame)
    sound_of = dict(zip(frame["id"], frame["audio"], strict=True))
    side_of = dict(zip(frame["id"], frame["side"], strict=True))
    assert {sound_of[one] for one, _ in found} == expected
    assert len(found) == len(expected)
    assert all(sound_of[one] == sound_of[other] and side_of[one] != side_of[other] for one, other in found)


def test_who_was_trained_on_is_told_from_who_validated_and_who_is_unknown() -> None:
    before = table("aabbcc", "ttvvee")
    found = seen(before, before, before["id"])
    assert (found.trained, found.validated, found.speakers) == (["u0", "u1"], ["u2", "u3"], ["a", "b"])
    tested = before["id"][before["side"] == "test"]
    assert seen(before, before, tested) == ([], [], [])


def test_other_names_hide_nothing_and_equal_names_of_other_corpora_mean_nothing() -> None:
    before = table("aabbcc", "ttvvee")
    renamed = before.assign(id="x" + before["id"], speaker=before["speaker"].str.upper(), corpus="other")
    assert seen(before, renamed, renamed["id"]) == (["xu0", "xu1"], ["xu2", "xu3"], ["A", "B"])
    unrelated = table("aabbcc", corpus="other", ids="u").assign(audio=[f"z{n}" for n in range(6)])
    assert seen(before, unrelated, unrelated["id"]) == ([], [], [])
    # A speaker of whom one utterance was trained on is known in all others.
    part = renamed.assign(speaker="one", audio=["u a0", *(f"z{n}" for n in range(5))])
    assert seen(before, part, part["id"].iloc[3:]) == ([], [], ["one"])


def test_another_version_of_the_recordings_is_the_same_utterances() -> None:
    before = table("aabbcc", "ttvvee")
    noisy = before.assign(audio="noisy " + before["audio"])
    assert seen(before, noisy, noisy["id"]).trained == ["u0", "u1"]
    others = noisy.assign(text="said otherwise")  # ids and speakers that merely have the same names
    found = seen(before, others, others["id"])
    assert (found.trained, found.speakers) == ([], ["a", "b"])
