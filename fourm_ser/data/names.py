"""What a cell of a table means: blanks around it, Unicode forms, the order of names with numbers, probable doubles."""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fourm_ser.errors import InputError

log = logging.getLogger(__name__)

SHOWN = 3  # doubles in an error, which is one line

CLEANED = ("id", "speaker", "session", "emotion", "split", "language")
"""Columns whose cells are names; those of `text` are cleaned as transcripts, those of `audio` are paths."""

# What editors and web pages leave around a word without anybody seeing it: blanks of every kind, and no blanks at all.
BLANKS = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\u200b\u2060\ufeff"
NUMBER = re.compile(r"([+-]?)0*(\d+)(?:\.0*)?")
# A blank between digits parts two numbers: `1 23` is not `12 3`.
LOOSE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
DECIMAL = re.compile(r"\d+,\d+")
DIGITS = re.compile(r"(\d+)")


class Double(NamedTuple):
    """Values of a column that are probably one name."""

    column: str
    values: dict[str, int]  # each with the number of rows that have it
    first: list[str]  # the id of the first row of each

    def told(self) -> str:
        """The values in words."""
        shown = [f"{v!r} ({n} x, first {key})" for (v, n), key in zip(self.values.items(), self.first, strict=True)]
        return f"{self.column} {' and '.join(shown)}"


def clean_path(text: str) -> str:
    """A path without blanks around it; its Unicode form is the file system's own."""
    return text.strip(BLANKS)


def clean_cell(text: str) -> str:
    """A name without blanks around it, in Unicode NFC."""
    return unicodedata.normalize("NFC", clean_path(text))


def clean_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """A table whose names are cleaned, see `CLEANED`."""
    return frame.assign(**{name: each(frame[name], clean_cell) for name in CLEANED if name in frame.columns})


def each(cells: pd.Series, change: Callable[[str], str]) -> list[str]:
    """Every cell changed; those that are equal once, for a table may have very many."""
    found: list[str] = cells.to_numpy().tolist()
    changed = {cell: change(cell) for cell in set(found)}
    return [changed[cell] for cell in found]


def decimal_hint(cell: str) -> str:
    """What to do where a number was meant that is written with a comma; "" where it was not."""
    return f" Write {cell.replace(',', '.')} instead of {cell}." if DECIMAL.fullmatch(cell) else ""


def natural(text: str) -> tuple[list[tuple[int, str]], str]:
    """What names are sorted by so that the numbers in them are in the order of numbers: `s2` before `s10`."""
    parts = DIGITS.split(text)
    # Every other part is a number, the longer one of which is larger without zeros in front. Names that are equal so
    # far (1, 01) keep their own order.
    bare = [part.lstrip("0") if index % 2 else part for index, part in enumerate(parts)]
    return [(len(part) if index % 2 else 0, part) for index, part in enumerate(bare)], text


def likeness(text: str) -> str:
    """What spellings of one name have in common: not case, blanks, Unicode form, nor zeros around a whole number."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    loose = LOOSE.sub("", unicodedata.normalize("NFKC", text.casefold()))
    number = NUMBER.fullmatch(loose)
    return loose if number is None else number[1].removeprefix("+") + number[2]


def find_doubles(frame: pd.DataFrame, columns: Iterable[str]) -> list[Double]:
    """Values in some columns of a table with ids that are probably one name in several spellings."""
    found = []
    for column in columns:
        counts = Counter(frame[column].to_numpy().tolist())
        alike: dict[str, list[str]] = {}
        for value in counts:
            if value:
                alike.setdefault(likeness(value), []).append(value)
        several = [values for values in alike.values() if len(values) > 1]
        if several:
            first = dict(zip(frame[column][::-1], frame["id"][::-1], strict=True))
            found += [Double(column, {v: counts[v] for v in values}, [first[v] for v in values]) for values in several]
    return found


def tell_doubles(doubles: Sequence[Double], source: Path, strict: bool) -> None:
    """Name what is probably one name in several spellings, which would be two classes, or on two sides of a split.

    Raises:
        InputError: with `strict`, instead of a warning.
    """
    if not doubles:
        return
    shown = "; ".join(double.told() for double in doubles[:SHOWN])
    more = f"; and {len(doubles) - SHOWN} more" if len(doubles) > SHOWN else ""
    said = f"probably the same name in several spellings: {shown}{more}"
    if strict:
        raise InputError(
            f"{source}: {said}. Mend the table (emotions: fold one into the other by data.label_map), or take them for "
            "different ones by data.strict=false."
        )
    log.warning("data: %s", said)
