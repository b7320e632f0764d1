"""Metrics against scikit-learn and against formulas."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score
from torch import Tensor

from fourm_ser.models.metrics import DistanceRatio, EmotionMetrics

EMOTIONS = ["anger", "happiness", "sadness", "neutral", "fear"]


def draw(seed: int, count: int = 200, absent: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """Logits that lean to the labels, and labels among which the classes `absent` do not occur."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([label for label in range(5) if label not in absent], count)
    logits = rng.normal(0, 1, (count, 5))
    logits[np.arange(count), labels] += 0.8
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(labels)


def embed(logits: Tensor) -> Tensor:
    """An embedding (batch, 3) of its own for each row of logits."""
    return logits.float() @ torch.linspace(-1, 1, 15).reshape(5, 3)


def measured(logits: Tensor, labels: Tensor) -> dict[str, float]:
    metrics = EmotionMetrics(EMOTIONS)
    metrics.update(logits, embed(logits), labels)
    return metrics.compute()


@pytest.mark.parametrize("absent", [(), (2,), (0, 4)])
@pytest.mark.parametrize("seed", [0, 1])
def test_metrics_are_those_of_scikit_learn(seed: int, absent: tuple[int, ...]) -> None:
    logits, labels = draw(seed, absent=absent)
    guessed = logits.argmax(1)
    assert set(absent) <= set(guessed.tolist())  # guessed, though it does not occur
    found = measured(logits, labels)
    present = [label for label in range(5) if label not in absent]
    recalls = recall_score(labels, guessed, labels=range(5), average=None, zero_division=np.nan)
    assert set(found) == {
        "ua",
        "wa",
        "f1_macro",
        "f1_weighted",
        "ece",
        "intra_inter",
        *(f"recall/{name}" for name in EMOTIONS),
    }
    for label, emotion in enumerate(EMOTIONS):
        if label in absent:
            assert math.isnan(found[f"recall/{emotion}"])
        else:
            assert found[f"recall/{emotion}"] == pytest.approx(recalls[label])
    assert found["ua"] == pytest.approx(np.mean([recalls[label] for label in present]))
    assert found["wa"] == pytest.approx(accuracy_score(labels, guessed))
    assert found["f1_macro"] == pytest.approx(f1_score(labels, guessed, average="macro"))
    assert found["f1_weighted"] == pytest.approx(f1_score(labels, guessed, average="weighted"))
    if not absent:
        assert found["ua"] == pytest.approx(balanced_accuracy_score(labels, guessed))
    assert found["ua"] != pytest.approx(found["wa"], abs=1e-4)


def test_a_class_that_neither_occurs_nor_is_guessed_does_not_count() -> None:
    logits, labels = draw(0, absent=(2,))
    logits[:, 2] = -50.0
    found, guessed = measured(logits, labels), logits.argmax(1)
    assert math.isnan(found["recall/sadness"])
    assert found["ua"] == pytest.approx(recall_score(labels, guessed, average="macro"))
    assert found["f1_macro"] == pytest.approx(f1_score(labels, guessed, average="macro"))


def test_a_class_that_is_never_guessed_right_has_recall_zero() -> None:
    logits, labels = draw(0)
    logits[:, 2] = -50.0
    found = measured(logits, labels)
    assert found["recall/sadness"] == 0
    assert found["ua"] == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)))


def test_calibration_is_the_gap_of_confidence_and_accuracy_over_15_bins() -> None:
    logits, labels = draw(3, 500)
    probabilities = logits.double().softmax(1)
    confidence, guessed = probabilities.max(1)
    error = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            accuracy = (guessed == labels)[inside].double().mean()
            error += float(inside.double().mean() * (accuracy - confidence[inside].mean()).abs())
    assert measured(logits, labels)["ece"] == pytest.approx(error, abs=1e-5)
    assert error > 0.01


def test_batches_add_up_in_any_order() -> None:
    logits, labels = draw(0)
    expected = measured(logits, labels)
    metrics = EmotionMetrics(EMOTIONS)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    for rows in torch.split(order, [1, 60, 3, 136]):
        metrics.update(logits[rows], embed(logits[rows]), labels[rows])
    assert metrics.compute() == pytest.approx(expected, abs=1e-6)


def test_a_reset_forgets() -> None:
    metrics = EmotionMetrics(EMOTIONS)
    before, others = draw(0)
    metrics.update(before, embed(before), others)
    metrics.compute()
    metrics.reset()
    logits, labels = draw(1)
    metrics.update(logits, embed(logits), labels)
    assert metrics.compute() == pytest.approx(measured(logits, labels))


def test_half_precision_logits_are_taken() -> None:
    logits, labels = draw(0)
    half = logits.bfloat16()
    assert measured(half, labels) == pytest.approx(measured(half.float(), labels))


def distances(embedding: np.ndarray, labels: np.ndarray) -> float:
    """Mean distance to the class's mean, over that between the means of every two classes."""
    means = {label: embedding[labels == label].mean(0) for label in sorted(set(labels.tolist()))}
    within = [math.dist(row, means[label]) for row, label in zip(embedding, labels.tolist(), strict=True)]
    between = [math.dist(means[one], means[other]) for one, other in itertools.combinations(means, 2)]
    return float(np.mean(within) / np.mean(between))


@pytest.mark.parametrize("absent", [(), (2,), (0, 1, 4)])
def test_distance_ratio_is_its_formula_over_batches(absent: tuple[int, ...]) -> None:
    logits, labels = draw(5, absent=absent)
    embedding = 100 + embed(logits)
    ratio = DistanceRatio()
    for rows in torch.split(torch.randperm(200), [1, 60, 3, 136]):
        ratio.update(embedding[rows], labels[rows])
    expected = distances(embedding.double().numpy(), labels.numpy())
    assert float(ratio.compute()) == pytest.approx(expected, rel=1e-4)


def test_distance_ratio_of_one_class_is_unknown() -> None:
    ratio = DistanceRatio()
    ratio.update(torch.randn(4, 3), torch.tensor([2, 2, 2, 2]))
    assert math.isnan(float(ratio.compute()))


def test_distance_ratio_of_classes_whose_means_coincide_is_unknown() -> None:
    metric = DistanceRatio()
    metric.update(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), torch.tensor([0, 0, 1, 1]))
    assert math.isnan(float(metric.compute()))


def test_classes_on_one_point_each_have_distance_ratio_zero() -> None:
    ratio = DistanceRatio()
    ratio.update(torch.tensor([[1.0, 2, 3], [0, 0, 1], [1, 2, 3]]), torch.tensor([0, 1, 0]))
    assert float(ratio.compute()) == 0
