"""How sure test metrics are: bootstrap intervals over the tested speakers, or over utterances."""

from collections.abc import Sequence

import numpy as np

from fourm_ser.models.metrics import BINS
from fourm_ser.runs.resampling import LEVEL, tails

CHUNK = 200_000  # utterances drawn at a time, over resamples


def measure(
    labels: np.ndarray, probabilities: np.ndarray, emotions: Sequence[str], times: np.ndarray
) -> dict[str, np.ndarray]:
    """`ua`, `wa`, `f1_macro`, `f1_weighted`, `ece` and `recall/<emotion>` of utterances that count several times.

    Args:
        labels: (n,) class indices.
        probabilities: (n, classes).
        emotions: the classes in the order of their indices.
        times: (resamples, n), how often each utterance counts.

    Returns:
        (resamples,) each; NaN for the recall of a class that does not occur.
    """
    classes, predicted, confidence = len(emotions), probabilities.argmax(1), probabilities.max(1)
    # (resamples, classes, classes): rows are the labels, columns the predictions
    counts = (times @ np.eye(classes**2)[labels * classes + predicted]).reshape(-1, classes, classes)
    total, hits = counts.sum((1, 2)), np.einsum("rcc->rc", counts)
    support, chosen = counts.sum(2), counts.sum(1)
    with np.errstate(invalid="ignore"):
        recall = hits / support
        f1 = 2 * hits / (support + chosen)  # NaN for a class that neither occurs nor is predicted
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    in_bin = np.eye(BINS)[bins]
    right = (predicted == labels).astype(float)
    gaps = np.abs(times @ (in_bin * right[:, None]) - times @ (in_bin * confidence[:, None]))  # (resamples, bins)
    return {
        "ua": np.nanmean(recall, axis=1),
        "wa": hits.sum(1) / total,
        "f1_macro": np.nanmean(f1, axis=1),
        "f1_weighted": (np.nan_to_num(f1) * support).sum(1) / total,
        "ece": gaps.sum(1) / total,
        **{f"recall/{emotion}": recall[:, place] for place, emotion in enumerate(emotions)},
    }


def bootstrap(
    labels: np.ndarray,
    probabilities: np.ndarray,
    emotions: Sequence[str],
    *,
    resamples: int,
    seed: int,
    groups: Sequence[str] | np.ndarray | None = None,
) -> dict[str, tuple[float, float]]:
    """95% intervals of the metrics, by resampling whole groups of utterances, or utterances.

    Groups are taken to be independent, see `tails` for their quantiles; without any, utterances are, and the intervals
    are percentile intervals. The calibration error of a resample is larger than that of the sample, whose utterances it
    repeats: its interval is moved by the mean difference (and does not go below 0).

    Args:
        labels, probabilities, emotions: see `measure`.
        resamples: how many.
        seed: of the draws.
        groups: (n,) speakers, each of whom is drawn with all utterances; None resamples utterances.

    Returns:
        Low and high by metric; NaN for the recall of a class that does not occur.
    """
    n, rng = len(labels), np.random.default_rng(seed)
    unit = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    units = int(unit.max()) + 1
    ends = ((1 - LEVEL) / 2, (1 + LEVEL) / 2) if groups is None else tails(units)
    drawn: dict[str, list[np.ndarray]] = {}
    left = resamples
    while left:
        rows = min(left, max(1, CHUNK // n))
        times = rng.multinomial(units, np.full(units, 1 / units), size=rows).astype(float)[:, unit]
        for name, values in measure(labels, probabilities, emotions, times).items():
            drawn.setdefault(name, []).append(values)
        left -= rows
    observed = measure(labels, probabilities, emotions, np.ones((1, n)))
    found = {}
    for name, parts in drawn.items():
        values = np.concatenate(parts)
        values = values[~np.isnan(values)]
        if np.isnan(observed[name][0]) or not len(values):
            found[name] = (np.nan, np.nan)
            continue
        low, high = np.quantile(values, ends)
        if name == "ece":
            bias = values.mean() - observed[name][0]
            low, high = max(0.0, low - bias), high - bias
        found[name] = (float(low), float(high))
    return found
