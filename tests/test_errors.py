"""Errors: one line whatever they quote, and nothing in it that a terminal obeys."""

import pytest

from fourm_ser.errors import InputError, ValuesError, blamed, brief


@pytest.mark.parametrize("sign", ["\n", "\r", "\x0b", "\x0c", "\x1b[2J", "\x85", "\u2028", "\u202e", "\x00", "\t"])
def test_what_an_error_quotes_stays_in_its_line_and_is_not_obeyed(sign: str) -> None:
    said = str(InputError(f"a.csv: the cell {sign}so is no number."))
    assert len(said.splitlines()) == 1
    assert sign not in said
    assert said.endswith("so is no number.")


@pytest.mark.parametrize("text", ["ärger", "愤怒　so", "a\xa0b", "\u200cنیم", "👩‍🚀"])
def test_names_of_all_languages_stay_as_they_are(text: str) -> None:
    assert str(InputError(text)) == text


def test_what_a_library_says_is_cut() -> None:
    error = ValueError(f"unknown. Expected one of {', '.join(map(str, range(9_999)))}\nmore")
    assert len(brief(error)) < 400
    with pytest.raises(InputError, match=r"^a: is damaged.*unknown\. Expected one of 0, 1") as raised, blamed("a"):
        raise error
    assert len(str(raised.value)) < 500


def test_values_that_no_class_takes_are_said_of_their_file_and_other_bad_input_as_it_is() -> None:
    with pytest.raises(InputError, match=r"^a/config\.yaml: loss: no\.$"), blamed("a/config.yaml"):
        raise ValuesError("loss: no.")
    with pytest.raises(InputError, match=r"^b\.csv: no\.$"), blamed("a/config.yaml"):
        raise InputError("b.csv: no.")


def test_a_line_that_announces_the_next_is_told_with_it() -> None:
    assert brief(ValueError("Validation error for field 'a':\n    TypeError: no int.\nmore")) == (
        "Validation error for field 'a': TypeError: no int"
    )
