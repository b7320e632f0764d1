"""Bootstrap intervals: the metrics of resamples are those of torchmetrics, and the intervals those of a plain loop."""

import math

import numpy as np
import pytest
import torch

from fourm_ser.intervals import intervals, measure
from fourm_ser.metrics import EmotionMetrics

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
    found = intervals(labels, probabilities, EMOTIONS, 4000, 0)
    value = by_torchmetrics(labels, probabilities)
    assert set(found) == set(value)
    assert math.isnan(found["recall/neutral"][0])
    rng, right = np.random.default_rng(5), probabilities.argmax(1) == labels
    loop = [right[rng.integers(0, 150, 150)].mean() for _ in range(4000)]
    assert found["wa"] == pytest.approx(np.quantile(loop, [0.025, 0.975]), abs=0.01)
    for name, (low, high) in found.items():
        if name != "recall/neutral":
            assert low < value[name] < high
    again = [intervals(labels, probabilities, EMOTIONS, 200, 1)["ua"] for _ in range(2)]
    assert again[0] == again[1]


def test_what_is_always_right_has_no_width() -> None:
    found = intervals(np.array([0, 1] * 20), np.eye(2)[[0, 1] * 20], ["anger", "sadness"], 100, 0)
    assert found["ua"] == found["wa"] == found["recall/anger"] == (1.0, 1.0)
