"""Losses: value and gradient against plain loops in float64."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fourm_ser.errors import InputError
from fourm_ser.losses.base import Loss
from fourm_ser.losses.center import CenterLoss
from fourm_ser.losses.composite import SumLoss
from fourm_ser.losses.cross_entropy import CrossEntropyLoss
from fourm_ser.network import NetworkOutput

CLASSES, DIM = 4, 5
COUNTS = [10, 30, 0, 60]
LABELS = [0, 1, 3, 3, 1, 0, 3]

rng = np.random.default_rng(0)
LOGITS = rng.normal(0, 2, (len(LABELS), CLASSES))
EMBEDDING = rng.normal(0, 1, (len(LABELS), DIM))


def output(logits: np.ndarray = LOGITS, embedding: np.ndarray = EMBEDDING) -> NetworkOutput:
    tensors = [torch.tensor(array, dtype=torch.float32).requires_grad_() for array in (logits, embedding)]
    return NetworkOutput(tensors[0], tensors[1], None, None, {})


def labels() -> Tensor:
    return torch.tensor(LABELS)


def numeric(function: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """The gradient of a function by central differences."""
    gradient = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[place] += step
        down[place] -= step
        gradient[place] = (function(up) - function(down)) / (2 * step)
    return gradient


def cross_entropy(logits: np.ndarray, weights: list[float], smoothing: float) -> float:
    """The mean over the batch, weighted by the labels' weights, of the cross-entropy with the smoothed target."""
    total = share = 0.0
    for row, label in zip(logits.tolist(), LABELS, strict=True):
        log_sum = math.log(sum(math.exp(value) for value in row))
        for index, value in enumerate(row):
            target = smoothing / CLASSES + (1 - smoothing) * (index == label)
            total += weights[index] * target * (log_sum - value)
        share += weights[label]
    return total / share


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("class_weights", [None, [1.0, 0.5, 2.0, 0.25], "balanced"])
def test_cross_entropy_is_a_plain_loop(smoothing: float, class_weights: Any) -> None:
    weights = {
        "None": [1.0] * CLASSES,
        "balanced": [100 / (4 * 10), 100 / (4 * 30), 0.0, 100 / (4 * 60)],
    }.get(str(class_weights), class_weights)
    loss = CrossEntropyLoss(CLASSES, DIM, COUNTS, smoothing, class_weights)
    given = output()
    found = loss(given, labels())
    assert set(found) == {"total", "ce"}
    assert found["ce"].item() == found["total"].item()
    assert found["total"].item() == pytest.approx(cross_entropy(LOGITS, weights, smoothing), rel=1e-5)
    (gradient,) = torch.autograd.grad(found["total"], given.logits)
    expected = numeric(lambda at: cross_entropy(at, weights, smoothing), LOGITS)
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-6)


def center(embedding: np.ndarray, centers: np.ndarray) -> float:
    total = 0.0
    for row, label in zip(embedding, LABELS, strict=True):
        total += 0.5 * sum(float(value) ** 2 for value in row - centers[label])
    return total / len(LABELS)


def test_center_loss_is_a_plain_loop() -> None:
    torch.manual_seed(0)
    loss = CenterLoss(CLASSES, DIM, COUNTS, learning_rate=0.5)
    assert loss.centers.shape == (CLASSES, DIM)
    centers = loss.centers.detach().double().numpy()
    given = output()
    found = loss(given, labels())
    assert set(found) == {"total", "center"}
    assert found["center"].item() == found["total"].item()
    assert found["total"].item() == pytest.approx(center(EMBEDDING, centers), rel=1e-5)
    to_embedding, to_centers = torch.autograd.grad(found["total"], [given.embedding, loss.centers])
    by_hand = np.zeros((CLASSES, DIM))
    for row, label in zip(EMBEDDING, LABELS, strict=True):
        by_hand[label] += (centers[label] - row) / len(LABELS)
    np.testing.assert_allclose(to_centers.numpy(), by_hand, atol=1e-6)
    np.testing.assert_allclose(to_centers.numpy(), numeric(lambda at: center(EMBEDDING, at), centers), atol=1e-6)
    np.testing.assert_allclose(to_embedding.numpy(), numeric(lambda at: center(at, centers), EMBEDDING), atol=1e-6)
    assert (to_centers[2] == 0).all()  # a class that does not occur


