"""What a run saw of its corpus, by content: whether that is still the same, and who of a test was trained on."""

import hashlib
from typing import NamedTuple

import numpy as np
import pandas as pd

from fourm_ser.data.splits import Split
from fourm_ser.errors import listed

COLUMNS = ("id", "side", "corpus", "speaker", "session", "emotion", "text", "audio")
COMPARED = {
    "speaker": "speaker",
    "session": "session",
    "emotion": "label",
    "text": "transcript",
    "audio": "recording",
    "side": "side",
}
HASHED = ("text", "audio")


def content(frame: pd.DataFrame, split: Split, homes: list[str]) -> pd.DataFrame:
    """What is used of a corpus, whose `frame` and `homes` these are, an utterance a row, in the order of ids.

    Returns:
        Strings: `id`; `side` (train, val, test); `corpus`, the one that it is of; `speaker`, `session`, `emotion` (its
        class); and hashes of the `text` as encoders see it ("" where there are no words) and of the `audio`, its
        recording's own bytes, whatever decodes them, and the segment's bounds.
    """
    home = pd.Series(homes, index=frame.index)
    side = pd.Series("", index=frame.index)
    for name, rows in split._asdict().items():
        side.iloc[rows] = name
    bounds = frame[["source", "start", "end"]].itertuples(index=False)
    named = {
        column: [name.removeprefix(f"{of}/") for name, of in zip(frame[column], home, strict=True)]
        for column in ("speaker", "session")  # a corpus of corpora puts the names of these before them
    }
    columns = {
        "id": frame["id"],
        "side": side,
        "corpus": home,
        **named,
        "emotion": frame["emotion"],
        "text": [_hash(text) if text else "" for text in frame["text"]],
        "audio": [_hash(f"{source} {start} {end}") for source, start, end in bounds],
    }
    return pd.DataFrame(columns).sort_values("id", kind="stable", ignore_index=True)


def digest_of(table: pd.DataFrame) -> str:
    """A hash of what is used of a corpus, whichever side it is on (16 hexadecimal digits)."""
    return _hash(table[[column for column in COLUMNS if column != "side"]].to_csv(index=False, lineterminator="\n"))


def changes(before: pd.DataFrame, now: pd.DataFrame, sides: bool = True, rows: bool = True) -> str:
    """What is other than it was, in words; "" where nothing is.

    With `sides` it counts on which side an utterance is, with `rows` that utterances are gone or new.
    """
    before, now = before.set_index("id"), now.set_index("id")
    both = before.index.intersection(now.index)
    said = []
    if rows:
        for ids, what in ((before.index.difference(now.index), "gone"), (now.index.difference(before.index), "new")):
            if len(ids):
                said.append(f"{_count(len(ids), 'utterance')} {what} ({listed(list(ids))})")
    was, is_ = before.loc[both], now.loc[both]
    for column, word in COMPARED.items():
        if column == "side" and not sides:
            continue
        other = both[(was[column] != is_[column]).to_numpy()]
        if not len(other):
            continue
        pairs = zip(other, was.loc[other, column], is_.loc[other, column], strict=True)
        named = [key if column in HASHED else f"{key}: {old or 'none'}, now {new or 'none'}" for key, old, new in pairs]
        said.append(f"{_count(len(other), word)} changed ({listed(named)})")
    return "; ".join(said)


def shared(table: pd.DataFrame) -> list[tuple[str, str]]:
    """The same recording, or segment of one, under two ids on two sides of what `content` gives: a pair of ids each."""
    pairs = []
    for _, rows in table[table["audio"].duplicated(keep=False)].groupby("audio", sort=False):
        first = rows.iloc[0]
        others = rows["id"][rows["side"] != first["side"]]
        if len(others):
            pairs.append((first["id"], others.iloc[0]))
    return pairs


class Seen(NamedTuple):
    """Who of a test a model knows: ids of utterances, and speakers of whom it saw an utterance in either way."""

    trained: list[str]
    validated: list[str]
    speakers: list[str]


def seen(before: pd.DataFrame, now: pd.DataFrame, tested: pd.Series) -> Seen:
    """Who of a test a run has seen: of the ids `tested` in the content `now`, by the content `before` that it recorded.

    An utterance is the same if its recording and segment are, whatever it is called; or, in a corpus of the same name,
    if id, speaker and transcript are (another version of the recordings). A speaker is the same in a corpus of the same
    name if its name is, and in any corpus if one of its utterances is the same.
    """
    side = pd.Series("", index=now.index)
    for name in ("val", "train"):  # training wins
        used = before[before["side"] == name]
        words = ["corpus", "id", "speaker", "text"]
        known = set(used[words].itertuples(index=False, name=None))
        same = np.array([row in known for row in now[words].itertuples(index=False, name=None)], dtype=bool)
        side[now["audio"].isin(set(used["audio"])).to_numpy() | same] = name
    pairs = pd.Series(list(zip(now["corpus"], now["speaker"], strict=True)), index=now.index)
    used = before[before["side"].isin(("train", "val"))]
    known_speakers = set(zip(used["corpus"], used["speaker"], strict=True)) | set(pairs[side != ""])
    is_tested = now["id"].isin(set(tested))
    return Seen(
        now["id"][is_tested & (side == "train")].tolist(),
        now["id"][is_tested & (side == "val")].tolist(),
        sorted({pair[1] for pair in pairs[is_tested] if pair in known_speakers}),
    )


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
