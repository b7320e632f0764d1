"""Canonical correlations against other computations, what does not change them, and what they are on held-out data."""

import numpy as np
import pytest
from sklearn.cross_decomposition import CCA

from fourm_ser.analysis.canonical import (
    HeldOut,
    fit_canonical,
    hold_out,
    rank_own,
    split_groups,
    weighted_correlations,
)

Pair = tuple[np.ndarray, np.ndarray]


def shared(n: int, noise: float, seed: int = 0, widths: tuple[int, int] = (8, 5)) -> Pair:
    """Two sets that see the same two latent values, each with noise of its own."""
    generator = np.random.default_rng(seed)
    latent = generator.normal(size=(n, 2))
    return tuple(  # type: ignore[return-value]
        latent @ generator.normal(size=(2, width)) + noise * generator.normal(size=(n, width)) + 3 for width in widths
    )


@pytest.fixture(scope="module")
def pair() -> Pair:
    return shared(120, noise=1.0)


def test_without_a_ridge_they_are_scikit_learn_s(pair: Pair) -> None:
    model = fit_canonical(*pair)
    theirs = CCA(n_components=3, tol=1e-10, max_iter=20000).fit_transform(*pair)
    expected = [np.corrcoef(theirs[0][:, place], theirs[1][:, place])[0, 1] for place in range(3)]
    assert model.correlations[:3] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_they_solve_the_eigenvalue_problem_of_the_ridge(pair: Pair, ridge: float) -> None:
    first, second = (vectors - vectors.mean(0) for vectors in pair)
    inverses = []
    for vectors in (first, second):
        covariance = np.cov(vectors.T)
        inverses.append(
            np.linalg.inv(covariance + ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))
        )
    cross = first.T @ second / (len(first) - 1)
    squares = np.linalg.eigvals(inverses[0] @ cross @ inverses[1] @ cross.T).real
    model = fit_canonical(*pair, regularisation=ridge)
    assert model.correlations == pytest.approx(np.sqrt(np.sort(squares)[::-1][:5]), abs=1e-8)


def test_variates_correlate_as_said_and_only_within_their_pair(pair: Pair) -> None:
    model = fit_canonical(*pair)
    first, second = model.project(*pair)
    both = np.corrcoef(first.T, second.T)[:5, 5:]
    assert both == pytest.approx(np.diag(model.correlations), abs=1e-8)


@pytest.mark.parametrize("components", [None, 3])
def test_turning_scaling_and_moving_a_set_changes_nothing(pair: Pair, components: int | None) -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))
    plain = fit_canonical(*pair, components, 0.1)
    turned = fit_canonical(40 * pair[0] @ turn - 7, pair[1] / 9, components, 0.1)
    assert turned.correlations == pytest.approx(plain.correlations)
    moved = turned.project(40 * pair[0] @ turn - 7, pair[1] / 9)
    for found, expected in zip(moved, plain.project(*pair), strict=True):
        spread = np.abs(expected).max(0) / np.abs(found).max(0)
        assert np.abs(found * spread) == pytest.approx(np.abs(expected), abs=1e-8)


def test_features_wider_than_there_are_utterances_are_borne() -> None:
    first, second = shared(40, noise=0.3, widths=(200, 90))
    assert fit_canonical(first, second).correlations == pytest.approx(1.0)  # any two sets so wide do
    held = hold_out(first, second, np.arange(40) % 4, components=4, regularisation=0.1)
    assert held.correlations()[0, 0] > 0.9


@pytest.mark.parametrize(("noise", "low", "high"), [(0.05, 0.97, 1.0), (None, -0.2, 0.2)])
def test_held_out_they_are_what_the_sets_share(noise: float | None, low: float, high: float) -> None:
    if noise is None:
        first, second = (np.random.default_rng(seed).normal(size=(300, 20)) for seed in (1, 2))
    else:
        first, second = shared(300, noise, widths=(20, 20))
    held = hold_out(first, second, np.arange(300) % 5, components=10, regularisation=0.0)
    values = held.correlations()[0]
    assert low <= values[0] <= high
    assert held.fitted[:, 0].mean() > max(0.3, values[0] - 0.05)  # chance flatters where they are fitted


def test_a_fold_is_projected_by_the_others_alone() -> None:
    first, second = shared(60, noise=0.5)
    folds = np.arange(60) % 3
    held = hold_out(first, second, folds, 4, 0.1)
    disturbed = first.copy()
    disturbed[folds == 1] = np.random.default_rng(0).normal(size=(20, 8))
    other = hold_out(disturbed, second, folds, 4, 0.1)
    assert (other.second[folds == 1] == held.second[folds == 1]).all()
    assert not np.allclose(other.second[folds == 0], held.second[folds == 0])


def test_counts_stand_for_repeated_rows(pair: Pair) -> None:
    first, second = pair[0][:30, :3], pair[1][:30, :3]
    counts = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=4).T
    found = weighted_correlations(first, second, counts)
    for draw in range(4):
        rows = np.repeat(np.arange(30), counts[:, draw])
        expected = [np.corrcoef(first[rows, place], second[rows, place])[0, 1] for place in range(3)]
        assert found[draw] == pytest.approx(expected)
    held = HeldOut(np.arange(30) % 2, first, second, np.zeros((2, 3)))
    parts = [weighted_correlations(first[own::2], second[own::2], counts[own::2]) for own in (0, 1)]
    sizes = np.array([counts[own::2].sum(0) for own in (0, 1)])[..., None]
    assert held.correlations(counts) == pytest.approx((sizes * parts).sum(0) / 30)


def test_what_does_not_vary_has_no_correlation() -> None:
    constant = np.ones((20, 3))
    assert fit_canonical(constant, np.random.default_rng(0).normal(size=(20, 3))).correlations.shape == (0,)
    assert np.isnan(weighted_correlations(constant, np.arange(60.0).reshape(20, 3), np.ones((20, 1)))).all()


def test_a_group_stays_in_one_fold_and_folds_have_as_many() -> None:
    groups = np.array([f"sentence {number % 12}" for number in range(60)])
    folds = split_groups(groups, 4, seed=0)
    assert all(
        len({fold for fold, own in zip(folds, groups, strict=True) if own == group}) == 1 for group in set(groups)
    )
    assert np.bincount(folds).tolist() == [15, 15, 15, 15]
    assert (split_groups(groups, 4, seed=0) == folds).all()
    assert (split_groups(groups, 4, seed=1) != folds).any()


def test_the_rank_of_an_own_item_counts_those_that_are_nearer() -> None:
    generator = np.random.default_rng(0)
    queries, items = generator.normal(size=(6, 3)), generator.normal(size=(9, 3))
    own = np.array([0, 3, 3, 8, 1, 5])
    ranks = rank_own(queries, items, own)
    for query, place, rank in zip(queries, own, ranks, strict=True):
        cosines = [query @ item / np.linalg.norm(query) / np.linalg.norm(item) for item in items]
        assert rank == 1 + sum(cosine > cosines[place] for cosine in cosines)
    assert rank_own(np.ones((1, 2)), np.ones((5, 2)), np.array([2])).tolist() == [3.0]
