"""Bootstrap intervals: the metrics of resamples are those of torchmetrics, and the intervals those of a plain loop."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fourm_ser.errors import InputError
from fourm_ser.models.metrics import EmotionMetrics
from fourm_ser.runs.intervals import bootstrap, measure
from fourm_ser.runs.resampling import tails, unit_of

EMOTIONS = ["anger", "happiness", "sadness", "neutral"]


@pytest.fixture(scope="module")
def said() -> tuple[np.ndarray, np.ndarray]:
    """Labels, without any of the last class, and probabilities that are right more often than not."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(4, 0.7), 150)
    return np.where(rng.random(150) < 0.6, probabilities.argmax(1), rng.integers(0, 3, 150)) % 3, probabilities


def by_torchmetrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    metrics = EmotionMetrics(EMOTIONS)
    logits = torch.from_numpy(probabilities).log()
    metrics.update(logits, torch.randn(len(labels), 2), torch.from_numpy(labels))
    return {name: value for name, value in metrics.compute().items() if name != "intra_inter"}


def test_metrics_are_those_of_torchmetrics_over_what_was_drawn(said: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = said
    times = np.random.default_rng(1).multinomial(150, np.full(150, 1 / 150), size=5)
    found = measure(labels, probabilities, EMOTIONS, times.astype(float))
    for number, counts in enumerate(times):
        drawn = np.repeat(np.arange(150), counts)
        expected = by_torchmetrics(labels[drawn], probabilities[drawn])
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert found[name][number] == pytest.approx(value, abs=1e-5, nan_ok=True)


def test_intervals_are_those_of_a_plain_loop_and_cover_the_value(said: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = said
    found = bootstrap(labels, probabilities, EMOTIONS, resamples=4000, seed=0)
    value = by_torchmetrics(labels, probabilities)
    assert set(found) == set(value)
    assert math.isnan(found["recall/neutral"][0])
    rng, right = np.random.default_rng(5), probabilities.argmax(1) == labels
    loop = [right[rng.integers(0, 150, 150)].mean() for _ in range(4000)]
    assert found["wa"] == pytest.approx(np.quantile(loop, [0.025, 0.975]), abs=0.01)
    for name, (low, high) in found.items():
        if name != "recall/neutral":
            assert low < value[name] < high
    again = [bootstrap(labels, probabilities, EMOTIONS, resamples=200, seed=1)["ua"] for _ in range(2)]
    assert again[0] == again[1]


def test_what_is_always_right_has_no_width() -> None:
    found = bootstrap(np.array([0, 1] * 20), np.eye(2)[[0, 1] * 20], ["anger", "sadness"], resamples=100, seed=0)
    assert found["ua"] == found["wa"] == found["recall/anger"] == (1.0, 1.0)


def of_speakers(rng: np.random.Generator, speakers: int, each: int, spread: float) -> tuple[np.ndarray, ...]:
    """Labels and probabilities of two classes, and speakers, of whom 70% is recognised on average over speakers."""
    skill = np.clip(rng.normal(0.7, spread, speakers), 0, 1)
    groups = np.repeat(np.arange(speakers), each)
    labels = rng.integers(0, 2, speakers * each)
    right = rng.random(speakers * each) < skill[groups]
    return labels, np.eye(2)[np.where(right, labels, 1 - labels)], groups


@pytest.mark.slow(but=["5"])
@pytest.mark.parametrize("speakers", [5, 12])
def test_intervals_over_speakers_cover_what_holds_for_others_and_those_over_utterances_do_not(speakers: int) -> None:
    rng, covered = np.random.default_rng(speakers), {"speakers": 0, "utterances": 0}
    rounds = 150
    for number in range(rounds):
        labels, probabilities, groups = of_speakers(rng, speakers, 25, 0.15)
        for unit in covered:
            given = groups if unit == "speakers" else None
            low, high = bootstrap(labels, probabilities, ["a", "b"], resamples=300, seed=number, groups=given)["wa"]
            covered[unit] += low <= 0.7 <= high
    assert abs(covered["speakers"] / rounds - 0.95) < 3 * math.sqrt(0.95 * 0.05 / rounds)
    assert covered["utterances"] / rounds < 0.80


def test_intervals_over_speakers_are_those_of_a_plain_loop(said: tuple[np.ndarray, np.ndarray]) -> None:
    labels, probabilities = said
    names = np.array([f"speaker {place % 6}" for place in range(150)])
    found = bootstrap(labels, probabilities, EMOTIONS, resamples=4000, seed=0, groups=names)
    rng, right = np.random.default_rng(5), probabilities.argmax(1) == labels
    rows = {name: right[names == name] for name in np.unique(names)}
    loop = [np.concatenate([rows[name] for name in rng.choice(list(rows), 6)]).mean() for _ in range(4000)]
    assert found["wa"] == pytest.approx(np.quantile(loop, tails(6)), abs=0.02)
    order = np.random.default_rng(1).permutation(150)
    again = bootstrap(labels[order], probabilities[order], EMOTIONS, resamples=4000, seed=0, groups=names[order])
    assert all(again[name] == pytest.approx(found[name], nan_ok=True) for name in found)


def test_few_units_move_the_ends_outwards_by_student_s_t() -> None:
    for units in (2, 5, 30):
        low, high = tails(units)
        assert -stats.norm.ppf(low) == pytest.approx(stats.t.ppf(0.975, units - 1) * math.sqrt(units / (units - 1)))
        assert high == 1 - low
    assert tails(100_000) == pytest.approx((0.025, 0.975), abs=1e-5)


@pytest.mark.parametrize(
    ("speakers", "wanted", "unit"),
    [
        (1, "auto", "utterances"),
        (4, "auto", "utterances"),
        (5, "auto", "speakers"),
        (40, "auto", "speakers"),
        (2, "speakers", "speakers"),
        (40, "utterances", "utterances"),
        (1, "utterances", "utterances"),
    ],
)
def test_speakers_are_resampled_where_there_are_enough(speakers: int, wanted: str, unit: str) -> None:
    assert unit_of([str(place % speakers) for place in range(80)], wanted) == unit


def test_one_speaker_alone_is_not_resampled() -> None:
    with pytest.raises(InputError, match=r"resample=speakers: .* resample=utterances"):
        unit_of(["a", "a"], "speakers")
