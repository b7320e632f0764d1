"""Values of config keys: numbers, words, switches and texts, refused in one line that names the key."""

import math
from collections.abc import Iterable
from typing import Any

from fourm_ser.errors import InputError


def check_number(
    key: str,
    value: Any,
    expected: str,
    least: float = 0.0,
    most: float = math.inf,
    whole: bool = False,
    null: bool = False,
) -> None:
    """Refuse what is no number in a range.

    Args:
        key: the config's key.
        value: what is given for it.
        expected: what was expected, in words.
        least, most: the range; both ends belong to it.
        whole: only whole numbers.
        null: None is allowed, too.

    Raises:
        InputError: it is none.
    """
    if value is None and null:
        return
    kinds = (int,) if whole else (int, float)
    if type(value) not in kinds or not math.isfinite(value) or not least <= value <= most:
        raise InputError(f"{key}={value}: expected {expected}{', or null' if null else ''}.")


def check_word(key: str, value: Any, words: Iterable[str]) -> None:
    """Refuse what is none of some words.

    Raises:
        InputError: it is none of them.
    """
    words = list(words)
    if not isinstance(value, str) or value not in words:
        expected = " or ".join(words) if len(words) == 2 else f"one of {', '.join(words)}"
        raise InputError(f"{key}={value}: expected {expected}.")


def check_switch(key: str, value: Any) -> None:
    """Refuse what is neither true nor false.

    Raises:
        InputError: it is neither.
    """
    if not isinstance(value, bool):
        raise InputError(f"{key}={value}: expected true or false.")


def check_text(key: str, value: Any, expected: str, null: bool = False) -> None:
    """Refuse what is no text, or an empty one; YAML reads a bare `no` or `2` as something else.

    Args:
        key: the config's key.
        value: what is given for it.
        expected: what was expected, in words.
        null: None is allowed, too.

    Raises:
        InputError: it is none.
    """
    if (value is None and null) or (isinstance(value, str) and value.strip()):
        return
    raise InputError(f"{key}={value}: expected {expected}{', or null' if null else ''}; a text, in quotes if need be.")
