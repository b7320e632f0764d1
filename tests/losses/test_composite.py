"""Sums of losses: weighted, convex, learned."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from fourm_ser.errors import InputError
from fourm_ser.losses.base import Loss
from fourm_ser.losses.center import CenterLoss
from fourm_ser.losses.composite import SumLoss
from fourm_ser.losses.cross_entropy import CrossEntropyLoss
from fourm_ser.losses.focal import FocalLoss
from fourm_ser.losses.margin import CosineClassifier, MarginLoss

LABELS = torch.tensor([0, 1, 3, 3, 1, 0, 3])
DIMS = {"embedding": 5, "text": 3, "audio": 2}


def batch() -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(1)
    return torch.randn(7, 4).requires_grad_(), {
        name: torch.randn(7, dim).requires_grad_() for name, dim in DIMS.items()
    }


def made(
    terms: Mapping[str, Loss] | None = None,
    weighting: str = "sum",
    weights: Mapping[str, float] | None = None,
    alpha: float = 0.5,
    learning_rate: float = 0.125,
) -> SumLoss:
    terms = terms or {"ce": CrossEntropyLoss(0.1, "balanced"), "center": CenterLoss("published", ["embedding"], 0.5)}
    weights = dict.fromkeys(terms, 1.0) if weights is None else weights
    return SumLoss(terms=terms, weighting=weighting, weights=weights, alpha=alpha, learning_rate=learning_rate)


def set_up(loss: SumLoss) -> SumLoss:
    torch.manual_seed(0)
    return loss.setup(4, DIMS, [10, 30, 0, 60])


def margin(*on: str) -> MarginLoss:
    return MarginLoss(m1=1.0, m2=0.5, m3=0.0, scale=64.0, on=list(on) or ["embedding"], learning_rate=0.25)


@pytest.mark.parametrize(
    ("weighting", "weights"), [("sum", {"center": 0.3, "ce": 2.0}), ("convex", {"ce": 0.2, "center": 0.8})]
)
def test_a_sum_is_weighted_and_names_its_terms(weighting: str, weights: dict[str, float]) -> None:
    loss = set_up(made(weighting=weighting, weights=weights, alpha=0.2))
    logits, features = batch()
    found = loss(logits, features, LABELS)
    assert list(found) == ["total", "ce", "center"]
    for name, term in loss.losses.items():
        assert found[name].item() == term(logits, features, LABELS)["total"].item()
    expected = weights["ce"] * found["ce"].item() + weights["center"] * found["center"].item()
    assert found["total"].item() == pytest.approx(expected, rel=1e-6)
    inputs = [logits, features["embedding"]]
    to_logits, to_embedding = torch.autograd.grad(found["total"], inputs, retain_graph=True)
    ce, center = found["ce"], found["center"]
    torch.testing.assert_close(to_logits, weights["ce"] * torch.autograd.grad(ce, logits)[0])
    torch.testing.assert_close(to_embedding, weights["center"] * torch.autograd.grad(center, inputs[1])[0])


def test_a_learned_sum_is_its_formula() -> None:
    loss = set_up(made(weighting="learned")).double()
    assert loss.log_variances.tolist() == [0.0, 0.0]
    with torch.no_grad():
        loss.log_variances.copy_(torch.tensor([0.7, -1.2], dtype=torch.float64))
    logits, features = batch()
    found = loss(logits.double(), {name: value.double() for name, value in features.items()}, LABELS)
    assert list(found) == ["total", "ce", "center", "weight/ce", "weight/center"]
    first, second = found["ce"].item(), found["center"].item()
    assert found["total"].item() == pytest.approx(
        math.exp(-0.7) * first + 0.7 / 2 + math.exp(1.2) * second - 1.2 / 2, rel=1e-12
    )
    assert found["weight/ce"].item() == pytest.approx(math.exp(-0.7))
    assert found["weight/center"].item() == pytest.approx(math.exp(1.2))
    (gradient,) = torch.autograd.grad(found["total"], loss.log_variances)
    expected = [0.5 - math.exp(-0.7) * first, 0.5 - math.exp(1.2) * second]
    assert gradient.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_learned_weights_settle_at_half_the_inverse_of_their_terms(rate: float) -> None:
    loss = set_up(made(weighting="learned", learning_rate=rate))
    optimizer = torch.optim.Adam(loss.groups()[-1:], lr=1.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    logits, features = batch()
    lowest = math.inf
    for _ in range(300):
        optimizer.zero_grad()
        found = loss(logits, features, LABELS)
        lowest = min(lowest, found["weight/ce"].item(), found["weight/center"].item())
        torch.autograd.backward(found["total"], inputs=[loss.log_variances])
        optimizer.step()
        schedule.step()
    assert lowest > 0
    for name in ("ce", "center"):
        assert found[f"weight/{name}"].item() == pytest.approx(1 / (2 * found[name].item()), rel=1e-2)


def test_a_weight_of_zero_turns_a_term_off() -> None:
    loss = set_up(made(weights={"ce": 1.0, "center": 0.0}))
    logits, features = batch()
    found = loss(logits, features, LABELS)
    assert found["total"].item() == found["ce"].item()
    assert found["center"].item() > 0
    (gradient,) = torch.autograd.grad(found["total"], [loss.terms["center"].centers["embedding"]])  # type: ignore[index]
    assert (gradient == 0).all()  # not None: several processes wait for every parameter's gradient


def test_terms_on_several_features_are_named_after_them() -> None:
    drawn = CenterLoss("published", ["text", "audio"], 0.5)
    loss = set_up(made({"ce": CrossEntropyLoss(0.0, None), "draw": drawn}))
    logits, features = batch()
    found = loss(logits, features, LABELS)
    assert list(found) == ["total", "ce", "draw", "draw/text", "draw/audio"]
    assert found["draw"].item() == pytest.approx(found["draw/text"].item() + found["draw/audio"].item())
    outer = set_up(made({"all": loss, "focal": FocalLoss(2.0, None)}))
    named = ["total", "all", "focal", "all/ce", "all/draw", "all/draw/text", "all/draw/audio"]
    assert list(outer(logits, features, LABELS)) == named
    assert outer.on == ["text", "audio"]


@pytest.mark.parametrize("weighting", ["sum", "convex", "learned"])
def test_own_parameters_have_their_own_learning_rates_and_no_decay(weighting: str) -> None:
    terms = {"center": CenterLoss("published", ["embedding"], 0.5), "margin": margin("text")}
    loss = set_up(made(terms, weighting))
    groups = loss.groups()
    assert [group["lr"] for group in groups] == [0.5, 0.25] + [0.125] * (weighting == "learned")
    assert loss.learning_rate == (0.125 if weighting == "learned" else None)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in loss.parameters())
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)
    assert all(group["weight_decay"] == 0 for group in optimizer.param_groups)


def test_the_head_is_trained_where_a_term_that_counts_trains_it() -> None:
    ce, angular, draw = CrossEntropyLoss(0.0, None), margin(), CenterLoss("published", ["embedding"], 0.5)
    both = set_up(made({"ce": ce, "margin": angular}))
    assert both.uses_head
    assert both.classifier() is None
    without = set_up(made({"ce": ce, "margin": angular}, weights={"ce": 0.0, "margin": 1.0}))
    second = set_up(made({"center": draw, "text": margin("text"), "margin": angular}))
    for loss in (without, second):
        assert not loss.uses_head
        loss.check_classifier()
        found = loss.classifier()
        assert isinstance(found, CosineClassifier)
        assert found is angular.classifier()
    assert not set_up(made({"ce": ce, "center": draw}, "convex", alpha=0.0)).uses_head
    assert set_up(made({"ce": ce, "center": draw}, "convex", alpha=1.0)).uses_head


@pytest.mark.parametrize(("alpha", "weights"), [(0.0, None), (0.5, {"ce": 0.0, "center": 2.0})])
def test_a_sum_that_trains_no_classifier_is_refused(alpha: float, weights: Any) -> None:
    loss = set_up(made(weighting="sum" if weights else "convex", weights=weights, alpha=alpha))
    with pytest.raises(InputError, match=r"loss=center draws .* trains no classifier: .*loss=ce_center"):
        loss.check_classifier()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": {"ce": 1.0, "center": -0.1}}, r"loss\.weights\.center=-0\.1: expected a number, 0 or more"),
        ({"weights": {"ce": 0.0, "center": 0.0}}, r"loss\.weights: all are 0"),
        ({"alpha": 1.5}, r"loss\.alpha=1\.5: expected a number from 0 to 1\."),
        *(
            ({"weights": weights}, r"loss\.weights: expected a weight for ce, center; found")
            for weights in ({}, {"ce": 1.0}, {"ce": 1.0, "x": 1.0}, {"ce": 1.0, "center": 1.0, "x": 1.0})
        ),
        ({"alpha": -0.1}, r"loss\.alpha=-0\.1"),
        ({"alpha": None}, r"loss\.alpha=None"),
        ({"learning_rate": 0.0}, r"loss\.learning_rate=0\.0: expected a number greater than 0"),
        ({"weighting": "mean"}, r"loss\.weighting=mean: expected one of sum, convex, learned, relu\."),
        ({"terms": {"total": CrossEntropyLoss(0.0, None)}}, r"loss\.terms\.total="),
        ({"terms": {"ce": 1.0}}, r"loss\.terms\.ce=1\.0: expected a loss"),
        ({"terms": {"ce": CrossEntropyLoss(0.0, None)}, "weighting": "convex"}, r"expected two terms; found ce"),
    ],
)
def test_bad_input_is_refused_by_its_key(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(**arguments)


def test_what_does_not_fit_a_term_is_refused_by_the_terms_key() -> None:
    with pytest.raises(InputError, match=r"^loss\.terms\.ce\.class_weights=.*expected 4 numbers"):
        set_up(made({"ce": CrossEntropyLoss(0.0, [1.0])}))
    inner = made({"deep": CenterLoss("published", ["text"], 0.5)})
    with pytest.raises(InputError, match=r"^loss\.terms\.outer\.terms\.deep\.on=\[text\]: the fusion gives embedding"):
        made({"outer": inner}).setup(4, {"embedding": 5}, [1] * 4)


def test_a_sum_without_terms_is_refused() -> None:
    with pytest.raises(InputError, match=r"loss\.terms: no terms"):
        SumLoss(terms={}, weighting="sum", weights={}, alpha=0.5, learning_rate=0.1)
