"""Whether two cells differ by more than chance: paired bootstrap over speakers, Wilcoxon over repeats, Holm."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from fourm_ser.errors import InputError
from fourm_ser.report.cells import ACCURACIES, Section, repeat_of
from fourm_ser.runs.collect import Run
from fourm_ser.runs.directory import PREDICTED
from fourm_ser.runs.resampling import LEVEL, tails, unit_of

RESAMPLES = 9999


class Interval(NamedTuple):
    """An observed difference, the ends of its bootstrapped 95% interval, and its two-sided p value.

    That is the smallest error at which the interval still leaves zero out.
    """

    difference: float
    low: float
    high: float
    p: float


class Comparison(NamedTuple):
    """Two cells on what both were tested on.

    Attributes:
        first: the number of the first cell, whose values differences are taken of.
        second: the number of the second cell, whose values are taken off.
        metric: `ua` or `wa`.
        utterances: how many test utterances both have; 0 where there is nothing to resample.
        resampled: `speakers` of these utterances, or the `utterances` themselves.
        bootstrap: the difference's interval and p value over what is resampled; None without any.
        repeats: how many repeats both have.
        wilcoxon: p value of the signed-rank test over these repeats; NaN with fewer than two.
        bootstrap_holm: the bootstrap's p value after Holm's correction; NaN without one.
        wilcoxon_holm: the signed-rank test's p value after Holm's correction; NaN without one.
    """

    first: int
    second: int
    metric: str
    utterances: int
    resampled: str
    bootstrap: Interval | None
    repeats: int
    wilcoxon: float
    bootstrap_holm: float = math.nan
    wilcoxon_holm: float = math.nan


def paired_bootstrap(
    emotions: Sequence[str] | np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    seed: int = 0,
    groups: Sequence[str] | np.ndarray | None = None,
) -> dict[str, Interval]:
    """Difference of two models in UA and WA, by resampling what both were tested on: whole speakers, or utterances.

    An utterance brings its emotion and how much more often the first model is right, and nothing else; so resampling
    utterances is drawing how often each such pair occurs, from a multinomial distribution. That is the same bootstrap
    as drawing utterance by utterance, in a thousandth of the time. A speaker brings the sums of these. What is
    resampled is taken to be independent; for the quantiles and p values of speakers see `intervals.tails`.

    Args:
        emotions: (n,) the labels.
        first: (n,) how often the first model is right on each, from 0 to 1.
        second: (n,) how often the second model is right on each, from 0 to 1.
        seed: the seed of the draws.
        groups: (n,) speakers; None resamples utterances.
    """
    label, gain = np.unique(emotions, return_inverse=True)[1], np.round(first - second, 9)
    if groups is None:
        kinds, unit, counts = np.unique(np.stack([label, gain]), axis=1, return_inverse=True, return_counts=True)
        one_hot = np.eye(label.max() + 1)[kinds[0].astype(int)]  # (kinds, classes)
        support, gains = one_hot, one_hot * kinds[1][:, None]
    else:
        unit = np.unique(np.asarray(groups), return_inverse=True)[1]
        counts = np.ones(unit.max() + 1, dtype=int)
        support, gains = np.zeros((2, len(counts), label.max() + 1))  # (speakers, classes) each
        np.add.at(support, (unit, label), 1)
        np.add.at(gains, (unit, label), gain)
    total = counts.sum()
    drawn = np.random.default_rng(seed).multinomial(total, counts / total, size=RESAMPLES)

    def both(times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        of_class, gained = times @ support, times @ gains
        recall = np.divide(gained, of_class, out=np.full(of_class.shape, np.nan), where=of_class > 0)
        return np.nanmean(recall, axis=1), gained.sum(1) / of_class.sum(1)

    ends = ((1 - LEVEL) / 2, (1 + LEVEL) / 2) if groups is None else tails(len(counts))
    result = {}
    for metric, observed, sampled in zip(ACCURACIES, both(counts[None]), both(drawn), strict=True):
        low, high = np.quantile(sampled, ends)
        rarer = float(min((sampled <= 0).sum(), (sampled >= 0).sum()) + 1) / (RESAMPLES + 1)
        p = 2 * rarer
        if groups is not None:  # the error at which `tails` would be this share
            units = len(counts)
            p = 2 * stats.t.sf(-stats.norm.ppf(min(rarer, 0.5)) * math.sqrt((units - 1) / units), units - 1)
        result[metric] = Interval(float(observed[0]), float(low), float(high), min(1.0, float(p)))
    return result


def wilcoxon(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p value of Wilcoxon's signed-rank test over pairs; 1 where all are equal, NaN for fewer than two."""
    if len(first) < 2:
        return math.nan
    if not (first - second).any():
        return 1.0
    return float(stats.wilcoxon(first, second).pvalue)


def least_p(n: int) -> float:
    """The least two-sided p value that Wilcoxon's test can give for n pairs: all differences of one sign."""
    return min(1.0, 2.0 ** (1 - n))


