"""What is measured between speech and text features: alignment, canonical correlation, retrieval."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from fourm_ser.analysis.canonical import HeldOut, hold_out, rank_own, split_groups, weighted_correlations
from fourm_ser.analysis.kernel_alignment import debiased_cka, draw_counts, linear_cka
from fourm_ser.analysis.reduction import project

ALL = "all"
LEAST_TRANSCRIPTS = 10  # different ones, to split into folds
LEAST_OF_EMOTION = 10  # utterances of an emotion for its CKA: fewer are next to no evidence
LEAST_TO_FIT = 50  # utterances of an emotion for its canonical correlation: several for each component of a fold
UTTERANCES_A_COMPONENT = 10  # that directions are fitted to: with fewer, what is fitted is chance
RECALLS = (1, 5, 10)  # the ranks that papers on retrieval report

ScoreKey = tuple[str, str, str, str]
"""Which features, state of training, emotion (or `all`) and measure a score is of."""


class Score(NamedTuple):
    """A number of one state, and what it is in each bootstrap draw of the utterances.

    Attributes:
        value: the number over all utterances.
        draws: (draws,) the number in each draw; every state has the same draws.
    """

    value: float
    draws: np.ndarray

    @property
    def interval(self) -> tuple[float, float]:
        """The middle 95% of the draws; NaN where there is none."""
        draws = self.draws[np.isfinite(self.draws)]
        if not len(draws):
            return float("nan"), float("nan")
        low, high = np.percentile(draws, [2.5, 97.5])
        return float(low), float(high)


class Sides(NamedTuple):
    """Pooled features of the same utterances, (n, width) each."""

    text: np.ndarray
    audio: np.ndarray

    def of(self, rows: np.ndarray) -> "Sides":
        """Those of some utterances."""
        return Sides(self.text[rows], self.audio[rows])


class Plan(NamedTuple):
    """How the utterances of one emotion, or of all, are drawn and split: the same in every state.

    Attributes:
        rows: (n,) positions among the side's utterances.
        counts: (n, draws) times that each bootstrap draw has each utterance.
        folds: (n,) fold of each utterance; None where there are too few to fit directions to.
        components: the number of principal components that directions of each modality are made of.
        transcripts: (n,) number of each utterance's transcript.
    """

    rows: np.ndarray
    counts: np.ndarray
    folds: np.ndarray | None
    components: int
    transcripts: np.ndarray


class Settings(NamedTuple):
    """What a caller of `correlation` chose."""

    seed: int
    folds: int
    components: int
    regularisation: float
    draws: int


class Measured(NamedTuple):
    """All that was measured of a run.

    Attributes:
        name: the run's name.
        emotions: the classes in the order of their indices.
        places: both modalities' features of all utterances, by where they are taken, then by state of training.
        plans: how utterances are drawn and split, by emotion, and for all.
        scores: every number with its draws.
        held: the held-out variates of all utterances, by where features are taken and state of training.
        seconds: (n,) length of each utterance.
        settings: what the caller chose.
        notes: what has to be known of the fusion to read its numbers, in sentences; may be empty.
    """

    name: str
    emotions: list[str]
    places: Mapping[str, Mapping[str, Sides]]
    plans: Mapping[str, Plan]
    scores: Mapping[ScoreKey, Score]
    held: Mapping[tuple[str, str], HeldOut]
    seconds: np.ndarray
    settings: Settings
    notes: str


def same(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether features are the same but for rounding."""
    return first.shape == second.shape and np.allclose(first, second, rtol=1e-4, atol=1e-4 * float(np.std(first)))


