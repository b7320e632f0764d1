"""IEMOCAP (Busso et al. 2008): five sessions of two actors, scripted and improvised; 10,039 utterances in English."""

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

SESSIONS = tuple(f"Session{number}" for number in range(1, 6))
EMOTIONS = {
    "ang": "anger",
    "hap": "happiness",
    "exc": "excitement",
    "sad": "sadness",
    "neu": "neutral",
    "fru": "frustration",
    "fea": "fear",
    "sur": "surprise",
    "dis": "disgust",
    "oth": "other",
}
DISAGREED = "xxx"
NOT_AGREED = "the annotators agreed on no emotion (xxx)"
# Ses01F_impro01_M003: session, the actor who wears the markers, dialog, the actor who speaks, number.
IDENTITY = re.compile(r"(Ses\d\d)[FM]_\w+_([FM])\d+", re.ASCII)
# [6.2901 - 8.2357]  Ses01F_impro01_F000  neu  [2.5000, 2.5000, 2.5000]
LABEL = re.compile(r"\[\s*[\d.]+\s*-\s*[\d.]+\s*\]\s+(\S+)\s+(\S+)\s+\[[^\]]*\]")
# Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.
TURN = re.compile(r"([^\s\[]+)\s*\[[^\]]*\]\s*:?\s*(.*)")


class IemocapCorpus(Corpus):
    """IEMOCAP as it was released.

    Args:
        root: the folder that holds Session1 ... Session5, or one above it.
        **use: the arguments of every `Corpus`.
    """

    name = "iemocap"
    splits = (*SPLITS, "published")

    def __init__(self, root: str, **use: Any) -> None:
        super().__init__(source=str(root), **use)

    def read(self) -> Release:
        root = find_root(
            "IEMOCAP",
            Path(self.source),
            lambda folder: any((folder / session / "dialog" / "EmoEvaluation").is_dir() for session in SESSIONS),
            "Session1 ... Session5, each with sentences/wav, dialog/transcriptions and dialog/EmoEvaluation",
        )
        builder = ReleaseBuilder(root)
        recordings: list[Path] = []
        labels: list[tuple[str, str, str]] = []
        turns: list[tuple[str, str, str]] = []
        unread: dict[str, None] = {}
        for session in SESSIONS:
            folder = root / session
            if not folder.is_dir():
                builder.leave_out(session, MISSING_PART, f"{session}: no such folder")
                continue
            for dialog in folders_in(folder / "sentences" / "wav"):
                recordings += files_in(dialog, ".wav")
            for parse, below, found in (
                (parse_labels, "EmoEvaluation", labels),
                (parse_turns, "transcriptions", turns),
            ):
                for path in files_in(folder / "dialog" / below, ".txt"):
                    text = decode_text(path.read_bytes(), "cp1252")
                    if text is not None:
                        found += parse(text, builder.name(path))
                        continue
                    spoken = [recording.stem for recording in recordings if recording.parent.name == path.stem]
                    for key in spoken or [path.stem]:
                        if key not in unread:
                            builder.leave_out(key, UNREADABLE_TEXT, builder.name(path))
                            unread[key] = None
        texts = {key: found and found[0] for key, found in builder.unique(turns).items()}
        agreed = builder.unique(labels)
        for key, label in agreed.items():
            if label is not None and label[0] == DISAGREED:
                builder.leave_out(key, NOT_AGREED, label[1], fault=False)
                agreed[key] = None
        builder.join(builder.by_id(recordings), agreed | unread, texts, _utterance)
        return builder.release()


def parse_labels(text: str, path: str) -> list[tuple[str, str, str]]:
    """The label lines of a file of `dialog/EmoEvaluation`: (utterance's id, emotion or xxx, where the line stands).

    Raises:
        InputError: a label line of another form, an id that tells no speaker, or a label that IEMOCAP does not have.
    """
    found = []
    for number, line in numbered_lines(text):
        if not line.startswith("["):  # the header, or an annotator's opinion
            continue
        where = f"{path}:{number}"
        label = LABEL.fullmatch(line)
        if label is None:
            raise InputError(f"{where}: expected [start - end], id, label and [V, A, D], found {line[:80]!r}.")
        key, word = label.groups()
        if IDENTITY.fullmatch(key) is None:
            raise InputError(f"{where}: {key!r} is no utterance's id. Expected one such as Ses01F_impro01_M003.")
        if word not in EMOTIONS and word != DISAGREED:
            raise InputError(f"{where}: no label of IEMOCAP: {word!r}. Expected {', '.join(EMOTIONS)} or {DISAGREED}.")
        found.append((key, EMOTIONS.get(word, word), where))
    return found


def parse_turns(text: str, path: str) -> list[tuple[str, str, str]]:
    """The utterances of a file of `dialog/transcriptions`: (id, transcript, where).

    Lines without an id (`M: sorry`) and ids that no label can have (ending in XX0) are passed over.
    """
    found = []
    for number, line in numbered_lines(text):
        turn = TURN.fullmatch(line)
        if turn is not None and IDENTITY.fullmatch(turn[1]):
            found.append((turn[1], turn[2], f"{path}:{number}"))
    return found


def _utterance(key: str, audio: str, text: str, emotion: str, where: str) -> Utterance:
    identity = IDENTITY.fullmatch(key)
    assert identity is not None
    session = identity[1]
    return Utterance(key, audio, text, emotion, session + identity[2], session, language="en", where=where)
