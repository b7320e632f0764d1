"""What the readers of corpus releases share: files as they lie on disk, text in any encoding, and what is left out."""

import filecmp
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import pandas as pd

from fourm_ser.data.manifest import OPTIONAL
from fourm_ser.errors import InputError, listed
from fourm_ser.values import REQUIRED

NO_LABEL = "recording without a label"
NO_TRANSCRIPT = "recording without a transcript"
NO_ROW = "recording without a label and a transcript"
NO_RECORDING = "label without a recording"
REPEATED = "repeats another of the same id"
CONFLICT = "id that stands for different things"
UNREADABLE_TEXT = "text in no readable encoding"
MISSING_PART = "part of the release that is missing"

Value = TypeVar("Value")


class Utterance(NamedTuple):
    """One utterance of a release: a manifest's columns, and where (file:line) its label stands."""

    id: str
    audio: str  # an absolute path
    text: str
    emotion: str
    speaker: str
    session: str = ""
    split: str = ""
    language: str = ""
    where: str = ""


class LeftOut(NamedTuple):
    """What a corpus holds and no run sees."""

    id: str  # the utterance, or the part of the release
    reason: str  # one of a few, to count by
    where: str  # the file, its line where it has one, and what is the matter there
    fault: bool  # whether something is wrong with it (an error with `data.strict`), or it was only not asked for


def by_reason(items: Iterable[LeftOut]) -> dict[str, list[LeftOut]]:
    """What was left out, by the reason."""
    found: dict[str, list[LeftOut]] = {}
    for item in items:
        found.setdefault(item.reason, []).append(item)
    return found


class Release(NamedTuple):
    """What a reader found."""

    frame: pd.DataFrame  # one row an utterance: a manifest's columns, `audio` an absolute path, and `where`
    left_out: list[LeftOut]
    root: Path  # the folder that a written manifest's `audio` is relative to
    source: Path  # the release or table, for errors


