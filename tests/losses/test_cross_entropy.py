"""Cross-entropy against plain loops."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourm_ser.errors import InputError
from fourm_ser.losses.cross_entropy import CrossEntropyLoss
from tests.losses.common import Case, assert_is_formula, cases, log_softmax

COUNTS = [10, 30, 0, 60]


def plain(case: Case, weights: list[float], smoothing: float) -> Any:
    """The mean over the batch, weighted by the labels' weights, of the cross-entropy with the smoothed target."""

    def value(logits: Any, *_: Any) -> float:
        total = share = 0.0
        for row, label in zip(logits, case.labels, strict=True):
            for index, log_p in enumerate(log_softmax(row)):
                target = smoothing / case.classes + (1 - smoothing) * (index == label)
                total -= weights[index] * target * log_p
            share += weights[label]
        return total / share

    return value


@given(cases(), st.floats(0, 0.9), st.lists(st.floats(0.125, 10, width=32), min_size=4, max_size=4) | st.none())
@settings(max_examples=30, deadline=None)
def test_cross_entropy_is_its_formula(case: Case, smoothing: float, weights: list[float] | None) -> None:
    weights = None if weights is None else weights[: case.classes]
    loss = CrossEntropyLoss(smoothing, weights).setup(case.classes, {}, [1] * case.classes)
    assert_is_formula(loss, case, plain(case, weights or [1.0] * case.classes, smoothing))


def test_balanced_classes_weigh_the_same_in_all() -> None:
    loss = CrossEntropyLoss(0.0, "balanced").setup(4, {}, COUNTS)
    assert loss.weights is not None
    for weight, count in zip(loss.weights.tolist(), COUNTS, strict=True):
        assert weight * count == pytest.approx(100 / 3 if count else 0)


def test_a_balanced_batch_of_a_class_that_training_lacks_is_a_number() -> None:
    loss = CrossEntropyLoss(0.1, "balanced").setup(4, {}, COUNTS)
    found = loss(torch.zeros(3, 4), {}, torch.tensor([2, 2, 2]))["ce"].item()
    spread = (100 / 30 + 100 / 90 + 1 + 100 / 180) / 4  # the mean weight
    assert found == pytest.approx((0.9 + 0.1 * spread) * math.log(4), rel=1e-6)


def test_what_cannot_smooth_or_weigh_is_refused() -> None:
    def refused(message: str, smoothing: Any = 0.0, weights: Any = None) -> None:
        with pytest.raises(InputError, match=message):
            CrossEntropyLoss(smoothing, weights).setup(4, {}, COUNTS)

    for smoothing in (-0.1, 1.0, 2.0, float("nan"), "little", None):
        refused(r"loss\.label_smoothing=.*from 0 to below 1", smoothing=smoothing)
    for weights in ("even", "", [], 2.0, [1.0, 0.0], [1.0, -1.0], [float("nan")], ["one"]):
        refused(r"loss\.class_weights.*expected .*(greater than 0|positive number)", weights=weights)
    for count in (1, 3, 5):
        refused(r"loss\.class_weights=.*expected 4 numbers", weights=[1.0] * count)
