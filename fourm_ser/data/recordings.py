"""A corpus's recordings, checked before anything is built and known by their content."""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich.progress import track

from fourm_ser.data.audio import CONTAINERS, check_recording, extract_audio, need_decoder
from fourm_ser.errors import InputError
from fourm_ser.files import whole

COLUMNS = ("path", "size", "modified", "file", "digest", "seconds")
LONG = 2000


class Recording(NamedTuple):
    """A recording that was decoded to its end.

    Attributes:
        path: absolute path.
        size: size in bytes, and
        modified: time of modification in nanoseconds: while both stay, the recording is not decoded again.
        file: what to read: the recording itself, or the FLAC that a video's sound was decoded to.
        digest: hash of that file's bytes.
        seconds: length.
    """

    path: str
    size: int
    modified: int
    file: str
    digest: str
    seconds: float


def scan_recordings(paths: list[str], source: Path, cache: Path) -> dict[str, Recording | InputError]:
    """Decode recordings once, and remember their hashes and lengths.

    Args:
        paths: absolute paths.
        source: the corpus's folder or table: the name of the remembered table.
        cache: the folder for what is made once.

    Returns:
        By path, the recording, or what is wrong with it: missing, empty, truncated, not decodable.

    Raises:
        InputError: there are videos, and what decodes them is not installed.
    """
    name = hashlib.blake2b(str(source.resolve()).encode(), digest_size=8).hexdigest()
    table = cache / "recordings" / f"{name}.csv"
    known = _read_table(table)
    distinct = list(dict.fromkeys(paths))
    scanned: dict[str, Recording | InputError] = {path: known[path] for path in distinct if _unchanged(path, known)}
    changed = [path for path in distinct if path not in scanned]
    if any(path.lower().endswith(CONTAINERS) for path in changed):
        need_decoder()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda path: _scan(path, cache / "decoded"), changed)
        if len(changed) > LONG:
            results = track(results, description="checking recordings", total=len(changed))  # type: ignore[assignment]
        scanned.update(zip(changed, results, strict=True))
    if any(isinstance(scanned[path], Recording) for path in changed):
        remembered = known | {path: result for path, result in scanned.items() if isinstance(result, Recording)}
        with whole(table) as temporary:
            pd.DataFrame(remembered.values(), columns=COLUMNS).to_csv(temporary, index=False)
    return scanned


def _read_table(table: Path) -> dict[str, Recording]:
    if not table.is_file():
        return {}
    rows = pd.read_csv(table, dtype={"path": str, "file": str, "digest": str})
    if tuple(rows.columns) != COLUMNS:  # of an older version
        return {}
    columns = [rows[column].tolist() for column in COLUMNS]
    return {path: Recording(path, *rest) for path, *rest in zip(*columns, strict=True)}


def _unchanged(path: str, known: Mapping[str, Recording]) -> bool:
    """Whether what is remembered of a recording still stands."""
    recording = known.get(path)
    if recording is None:
        return False
    try:
        status = os.stat(path)
    except OSError:
        return False
    same = (recording.size, recording.modified) == (status.st_size, status.st_mtime_ns)
    return same and (recording.file == path or os.path.isfile(recording.file))


def _scan(path: str, decoded: Path) -> Recording | InputError:
    """Errors are returned, not raised, so that all of a corpus's faults are counted in one go."""
    try:
        status = os.stat(path)
    except OSError:
        return InputError(f"{path}: no such recording.")
    try:
        file = path
        if path.lower().endswith(CONTAINERS):
            identity = f"{path} {status.st_size} {status.st_mtime_ns}"
            folder = decoded / hashlib.blake2b(os.path.dirname(path).encode(), digest_size=8).hexdigest()
            name = f"{Path(path).stem}-{hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()}.flac"
            file = str(folder / name)
            if not os.path.isfile(file):
                extract_audio(Path(path), Path(file))
        seconds = check_recording(Path(file))
        with open(file, "rb") as stream:
            digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except InputError as error:
        return error
    except OSError as error:
        return InputError(f"{path}: cannot be read ({error.strerror}).")
    return Recording(path, status.st_size, status.st_mtime_ns, file, digest, seconds)
