"""The table that predictions are written to: where it goes, whether it may, and its rows."""

import csv
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fourm_ser.errors import InputError
from fourm_ser.files import whole
from fourm_ser.runs.directory import MARKS

# Files that runs, sweeps, evaluations and reports write, and what lies beside them.
OWN_NAMES = {"predictions", "metrics", "confusions", "speakers", "jobs", "results", "manifest", "left_out"}
OWN_NAMES |= {"confusion_matrix", "training_curves", "reliability"}
OWN_SIGNS = (*MARKS, "jobs.csv", "report.html", "summary.json")

Record = dict[str, Any]
"""id, start, end, emotion, probabilities, text, error: what is not there is None."""


def table_path(output: str | None, source: str | None, is_cut: bool) -> Path | None:
    """Where the table goes: `output`, or beside the recording, folder or manifest, under its name; None for nowhere.

    A single row is only printed, where no output is asked for: a recording has several where it may be cut.

    Raises:
        InputError: the source has no name.
    """
    if output is not None:
        return Path(output).expanduser()
    if source is None:
        return None
    path = Path(source).expanduser()
    if not is_cut and not path.is_dir():
        return None
    if path.name in ("", ".."):
        path = path.resolve()
    name = path.name if path.is_dir() else path.stem
    if not name:
        raise InputError(f"audio={source}: has no name to call the table after. Add output=FILE")
    return path.with_name(f"{name}-emotions.csv")


def check_table(table: Path, manifest: Path | None, *, overwrite: bool, is_certain: bool) -> None:
    """Refuse a table that cannot be written, or that would replace what is not to be replaced.

    Unless it is certain that there will be a table, its folder need not be writable: a recording that turns out not to
    be cut leaves none, and may lie anywhere.

    Raises:
        InputError: the path, and what to do.
    """
    if table.suffix != ".csv":
        raise InputError(f"output={table}: expected a file that ends in .csv.")
    for path in (table, table.with_suffix(".png")):
        if manifest is not None and path.resolve() == manifest.resolve():
            raise InputError(f"output={path}: this would replace the manifest. Choose another name.")
        if not path.exists():
            continue
        if path.stem in OWN_NAMES and any((path.parent / sign).is_file() for sign in OWN_SIGNS):
            raise InputError(f"output={path}: this would replace a run's own {path.name}. Choose another name.")
        if not overwrite:
            raise InputError(f"output={path}: is there already. Choose another name, or replace it: overwrite=true")
    if is_certain:
        with explained(table):
            _try_to_write(table)


def check_array_file(path: Path, *, overwrite: bool) -> None:
    """Refuse a file of embeddings that cannot be written, or that would replace what is not to be replaced.

    Raises:
        InputError: the path, and what to do.
    """
    if path.suffix != ".npz":
        raise InputError(f"embeddings={path}: expected a file that ends in .npz.")
    if path.exists() and not overwrite:
        raise InputError(f"embeddings={path}: is there already. Choose another name, or replace it: overwrite=true")
    with explained(path, "embeddings"):
        _try_to_write(path)


def _try_to_write(path: Path) -> None:
    """OSError where nothing can be written in the folder that is there of a path's."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    tempfile.TemporaryFile(dir=folder).close()


@contextmanager
def explained(table: Path, key: str = "output") -> Iterator[None]:
    """Say of a table or figure that cannot be written what to do; `key` is the one that names it.

    Raises:
        InputError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        said = error.strerror or str(error)
        raise InputError(
            f"{key}={table}: nothing can be written there ({said}). Choose another place: {key}=FILE"
        ) from error


@contextmanager
def csv_table(path: Path, emotions: Sequence[str]) -> Iterator[Callable[[Record], None]]:
    """A table that is written a row at a time and appears whole: yields what writes a row."""
    with whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["id", "start", "end", "emotion", *emotions, "text", "error"])

        def write(record: Record) -> None:
            shares = record["probabilities"] or {}
            cells = [record[key] for key in ("id", "start", "end", "emotion")]
            shown = [f"{shares[emotion]:.7g}" if shares else None for emotion in emotions]
            writer.writerow([*cells, *shown, record["text"], record["error"]])

        yield write
