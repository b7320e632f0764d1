"""Tables that users bring: CSV files with commas, semicolons or tabs, read so that no cell is taken for another's."""

import csv
import io
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pandas as pd

from fourm_ser.data.names import clean_cell
from fourm_ser.errors import InputError, listed
from fourm_ser.files import regular

# A file's name need not be UTF-8, as PyArrow's strings have to be, which pandas takes where PyArrow is installed.
pd.set_option("mode.string_storage", "python")

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t"}


def check_delimiter(key: str, value: object) -> None:
    """Refuse what is no delimiter (InputError): neither null, nor a name, nor a sign that can stand between cells."""
    if value is None or (isinstance(value, str) and value in DELIMITERS):
        return
    if not isinstance(value, str) or len(value) != 1 or value.isalnum() or value in '"\r\n ':
        raise InputError(f"{key}={value}: expected {', '.join(DELIMITERS)}, a single sign such as |, or null.")


def read_table(path: Path, called: str, delimiter: str | None = None) -> pd.DataFrame:
    """A CSV in UTF-8 with a header as it stands there: strings, "" where a cell is empty, and every record a row.

    The row at index n is row n + 2 as a spreadsheet shows it: the header is row 1. Blank rows are rows of empty cells.
    A delimiter is `comma`, `semicolon`, `tab`, or the sign itself; None recognises one of the three by the header.

    Raises:
        InputError: no file, no UTF-8, or no CSV; a name stands in the header twice, or a row has more or fewer cells.
    """
    try:
        text = regular(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{called}: not a readable CSV: not UTF-8 ({error.reason} at byte {error.start}). Save the table as UTF-8."
        ) from error
    sign = _recognised(text) if delimiter is None else DELIMITERS.get(delimiter, delimiter)
    header, *records = _records(text, sign, called)
    names = _names(header, called)
    width = len(names)
    uneven = [row for row, record in enumerate(records, 2) if len(record) != width and any(map(str.strip, record))]
    if uneven:
        raise InputError(
            f"{called}: {told_rows(uneven)} {'has' if len(uneven) == 1 else 'have'} another number of cells than the "
            f"header, the first {len(records[uneven[0] - 2])} instead of {width}. A cell that holds {_named(sign)} "
            "stands in double quotes, and an empty one has its place."
        )
    records = [record if len(record) == width else [""] * width for record in records]
    return pd.DataFrame(records, columns=names, dtype=str)


def need_columns(frame: pd.DataFrame, required: Iterable[str], called: str) -> None:
    """Refuse a table that lacks columns (InputError)."""
    required = list(required)
    missing = [column for column in required if column not in frame.columns]
    if missing:
        hint = "" if len(frame.columns) > 1 else " Between columns stand commas, semicolons or tabs."
        raise InputError(
            f"{called}: has no column {', '.join(missing)}. Required: {', '.join(required)}; found: "
            f"{listed([name[:40] for name in frame.columns], 20)}.{hint}"
        )


def refuse_shifted(frame: pd.DataFrame, columns: Iterable[str], called: str) -> None:
    """Refuse rows whose cells stand a column too far to the right or left, though their number is right (InputError).

    Of two neighbouring columns a row is taken to be shifted where one cell holds what the other column holds more
    often, the other what no row but this has, and but for such rows the columns have no value in common: a table of
    which every name occurs twice is never refused.

    Args:
        frame: a table, the row at index n being row n + 2 of its file, its columns in the file's order.
        columns: the columns that hold names, many rows the same.
        called: what errors call the table.
    """
    names, columns = list(frame.columns), set(columns)
    beside = [pair for pair in pairwise(names) if columns.issuperset(pair)]
    pairs = [*beside, *((right, left) for left, right in beside)]
    found = {name: set(frame[name].to_numpy().tolist()) - {""} for name in columns.intersection(names)}
    for own, other in pairs:
        if found[own].isdisjoint(found[other]):
            continue
        counts = [frame[column].value_counts() for column in (own, other)]
        strange = {name for name in counts[0].index.intersection(counts[1].index) if counts[0][name] > counts[1][name]}
        suspect = frame[other].isin(strange - {""}) & (frame[own].map(counts[0]) == 1)
        if not suspect.any():
            continue
        rest = frame[~suspect]
        if set(rest[own]).isdisjoint(set(rest[other]) - {""}):
            row = frame[suspect].iloc[0]
            raise InputError(
                f"{called}: {told_rows(frame.index[suspect] + 2)} seems to be shifted by a cell: {row[other]!r} in the "
                f"column {other} is what others have as {own}, and no other row has the {own} {row[own]!r}. Put a cell "
                "that holds the delimiter in double quotes, and leave no empty one out."
            )


def told_rows(rows: Iterable[int]) -> str:
    """Rows in words, the first five of them."""
    rows = list(rows)
    return f"{'row' if len(rows) == 1 else 'rows'} {listed([str(row) for row in rows], 5)}"


def _recognised(text: str) -> str:
    """The delimiter at which the header falls into most cells."""
    header = text.lstrip("\r\n").partition("\n")[0]
    return max(DELIMITERS.values(), key=lambda sign: len(next(csv.reader([header], delimiter=sign), [])))


def _records(text: str, sign: str, called: str) -> list[list[str]]:
    records: list[list[str]] = []
    try:
        for record in csv.reader(io.StringIO(text, newline=""), delimiter=sign, strict=True):
            records.append(record)
    except csv.Error as error:
        raise InputError(
            f"{called}: not a readable CSV: row {len(records) + 1}: {error}. Is a quote there never closed, or not "
            "doubled inside of quotes?"
        ) from error
    if not records or not any(map(str.strip, records[0])):
        raise InputError(f"{called}: not a readable CSV: row 1 names no columns.")
    return records


def _names(header: list[str], called: str) -> list[str]:
    """The names of columns; one without a name is called by its number."""
    names = [clean_cell(name) or f"(column {number})" for number, name in enumerate(header, 1)]
    often = Counter(name.casefold() for name in names)
    twice = [name for name in names if often[name.casefold()] > 1]
    if twice:
        raise InputError(
            f"{called}: the header names a column twice: {', '.join(twice)}. Leave only the one that counts, or rename "
            "the other."
        )
    return names


def _named(sign: str) -> str:
    return next((f"a {name}" for name, known in DELIMITERS.items() if known == sign), repr(sign))
