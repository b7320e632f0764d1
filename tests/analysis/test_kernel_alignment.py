"""CKA against its formula on Gram matrices, what does not change it, and draws of it."""

from itertools import permutations

import numpy as np
import pytest

from fourm_ser.analysis.kernel_alignment import debiased_cka, draw_counts, linear_cka

RNG = np.random.default_rng(0)
FIRST = RNG.normal(size=(9, 5)) + 2
SECOND = FIRST[:, :3] + RNG.normal(size=(9, 3))


def centred_hsic(first: np.ndarray, second: np.ndarray) -> float:
    """Gretton et al. (2005): tr(K H L H) / (n - 1)^2."""
    n = len(first)
    centring = np.eye(n) - np.ones((n, n)) / n
    return float(np.trace(first @ first.T @ centring @ second @ second.T @ centring) / (n - 1) ** 2)


def unbiased_hsic(first: np.ndarray, second: np.ndarray) -> float:
    """Song et al. (2012), equation 5, by matrix products."""
    n, ones = len(first), np.ones(len(first))
    grams = [vectors @ vectors.T for vectors in (first, second)]
    k, l = (gram - np.diag(np.diag(gram)) for gram in grams)  # noqa: E741 - the paper's letters
    total = np.trace(k @ l) + (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
    return float((total - 2 / (n - 2) * (ones @ k @ l @ ones)) / (n * (n - 3)))


def mean_over_distinct(first: np.ndarray, second: np.ndarray, rows: list[int]) -> float:
    """HSIC as means over tuples of drawn rows, none of which is another's copy, by loops."""
    k, l = first @ first.T, second @ second.T  # noqa: E741
    pairs = [k[i, j] * l[i, j] for i, j in permutations(rows, 2) if i != j]
    triples = [k[i, j] * l[i, q] for i, j, q in permutations(rows, 3) if len({i, j, q}) == 3]
    fours = [k[i, j] * l[q, r] for i, j, q, r in permutations(rows, 4) if len({i, j, q, r}) == 4]
    return float(np.mean(pairs) + np.mean(fours) - 2 * np.mean(triples))


@pytest.mark.parametrize("rows", [9, 4])  # more utterances than dimensions, and fewer
def test_cka_is_the_normalised_hsic_of_centred_gram_matrices(rows: int) -> None:
    first, second = FIRST[:rows], SECOND[:rows]
    expected = centred_hsic(first, second) / np.sqrt(centred_hsic(first, first) * centred_hsic(second, second))
    assert linear_cka(first, second) == pytest.approx(expected)


def test_debiased_cka_is_the_unbiased_estimator_s() -> None:
    scale = np.sqrt(unbiased_hsic(FIRST, FIRST) * unbiased_hsic(SECOND, SECOND))
    assert debiased_cka(FIRST, SECOND) == pytest.approx([unbiased_hsic(FIRST, SECOND) / scale])


def test_under_counts_no_utterance_is_compared_with_its_copy() -> None:
    counts = np.array([2, 0, 1, 1, 2, 0, 1, 1, 0])
    rows = np.repeat(np.arange(9), counts).tolist()
    first, second = FIRST - FIRST.mean(0), SECOND - SECOND.mean(0)
    scale = np.sqrt(mean_over_distinct(first, first, rows) * mean_over_distinct(second, second, rows))
    expected = mean_over_distinct(first, second, rows) / scale
    assert debiased_cka(FIRST, SECOND, counts[:, None]) == pytest.approx([expected])


def test_blocks_of_rows_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = draw_counts(9, 3, np.random.default_rng(0))
    whole = debiased_cka(FIRST, SECOND, counts)
    monkeypatch.setattr("fourm_ser.analysis.kernel_alignment.BLOCK", 4)
    assert debiased_cka(FIRST, SECOND, counts) == pytest.approx(whole)


@pytest.mark.parametrize("cka", [linear_cka, lambda *sets: debiased_cka(*sets)[0]])
def test_turning_scaling_and_moving_a_set_changes_nothing(cka) -> None:  # type: ignore[no-untyped-def]
    turn, _ = np.linalg.qr(RNG.normal(size=(5, 5)))
    assert cka(70 * FIRST @ turn - 4, SECOND / 3) == pytest.approx(cka(FIRST, SECOND))
    assert cka(FIRST, 5 * FIRST @ turn) == pytest.approx(1.0)


def test_unrelated_wide_sets_look_alike_to_plain_cka_alone() -> None:
    first, second = (np.random.default_rng(seed).normal(size=(60, 700)) for seed in (1, 2))
    assert linear_cka(first, second) > 0.8
    assert abs(debiased_cka(first, second)[0]) < 0.05


def test_draws_spread_as_the_estimate_does_over_new_samples() -> None:
    generator = np.random.default_rng(3)
    loads = generator.normal(size=(3, 80)), generator.normal(size=(3, 60))

    def sample() -> list[np.ndarray]:
        latent = generator.normal(size=(60, 3))
        return [latent @ load + 2 * generator.normal(size=(60, load.shape[1])) for load in loads]

    estimates = [debiased_cka(*sample())[0] for _ in range(200)]
    draws = []
    for first, second in (sample() for _ in range(20)):
        draws.append(debiased_cka(first, second, draw_counts(60, 200, generator)) - debiased_cka(first, second))
    assert np.mean([part.std() for part in draws]) == pytest.approx(np.std(estimates), rel=0.35)
    assert abs(np.mean(draws)) < np.std(estimates) / 4  # copies compared with themselves would raise them all


def test_what_does_not_vary_has_no_cka() -> None:
    constant = np.ones((9, 4))
    assert np.isnan(linear_cka(FIRST, constant))
    assert np.isnan(debiased_cka(FIRST, constant)).all()
