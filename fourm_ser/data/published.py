"""Who was trained on, validated and tested in published models whose code and seed say it."""

import logging
import random
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from fourm_ser.errors import InputError

log = logging.getLogger(__name__)

SEED = 0
EMOTIONS = ("anger", "happiness", "excitement", "sadness", "neutral")  # excitement counts as happiness


class Shares(NamedTuple):
    """How a corpus is divided: the share that is tested, and the share of the rest that validates."""

    tested: float
    validates: float


SHARES: Mapping[str, Mapping[str, Shares]] = {
    "4m_ser": {"iemocap": Shares(0.1, 0.1), "esd": Shares(0.2, 0.1)},
    "memocmt": {"iemocap": Shares(0.1, 0.1), "esd": Shares(0.2, 0.1)},
}
UNSEEDED = ("server", "3m_ser")  # their corpus is shuffled when it is written, by no seed


def check_published(name: str | None) -> None:
    """Refuse a model whose split nobody can tell.

    Raises:
        InputError: it is none of `SHARES`.
    """
    if name in UNSEEDED:
        raise InputError(
            f"data.published={name}: its code divides the corpus by no seed, so that nobody can say who was tested. "
            "Use data.split=random, with its shares in data.fractions."
        )
    if name not in SHARES:
        found = "null" if name is None else name
        raise InputError(f"data.published={found}: expected the model whose split it is, {' or '.join(SHARES)}.")


def published_sides(corpus: str, name: str, frame: pd.DataFrame) -> pd.Series:
    """The sides by id as a published model's code draws them.

    4M-SER and MemoCMT (their scripts/preprocess.py) list the utterances of four emotions, shuffle the list by
    `random.Random(0)`, and divide it twice by scikit-learn's train_test_split with `random_state=0`, unstratified. They
    list label files in the order in which their disk gave them, which nobody knows: here it is that of the names, and
    within a file that of the lines.

    Args:
        corpus: the corpus's name.
        name: the model.
        frame: the release: `id`, `emotion` and `where` its label stands, `<file>:<line>`.

    Raises:
        InputError: a model whose split nobody can tell, a corpus that it was not published on, or too few utterances.
    """
    check_published(name)
    shares = SHARES[name].get(corpus)
    if shares is None:
        raise InputError(f"data.published={name}: was published on {' and '.join(SHARES[name])}, not on {corpus}.")
    from sklearn.model_selection import train_test_split  # two seconds that most splits do not need

    used = frame[frame["emotion"].isin(EMOTIONS)]
    order = sorted(range(len(used)), key=lambda row: _place(used["where"].iloc[row]))
    random.Random(SEED).shuffle(order)
    try:
        rest, tested = train_test_split(order, test_size=shares.tested, random_state=SEED)
        _, validates = train_test_split(rest, test_size=shares.validates, random_state=SEED)
    except ValueError as error:  # of a handful of utterances
        raise InputError(f"data.split=published: {len(used)} utterances are too few to divide.") from error
    sides = np.full(len(used), "train", dtype=object)
    sides[tested], sides[validates] = "test", "val"
    log.info("data: the split of %s over the %d utterances of %s", name, len(used), corpus)
    return pd.Series(sides, index=used["id"].to_numpy())


def _place(where: str) -> tuple[str, int]:
    """Where a label stands: its file, and the line."""
    path, _, line = where.rpartition(":")
    return path, int(line)
