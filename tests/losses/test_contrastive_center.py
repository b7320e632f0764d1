"""Contrastive-center loss against plain loops, in both forms."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fourm_ser.errors import InputError
from fourm_ser.losses.contrastive_center import ContrastiveCenterLoss
from tests.losses.common import Case, assert_is_formula, cases
from tests.losses.test_center import squared


def built(case: Case, form: str, delta: float) -> ContrastiveCenterLoss:
    loss = ContrastiveCenterLoss(form=form, delta=delta, on=["embedding"], learning_rate=0.5)
    return loss.setup(case.classes, {"embedding": case.dim}, [1] * case.classes)


def distances(case: Case, embedding: Any, centers: Any) -> list[tuple[float, float]]:
    """Of each utterance: to its centre, and summed over the others."""
    found = []
    for row, label in zip(embedding, case.labels, strict=True):
        others = sum(squared(row, center) for index, center in enumerate(centers) if index != label)
        found.append((squared(row, centers[label]), others))
    return found


@given(cases(), st.floats(0.1, 2))
@settings(max_examples=30, deadline=None)
def test_contrastive_center_loss_is_its_formula(case: Case, delta: float) -> None:
    def plain(_: Any, embedding: Any, centers: Any) -> float:
        found = distances(case, embedding, centers)
        return sum(0.5 * own / (others + delta) for own, others in found) / len(found)

    loss = built(case, "published", delta)
    assert_is_formula(loss, case, plain, loss.centers["embedding"])


@given(cases())
@settings(max_examples=30, deadline=None)
def test_the_4m_ser_form_is_one_quotient_of_the_whole_batch(case: Case) -> None:
    def plain(_: Any, embedding: Any, centers: Any) -> float:
        found = distances(case, embedding, centers)
        own, others = sum(pair[0] for pair in found), sum(pair[1] for pair in found)
        return own / (others + 1e-6) / 0.1 / 2 / len(found)

    assume(sum(pair[1] for pair in distances(case, case.embedding, case.vectors)) > 0.1)
    loss = built(case, "4m_ser", 1.0)
    assert_is_formula(loss, case, plain, loss.centers["embedding"])


def test_one_utterance_in_the_4m_ser_form_is_ten_times_the_published_one() -> None:
    case = Case(torch.zeros(1, 3).numpy(), torch.randn(1, 4).numpy(), torch.randn(3, 4).numpy(), [1])
    values = []
    for form, delta in (("published", 1e-6), ("4m_ser", 1.0)):
        loss = built(case, form, delta)
        with torch.no_grad():
            loss.centers["embedding"].copy_(torch.tensor(case.vectors))
        given = {"embedding": torch.tensor(case.embedding)}
        values.append(loss(torch.tensor(case.logits), given, torch.tensor(case.labels))["total"].item())
    assert values[1] == pytest.approx(10 * values[0], rel=1e-5)


def test_a_delta_that_is_not_positive_and_an_unknown_form_are_refused() -> None:
    def refused(form: str, delta: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            ContrastiveCenterLoss(form=form, delta=delta, on=["embedding"], learning_rate=0.5)

    for delta in (0.0, -1.0, None):
        refused("published", delta, rf"loss\.delta={delta}.*expected a number greater than 0")
    refused("other", 1.0, r"loss\.form=other")
