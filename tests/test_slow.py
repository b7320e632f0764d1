"""What `make test` leaves out for `make test-all`."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import pytest_collection_modifyitems


class _Hook:
    def __init__(self) -> None:
        self.gone: list[str] = []

    def pytest_deselected(self, items: list[Any]) -> None:
        self.gone = [item.name for item in items]


def left(but: list[str] | None, *words: str, everything: bool = False) -> tuple[list[str], list[str]]:
    """The names of what runs and of what is left out, of a test of three cases that is marked and one that is not."""
    mark = (pytest.mark.slow if but is None else pytest.mark.slow(but=but)).mark
    marked = [
        SimpleNamespace(name=f"test_it[{case}]", nodeid=f"a.py::test_it[{case}]", get_closest_marker=lambda name: mark)
        for case in ("bert-last", "bert-first", "wavlm-[1]-last")
    ]
    quick = SimpleNamespace(name="test_so", nodeid="a.py::test_so", get_closest_marker=lambda name: None)
    items: list[Any] = [quick, *marked]
    hook = _Hook()
    config: Any = SimpleNamespace(getoption=lambda name: everything, args=list(words), hook=hook)
    pytest_collection_modifyitems(config, items)
    return [item.name for item in items], hook.gone


def test_a_slow_test_is_left_out_but_for_the_cases_that_it_keeps() -> None:
    assert left(None) == (["test_so"], ["test_it[bert-last]", "test_it[bert-first]", "test_it[wavlm-[1]-last]"])
    assert left(["wavlm", "first"])[0] == ["test_so", "test_it[bert-first]", "test_it[wavlm-[1]-last]"]
    assert left(["[1]"], "tests")[0] == ["test_so", "test_it[wavlm-[1]-last]"]


def test_all_run_where_all_are_wanted_or_one_is_named() -> None:
    for names, gone in (left(None, everything=True), left(["first"], "a.py::test_it")):
        assert len(names) == 4
        assert gone == []


def test_a_word_that_keeps_no_case_is_an_error() -> None:
    with pytest.raises(pytest.UsageError, match=r"a\.py::test_it: slow\(but=\.\.\.\) names no case: hubert"):
        left(["first", "hubert"])
