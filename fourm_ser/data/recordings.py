"""A corpus's recordings, checked before anything is built and known by their content."""

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich.progress import track

from fourm_ser.data.audio import check_recording
from fourm_ser.errors import InputError
from fourm_ser.files import whole

log = logging.getLogger(__name__)

COLUMNS = ("path", "size", "modified", "digest", "seconds")
SHOWN = 5


class Recording(NamedTuple):
    """A recording that was decoded to its end.

    Attributes:
        path: absolute path.
        size: size in bytes, and
        modified: time of modification in nanoseconds: while both stay, the file is not read again.
        digest: hash of the file's bytes.
        seconds: length.
    """

    path: str
    size: int
    modified: int
    digest: str
    seconds: float


def scan_recordings(frame: pd.DataFrame, source: Path, cache: Path) -> pd.DataFrame:
    """Decode every recording of a manifest once, and remember its hash and length.

    Args:
        frame: a manifest as `read_manifest` returns it.
        source: the manifest's path, for errors and for the name of the remembered table.
        cache: the folder for what is made once.

    Returns:
        `frame` with the columns `digest` (hash of the recording's bytes) and `seconds` (its whole length).

    Raises:
        InputError: recordings that are missing, empty, truncated or not decodable: how many, and the first with rows.
    """
    table = cache / "recordings" / f"{hashlib.blake2b(str(source.resolve()).encode(), digest_size=8).hexdigest()}.csv"
    known = _read_table(table)
    paths = list(dict.fromkeys(frame["audio"]))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda path: _scan(path, known.get(path)), paths)
        if sum(path not in known for path in paths) > 2000:
            results = track(results, description="checking recordings", total=len(paths))  # type: ignore[assignment]
        scanned = dict(zip(paths, results, strict=True))

    recordings = [recording for recording in scanned.values() if isinstance(recording, Recording)]
    remembered = known | {recording.path: recording for recording in recordings}
    if remembered != known:
        with whole(table) as temporary:
            pd.DataFrame(remembered.values(), columns=COLUMNS).to_csv(temporary, index=False)
    failures = {path: result for path, result in scanned.items() if isinstance(result, InputError)}
    if failures:
        rows = frame[frame["audio"].isin(failures)]
        shown = "; ".join(
            f"row {row} (id {key}): {failures[audio]}"
            for row, key, audio in rows[["row", "id", "audio"]].head(SHOWN).itertuples(index=False)
        )
        more = f"; and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
        raise InputError(f"{source}: {len(rows)} of {len(frame)} recordings cannot be used: {shown}{more}")

    by_path = {recording.path: recording for recording in recordings}
    frame = frame.copy()
    frame["digest"] = [by_path[path].digest for path in frame["audio"]]
    frame["seconds"] = [by_path[path].seconds for path in frame["audio"]]
    return frame


def _read_table(table: Path) -> dict[str, Recording]:
    if not table.is_file():
        return {}
    rows = pd.read_csv(table, dtype={"path": str, "digest": str})
    return {row.path: Recording(*row) for row in rows.itertuples(index=False)}  # type: ignore[misc]


def _scan(path: str, known: Recording | None) -> Recording | InputError:
    """Errors are returned, not raised, so that all of a corpus's faults are counted in one go."""
    try:
        status = os.stat(path)
    except OSError:
        return InputError(f"{path}: no such recording.")
    if known is not None and (known.size, known.modified) == (status.st_size, status.st_mtime_ns):
        return known
    try:
        seconds = check_recording(Path(path))
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except InputError as error:
        return error
    except OSError as error:
        return InputError(f"{path}: cannot be read ({error.strerror}).")
    return Recording(path, status.st_size, status.st_mtime_ns, digest, seconds)
