"""Canonical correlations between two sets of features, fitted on some utterances and measured on others."""

from typing import NamedTuple

import numpy as np

from fourm_ser.analysis.reduction import unit

TINY = 1e-10  # a share of the largest, below which what varies is rounding


class Canonical(NamedTuple):
    """Directions of two sets of features along which they correlate most.

    Attributes:
        means: (width,) mean of each set, which is taken off before projecting.
        directions: (width, pairs) directions of each set.
        correlations: (pairs,) correlations on what the directions were fitted to, as the ridge leaves them, descending.
    """

    means: tuple[np.ndarray, np.ndarray]
    directions: tuple[np.ndarray, np.ndarray]
    correlations: np.ndarray

    def project(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, width) of each set -> the canonical variates, (n, pairs) of each."""
        return (first - self.means[0]) @ self.directions[0], (second - self.means[1]) @ self.directions[1]


def fit_canonical(
    first: np.ndarray, second: np.ndarray, components: int | None = None, regularisation: float = 0.0
) -> Canonical:
    """Canonical correlation analysis (Hotelling 1936) with a ridge (Vinod 1976), after principal components.

    Each set is brought to its leading principal components. A share of their mean variance is added to the variance of
    each, so that directions in which a set hardly varies cannot correlate by chance alone. The pairs of directions
    are the singular vectors of the covariance between the sets thus whitened. Turning or scaling a set changes nothing.

    Args:
        first: (n, width) features of utterances.
        second: (n, width of its own) other features of the same utterances.
        components: the most principal components that are kept of each set; None for all that vary.
        regularisation: the share of the mean variance that is added as a ridge, from 0.

    Returns:
        As many pairs as the smaller set has components; none where a set does not vary.
    """
    whitening = []
    for vectors in (first, second):
        centred = vectors - vectors.mean(0)
        _, scales, axes = np.linalg.svd(centred, full_matrices=False)
        kept = int((scales > TINY * max(scales[0], 1.0)).sum()) if len(scales) else 0
        kept = kept if components is None else min(kept, components)
        variances = scales[:kept] ** 2 / (len(vectors) - 1)
        ridge = regularisation * variances.mean() if kept else 0.0
        whitening.append(axes[:kept].T / np.sqrt(variances + ridge))
    means = first.mean(0), second.mean(0)
    white = (first - means[0]) @ whitening[0], (second - means[1]) @ whitening[1]
    left, correlations, right = np.linalg.svd(white[0].T @ white[1] / (len(first) - 1), full_matrices=False)
    return Canonical(means, (whitening[0] @ left, whitening[1] @ right.T), correlations)


class HeldOut(NamedTuple):
    """Canonical variates of utterances that their directions were not fitted to.

    Attributes:
        folds: (n,) the fold of each utterance.
        first: (n, pairs) variates of the first set; each fold's pairs are its own.
        second: (n, pairs) variates of the second set; each fold's pairs are its own.
        fitted: (folds, pairs) correlations on the utterances that each fold's directions were fitted to.
    """

    folds: np.ndarray
    first: np.ndarray
    second: np.ndarray
    fitted: np.ndarray

    def correlations(self, counts: np.ndarray | None = None) -> np.ndarray:
        """Correlations of the held-out variates: within each fold, and of the folds the mean by their size.

        Args:
            counts: (n, draws) times that each draw has each utterance; None for one draw that has each once.

        Returns:
            (draws, pairs); NaN where a draw has no two utterances of any fold that differ.
        """
        counts = np.ones((len(self.folds), 1)) if counts is None else counts
        total, weight = np.zeros((counts.shape[1], self.first.shape[1])), np.zeros((counts.shape[1], 1))
        for fold in np.unique(self.folds):
            own = self.folds == fold
            found = weighted_correlations(self.first[own], self.second[own], counts[own])
            size = counts[own].sum(0)[:, None] * np.isfinite(found).all(1, keepdims=True)
            total += np.where(size > 0, np.nan_to_num(found), 0.0) * size
            weight += size
        with np.errstate(invalid="ignore", divide="ignore"):
            return total / weight


def weighted_correlations(first: np.ndarray, second: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Pearson's correlation of column with column, (n, pairs) each, under counts (n, draws) -> (draws, pairs)."""
    # The correlation is that of any shift; near the mean the sums cancel least.
    first, second = first - first.mean(0), second - second.mean(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = counts / counts.sum(0)
        means = share.T @ first, share.T @ second
        covariance = share.T @ (first * second) - means[0] * means[1]
        variances = share.T @ first**2 - means[0] ** 2, share.T @ second**2 - means[1] ** 2
        product = variances[0] * variances[1]
        limit = TINY * (first**2).mean(0) * (second**2).mean(0)
        return np.where(product > limit, covariance / np.sqrt(product), np.nan)


def split_groups(groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Groups of utterances (n,) -> fold of each, from 0; a group stays in one fold, and folds have as many groups."""
    names, own = np.unique(groups, return_inverse=True)
    places = np.argsort(np.random.default_rng(seed).permutation(len(names)))
    return (places % folds)[own]


def hold_out(
    first: np.ndarray, second: np.ndarray, folds: np.ndarray, components: int, regularisation: float
) -> HeldOut:
    """Fit on all folds but one, project that one, for each; see `fit_canonical`."""
    projected, fitted = [], []
    for fold in np.unique(folds):
        rest = folds != fold
        variates = fit_canonical(first[rest], second[rest], components, regularisation).project(first, second)
        fitted.append(weighted_correlations(variates[0][rest], variates[1][rest], np.ones((rest.sum(), 1)))[0])
        projected.append((~rest, variates))
    pairs = min(map(len, fitted))
    held = np.zeros((2, len(folds), pairs))
    for own, variates in projected:
        held[:, own] = [side[own, :pairs] for side in variates]
    return HeldOut(folds, held[0], held[1], np.array([found[:pairs] for found in fitted]))


def rank_own(queries: np.ndarray, items: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The rank, from 1, of the item at each query's `own` position among all items, by cosine similarity.

    Queries (n, dim), items (m, dim) -> (n,); items that are as similar as the own one count half.
    """
    similarity = unit(queries) @ unit(items).T
    reached = similarity[np.arange(len(own)), own][:, None]
    above = (similarity > reached).sum(1)
    ties = (similarity == reached).sum(1) - 1
    return 1.0 + above + ties / 2
