"""Who is trained on, who validates, who is tested: the protocols."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pandas as pd

from fourm_ser.checks import check_number, check_switch, check_word
from fourm_ser.data.names import clean_columns, natural
from fourm_ser.data.table import need_columns, read_table
from fourm_ser.errors import InputError
from fourm_ser.files import write_table

SIDES = ("train", "val", "test")
SPLITS = ("random", "speaker", "session", "official")
VALIDATIONS = ("random", "speakers", "session")
OFFICIAL = {"train": "train", "val": "val", "dev": "val", "valid": "val", "validation": "val", "test": "test"}


class Protocol(NamedTuple):
    """How a corpus is split, by the keys of the same names in the config: `fourm_ser.data.corpus.Corpus` says more."""

    split: str
    fold: int  # counted from 0 in the order of names, numbers in them as numbers
    fractions: tuple[float, float, float]
    stratify: bool
    validation: str
    validation_fraction: float  # of the speakers, or of the utterances, that are not tested
    seed: int


def check_protocol(protocol: Protocol, splits: Iterable[str] = SPLITS) -> None:
    """Refuse values that no corpus could be split by, out of the `splits` that there are (InputError)."""
    check_word("data.split", protocol.split, splits)
    check_number("data.fold", protocol.fold, "a fold, a whole number from 0", whole=True)
    check_switch("data.stratify", protocol.stratify)
    check_word("data.validation", protocol.validation, VALIDATIONS)
    share = protocol.validation_fraction
    check_number("data.validation_fraction", share, "a share between 0 and 1", most=1, above=True, below=True)
    check_number("data.split_seed", protocol.seed, "a whole number from 0 to 2^32 - 1", most=2**32 - 1, whole=True)
    shares = protocol.fractions
    are_numbers = isinstance(shares, list | tuple) and all(type(share) in (int, float) for share in shares)
    if not are_numbers or len(shares) != 3 or min(shares) < 0 or not math.isclose(sum(shares), 1.0, abs_tol=1e-5):
        raise InputError(f"data.fractions={shares}: expected three shares (train, val, test) that sum to 1.")


class Split(NamedTuple):
    """Positions of utterances in the manifest, sorted, by side."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray

    def joined(self) -> Self:
        """The same with the validation side on the training side: nobody validates."""
        return self._replace(train=np.sort(np.concatenate([self.train, self.val])), val=self.val[:0])

    def shared_speakers(self, frame: pd.DataFrame) -> set[str]:
        """The speakers of the test side who speak on another, too."""
        speakers = frame["speaker"].to_numpy()
        return set(speakers[self.test]) & (set(speakers[self.train]) | set(speakers[self.val]))

    def speaker_independent(self, frame: pd.DataFrame) -> bool:
        """Whether no speaker of the test side speaks on another."""
        return not self.shared_speakers(frame)


def split_manifest(frame: pd.DataFrame, protocol: Protocol) -> Split:
    """Split a manifest's rows by a protocol; each is on one side.

    The split depends on the utterances' ids, speakers, sessions and emotions, never on the order of rows.

    Raises:
        InputError: what `check_protocol` refuses; a fold that does not exist, a column that the protocol needs and the
            corpus lacks, an empty side, or speakers on two sides of a split that promises otherwise.
    """
    makers = {"random": _random, "speaker": _fold, "session": _fold, "official": _official}
    check_protocol(protocol)
    if not len(frame):
        raise InputError("data: no utterances are left to split. Do data.emotions and data.min_seconds fit the corpus?")
    by_id = frame.sort_values("id", kind="stable")
    sides = pd.Series(makers[protocol.split](by_id, protocol), index=by_id.index).loc[frame.index].to_numpy()
    split = Split(*(np.flatnonzero(sides == side) for side in SIDES))
    for side, rows in zip(SIDES, split, strict=True):
        if not len(rows):
            raise InputError(
                f"data.split={protocol.split}: the {side} side is empty ({len(frame)} utterances in all). "
                "Are there enough utterances, and does the split fit the corpus?"
            )
    shared = split.shared_speakers(frame)
    if protocol.split in ("speaker", "session") and shared:
        raise InputError(
            f"data.split={protocol.split} data.fold={protocol.fold}: {', '.join(sorted(shared)[:5])} would speak in "
            "the test side and outside it. Use data.split=speaker, or mend the manifest's speakers and sessions."
        )
    return split


def _random(frame: pd.DataFrame, protocol: Protocol) -> np.ndarray:
    if protocol.fold != 0:
        raise InputError(f"data.fold={protocol.fold}: a random split has no folds. Draw another by data.split_seed.")
    fractions = np.asarray(protocol.fractions, dtype=float)
    test = _draw(frame, fractions[2], protocol, "data.fractions")
    sides = np.full(len(frame), "train", dtype=object)
    sides[test] = "test"
    rest = np.flatnonzero(sides == "train")
    if fractions[1] > 0:
        share = fractions[1] / (fractions[0] + fractions[1])
        sides[rest[_draw(frame.iloc[rest], share, protocol, "data.fractions")]] = "val"
    return sides


