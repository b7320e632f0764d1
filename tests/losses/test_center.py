"""Center loss against plain loops, in both forms."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings

from fourm_ser.errors import InputError
from fourm_ser.losses.center import CenterLoss
from tests.losses.common import Case, assert_is_formula, cases


def built(case: Case, form: str = "published") -> CenterLoss:
    return CenterLoss(form, ["embedding"], 0.5).setup(case.classes, {"embedding": case.dim}, [1] * case.classes)


def squared(first: Any, second: Any) -> float:
    return sum((float(a) - float(b)) ** 2 for a, b in zip(first, second, strict=True))


@given(cases())
@settings(max_examples=30, deadline=None)
def test_center_loss_is_its_formula(case: Case) -> None:
    def plain(_: Any, embedding: Any, centers: Any) -> float:
        return sum(0.5 * squared(row, centers[label]) for row, label in zip(embedding, case.labels, strict=True)) / len(
            case.labels
        )

    loss = built(case)
    assert_is_formula(loss, case, plain, loss.centers["embedding"])


@given(cases())
@settings(max_examples=30, deadline=None)
def test_the_4m_ser_form_is_a_distance_of_the_whole_batch(case: Case) -> None:
    def plain(_: Any, embedding: Any, centers: Any) -> float:
        total = sum(squared(row, centers[label]) for row, label in zip(embedding, case.labels, strict=True))
        return math.sqrt(total) / 2 / len(case.labels)

    assume(plain(None, case.embedding, case.vectors) > 0.05)  # at 0 it has an edge, and no gradient
    loss = built(case, "4m_ser")
    assert_is_formula(loss, case, plain, loss.centers["embedding"])


@pytest.mark.parametrize("form", ["published", "4m_ser"])
def test_a_batch_on_its_centres_has_no_gradient(form: str) -> None:
    loss = CenterLoss(form, ["embedding"], 0.5).setup(3, {"embedding": 4}, [1] * 3)
    labels = torch.tensor([0, 2, 2])
    embedding = loss.centers["embedding"].detach()[labels].requires_grad_()
    total = loss(torch.zeros(3, 3), {"embedding": embedding}, labels)["total"]
    assert total.item() == 0
    for gradient in torch.autograd.grad(total, [embedding, loss.centers["embedding"]]):
        assert (gradient == 0).all()


def test_trained_centres_are_the_class_means() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([0, 1, 3, 3, 1, 0, 3])
    embedding = rng.normal(0, 1, (len(labels), 5))
    loss = CenterLoss("published", ["embedding"], 0.5).setup(4, {"embedding": 5}, [1] * 4)
    absent = loss.centers["embedding"][2].detach().clone()
    optimizer = torch.optim.SGD(loss.groups(), lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        given = {"embedding": torch.tensor(embedding)}
        torch.autograd.backward(loss(torch.zeros(7, 4), given, torch.tensor(labels))["total"])
        optimizer.step()
    centers = loss.centers["embedding"].detach()
    for label in set(labels.tolist()):
        np.testing.assert_allclose(centers[label].numpy(), embedding[labels == label].mean(0), atol=1e-4)
    assert torch.equal(centers[2], absent)


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(InputError, match=r"loss\.form=squared: expected one of published, 4m_ser\."):
        CenterLoss("squared", ["embedding"], 0.5)
