"""Cells: names in several spellings, and the order of names with numbers."""

import logging
import unicodedata
from pathlib import Path

import hypothesis.strategies as st
import pandas as pd
import pytest
from hypothesis import given, settings

from fourm_ser.data.names import BLANKS, clean_cell, clean_columns, find_doubles, likeness, natural, tell_doubles
from fourm_ser.errors import InputError

NAMES = st.text("aÉe\u0301 1.0\u00a0\ufeff_", max_size=6)


@given(NAMES)
def test_a_cleaned_name_has_no_blanks_around_it_and_one_form(name: str) -> None:
    cleaned = clean_cell(name)
    assert clean_cell(cleaned) == cleaned
    assert cleaned == cleaned.strip(BLANKS)
    assert unicodedata.is_normalized("NFC", cleaned)
    padded = f"\u00a0\u200b {unicodedata.normalize('NFD', cleaned)}\t\u3000"
    assert clean_cell(padded) == cleaned


def test_names_are_cleaned_and_what_is_none_stays() -> None:
    frame = pd.DataFrame({"id": [" u1", "u2 "], "text": [" a ", "b"], "session": ["1\u00a0", ""], "audio": [" x", "y"]})
    assert clean_columns(frame).to_dict("list") == {
        "id": ["u1", "u2"],
        "text": [" a ", "b"],
        "session": ["1", ""],
        "audio": [" x", "y"],
    }


def test_spellings_of_one_name_are_alike() -> None:
    for one, other in (
        *(("anger", "Anger"), ("anger", "ANGER"), ("S 1", "S1"), ("s 1", "S\u00a01"), ("1", "1.0"), ("1", "01")),
        *(("1", "1."), ("01", "1.00"), ("+1", "1"), ("-1", "-1.0"), ("ﬁne", "fine"), ("\uff211", "a1")),
        *(("Straße", "STRASSE"), ("0", "00"), ("0", "0.0"), ("İ", "i̇")),
    ):
        assert likeness(one) == likeness(other)


def test_different_names_are_not_alike() -> None:
    for one, other in (
        *(("1", "10"), ("1", "1.5"), ("1.0", "1.01"), ("1 23", "12 3"), ("1", "-1"), ("a1", "a01"), ("anger", "angry")),
        *(("1", "one"), ("s1", "s-1"), ("é", "e"), ("0", "")),
    ):
        assert likeness(one) != likeness(other), (one, other)


def test_doubles_are_named_with_their_counts_and_first_rows() -> None:
    frame = pd.DataFrame(
        {
            "id": ["u1", "u2", "U1", "u4", "u5"],
            "speaker": ["anna", "Anna", "ben", "anna", "an na"],
            "session": ["1", "2", "", "", "1.0"],
        }
    )
    found = find_doubles(frame, ("id", "speaker", "session"))
    assert [(double.column, double.values, double.first) for double in found] == [
        ("id", {"u1": 1, "U1": 1}, ["u1", "U1"]),
        ("speaker", {"anna": 2, "Anna": 1, "an na": 1}, ["u1", "u2", "u5"]),
        ("session", {"1": 1, "1.0": 1}, ["u1", "u5"]),
    ]


@settings(max_examples=50)
@given(st.lists(NAMES.map(clean_cell), min_size=1, max_size=12))
def test_doubles_are_all_names_that_are_alike_and_no_others(names: list[str]) -> None:
    frame = pd.DataFrame({"id": [f"u{place}" for place in range(len(names))], "speaker": names}, dtype=str)
    named = {value for double in find_doubles(frame, ["speaker"]) for value in double.values}
    assert named == {
        one for one in names for other in names if one and other and one != other and likeness(one) == likeness(other)
    }


def test_doubles_are_an_error_where_faults_are_and_else_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    frame = pd.DataFrame({"id": list("abcdefgh"), "speaker": ["x", "X", "y", "Y", "z", "Z", "v", "V"]})
    doubles = find_doubles(frame, ["speaker"])
    with pytest.raises(InputError) as caught:
        tell_doubles(doubles, Path("m.csv"), strict=True)
    said = "speaker 'x' (1 x, first a) and 'X' (1 x, first b); "
    assert str(caught.value).startswith("m.csv: probably the same name in several spellings: " + said)
    assert "; and 1 more" in str(caught.value)
    with caplog.at_level(logging.WARNING):
        tell_doubles(doubles, Path("m.csv"), strict=False)
        tell_doubles([], Path("m.csv"), strict=True)
    assert [said in record.message for record in caplog.records] == [True]


def test_numbers_in_names_are_in_the_order_of_numbers() -> None:
    names = ["s10", "s2", "10", "9", "s1", "01", "1", "", "s1b", "a2c10", "a2c9", "Ses01M", "Ses01F"]
    ordered = ["", "01", "1", "9", "10", "Ses01F", "Ses01M", "a2c9", "a2c10", "s1", "s1b", "s2", "s10"]
    assert sorted(names, key=natural) == ordered


@given(st.lists(st.from_regex(r"\A[a-c]{1,2}[0-9]{3}[A-C]?\Z"), max_size=8))
def test_names_with_numbers_of_one_length_keep_their_order(names: list[str]) -> None:
    same = [name for name in names if len(name) == len(names[0])]
    assert sorted(same, key=natural) == sorted(same)
