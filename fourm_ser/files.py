"""Files that appear whole or not at all."""

import csv
import errno
import functools
import json
import math
import os
import platform
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fourm_ser.errors import InputError, PlaceError

if TYPE_CHECKING:
    import pandas as pd

TEMPORARY = re.compile(r"\..+\.([0-9a-f]{32})(\.\w+)?")  # names of what is being written
YOUNG = 3600.0  # seconds: what another machine still writes in a folder that both share is no older
HASH = re.compile("[0-9a-f]{32}")
FULL = (errno.ENOSPC, errno.EDQUOT)
LEAST_LEFT = 1 << 18  # bytes: what fails where no more are left has failed for that
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets begin to compute by


@contextmanager
def whole(path: Path, seal: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it becomes `path` by a rename when the block ends well.

    `seal`: a hash of the content is kept beside it, by which `is_spoilt` tells whether it is damaged.

    Whatever ends the block otherwise, an exception or a kill, leaves what stood at `path` before as it was.

    Raises:
        PlaceError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: writers such as matplotlib choose the format by it.
    temporary = path.with_name(f".{path.stem}.{temporary_mark()}{path.suffix}")
    try:
        yield temporary
        _flush(temporary)
        content = _content(temporary) if seal else ""
        _seal(path).unlink(missing_ok=True)  # a kill in between leaves no hash rather than another file's
        os.replace(temporary, path)
        if seal:
            _seal(path).write_text(content, encoding="ascii")
        if os.name == "posix":
            _flush(path.parent)
    except Exception as error:
        left = shutil.disk_usage(path.parent).free
        # torch and libsndfile do not say why they could not write.
        is_full = getattr(error, "errno", None) in FULL or "No space left" in str(error) or left < LEAST_LEFT
        if isinstance(error, InputError) or not is_full:
            raise
        written = temporary.stat().st_size if temporary.is_file() else 0
        raise PlaceError(
            f"{path}: the disk is full: {written / 1e6:.1f} MB of the file were written, {left / 1e6:.1f} MB are left. "
            "Make room, or choose another folder; what was written before is kept, and the same command goes on."
        ) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def temporary_mark() -> str:
    """What tells temporary names apart, and who wrote them: the machine, the process, chance."""
    return f"{_machine():08x}{os.getpid():08x}{secrets.token_hex(8)}"


@functools.cache
def _machine() -> int:
    """A number of this machine, or of the container that numbers its processes by itself."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # of Linux alone
        space = ""
    return zlib.crc32(f"{platform.node()} {space}".encode())


def _is_left(mark: str) -> bool:
    """Whether who wrote a temporary file was a process of this machine that is not there any more."""
    if int(mark[:8], 16) != _machine() or os.name != "posix":
        return False
    try:
        os.kill(int(mark[8:16], 16), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


@contextmanager
def made_once(lock: Path, what: str) -> Iterator[None]:
    """Keep other processes out while the block makes in a cache what is not there yet.

    Args:
        lock: the file of the lock, beside what is made.
        what: what is made, for the error.

    Raises:
        PlaceError: the cache may only be read, as one that a laboratory shares.
    """
    from filelock import FileLock

    held = FileLock(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        raise only_read(lock.parent, what, error) from error
    try:
        yield
    finally:
        held.release()


def only_read(folder: Path, what: str, error: OSError) -> PlaceError:
    """That a folder of a cache cannot be written, and what is to be made there."""
    return PlaceError(
        f"{folder}: cannot be written ({error.strerror}), and {what} is not there yet. Give a cache that can be "
        "written, cache=DIR, or have this one filled by somebody who may."
    )


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

    Of a folder that other processes write in at the same time, what is young may be theirs, unless they were of this
    machine and have ended.
    """
    for path in list(folder.rglob(".*")):
        if found := TEMPORARY.fullmatch(path.name):
            with suppress(OSError):  # removed by another process, or in a cache that may only be read
                if time.time() - path.lstat().st_mtime >= older or _is_left(found[1]):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def is_spoilt(path: Path) -> bool:
    """Whether a file is not what was written there; of one that nothing is kept of, nobody can tell: False."""
    try:
        kept = _seal(path).read_text(encoding="ascii")
    except (OSError, ValueError):
        return False
    return HASH.fullmatch(kept) is not None and path.is_file() and _content(path) != kept


def refuse_spoilt(path: Path) -> None:
    """Refuse a file that is not what was written there (see `is_spoilt`).

    Raises:
        InputError: it is not.
    """
    if is_spoilt(path):
        raise InputError(
            f"{path}: is damaged or was changed: it is not what was written there. Copy it from its source again; if "
            f"the change is meant, delete {_seal(path)}."
        )


def remove(path: Path) -> None:
    """Remove a file, if it is there, and what is kept of it."""
    path.unlink(missing_ok=True)
    _seal(path).unlink(missing_ok=True)


def _seal(path: Path) -> Path:
    return path.with_name(f".{path.name}.xxh")


def _content(path: Path) -> str:
    """A hash of a file's content: against damage, not against malice."""
    import xxhash

    hashed = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            hashed.update(block)
    return hashed.hexdigest()


def regular(path: Path) -> Path:
    """The path of a file, or of nothing; a pipe would let who opens it wait for ever, a device might have no end.

    Raises:
        InputError: it is something else.
    """
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe, a socket or a device"
        raise InputError(f"{path}: expected a file, found {kind}. Give a file, or a copy of what comes out of it.")
    return path


def write_text(path: Path, text: str, seal: bool = False) -> None:
    """Write `text` to `path` as UTF-8, `whole`; what cannot be in it, of names that are no UTF-8, as escapes."""
    with whole(path, seal) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any, seal: bool = False) -> None:
    """Write `value` to `path` as indented JSON, `whole`; see `as_json`."""
    write_text(path, as_json(value, indent=2) + "\n", seal)


def write_table(path: Path, frame: "pd.DataFrame", inert: bool = False, seal: bool = False) -> None:
    """Write `frame` to `path` as CSV, `whole`, without its index.

    `inert`: it is for people, who open it in a spreadsheet: texts that this would compute have a `'` before them.
    Tables that programs read again hold their texts as they are.
    """
    if inert:
        frame = frame.map(_inert).rename(columns=_inert)
    texts = frame.select_dtypes(exclude="number")
    returns = any("\r" in str(text) for text in [*frame.columns, *texts.to_numpy().ravel()])
    # Of a text that holds a carriage return and no newline, csv would not see that it has to be quoted.
    quoting: Literal[0, 2] = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    with whole(path, seal) as temporary:
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