class ReleaseBuilder:
    """What a reader keeps and leaves out while it goes through a release's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.utterances: list[Utterance] = []
        self.left_out: list[LeftOut] = []

    def name(self, path: Path) -> str:
        """A path inside the release, as errors and tables show it."""
        return path.relative_to(self.root).as_posix()

    def leave_out(self, key: str, reason: str, where: str, fault: bool = True) -> None:
        """Note what is left out, see `LeftOut`."""
        self.left_out.append(LeftOut(key, reason, where, fault))

    def by_id(self, paths: Iterable[Path], key: Callable[[Path], str] = lambda path: path.stem) -> dict[str, Path]:
        """Recordings by id; of copies with the same bytes the last path stays, different ones are all left out."""
        groups: dict[str, list[Path]] = {}
        for path in paths:
            groups.setdefault(key(path), []).append(path)
        found = {}
        for identity, group in groups.items():
            if all(filecmp.cmp(group[-1], other, shallow=False) for other in group[:-1]):
                found[identity] = group[-1]
                for other in group[:-1]:
                    self.leave_out(identity, REPEATED, self.name(other))
            else:
                self.leave_out(identity, CONFLICT, ", ".join(self.name(path) for path in group))
        return found

    def unique(self, rows: Iterable[tuple[str, Value, str]]) -> dict[str, tuple[Value, str] | None]:
        """Rows (id, value, where) by id: value and where.

        Of rows that say the same the first stays; an id whose rows differ is left out, and stands for None.
        """
        found: dict[str, tuple[Value, str] | None] = {}
        for key, value, where in rows:
            if key not in found:
                found[key] = (value, where)
                continue
            first = found[key]
            if first is not None and first[0] == value:
                self.leave_out(key, REPEATED, where)
                continue
            self.leave_out(key, CONFLICT, where if first is None else f"{first[1]}, {where}")
            found[key] = None
        return found

    def join(
        self,
        recordings: Mapping[str, Path],
        labels: Mapping[str, tuple[str, str] | None],
        texts: Mapping[str, str | None],
        make: Callable[[str, str, str, str, str], Utterance],
    ) -> None:
        """Keep every utterance that has a recording, a label and a transcript, and note the others.

        Args:
            recordings: path by id.
            labels: the emotion and where it stands, by id; None where the utterance was left out already.
            texts: the transcript by id; None where the utterance was left out already.
            make: the function that makes an utterance of its id, audio, text, emotion and where it stands.
        """
        dropped = {key for source in (labels, texts) for key, value in source.items() if value is None}
        dropped |= {item.id for item in self.left_out if item.reason == CONFLICT}
        for key in sorted({*recordings, *labels} - dropped):
            path, label, text = recordings.get(key), labels.get(key), texts.get(key)
            if path is None:
                assert label is not None
                self.leave_out(key, NO_RECORDING, label[1])
            elif label is None:
                self.leave_out(key, NO_LABEL if key in texts else NO_ROW, self.name(path))
            elif text is None:
                self.leave_out(key, NO_TRANSCRIPT, self.name(path))
            else:
                self.utterances.append(make(key, str(path), text, *label))

    def release(self) -> Release:
        """All of it, in the order of ids."""
        frame = pd.DataFrame(sorted(self.utterances), columns=Utterance._fields)
        frame = frame.reindex(columns=[*REQUIRED, *OPTIONAL, "where"])
        return Release(frame, self.left_out, self.root, self.root)


def find_root(corpus: str, root: Path | str, holds: Callable[[Path], bool], looked_for: str) -> Path:
    """The release's own folder: `root`, or the one below it, at most two levels down, that holds what is looked for.

    Raises:
        InputError: there is no such folder, or there are several.
    """
    root = Path(os.path.abspath(os.path.expanduser(root)))
    if not root.is_dir():
        raise InputError(f"data.root={root}: no such folder. Expected the {corpus} release: {looked_for}.")
    level = [root]
    for _ in range(3):
        fitting = [folder for folder in level if holds(folder)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            named = ", ".join(str(folder) for folder in fitting[:3])
            raise InputError(f"data.root={root}: holds the {corpus} release several times ({named}). Choose one.")
        level = [below for folder in level for below in folders_in(folder) if _readable(below)]
    names = sorted(name for name in os.listdir(root) if not name.startswith("."))
    raise InputError(
        f"data.root={root}: not the {corpus} release. Looked for {looked_for}; found {listed(names, 8) or 'nothing'}. "
        "Is data.root the folder that the release was unpacked to?"
    )


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones; none where there is no such folder."""
    return _listed(folder, lambda entry: entry.is_dir())


def files_in(folder: Path, *suffixes: str) -> list[Path]:
    """The files in a folder with one of the suffixes, sorted, without hidden ones such as macOS's `._*`."""
    return _listed(folder, lambda entry: entry.name.lower().endswith(suffixes) and entry.is_file())


def _readable(folder: Path) -> bool:
    try:
        with os.scandir(folder):
            return True
    except OSError:  # lost+found, another user's folder
        return False


def _listed(folder: Path, fits: Callable[[os.DirEntry[str]], bool]) -> list[Path]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".") and fits(entry)]
    return [folder / name for name in sorted(names)]


def decode_text(data: bytes, fallback: str) -> str | None:
    """Text in UTF-8, UTF-16 (with a byte order mark or without) or `fallback`; None where it is in none of them."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encodings = ["utf-16"]
    elif b"\0" in data:  # only UTF-16 has such bytes: in its first or second half of each Latin letter
        encodings = ["utf-16-be" if data[::2].count(0) > data[1::2].count(0) else "utf-16-le"]
    else:
        encodings = ["utf-8-sig", fallback]
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
    return None


def numbered_lines(text: str) -> list[tuple[int, str]]:
    """The lines that hold more than blanks, stripped, with their numbers from 1; any of CRLF, CR and LF ends a line."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
