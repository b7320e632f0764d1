"""MELD (Poria et al. 2019): dialogs of the series Friends in English, as video clips, with an official split."""

import csv
import io
import re
from pathlib import Path
from typing import Any

from fourm_ser.data.corpus import Corpus
from fourm_ser.data.release import UNREADABLE_TEXT, Release, ReleaseBuilder, Utterance, decode_text, files_in, find_root
from fourm_ser.errors import InputError
from fourm_ser.files import regular

TABLES = {"train": "train_sent_emo.csv", "val": "dev_sent_emo.csv", "test": "test_sent_emo.csv"}
FOLDERS = {"train": "train_splits", "val": "dev_splits_complete", "test": "output_repeated_splits_test"}
UNPACKED = {"train": "train", "val": "dev", "test": "test"}
COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
EMOTIONS = {
    "anger": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "joy": "happiness",
    "neutral": "neutral",
    "sadness": "sadness",
    "surprise": "surprise",
}
# The first is damaged, the second is not there, in every copy of the release.
BAD = {"train_dia125_utt3", "val_dia110_utt7"}
BAD_CLIP = "clip that is bad in every copy of MELD"
OTHER_NAME = "file of another name than dia<D>_utt<U>"
OTHER_FORMAT = "sound of a clip beside the clip itself"
CLIP = re.compile(r"dia[0-9]+_utt[0-9]+")
NUMBER = re.compile(r"[0-9]{1,9}")
# Characters of Windows-1252 that were taken for Latin-1 on their way into the tables: U+0092 for an apostrophe.
LEFTOVERS = {code: bytes([code]).decode("cp1252", errors="replace") for code in range(0x80, 0xA0)}


class MeldCorpus(Corpus):
    """MELD as it was released; the sound of its clips is decoded once, into the cache.

    Args:
        root: the folder that holds the three tables (or train, dev and test with a table each), or one above it.
        **use: the arguments of every `Corpus`.
    """

    name = "meld"

    def __init__(self, root: str, **use: Any) -> None:
        super().__init__(source=str(root), **use)

    def read(self) -> Release:
        root = find_root(
            "MELD",
            Path(self.source),
            lambda folder: all(_table(folder, side).is_file() for side in TABLES),
            f"the tables {', '.join(TABLES.values())} beside the clips in {', '.join(FOLDERS.values())}",
        )
        builder = ReleaseBuilder(root)
        recordings: list[Path] = []
        rows: list[tuple[str, tuple[str, str, str], str]] = []
        sides: dict[Path, str] = {}
        for side in TABLES:
            clips = _clips(root, side)
            films = {path.stem for path in clips if path.suffix.lower() == ".mp4"}
            for path in clips:
                if CLIP.fullmatch(path.stem) is None:
                    builder.leave_out(path.stem, OTHER_NAME, builder.name(path), fault=False)
                elif path.stem in films and path.suffix.lower() != ".mp4":
                    builder.leave_out(path.stem, OTHER_FORMAT, builder.name(path), fault=False)
                else:
                    recordings.append(path)
                    sides[path] = side
            table = _table(root, side)
            text = decode_text(regular(table).read_bytes(), "cp1252")
            if text is None:
                raise InputError(
                    f"{table}: {UNREADABLE_TEXT}. Expected UTF-8 or Windows-1252: unpack the release again."
                )
            rows += parse_table(text, builder.name(table), side)
        paths = builder.by_id(recordings, lambda path: f"{sides[path]}_{path.stem}")
        found = builder.unique(rows)
        for key in sorted(BAD & {*paths, *found}):
            row = found.get(key)
            where = row[1] if row else builder.name(paths[key]) if key in paths else key
            builder.leave_out(key, BAD_CLIP, where, fault=False)
            found[key] = None
        speakers = {key: row[0][2] for key, row in found.items() if row is not None}

        def utterance(key: str, audio: str, text: str, emotion: str, where: str) -> Utterance:
            return Utterance(key, audio, text, emotion, speakers[key], "", key.partition("_")[0], "en", where)

        labels = {key: row and (row[0][1], row[1]) for key, row in found.items()}
        texts = {key: row and row[0][0] for key, row in found.items()}
        builder.join(paths, labels, texts, utterance)
        return builder.release()


def parse_table(text: str, path: str, side: str) -> list[tuple[str, tuple[str, str, str], str]]:
    """The rows of one of the three tables: (utterance's id, (transcript, emotion, speaker), where the row ends).

    Ids are `<side>_dia<D>_utt<U>`, for dialogs are counted anew in each table.

    Raises:
        InputError: text that is no such table, a row without a speaker or a number, an emotion that MELD does not have.
    """
    table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    found = []
    try:
        missing = [column for column in COLUMNS if column not in (table.fieldnames or [])]
        if missing:
            names = ", ".join(table.fieldnames or ["nothing"])
            raise InputError(f"{path}: has no column {', '.join(missing)}. Found {names[:200]}.")
        for row in table:
            if not any(row.values()):
                continue
            where = f"{path}:{table.line_num}"
            if None in row.values() or None in row:
                raise InputError(f"{where}: expected {len(table.fieldnames or [])} cells as in the header's row.")
            said, speaker, word, dialog, number = (row[column].translate(LEFTOVERS).strip() for column in COLUMNS)
            if not (NUMBER.fullmatch(dialog) and NUMBER.fullmatch(number) and speaker):
                raise InputError(
                    f"{where}: expected a Speaker and the numbers Dialogue_ID and Utterance_ID, found "
                    f"{speaker!r}, {dialog!r} and {number!r}."
                )
            if word.lower() not in EMOTIONS:
                raise InputError(f"{where}: no emotion of MELD: {word!r}. Expected {', '.join(EMOTIONS)}.")
            key = f"{side}_dia{int(dialog)}_utt{int(number)}"
            found.append((key, (said, EMOTIONS[word.lower()], speaker), where))
    except csv.Error as error:
        raise InputError(f"{path}:{table.reader.line_num}: not a readable CSV: {error}.") from error
    return found


def _table(root: Path, side: str) -> Path:
    beside = root / TABLES[side]
    return beside if beside.is_file() else root / UNPACKED[side] / TABLES[side]


def _clips(root: Path, side: str) -> list[Path]:
    folders = (root / FOLDERS[side], root / UNPACKED[side] / FOLDERS[side])
    return [path for folder in folders for path in files_in(folder, ".mp4", ".wav", ".flac")]
