"""ESD, the Emotional Speech Database (Zhou et al. 2021): ten Mandarin and ten English speakers, 350 sentences each."""

import os
import re
from pathlib import Path
from typing import Any

from fourm_ser.data.corpus import Corpus
from fourm_ser.data.release import (
    MISSING_PART,
    UNREADABLE_TEXT,
    Release,
    ReleaseBuilder,
    Utterance,
    decode_text,
    files_in,
    find_root,
    folders_in,
    numbered_lines,
)
from fourm_ser.data.splits import SPLITS
from fourm_ser.errors import InputError

SPEAKERS = {f"{number:04d}": "zh" if number <= 10 else "en" for number in range(1, 21)}
EMOTIONS = {
    "neutral": "neutral",
    "angry": "anger",
    "happy": "happiness",
    "sad": "sadness",
    "surprise": "surprise",
    "surprised": "surprise",
    "中立": "neutral",
    "中性": "neutral",
    "生气": "anger",
    "愤怒": "anger",
    "快乐": "happiness",
    "开心": "happiness",
    "高兴": "happiness",
    "伤心": "sadness",
    "难过": "sadness",
    "悲伤": "sadness",
    "惊喜": "surprise",
    "惊讶": "surprise",
}
SIDES = {"train": "train", "evaluation": "val", "test": "test"}
SENTENCES = 350  # of a speaker in each emotion, numbered one emotion after the other
OTHER_LANGUAGE = "speaker of another language than data.language"
CONTRADICTED = "label that contradicts its folder"
IDENTITY = re.compile(r"([0-9]{4})_([0-9]{6})")
NOT_WINDOWS = re.compile(rb"[\x80-\xff]{2}|\xff")


class EsdCorpus(Corpus):
    """ESD as it was released, in either of its folder layouts.

    Args:
        root: the folder that holds 0001 ... 0020, or one above it.
        **use: the arguments of every `Corpus`; `language` chooses the English (en) or the Mandarin (zh) half.
    """

    name = "esd"
    splits = (*SPLITS, "published")

    def __init__(self, root: str, **use: Any) -> None:
        super().__init__(source=str(root), **use)

    def read(self) -> Release:
        root = find_root(
            "ESD",
            Path(self.source),
            lambda folder: any(below.name in SPEAKERS for below in folders_in(folder)),
            "the speakers' folders 0001 ... 0020",
        )
        builder = ReleaseBuilder(root)
        rows: list[tuple[str, tuple[str, str], str]] = []
        told: dict[Path, str | None] = {}  # each recording's emotion by its folder
        unread: dict[str, None] = {}
        for speaker, language in SPEAKERS.items():
            folder = root / speaker
            if self.language not in (None, language):
                if folder.is_dir():
                    builder.leave_out(speaker, OTHER_LANGUAGE, f"{speaker}: {language}", fault=False)
                continue
            if not folder.is_dir():
                builder.leave_out(speaker, MISSING_PART, f"{speaker}: no such folder")
                continue
            spoken = {
                path: EMOTIONS.get(emotion.name.lower())
                for emotion in folders_in(folder)
                for path in _recordings(emotion)
            }
            told |= spoken
            path = folder / f"{speaker}.txt"
            if not path.is_file():
                builder.leave_out(speaker, MISSING_PART, f"{speaker}/{path.name}: no such file")
                continue
            data = path.read_bytes()
            # Chinese characters are pairs of high bytes, an apostrophe of Windows-1252 is one by itself.
            text = decode_text(data, "gb18030" if NOT_WINDOWS.search(data) else "cp1252")
            if text is None:
                unread |= dict.fromkeys(recording.stem for recording in spoken)
                for recording in spoken:
                    builder.leave_out(recording.stem, UNREADABLE_TEXT, builder.name(path))
            else:
                rows += parse_rows(text, builder.name(path))
        found = builder.unique(rows)
        paths = builder.by_id(told)
        for key, row in found.items():
            if row is not None and key in paths and told[paths[key]] not in (None, row[0][1]):
                builder.leave_out(key, CONTRADICTED, f"{row[1]}: {row[0][1]}, but {builder.name(paths[key])}")
                found[key] = None
        labels = {key: row and (row[0][1], row[1]) for key, row in found.items()}
        texts = {key: row and row[0][0] for key, row in found.items()}
        builder.join(paths, labels | unread, texts | unread, _utterance)
        return builder.release()


def parse_rows(text: str, path: str) -> list[tuple[str, tuple[str, str], str]]:
    """The rows of a speaker's text file: (utterance's id, (transcript, emotion), where the row stands), in order.

    Raises:
        InputError: a row that is not an id, a transcript and an emotion, or an emotion that ESD does not have.
    """
    found = []
    for number, line in numbered_lines(text):
        where = f"{path}:{number}"
        # Tabs part the fields, blanks where an editor changed them: no id and no emotion holds one.
        key, *rest = line.split(None, 1)
        *said, word = "".join(rest).rsplit(None, 1) or [""]
        if IDENTITY.fullmatch(key) is None or not word:
            raise InputError(
                f"{where}: expected an id, a transcript and an emotion with tabs between, not {line[:80]!r}."
            )
        emotion = EMOTIONS.get(word.lower())
        if emotion is None:
            raise InputError(f"{where}: no emotion of ESD: {word!r}. Expected {', '.join(EMOTIONS)}.")
        found.append((key, ("".join(said), emotion), where))
    return found


def official_side(number: int) -> str:
    """The official side of an utterance by the number in its id: blocks of 350, of which 20 validate, 30 are tested."""
    position = (number - 1) % SENTENCES
    return "val" if position < 20 else "test" if position < 50 else "train"


def _recordings(emotion: Path) -> list[Path]:
    """An emotion's recordings, in either layout; those in a folder of their side come last."""
    nested = [path for side in folders_in(emotion) if side.name in SIDES for path in files_in(side, ".wav")]
    return files_in(emotion, ".wav") + nested


def _utterance(key: str, audio: str, text: str, emotion: str, where: str) -> Utterance:
    identity = IDENTITY.fullmatch(key)
    assert identity is not None
    speaker = identity[1]
    split = SIDES.get(os.path.basename(os.path.dirname(audio))) or official_side(int(identity[2]))
    return Utterance(key, audio, text, emotion, speaker, "", split, SPEAKERS.get(speaker, ""), where)