def make_plans(labels: np.ndarray, texts: list[str], emotions: list[str], settings: Settings) -> dict[str, Plan]:
    """By emotion, and for all, how utterances are drawn and split."""
    numbers = np.unique(texts, return_inverse=True)[1]
    groups = {ALL: np.arange(len(labels))} | {
        emotion: np.flatnonzero(labels == label) for label, emotion in enumerate(emotions)
    }
    plans = {}
    for number, (emotion, rows) in enumerate(groups.items()):
        if len(rows) < LEAST_OF_EMOTION:
            continue
        transcripts = numbers[rows]
        counts = draw_counts(len(rows), settings.draws, np.random.default_rng([settings.seed, number]))
        different = len(np.unique(transcripts))
        split, components = None, 0
        if different >= LEAST_TRANSCRIPTS and (emotion == ALL or len(rows) >= LEAST_TO_FIT):
            split = split_groups(transcripts, min(settings.folds, different // 2), settings.seed)
            fitted_to = len(rows) - np.bincount(split).max()
            components = max(1, min(settings.components, int(fitted_to) // UTTERANCES_A_COMPONENT))
        plans[emotion] = Plan(rows, counts, split, components, transcripts)
    return plans


def measure_group(sides: Sides, plan: Plan, settings: Settings) -> tuple[dict[str, Score], HeldOut | None]:
    """CKA and canonical correlations of one group of utterances in one state, and its held-out variates."""
    none = np.full(settings.draws, np.nan)
    scores = {
        "cka": Score(float(debiased_cka(*sides)[0]), debiased_cka(*sides, plan.counts)),
        "plain_cka": Score(linear_cka(*sides), none),
    }
    if plan.folds is None:
        return scores, None
    text, audio = (vectors.astype(np.float64) for vectors in sides)
    held = hold_out(text, audio, plan.folds, plan.components, settings.regularisation)
    if not held.first.shape[1]:
        return scores, None
    values, drawn = held.correlations(), held.correlations(plan.counts)
    scores["canonical_1"] = Score(float(values[0, 0]), drawn[:, 0])
    scores["canonical_mean"] = Score(float(values.mean()), drawn.mean(1))
    return scores, held


def measure_retrieval(held: HeldOut, plan: Plan) -> dict[str, float]:
    """Numbers of what retrieval finds by held-out variates, and finds by chance; see `retrieval_ranks`."""
    ranks, sizes = retrieval_ranks(held, plan.transcripts)
    found = {
        "utterances": len(ranks),
        "transcripts": float(sizes.mean()),
        "median_rank": float(np.median(ranks)),
        "chance_median_rank": float(np.median((sizes + 1) / 2)),
        **{f"chance_recall@{count}": float(np.minimum(count / sizes, 1.0).mean()) for count in RECALLS},
    }
    weight = plan.counts / plan.counts.sum(0)
    for count in RECALLS:
        hits = (ranks <= count).astype(np.float64)
        low, high = Score(float(hits.mean()), weight.T @ hits).interval
        found |= {f"recall@{count}": float(hits.mean()), f"low@{count}": low, f"high@{count}": high}
    return found


def retrieval_ranks(held: HeldOut, transcripts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rank of each utterance's transcript by its speech, among the different transcripts of its fold.

    Speech and transcripts are compared by cosine similarity of their held-out canonical variates; a transcript's are
    the mean of its utterances' in the fold.

    Returns:
        (n,) ranks from 1, and (n,) how many transcripts there were to choose from.
    """
    ranks, sizes = np.zeros(len(transcripts)), np.zeros(len(transcripts))
    for fold in np.unique(held.folds):
        rows = np.flatnonzero(held.folds == fold)
        _, own = np.unique(transcripts[rows], return_inverse=True)
        membership = np.eye(own.max() + 1)[own]
        items = membership.T @ held.first[rows] / membership.sum(0)[:, None]
        ranks[rows] = rank_own(held.second[rows], items, own)
        sizes[rows] = len(items)
    return ranks, sizes


def component_correlations(
    text: np.ndarray, audio: np.ndarray, components: int
) -> tuple[pd.DataFrame, tuple[float, float]]:
    """Pearson's r of each of one side's leading `components` with each of the other's, of features (n, width).

    Returns:
        A row a pair of components (`text_component`, `audio_component`, `r`; NaN where one does not vary), and the
        share of each side's variance that its components hold.
    """
    scaled, shares = [], []
    for vectors in (text, audio):
        flat, _, share = project(vectors.astype(np.float64), vectors[:0], min(components, *vectors.shape))
        spread = flat.std(0)
        scaled.append((flat - flat.mean(0)) / np.where(spread > 1e-9, spread, np.nan))
        shares.append(float(np.sum(share)))
    r = scaled[0].T @ scaled[1] / len(text)
    rows = [
        {"text_component": row + 1, "audio_component": column + 1, "r": float(value)}
        for (row, column), value in np.ndenumerate(r)
    ]
    return pd.DataFrame(rows), (shares[0], shares[1])


def correlation_with(values: np.ndarray, held: HeldOut) -> np.ndarray:
    """The size of the correlation of some value (n,) with each held-out variate: mean over folds, (2, pairs)."""
    sizes = []
    for fold in np.unique(held.folds):
        own = held.folds == fold
        ones = np.ones((int(own.sum()), 1))
        for variates in (held.first[own], held.second[own]):
            column = np.broadcast_to(values[own, None], variates.shape)
            sizes.append(np.abs(weighted_correlations(column, variates, ones)[0]))
    return np.array(sizes).reshape(-1, 2, held.first.shape[1]).mean(0)