def holm(values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down correction: times the number of hypotheses not yet rejected, never below one before it.

    A p value of NaN, of a test that was not done, counts as none and stays NaN.
    """
    p = np.asarray(values, dtype=float)
    order = np.argsort(p)  # NaN come last
    left = np.count_nonzero(~np.isnan(p)) - np.arange(len(p))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(left * p[order]), 1.0)
    return corrected.tolist()


def compare(section: Section, predictions: Sequence[pd.DataFrame], metric: str) -> list[Comparison]:
    """Compare the best cell and the baseline with every other cell that has finished runs; one has to be complete.

    The best is that of `metric`; predictions are each cell's, as `read_predictions` reads them. Holm's correction is
    over all pairs of the section, for each metric and each test by itself.
    """
    best, baseline = section.best(metric), section.baseline
    others = [number for number, cell in enumerate(section.cells) if cell.runs]
    pairs = [(best, other) for other in others if other != best]
    pairs += [(other, baseline) for other in others if baseline != best and other not in (best, baseline)]
    return _corrected([comparison for pair in pairs for comparison in _pair(section, predictions, *pair)])


def compare_with_baselines(section: Section, predictions: Sequence[pd.DataFrame]) -> list[Comparison]:
    """Compare each network's cell with the baselines that read what it reads; Holm's correction is over these pairs."""
    pairs = section.held_against
    return _corrected([comparison for pair in pairs for comparison in _pair(section, predictions, *pair)])


def _corrected(found: list[Comparison]) -> list[Comparison]:
    """The comparisons with their p values after Holm's correction."""
    for name in ACCURACIES:
        indices = [index for index, comparison in enumerate(found) if comparison.metric == name]
        of_bootstrap = holm([b.p if (b := found[index].bootstrap) else math.nan for index in indices])
        of_wilcoxon = holm([found[index].wilcoxon for index in indices])
        for index, p, q in zip(indices, of_bootstrap, of_wilcoxon, strict=True):
            found[index] = found[index]._replace(bootstrap_holm=p, wilcoxon_holm=q)
    return found


def _pair(section: Section, predictions: Sequence[pd.DataFrame], first: int, second: int) -> list[Comparison]:
    alike = ["seed", "fold", "drawn", "repeat"]
    ours, theirs = predictions[first], predictions[second]
    if section.cells[first].is_baseline or section.cells[second].is_baseline:  # the same for each seed
        alike = ["fold", "drawn"]
        ours, theirs = _over_seeds(ours), _over_seeds(theirs)
    common = ours.merge(theirs, left_index=True, right_index=True, suffixes=("_first", "_second"))
    common = common[common["emotion_first"] == common["emotion_second"]]
    bootstrap: dict[str, Interval] = {}
    means = common.groupby("id").agg(
        emotion=("emotion_first", "first"),
        speaker=("speaker_first", "first"),
        first=("correct_first", "mean"),
        second=("correct_second", "mean"),
    )
    resampled = unit_of(means["speaker"].to_numpy())
    if len(means):
        emotions, speakers, own, other = (means[name].to_numpy() for name in means)
        groups = speakers if resampled == "speakers" else None
        bootstrap = paired_bootstrap(emotions, own, other, groups=groups)
    comparisons = []
    runs = section.table[section.table["cell"].isin([first, second])]
    for metric in ACCURACIES:
        by_run = runs.pivot_table(f"test/{metric}", alike, "cell", sort=False)
        values = by_run.dropna().groupby(alike[-1] if "repeat" in alike else alike).mean()
        p = wilcoxon(values[first].to_numpy(), values[second].to_numpy())
        found = bootstrap.get(metric)
        comparisons.append(Comparison(first, second, metric, len(means), resampled, found, len(values), p))
    return comparisons


def _over_seeds(predictions: pd.DataFrame) -> pd.DataFrame:
    """What `read_predictions` gives, with the mean over the seeds of how often each utterance is right."""
    merged = predictions.groupby(level=["fold", "drawn", "id"])
    return merged.agg(speaker=("speaker", "first"), emotion=("emotion", "first"), correct=("correct", "mean"))


def read_predictions(runs: Sequence[Run]) -> tuple[pd.DataFrame, list[str]]:
    """The predictions of a cell's runs.

    Returns:
        Indexed by `seed`, `fold`, `drawn`, `id`: `speaker`, `emotion`, `predicted`, `correct`. And the problems, in
        sentences: a run whose predictions cannot be read, or are not those that its metrics.json was computed from, is
        left out.
    """
    tables, problems = [], []
    for run in runs:
        path = run.directory.predictions
        try:
            table = run.directory.read_predictions()
        except (InputError, OSError, ValueError) as error:
            problems.append(
                f"{path}: cannot be read ({' '.join(str(error).split())}); left out of what needs utterances."
            )
            continue
        table["correct"] = (table["emotion"] == table["predicted"]).astype(float)
        if not table["id"].is_unique or abs(table["correct"].mean() - run.metrics["test/wa"]) > 1e-4:
            problems.append(
                f"{path}: does not belong to the metrics.json beside it (WA {table['correct'].mean():.4f} here, "
                f"{run.metrics['test/wa']:.4f} there); left out of what needs utterances."
            )
            continue
        seed, fold, drawn = repeat_of(run)
        tables.append(table.assign(seed=seed, fold=fold, drawn=drawn))
    columns = ["seed", "fold", "drawn", *PREDICTED, "correct"]
    whole = pd.concat(tables) if tables else pd.DataFrame(columns=columns)
    return whole.set_index(columns[:4]), problems
