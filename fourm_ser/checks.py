"""Values of config keys: numbers, words, switches and texts, refused in one line that names the key."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from fourm_ser.errors import InputError


class Number(NamedTuple):
    """A range of numbers, and words that may stand in their place.

    Attributes:
        least: the smallest one.
        most: the largest one.
        whole: no fractions.
        above: `least` itself is too small.
        below: `most` itself is too large.
        words: what else is allowed; None is `null`.
    """

    least: float = 0
    most: float = math.inf
    whole: bool = False
    above: bool = False
    below: bool = False
    words: tuple[str | None, ...] = ()

    def allows(self, value: Any) -> bool:
        """Whether it may be that."""
        if value is None or isinstance(value, bool | str):
            return not isinstance(value, bool) and value in self.words
        if not isinstance(value, int | float) or not math.isfinite(value) or (self.whole and value != int(value)):
            return False
        is_end = (self.above and value == self.least) or (self.below and value == self.most)
        return self.least <= value <= self.most and not is_end

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        low = f"above {self.least:g}" if self.above else f"of {self.least:g} or more"
        limits = low if math.isinf(self.most) else f"from {self.least:g} to {self.most:.0f}"
        return " or ".join([f"{kind} {limits}", *("null" if word is None else word for word in self.words)])


def check_number(key: str, value: Any, expected: str, *, null: bool = False, **limits: Any) -> None:
    """Refuse what is not `expected` (in words): no number within the limits, the fields of `Number`, or a whole 3.0.

    Raises:
        InputError: it is none.
    """
    rule = Number(**limits, words=(None,) if null else ())
    if not rule.allows(value) or (rule.whole and isinstance(value, float)):
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

    Raises:
        InputError: it is none.
    """
    if (value is None and null) or (isinstance(value, str) and value.strip()):
        return
    raise InputError(f"{key}={value}: expected {expected}{', or null' if null else ''}; a text, in quotes if need be.")