def test_trained_centres_are_the_class_means() -> None:
    loss = CenterLoss(CLASSES, DIM, COUNTS, learning_rate=0.5)
    optimizer = torch.optim.SGD(loss.groups(), lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        torch.autograd.backward(loss(output(), labels())["total"])
        optimizer.step()
    for label in set(LABELS):
        mean = EMBEDDING[np.array(LABELS) == label].mean(0)
        np.testing.assert_allclose(loss.centers[label].detach().numpy(), mean, atol=1e-4)


@pytest.mark.parametrize("kind", ["ce", "center"])
def test_losses_are_computed_in_float32(kind: str) -> None:
    loss: Loss = (
        CrossEntropyLoss(CLASSES, DIM, COUNTS, 0.0, None) if kind == "ce" else CenterLoss(CLASSES, DIM, COUNTS, 1.0)
    )
    half = NetworkOutput(torch.tensor(LOGITS).bfloat16(), torch.tensor(EMBEDDING).bfloat16(), None, None, {})
    rounded = NetworkOutput(half.logits.float(), half.embedding.float(), None, None, {})
    found, expected = (loss(given, labels())["total"] for given in (half, rounded))
    assert found.dtype == torch.float32
    assert found.item() == expected.item()


def terms() -> dict[str, Callable[..., Loss]]:
    return {
        "ce": partial(CrossEntropyLoss, label_smoothing=0.1, class_weights="balanced"),
        "center": partial(CenterLoss, learning_rate=0.5),
    }


def test_a_sum_is_weighted_and_names_its_terms() -> None:
    torch.manual_seed(0)
    loss = SumLoss(CLASSES, DIM, COUNTS, terms(), {"center": 0.3, "ce": 2.0})
    centers = loss.terms["center"].centers
    assert isinstance(centers, Tensor)
    first = cross_entropy(LOGITS, [2.5, 100 / 120, 0.0, 100 / 240], 0.1)
    second = center(EMBEDDING, centers.detach().double().numpy())
    given = output()
    found = loss(given, labels())
    assert set(found) == {"total", "ce", "center"}
    assert found["ce"].item() == pytest.approx(first, rel=1e-5)
    assert found["center"].item() == pytest.approx(second, rel=1e-5)
    assert found["total"].item() == pytest.approx(2.0 * first + 0.3 * second, rel=1e-5)
    to_logits, to_embedding = torch.autograd.grad(found["total"], [given.logits, given.embedding], retain_graph=True)
    torch.testing.assert_close(to_logits, 2.0 * torch.autograd.grad(found["ce"], given.logits)[0])
    torch.testing.assert_close(to_embedding, 0.3 * torch.autograd.grad(found["center"], given.embedding)[0])


def test_a_weight_of_zero_turns_a_term_off() -> None:
    found = SumLoss(CLASSES, DIM, COUNTS, terms(), {"ce": 1.0, "center": 0.0})(output(), labels())
    assert found["total"].item() == found["ce"].item()
    assert found["center"].item() > 0


def test_parameters_of_a_loss_have_a_learning_rate_of_their_own_and_no_decay() -> None:
    assert CrossEntropyLoss(CLASSES, DIM, COUNTS, 0.0, "balanced").groups() == []
    lone = CenterLoss(CLASSES, DIM, COUNTS, 0.25)
    (group,) = lone.groups()
    assert [id(parameter) for parameter in group["params"]] == [id(lone.centers)]
    assert (group["lr"], group["weight_decay"]) == (0.25, 0.0)
    both = SumLoss(CLASSES, DIM, COUNTS, terms(), {"ce": 1.0, "center": 0.01})
    (group,) = both.groups()
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in both.parameters()]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.0)
    optimizer = torch.optim.AdamW(both.groups(), lr=1e-3, weight_decay=0.1)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (0.5, 0.0)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 2.0, float("nan")])
def test_smoothing_out_of_bounds_is_refused(smoothing: float) -> None:
    with pytest.raises(InputError, match=r"loss\.label_smoothing="):
        CrossEntropyLoss(CLASSES, DIM, COUNTS, smoothing, None)


@pytest.mark.parametrize("class_weights", ["even", "", [], [1.0] * 3, [1.0] * 5])
def test_class_weights_that_do_not_fit_are_refused(class_weights: Any) -> None:
    with pytest.raises(InputError, match=r"loss\.class_weights=.*4 numbers"):
        CrossEntropyLoss(CLASSES, DIM, COUNTS, 0.0, class_weights)


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_a_learning_rate_that_is_not_positive_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match=r"loss\.learning_rate="):
        CenterLoss(CLASSES, DIM, COUNTS, rate)


@pytest.mark.parametrize(
    "weights", [{}, {"ce": 1.0}, {"ce": 1.0, "center": 1.0, "triplet": 1.0}, {"ce": 1.0, "x": 1.0}]
)
def test_weights_that_do_not_fit_the_terms_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"loss\.weights.*ce, center"):
        SumLoss(CLASSES, DIM, COUNTS, terms(), weights)


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(InputError, match=r"loss\.weights\.center=-0\.1"):
        SumLoss(CLASSES, DIM, COUNTS, terms(), {"ce": 1.0, "center": -0.1})
