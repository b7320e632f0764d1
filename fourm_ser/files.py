"""Files that appear whole or not at all."""

import csv
import errno
import json
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}(\.\w+)?")  # names of what is being written
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets begin to compute by


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it becomes `path` by a rename when the block ends well.

    Whatever ends the block otherwise, an exception or a kill, leaves what stood at `path` before as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: writers such as matplotlib choose the format by it.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        if os.name == "posix":
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Have what was written reach the disk: a machine that stops then has the file as it is, or the one before."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what cannot be flushed there
            raise
    finally:
        os.close(descriptor)


def remove_temporary(folder: Path, older: float = 0.0) -> None:
    """Remove what `whole` left in a folder, and below it, when a kill ended it; `older` than so many seconds.

    Of a folder that other processes write in at the same time, what is young may be theirs.
    """
    for path in list(folder.rglob(".*")):
        if TEMPORARY.fullmatch(path.name):
            with suppress(FileNotFoundError):
                if time.time() - path.lstat().st_mtime >= older:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole; what cannot be in it, of names that are no UTF-8, as escapes."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, whole; see `as_json`."""
    write_text(path, as_json(value, indent=2) + "\n")


def write_table(path: Path, frame: "pd.DataFrame", inert: bool = False) -> None:
    """Write `frame` to `path` as CSV, whole, without its index.

    `inert`: it is for people, who open it in a spreadsheet: texts that this would compute have a `'` before them.
    Tables that programs read again hold their texts as they are.
    """
    if inert:
        frame = frame.map(_inert).rename(columns=_inert)
    texts = frame.select_dtypes(exclude="number")
    returns = any("\r" in str(text) for text in [*frame.columns, *texts.to_numpy().ravel()])
    # Of a text that holds a carriage return and no newline, csv would not see that it has to be quoted.
    quoting: Literal[0, 2] = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    with whole(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n", quoting=quoting)


def _inert(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    with suppress(ValueError):
        float(value)
        return value
    return f"'{value}"


def as_json(value: Any, indent: int | None = None) -> str:
    """`value` as JSON that every reader reads: what is NaN or infinite, which JSON has no word for, is null."""
    return json.dumps(finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def finite(value: Any) -> Any:
    """`value`, a tree of mappings and lists, with None for every number in it that is NaN or infinite."""
    if isinstance(value, Mapping):
        return {key: finite(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [finite(below) for below in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
