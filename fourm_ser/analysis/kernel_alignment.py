"""Linear CKA (centred kernel alignment): how alike two sets of features see the same utterances."""

import numpy as np

BLOCK = 512  # rows of the Gram matrices held at once: of 10,000 utterances, 40 MB each


def linear_cka(first: np.ndarray, second: np.ndarray) -> float:
    """Linear CKA of Kornblith et al. (2019, https://arxiv.org/abs/1905.00414), equation 5's linear form.

    ||X'Y||^2 / (||X'X|| ||Y'Y||) in Frobenius norms, columns centred. It is 1 for sets that are equal up to a turn and
    a scale. Of n utterances in more dimensions than n it comes near 1 whatever the sets hold: see `debiased_cka`.

    Returns:
        From 0 to 1, of two sets (n, width) of features of the same utterances; NaN where a set does not vary.
    """
    first, second = (_centred(vectors) for vectors in (first, second))
    if len(first) < max(first.shape[1], second.shape[1]):  # the same norms, from the smaller matrices
        grams = first @ first.T, second @ second.T
        cross = (grams[0] * grams[1]).sum()
        norms = [np.linalg.norm(gram) for gram in grams]
    else:
        cross = np.linalg.norm(first.T @ second) ** 2
        norms = [np.linalg.norm(vectors.T @ vectors) for vectors in (first, second)]
    scale = float(norms[0] * norms[1])
    return float(cross / scale) if scale > 0 else float("nan")


def debiased_cka(first: np.ndarray, second: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """Linear CKA from the unbiased estimator of HSIC (Song et al. 2012), as Nguyen et al. (2021) use it.

    HSIC of Gram matrices K and L is the mean of K_ij L_ij, plus the mean of K_ij L_qr, less twice the mean of
    K_ij L_iq, over utterances that all differ. Of sets that have nothing in common its expectation is 0 however wide
    they are, and CKA made of it, HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), is about 0, or a little below.

    Under counts each utterance weighs as much as a draw has it, and an utterance that was drawn twice is still not
    compared with itself: its similarity to itself would raise every draw above the estimate.

    Args:
        first: (n, width) features of utterances.
        second: (n, width of its own) other features of the same utterances.
        counts: (n, draws) times that each draw has each utterance; None for one draw that has each once.

    Returns:
        (draws,), 1 at most but for rounding; NaN where a set does not vary or a draw has too few utterances.
    """
    first, second = (_scaled(_centred(vectors)) for vectors in (first, second))
    counts = np.ones((len(first), 1)) if counts is None else counts.astype(np.float64)
    names = ("xy", "xx", "yy")
    pairs, triples, own = ({name: np.zeros(counts.shape[1]) for name in names} for _ in range(3))
    sums = {name: np.zeros(counts.shape[1]) for name in "xy"}
    crossed = {name: np.zeros(counts.shape[1]) for name in names}
    squares = counts**2
    for start in range(0, len(first), BLOCK):
        rows = slice(start, start + BLOCK)
        gram = {"x": first[rows] @ first.T, "y": second[rows] @ second.T}
        own_rows = np.arange(len(gram["x"]))
        for matrix in gram.values():
            matrix[own_rows, start + own_rows] = 0.0
        reach = {name: matrix @ counts for name, matrix in gram.items()}
        for name in "xy":
            sums[name] += (counts[rows] * reach[name]).sum(0)
        for name in names:
            product = gram[name[0]] * gram[name[1]]
            met = product @ counts
            both = reach[name[0]] * reach[name[1]]
            pairs[name] += (counts[rows] * met).sum(0)  # w_i w_j K_ij L_ij
            own[name] += (squares[rows] * met).sum(0)  # w_i^2 w_j K_ij L_ij
            triples[name] += (counts[rows] * both).sum(0)  # w_i w_j w_q K_ij L_iq, with q = j among them
            # w_i^2 w_j w_q K_ij L_iq over j other than q: four times too often in the product of sums; and twice
            # w_i^2 w_j^2 K_ij L_ij.
            crossed[name] += (squares[rows] * (both - product @ squares / 2)).sum(0)
    one, two, three, four = ((counts**power).sum(0) for power in (1, 2, 3, 4))
    all_pairs = one**2 - two
    all_triples = one**3 - 3 * one * two + 2 * three
    all_fours = one**4 - 6 * one**2 * two + 3 * two**2 + 8 * one * three - 6 * four
    with np.errstate(invalid="ignore", divide="ignore"):
        independence = {
            name: pairs[name] / all_pairs
            + (sums[name[0]] * sums[name[1]] - 4 * crossed[name]) / all_fours
            - 2 * (triples[name] - own[name]) / all_triples
            for name in names
        }
        scale = np.sqrt(np.maximum(independence["xx"], 0.0) * np.maximum(independence["yy"], 0.0))
        return np.where(scale > 1e-12, independence["xy"] / scale, np.nan)


def draw_counts(n: int, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Bootstrap draws of n utterances with replacement: how often each was drawn, (n, draws)."""
    return generator.multinomial(n, np.full(n, 1 / n), size=draws).T


def _centred(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors - vectors.mean(0)


def _scaled(vectors: np.ndarray) -> np.ndarray:
    """At a mean square length of 1, which CKA does not see: limits on rounding mean the same for every set."""
    scale = np.sqrt((vectors**2).sum(1).mean())
    return vectors / scale if scale > 0 else vectors