def _fold(frame: pd.DataFrame, protocol: Protocol) -> np.ndarray:
    """Leave one speaker, or one session, out."""
    column = protocol.split
    values = sorted(set(frame[column]), key=natural)
    if "" in values:
        raise InputError(
            f"data.split={column}: {(frame[column] == '').sum()} of {len(frame)} utterances have no {column}. "
            "Use another split, or fill the manifest's column."
        )
    if not 0 <= protocol.fold < len(values):
        raise InputError(
            f"data.fold={protocol.fold}: the {column} split of this corpus has the folds 0 to {len(values) - 1} "
            f"({', '.join(values[:12])}{', ...' if len(values) > 12 else ''})."
        )
    held_out = values[protocol.fold]
    sides = np.where(frame[column] == held_out, "test", "train").astype(object)
    rest = np.flatnonzero(sides == "train")
    session = max(frame["session"][sides == "test"], key=natural)
    sides[rest[_validation(frame.iloc[rest], protocol, column, held_out, session)]] = "val"
    return sides


def gives_validation(frame: pd.DataFrame, protocol: Protocol) -> bool:
    """Whether the split itself says who validates, and not `protocol.validation`."""
    if protocol.split == "official":
        return bool((frame["split"].map(OFFICIAL) == "val").any())
    return protocol.split == "random"


def draw_validation(frame: pd.DataFrame, protocol: Protocol) -> np.ndarray:
    """Positions of the rows that validate, out of a training side that came without a validation side."""
    by_id = frame.reset_index(drop=True).sort_values("id", kind="stable")
    drawn = _validation(by_id, protocol)
    return np.sort(by_id.index.to_numpy()[drawn])


def _validation(
    rest: pd.DataFrame, protocol: Protocol, column: str = "speaker", held_out: str = "", session: str = ""
) -> np.ndarray:
    """Which rows of what is not tested validate; `held_out` and `session` (the last one) are those of the tested."""
    if protocol.validation == "random":
        return _draw(rest, protocol.validation_fraction, protocol, "data.validation_fraction")
    if protocol.validation == "speakers":
        # Those that follow the tested one, so that over all folds each speaker validates about equally often.
        groups = sorted(set(zip(rest[column], rest["speaker"], strict=True)), key=lambda group: [*map(natural, group)])
        follows = _rotated(groups, lambda group: natural(group[0]) > natural(held_out))
        order = list(dict.fromkeys(speaker for _, speaker in follows))
        count = max(1, round(protocol.validation_fraction * len(order)))
        return np.flatnonzero(rest["speaker"].isin(order[:count]))
    if (rest["session"] == "").any():
        raise InputError("data.validation=session: utterances have no session. Use data.validation=speakers.")
    sessions = sorted(set(rest["session"]), key=natural)
    following = _rotated(sessions, lambda other: natural(other) > natural(session))
    return np.flatnonzero(rest["session"].isin(following[:1]))


def _rotated(values: list, follows: Callable[..., bool]) -> list:  # type: ignore[type-arg]
    """Sorted values, those that follow first."""
    return [v for v in values if follows(v)] + [v for v in values if not follows(v)]


def _official(frame: pd.DataFrame, protocol: Protocol) -> np.ndarray:
    if protocol.fold != 0:
        raise InputError(f"data.fold={protocol.fold}: the official split has no folds: leave data.fold at 0.")
    unknown = sorted(set(frame["split"]) - set(OFFICIAL))
    if unknown:
        named = ", ".join(repr(value) for value in unknown[:5])
        raise InputError(
            f"data.split=official: the manifest's column split holds {named}. Expected {', '.join(OFFICIAL)}."
        )
    sides = frame["split"].map(OFFICIAL).to_numpy(dtype=object)
    if not gives_validation(frame, protocol):
        rest = np.flatnonzero(sides == "train")
        sides[rest[_validation(frame.iloc[rest], protocol)]] = "val"
    return sides


def read_split(path: Path) -> pd.Series:
    """The sides by id in a split file: a CSV with the columns `id` and `split` (train, val or dev, test).

    Raises:
        InputError: the file, a column or a cell is not as described, or an id occurs twice.
    """
    called = f"data.split_file={path}"
    if not path.is_file():
        raise InputError(f"{called}: no such file. Expected a CSV with the columns id and split.")
    frame = read_table(path, called)
    need_columns(frame, ("id", "split"), called)
    frame = clean_columns(frame)
    frame = frame[(frame != "").any(axis=1)]  # rows keep their numbers in the file
    if not len(frame):
        raise InputError(f"{called}: has no rows.")
    unknown = frame[~frame["split"].isin(OFFICIAL)]
    if len(unknown):
        row, word = unknown.index[0] + 2, unknown["split"].iloc[0]
        raise InputError(f"{called}: row {row} holds the split {word!r}. Expected {', '.join(OFFICIAL)}.")
    repeated = frame[frame["id"].duplicated()]
    if len(repeated):
        raise InputError(f"{called}: row {repeated.index[0] + 2} repeats the id {repeated['id'].iloc[0]}.")
    return frame.set_index("id")["split"].map(OFFICIAL)


def write_split(frame: pd.DataFrame, split: Split, path: Path) -> None:
    """Write a split file for `read_split`, whole, in the order of ids."""
    sides = {frame["id"].iloc[row]: side for side, rows in split._asdict().items() for row in rows}
    write_table(path, pd.DataFrame(sorted(sides.items()), columns=["id", "split"]))


def _draw(frame: pd.DataFrame, fraction: float, protocol: Protocol, key: str) -> np.ndarray:
    """Draw a share of rows at random, by emotion where the protocol stratifies."""
    from sklearn.model_selection import train_test_split  # two seconds that most splits do not need

    labels = frame["emotion"].to_numpy() if protocol.stratify else None
    rows = np.arange(len(frame))
    try:
        _, drawn = train_test_split(rows, test_size=fraction, random_state=protocol.seed, stratify=labels)
    except ValueError as error:
        raise InputError(f"{key}: {len(frame)} utterances cannot be split so: {error}") from error
    return np.sort(drawn)
