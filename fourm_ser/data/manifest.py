"""The manifest: one row an utterance, the table that every corpus becomes."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fourm_ser.errors import InputError
from fourm_ser.files import whole

REQUIRED = ("id", "audio", "text", "emotion", "speaker")
OPTIONAL = ("session", "split", "language", "start", "end", "duration")
SECONDS = ("start", "end", "duration")

EMOTIONS = (
    "anger",
    "happiness",
    "sadness",
    "neutral",
    "surprise",
    "fear",
    "disgust",
    "frustration",
    "excitement",
    "boredom",
    "other",
)


def read_table(path: Path, called: str) -> pd.DataFrame:
    """A CSV in UTF-8 with a header as it stands there: strings, "" where a cell is empty, and every line a row.

    Args:
        path: the file.
        called: what errors call it.

    Raises:
        InputError: it is no UTF-8, or no CSV.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                path,
                dtype=str,
                keep_default_na=False,
                encoding="utf-8-sig",
                index_col=False,  # else a row of one cell too many would shift all columns
                skip_blank_lines=False,  # else rows would be counted wrong
            )
    except UnicodeDecodeError as error:
        raise InputError(
            f"{called}: not a readable CSV: not UTF-8 ({error.reason} at byte {error.start}). Save the table as UTF-8."
        ) from error
    except (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError) as error:
        raise InputError(f"{called}: not a readable CSV: {str(error).strip()}") from error


def read_manifest(path: Path, audio_root: Path | None = None) -> pd.DataFrame:
    """Read and check a manifest.

    Args:
        path: a CSV in UTF-8 with a header. Columns `id, audio, text, emotion, speaker` are required; `session, split,
            language` and `start, end, duration` (seconds) are optional; others are left out.
        audio_root: the folder that the column `audio` is relative to; the manifest's own folder by default.

    Returns:
        One row an utterance in the file's order, with every required and optional column: strings ("" where a cell is
        empty; `audio` an absolute path), floats for the columns in seconds (NaN where a cell is empty), and `row`, the
        row's number in the file as a spreadsheet shows it (the header is row 1).

    Raises:
        InputError: the file, a column or a cell is not as described, or an id occurs twice.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such manifest. Expected a CSV with the columns {', '.join(REQUIRED)}.")
    frame = read_table(path, str(path))
    missing = [column for column in REQUIRED if column not in frame.columns]
    if missing:
        raise InputError(
            f"{path}: the manifest has no column {', '.join(missing)}. Required: {', '.join(REQUIRED)}; "
            f"found: {', '.join(frame.columns)}."
        )
    for column in OPTIONAL:
        if column not in frame.columns:
            frame[column] = ""
    frame = frame[[*REQUIRED, *OPTIONAL]].copy()
    frame["row"] = range(2, len(frame) + 2)
    frame = frame[(frame.drop(columns="row") != "").any(axis=1)].reset_index(drop=True)
    if not len(frame):
        raise InputError(f"{path}: the manifest has no rows.")

    for column in ("id", "audio", "emotion", "speaker"):
        empty = frame[frame[column].str.strip() == ""]
        if len(empty):
            raise InputError(f"{path}: {column} is empty in {_rows(empty['row'])}.")
    repeated = frame[frame["id"].duplicated(keep=False)]
    if len(repeated):
        first = repeated["id"].iloc[0]
        rows = repeated.loc[repeated["id"] == first, "row"]
        raise InputError(f"{path}: the id {first} stands in {_rows(rows)}. Every utterance needs an id of its own.")
    for column in SECONDS:
        numbers = pd.to_numeric(frame[column], errors="coerce")
        wrong = frame[(numbers.isna() & (frame[column].str.strip() != "")) | (numbers < 0) | np.isinf(numbers)]
        if len(wrong):
            raise InputError(f"{path}: {column} is not a number of seconds in {_rows(wrong['row'])}.")
        frame[column] = numbers.astype(float)
    backwards = frame[frame["end"] <= frame["start"].fillna(0.0)]
    if len(backwards):
        raise InputError(f"{path}: end is not after start in {_rows(backwards['row'])}.")

    root = (audio_root or path.parent).resolve()
    frame["audio"] = [str(root / audio) for audio in frame["audio"]]
    return frame


def write_manifest(frame: pd.DataFrame, path: Path) -> None:
    """Write the manifest's columns of `frame` to `path` (CSV, UTF-8), whole; optional ones unless they are empty."""
    said = [column for column in OPTIONAL if column in frame.columns and not frame[column].isin(["", np.nan]).all()]
    columns = [*REQUIRED, *said]
    with whole(path) as temporary:
        frame[columns].to_csv(temporary, index=False, lineterminator="\n")


def order_emotions(emotions: Sequence[str]) -> list[str]:
    """The distinct `emotions` in the canonical order of this package, labels that it does not know after them."""
    found = set(emotions)
    return [emotion for emotion in EMOTIONS if emotion in found] + sorted(found.difference(EMOTIONS))


def _rows(rows: pd.Series) -> str:
    shown = ", ".join(str(row) for row in rows[:5])
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {shown}{more}"
