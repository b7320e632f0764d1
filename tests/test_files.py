"""JSON that every reader reads, whatever the numbers are."""

import json
import math
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fourm_ser.files import as_json, finite, write_json
from fourm_ser.runs.results import undefined

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"), max_size=4)
TREES = st.recursive(
    LEAVES,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from("abc"), below, max_size=3),
    max_leaves=8,
)


def refuse(word: str) -> Any:
    raise AssertionError(f"{word} is no JSON")


@given(TREES)
def test_what_is_written_is_json_and_the_same_but_for_what_is_undefined(value: Any) -> None:
    assert json.loads(as_json(value), parse_constant=refuse) == finite(value)


@given(st.floats())
def test_undefined_numbers_are_null_and_others_stay(value: float) -> None:
    assert finite({"a": [value], "b": (value,)}) == (
        {"a": [value], "b": [value]} if math.isfinite(value) else {"a": [None], "b": [None]}
    )


def test_a_file_holds_no_word_that_is_no_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"test/intra_inter": math.inf, "test/recall/anger": math.nan, "test/ua": 0.5})
    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert found == {"test/intra_inter": None, "test/recall/anger": None, "test/ua": 0.5}


def test_every_undefined_metric_has_its_reason() -> None:
    metrics = {"test/ua": 0.5, "test/recall/anger": math.nan, "val/intra_inter": math.nan, "test/loss": math.inf}
    assert undefined({**metrics, "corpus": "demo", "fold": None}) == [
        "test/recall/anger is null: no utterance has that emotion",
        "val/intra_inter is null: the means of the classes that occur coincide, or fewer than two occur",
        "test/loss is null: it is inf",
    ]
