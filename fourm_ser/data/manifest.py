"""The manifest: one row an utterance, the table that every corpus becomes."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from fourm_ser.data.names import clean_columns, clean_path, decimal_hint, each, natural
from fourm_ser.data.paths import locate
from fourm_ser.data.table import need_columns, read_table, refuse_shifted, told_rows
from fourm_ser.errors import InputError
from fourm_ser.files import write_table
from fourm_ser.values import REQUIRED, refuse_no_manifest

OPTIONAL = ("session", "split", "language", "start", "end", "duration")
SECONDS = ("start", "end", "duration")
# A row is known to be shifted where one of these holds another's names.
NAMES = ("emotion", "speaker", "session", "split", "language")

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


def read_manifest(path: Path, audio_root: Path | None = None, delimiter: str | None = None) -> pd.DataFrame:
    """Read and check a manifest.

    Args:
        path: a CSV in UTF-8 with a header. Columns `id, audio, text, emotion, speaker` are required; `session, split,
            language` and `start, end, duration` (seconds) are optional; others are left out.
        audio_root: the folder that the column `audio` is relative to; None for the manifest's own.
        delimiter: what parts cells: `comma`, `semicolon`, `tab`, or the sign itself; None recognises it.

    Returns:
        One row an utterance in the file's order, with every required and optional column: strings ("" where a cell is
        empty; names cleaned, `audio` an absolute path), floats for the columns in seconds (NaN where a cell is empty),
        and `row`, the row's number in the file as a spreadsheet shows it (the header is row 1).

    Raises:
        InputError: the file, a column or a cell is not as described, an id occurs twice, or a row is shifted.
    """
    refuse_no_manifest(path)
    frame = read_table(path, str(path), delimiter)
    need_columns(frame, REQUIRED, str(path))
    frame = clean_columns(frame[[column for column in frame.columns if column in (*REQUIRED, *OPTIONAL)]])
    frame = frame[(frame != "").any(axis=1)]
    if not len(frame):
        raise InputError(f"{path}: the manifest has no rows.")
    for column in ("audio", *SECONDS):
        if column in frame.columns:
            frame[column] = each(frame[column], clean_path)
    for column in ("id", "audio", "emotion", "speaker"):
        empty = frame.index[frame[column] == ""]
        if len(empty):
            raise InputError(f"{path}: {column} is empty in {told_rows(empty + 2)}.")
    repeated = frame["id"][frame["id"].duplicated(keep=False)]
    if len(repeated):
        first = repeated.iloc[0]
        rows = told_rows(repeated.index[repeated == first] + 2)
        raise InputError(f"{path}: the id {first} stands in {rows}. Every utterance needs an id of its own.")
    refuse_shifted(frame, NAMES, str(path))
    frame = frame.reindex(columns=[*REQUIRED, *OPTIONAL], fill_value="")
    frame = frame.assign(row=frame.index + 2).reset_index(drop=True)
    return _located(_timed(frame, path), path, (audio_root or path.parent).resolve())


def _timed(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The columns in seconds as floats."""
    for column in SECONDS:
        numbers = pd.to_numeric(frame[column], errors="coerce")
        wrong = frame[(numbers.isna() & (frame[column] != "")) | (numbers < 0) | np.isinf(numbers)]
        if len(wrong):
            hint = decimal_hint(wrong[column].iloc[0])
            raise InputError(f"{path}: {column} is not a number of seconds in {told_rows(wrong['row'])}.{hint}")
        frame[column] = numbers.astype(float)
    backwards = frame[frame["end"] <= frame["start"].fillna(0.0)]
    if len(backwards):
        raise InputError(f"{path}: end is not after start in {told_rows(backwards['row'])}.")
    return frame


def _located(frame: pd.DataFrame, path: Path, root: Path) -> pd.DataFrame:
    """Recordings by absolute paths."""
    located: list[str] = []
    wrong: dict[int, InputError] = {}
    for row, audio in zip(frame["row"].tolist(), frame["audio"].to_numpy().tolist(), strict=True):
        try:
            located.append(locate(root, audio))
        except InputError as error:
            wrong[row] = error
    if wrong:
        raise InputError(f"{path}: {told_rows(wrong)}: {next(iter(wrong.values()))}")
    return frame.assign(audio=located)


def write_manifest(frame: pd.DataFrame, path: Path) -> None:
    """Write the manifest's columns of `frame` to `path` (CSV, UTF-8), whole; optional ones unless they are empty."""
    said = [column for column in OPTIONAL if column in frame.columns and not frame[column].isin(["", np.nan]).all()]
    write_table(path, frame[[*REQUIRED, *said]])


def order_emotions(emotions: Iterable[str]) -> list[str]:
    """The distinct `emotions` in the canonical order of this package, labels that it does not know after them."""
    found = set(emotions)
    return [emotion for emotion in EMOTIONS if emotion in found] + sorted(found.difference(EMOTIONS), key=natural)
