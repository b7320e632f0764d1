"""A corpus's recordings, checked before anything is built and known by their content."""

import hashlib
import logging
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich.progress import track

from fourm_ser.data.audio import check_recording, decode, reads_exactly
from fourm_ser.data.levels import is_silent, silence_message
from fourm_ser.data.release import LeftOut
from fourm_ser.data.sound import unreadable
from fourm_ser.errors import InputError, PlaceError, printable
from fourm_ser.files import READ_ONLY, is_spoilt, only_read, whole

log = logging.getLogger(__name__)

ENDS = 4096  # bytes at each end of a file: a header, tags and sound, which differ between recordings
LONG = 2000  # recordings: checking more takes so long that progress is shown
SILENT = "nothing is heard"


class Recording(NamedTuple):
    """A recording that was decoded to its end, and is not again while `size`, `modified` and `ends` stay."""

    path: str  # absolute
    size: int  # bytes
    modified: int  # nanoseconds
    ends: str  # hash of the first and the last bytes
    source: str  # hash of all bytes
    file: str  # what to read: the recording itself, or the FLAC that it was decoded to
    digest: str  # hash of the bytes of `file`
    seconds: float  # this and what follows as in `Levels`
    peak: float
    clipped: int
    quiet: str


COLUMNS = Recording._fields
COUNTS = ("size", "modified", "clipped")
NUMBERS = ("seconds", "peak")
TEXTS = ("path", "ends", "source", "file", "digest", "quiet")


def scan_recordings(
    paths: list[str], source: Path, cache: Path, verify: str = "quick"
) -> dict[str, Recording | InputError]:
    """Decode recordings once, and remember their hashes, lengths and levels.

    Args:
        paths: the recordings' absolute paths.
        source: the corpus's folder or table, by which its table of recordings is remembered.
        cache: the folder for what is made once.
        verify: what is looked at of recordings that are remembered: `quick`, size, time and the first and last bytes,
            or `full`, all bytes.

    Returns:
        By path, the recording, or what is wrong with it: missing, empty, truncated, not decodable.
    """
    name = hashlib.blake2b(os.fsencode(source.resolve()), digest_size=8).hexdigest()
    table = cache / "recordings" / f"{name}.csv"
    known = _read_table(table)
    distinct = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        stands = pool.map(lambda path: path in known and _unchanged(known[path], verify), distinct)
        scanned: dict[str, Recording | InputError] = {
            path: known[path] for path, same in zip(distinct, stands, strict=True) if same
        }
        changed = [path for path in distinct if path not in scanned]
        results = pool.map(lambda path: _scan(path, known.get(path), cache / "decoded"), changed)
        if len(changed) > LONG:
            results = track(results, description="checking recordings", total=len(changed))  # type: ignore[assignment]
        scanned.update(zip(changed, results, strict=True))
    if any(isinstance(scanned[path], Recording) for path in changed):
        remembered = known | {path: result for path, result in scanned.items() if isinstance(result, Recording)}
        rows = pd.DataFrame(remembered.values(), columns=COLUMNS, dtype=object)
        try:
            with whole(table, seal=True) as temporary:
                rows.to_csv(temporary, index=False, errors="surrogateescape")  # names need not be UTF-8
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
            log.info("data: %d recordings were checked and are not remembered: %s", len(changed), error)
    return scanned


def find_silent(frame: pd.DataFrame) -> list[LeftOut]:
    """Utterances in which nothing is heard, of a frame as `Corpus.frame` is, with the column `quiet` of `Recording`."""
    found = []
    for row in frame[frame["quiet"] != ""].to_dict("records"):
        start = 0.0 if math.isnan(row["start"]) else row["start"]
        end = start + row["seconds"]
        if is_silent(row["quiet"], start, end):
            is_part = row["seconds"] < row["duration"] or not (math.isnan(row["start"]) and math.isnan(row["end"]))
            name = printable(row["audio"])
            said = silence_message(name, start, end) if is_part else silence_message(name)
            found.append(LeftOut(row["id"], SILENT, f"{row['where']}: {said}", True))
    return found


def _read_table(table: Path) -> dict[str, Recording]:
    if not table.is_file():
        return {}
    kinds = dict.fromkeys(TEXTS, object) | dict.fromkeys(NUMBERS, float) | dict.fromkeys(COUNTS, int)
    try:
        rows = pd.read_csv(table, dtype=kinds, keep_default_na=False, encoding_errors="surrogateescape")
        is_damaged = is_spoilt(table) or len(rows) == 0
    except (ValueError, OverflowError):
        is_damaged = True
    if is_damaged:
        log.warning("%s: is damaged, and its recordings are checked anew.", table)
        return {}
    if tuple(rows.columns) != COLUMNS:  # of an older version
        return {}
    columns = [rows[column].tolist() for column in COLUMNS]
    return {path: Recording(path, *rest) for path, *rest in zip(*columns, strict=True)}


def _unchanged(recording: Recording, verify: str) -> bool:
    """Whether what is remembered of a recording still stands."""
    try:
        status = os.stat(recording.path)
        if (recording.size, recording.modified) != (status.st_size, status.st_mtime_ns):
            return False
        if verify == "full":
            made = recording.file == recording.path or _hash(recording.file) == recording.digest
            return made and _hash(recording.path) == recording.source
        return _ends(recording.path, recording.file) == recording.ends
    except OSError:
        return False


def _scan(path: str, before: Recording | None, decoded: Path) -> Recording | InputError:
    """Errors are returned, not raised, so that all of a corpus's faults are counted in one go."""
    if not os.path.isfile(path):
        return InputError(unreadable(path, ""))
    try:
        status = os.stat(path)
        file, source = path, _hash(path)
        if not reads_exactly(path):
            folder = decoded / hashlib.blake2b(os.fsencode(os.path.dirname(path)), digest_size=8).hexdigest()
            file = str(folder / f"{Path(path).stem}-{source}.flac")
            # What was decoded before may have been spoilt since.
            if not os.path.isfile(file) or (before and before.file == file and before.digest != _hash(file)):
                _decode(path, Path(file))
        levels = check_recording(Path(file))
        digest = source if file == path else _hash(file)
        ends = _ends(path, file)
    except PlaceError:
        raise
    except InputError as error:
        return error
    except OSError as error:
        return InputError(f"{path}: cannot be read ({error.strerror}).")
    return Recording(path, status.st_size, status.st_mtime_ns, ends, source, file, digest, *levels)


def _decode(path: str, target: Path) -> None:
    try:
        decode(path, target)
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        raise only_read(target.parent, f"the sound of {path}", error) from error


def _hash(path: str) -> str:
    """Hash of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _ends(*paths: str) -> str:
    """Hash of the files' first and last bytes and sizes: a file that replaces another differs there."""
    hashed = hashlib.blake2b(digest_size=8)
    for path in dict.fromkeys(paths):
        with open(path, "rb") as stream:
            hashed.update(stream.read(ENDS))
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - ENDS))
            hashed.update(stream.read(ENDS))
        hashed.update(str(size).encode())
    return hashed.hexdigest()
