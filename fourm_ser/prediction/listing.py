"""Which recordings to predict on: a table without labels, or a folder."""

import logging
import math
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fourm_ser.data.audio import SOUNDS
from fourm_ser.data.names import clean_cell, clean_columns, clean_path, decimal_hint
from fourm_ser.data.paths import locate
from fourm_ser.data.table import need_columns, read_table
from fourm_ser.errors import InputError, listed, printable
from fourm_ser.prediction.items import Item

log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """One recording of many: its id in the table or path in the folder, and what is wrong with it, if anything."""

    id: str
    item: Item
    error: InputError | None


def read_listing(path: Path, modalities: Sequence[str]) -> list[Entry]:
    """Read a table of recordings.

    Args:
        path: a CSV in UTF-8 with a header, see `read_table`: `id`, and of `audio` (relative to the table's folder) and
            `text` what is read. `start` and `end` (seconds) cut segments out of recordings; other columns are not
            looked at.
        modalities: what the model reads. Without a column `text` all recordings are without text; with one, an empty
            cell says that there are no words, as in training.

    Returns:
        An entry for each row, in order. What is wrong with one row is said in its entry.

    Raises:
        InputError: the file or its columns are not as described, or an id is empty or occurs twice.
    """
    if not path.is_file():
        raise InputError(f"manifest={path}: no such file. Expected a CSV with the columns id and audio.")
    frame = read_table(path, f"manifest={path}")
    reads_text = "text" in modalities and "text" in frame.columns
    reads_audio = "audio" in modalities or not reads_text
    required = ["id", *(["audio"] if reads_audio else [])]
    need_columns(frame, required, f"manifest={path}")
    frame = clean_columns(frame)
    frame = frame[(frame != "").any(axis=1)]  # rows keep their numbers in the file
    if not len(frame):
        raise InputError(f"manifest={path}: has no rows.")
    nameless = frame[frame["id"] == ""]
    if len(nameless):
        raise InputError(f"manifest={path}: id is empty in row {nameless.index[0] + 2}.")
    repeated = frame[frame["id"].duplicated()]
    if len(repeated):
        raise InputError(f"manifest={path}: row {repeated.index[0] + 2} repeats the id {repeated['id'].iloc[0]}.")
    if "text" in frame.columns and not reads_text:
        log.warning("the column text is not read: the model reads audio alone")
    if "audio" in frame.columns and not reads_audio:
        log.warning("the column audio is not read: the model reads text alone, and there is a column text")
    wordless = int((frame["text"].str.strip() == "").sum()) if reads_text else 0
    if wordless:
        log.warning(
            "%d of %d rows have an empty text: they count as recordings without words. To have recordings "
            "transcribed (asr=...), give a table without the column text",
            wordless,
            len(frame),
        )
    return [_entry(row, path, reads_audio, reads_text) for row in frame.to_dict("records")]


def find_recordings(folder: Path) -> list[Entry]:
    """The recordings in a folder and the folders below it, by their paths, sorted.

    Links are followed. What has a recording's name and is none (a link to nothing, a pipe), and a folder that cannot be
    looked into, are there with the reason. Hidden files and folders are passed over; how many files are no recordings
    by their names, the log says.

    Raises:
        InputError: there are none.
    """
    entries, others = [], []
    for path, error in _walk(folder, ()):
        name = path.relative_to(folder).as_posix()
        if error is not None:
            entries.append(Entry(name, Item(None), error))
        elif path.suffix.lower() in SOUNDS or not os.path.exists(path):  # a link to nothing may have been anything
            entries.append(Entry(name, *_found(path)))
        else:
            others.append(name)
    if not entries:
        raise InputError(f"audio={folder}: no recording there. Expected {', '.join(SOUNDS)} files.")
    if others:
        shown = listed([printable(name) for name in sorted(others)])
        log.info("passed over %d files that are no recordings by their names: %s", len(others), shown)
    return sorted(entries, key=lambda entry: entry.id)


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[Path, InputError | None]]:
    """What is in a folder and below it, and why a folder cannot be looked into.

    `above` are device and number of the folders that it lies in: a link back to one of them would have no end.
    """
    try:
        status = folder.stat()
        inside = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        yield folder, InputError(f"{folder}: this folder cannot be read ({error.strerror}).")
        return
    here = (status.st_dev, status.st_ino)
    if here in above:
        log.info("passed over %s: a link to a folder that it lies in", printable(str(folder)))
        return
    for entry in inside:
        if os.path.isdir(entry.path):
            yield from _walk(Path(entry.path), (*above, here))
        else:
            yield Path(entry.path), None


def _found(path: Path) -> tuple[Item, InputError | None]:
    """What has a recording's name as an item, or what else it is."""
    try:
        if stat.S_ISREG(path.stat().st_mode):
            return Item(path), None
        reason = "neither a file nor a folder"
    except OSError as error:
        reason = f"a link to {os.readlink(path)}, where no file is" if path.is_symlink() else str(error.strerror)
    return Item(None), InputError(f"{path}: {reason}.")


def _entry(row: dict[Any, str], path: Path, reads_audio: bool, reads_text: bool) -> Entry:
    text = row["text"] if reads_text else None
    try:
        start, end = (_seconds(row, column) for column in ("start", "end"))
        if end <= (0.0 if math.isnan(start) else start):
            raise InputError(f"end={row['end']} is not after start={row.get('start') or 0}.")
        audio = clean_path(row["audio"]) if reads_audio else None
        if audio == "":
            raise InputError("audio is empty in this row.")
        place = None if audio is None else locate(path.parent.resolve(), audio)
    except InputError as error:
        return Entry(row["id"], Item(None, text), error)
    item = Item(None, text) if place is None else Item(place, text, start=start, end=end)
    return Entry(row["id"], item, None)


def _seconds(row: dict[str, str], column: str) -> float:
    written = clean_cell(row.get(column, ""))
    try:
        value = float(written) if written else math.nan
    except ValueError:
        value = math.inf
    if value < 0 or math.isinf(value) or (written and math.isnan(value)):
        raise InputError(f"{column}={written} is no number of seconds.{decimal_hint(written)}")
    return value
