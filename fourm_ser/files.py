"""Files that appear whole or not at all."""

import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


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
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole; what cannot be in it, of names that are no UTF-8, as escapes."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, whole; see `as_json`."""
    write_text(path, as_json(value, indent=2) + "\n")


def write_table(path: Path, frame: "pd.DataFrame") -> None:
    """Write `frame` to `path` as CSV, whole, without its index."""
    with whole(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")


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
