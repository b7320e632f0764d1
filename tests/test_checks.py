"""Values of config keys: what is taken, and what is refused in one line that names the key."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from fourm_ser.checks import check_number, check_switch, check_text, check_word
from fourm_ser.errors import InputError

NUMBERS: dict[str, Any] = {"least": 0.5, "most": 10}
TAKEN: list[tuple[Callable[..., None], dict[str, Any], list[Any]]] = [
    (check_number, {"expected": "n", **NUMBERS}, [0.5, 1, 10]),
    (check_number, {"expected": "n", "null": True}, [None, 0, 1e9]),
    (check_number, {"expected": "n", "whole": True}, [0, 7]),
    (check_word, {"words": ("a", "b")}, ["a", "b"]),
    (check_switch, {}, [True, False]),
    (check_text, {"expected": "t"}, ["a", "no"]),
    (check_text, {"expected": "t", "null": True}, [None, "a"]),
]
REFUSED: list[tuple[Callable[..., None], dict[str, Any], list[Any]]] = [
    (check_number, {"expected": "n", **NUMBERS}, [0.4, 11, -1, None, "1", "abc", True, math.nan, math.inf, [1]]),
    (check_number, {"expected": "n", "whole": True, "null": True}, [-1, 1.0, "1", False, ""]),
    (check_word, {"words": ("a", "b")}, ["c", "A", "", None, 1, True, ["a"]]),
    (check_switch, {}, ["true", "no", 0, 1, None]),
    (check_text, {"expected": "t"}, ["", " ", None, False, 2, ["a"]]),
]


def refusal(check: Callable[..., None], value: Any, how: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        check("data.key", value, **how)
    return str(caught.value)


def test_a_value_in_its_range_is_taken() -> None:
    for check, how, values in TAKEN:
        for value in values:
            check("data.key", value, **how)


def test_any_other_is_refused_by_its_key() -> None:
    for check, how, values in REFUSED:
        for value in values:
            message = refusal(check, value, how)
            assert message.startswith(f"data.key={value}: expected ")
            assert "\n" not in message
