"""Focal loss against plain loops."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourm_ser.errors import InputError
from fourm_ser.losses.cross_entropy import CrossEntropyLoss
from fourm_ser.losses.focal import FocalLoss
from tests.losses.common import Case, assert_is_formula, cases, log_softmax


@given(
    cases(),
    st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 5.0]),
    st.lists(st.floats(0.125, 10, width=32), min_size=4, max_size=4) | st.none(),
)
@settings(max_examples=30, deadline=None)
def test_focal_loss_is_its_formula(case: Case, gamma: float, weights: list[float] | None) -> None:
    weights = None if weights is None else weights[: case.classes]
    alphas = weights or [1.0] * case.classes

    def plain(logits: Any, *_: Any) -> float:
        total = 0.0
        for row, label in zip(logits, case.labels, strict=True):
            log_p = log_softmax(row)[label]
            total -= alphas[label] * (1 - math.exp(log_p)) ** gamma * log_p
        return total / len(case.labels)

    loss = FocalLoss(gamma, weights).setup(case.classes, {}, [1] * case.classes)
    assert_is_formula(loss, case, plain)


def test_gamma_0_is_cross_entropy() -> None:
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 3, 0])
    focal = FocalLoss(0.0, None).setup(4, {}, [1] * 4)(logits, {}, labels)
    torch.testing.assert_close(focal["focal"], CrossEntropyLoss(0.0, None)(logits, {}, labels)["ce"])


@pytest.mark.parametrize(("gamma", "gap"), [(0.0, 1000.0), (0.1, 20.0), (0.5, 1000.0), (2.0, 20.0)])
def test_certain_utterances_have_a_finite_gradient(gamma: float, gap: float) -> None:
    logits = torch.tensor([[gap, 0.0], [0.0, gap]], requires_grad=True)
    right = FocalLoss(gamma, None)(logits, {}, torch.tensor([0, 1]))["total"]
    wrong = FocalLoss(gamma, None)(logits, {}, torch.tensor([1, 0]))["total"]
    assert right.item() == pytest.approx(0, abs=1e-6)
    assert wrong.item() == pytest.approx(gap, rel=1e-5)
    (gradient,) = torch.autograd.grad(right, logits, retain_graph=True)
    assert gradient.abs().max() < 1e-6
    (gradient,) = torch.autograd.grad(wrong, logits)
    torch.testing.assert_close(gradient, torch.tensor([[0.5, -0.5], [-0.5, 0.5]]))


def test_a_negative_gamma_is_refused() -> None:
    def refused(gamma: Any) -> None:
        with pytest.raises(InputError, match=rf"loss\.gamma={gamma}: expected a number, 0 or more"):
            FocalLoss(gamma, None)

    for gamma in (-0.1, float("inf"), "two", None, True):
        refused(gamma)


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"loss\.class_weights=even"):
        FocalLoss(2.0, "even")
    with pytest.raises(InputError, match=r"loss\.class_weights=.*expected 4 numbers"):
        FocalLoss(2.0, [1.0]).setup(4, {}, [1] * 4)
