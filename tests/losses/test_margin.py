"""Angular margins: against plain loops, against pytorch-metric-learning, and at the ends of the angle."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.losses import ArcFaceLoss, CosFaceLoss, SphereFaceLoss
from torch import Tensor

from fourm_ser.config import build
from fourm_ser.errors import InputError
from fourm_ser.losses.margin import CosineClassifier, MarginLoss
from tests.losses.common import Case, assert_is_formula, cases, log_softmax


def built(classes: int, dim: int, m1: float, m2: float, m3: float, scale: float) -> MarginLoss:
    return MarginLoss(m1=m1, m2=m2, m3=m3, scale=scale, on=["embedding"], learning_rate=0.5).setup(
        classes, {"embedding": dim}, [1] * classes
    )


def weight(loss: MarginLoss) -> Tensor:
    classifier = loss.classifier()
    assert isinstance(classifier, CosineClassifier)
    return classifier.weight


def cosine(first: Any, second: Any) -> float:
    return float(sum(a * b for a, b in zip(first, second, strict=True)) / math.hypot(*first) / math.hypot(*second))


def psi(angle: float) -> float:
    turns = int(angle // math.pi)
    return (-1) ** turns * math.cos(angle) - 2 * turns


margins = st.tuples(
    st.sampled_from([1.0, 1.35, 2.0, 4.0]), st.sampled_from([0.0, 0.5, 2.0]), st.sampled_from([0.0, 0.35])
)


@given(cases(narrowest=2), margins, st.sampled_from([1.0, 10.0, 64.0]))
@settings(max_examples=40, deadline=None)
def test_a_margin_is_its_formula(case: Case, margins: tuple[float, float, float], scale: float) -> None:
    m1, m2, m3 = margins
    assume(all(math.hypot(*row) > 0.3 for row in [*case.embedding, *case.vectors]))
    # At 0 and pi the angle as a function of the embedding has an edge.
    own = [cosine(row, case.vectors[label]) for row, label in zip(case.embedding, case.labels, strict=True)]
    assume(all(abs(value) < 0.999 for value in own))
    # At multiples of pi the slope of psi has one, and central differences lose an order.
    assume(all(abs(math.sin(m1 * math.acos(value) + m2)) > 1e-3 for value in own))

    def plain(_: Any, embedding: Any, vectors: Any) -> float:
        total = 0.0
        for row, label in zip(embedding, case.labels, strict=True):
            logits = [scale * cosine(row, vector) for vector in vectors]
            logits[label] = scale * (psi(m1 * math.acos(cosine(row, vectors[label])) + m2) - m3)
            total -= log_softmax(logits)[label]
        return total / len(case.labels)

    loss = built(case.classes, case.dim, m1, m2, m3, scale)
    assert_is_formula(loss, case, plain, weight(loss))


def peer_value(peer: Any, loss: MarginLoss, embedding: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value and gradients of a peer that holds the loss's own class vectors."""
    peer.W.data = weight(loss).detach().T.clone()
    embedding = embedding.clone().requires_grad_()
    value = peer(embedding, labels)
    to_embedding, to_weight = torch.autograd.grad(value, [embedding, peer.W])
    return value.detach(), to_embedding, to_weight.T


@pytest.mark.parametrize("kind", ["arcface", "cosface", "sphereface"])
def test_margins_are_those_of_pytorch_metric_learning(kind: str) -> None:
    """Where the definitions agree.

    That ArcFaceLoss jumps to cos(theta) - m2 sin(m2) where theta + m2 passes pi: there is no such angle here. That
    SphereFaceLoss knows whole m1 alone, and scales by the embedding's length too: it is 1 here. Its continuation
    past pi is ours.
    """
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 2, 3, 3, 0, 1, 2] * 4)
    embedding = torch.nn.functional.normalize(torch.randn(len(labels), 6, dtype=torch.float64), dim=1)
    m1, m2, m3 = {"arcface": (1.0, 0.5, 0.0), "cosface": (1.0, 0.0, 0.35), "sphereface": (4.0, 0.0, 0.0)}[kind]
    loss = built(4, 6, m1, m2, m3, 64.0).double()
    sizes = {"num_classes": 4, "embedding_size": 6, "scale": 64}
    peer = {
        "arcface": lambda: ArcFaceLoss(margin=math.degrees(m2), **sizes),
        "cosface": lambda: CosFaceLoss(margin=m3, **sizes),
        "sphereface": lambda: SphereFaceLoss(margin=4, **sizes),
    }[kind]()
    angles = torch.nn.functional.cosine_similarity(embedding, weight(loss)[labels]).acos()
    if kind == "arcface":
        assert (angles.max() + m2).item() < math.pi
    if kind == "sphereface":
        assert len(set((4 * angles / math.pi).long().tolist())) > 2  # far past pi
    expected = peer_value(peer, loss, embedding, labels)
    given = embedding.clone().requires_grad_()
    value = loss(torch.zeros(len(labels), 4), {"embedding": given}, labels)["total"]
    torch.testing.assert_close(value.detach(), expected[0])
    to_embedding, to_weight = torch.autograd.grad(value, [given, weight(loss)])
    torch.testing.assert_close(to_weight, expected[2])
    if kind == "sphereface":  # the peer's length changes with the embedding: compare across it
        along = (expected[1] * embedding).sum(1, keepdim=True) * embedding
        torch.testing.assert_close(to_embedding, expected[1] - along)
    else:
        torch.testing.assert_close(to_embedding, expected[1])


@given(st.floats(0.25, 5), st.floats(0, 3), st.floats(0, 1))
@settings(max_examples=15, deadline=None)
def test_the_labels_logit_falls_with_the_angle_and_never_jumps(m1: float, m2: float, m3: float) -> None:
    """With one other class at a right angle the loss is log(1 + exp(-logit)), which gives the logit away."""
    angles = torch.linspace(0, math.pi, 151, dtype=torch.float64)
    loss = built(2, 3, m1, m2, m3, 1.0).double()
    with torch.no_grad():
        weight(loss).copy_(torch.tensor([[2.0, 0, 0], [0, 0, 1]]))
    embedding = torch.stack([angles.cos(), angles.sin(), torch.zeros_like(angles)], 1)
    logits = []
    for row in embedding:
        value = loss(torch.zeros(1, 2), {"embedding": row[None]}, torch.tensor([0]))["total"].item()
        logits.append(-math.log(math.expm1(value)))
    steps = np.diff(logits)
    assert (steps <= 1e-9).all()
    assert (-steps <= m1 * math.pi / 150 + 1e-6).all()  # the cosine's slope is 1 at most
    assert logits[0] == pytest.approx(psi(m2) - m3, abs=1e-6)
    assert logits[-1] == pytest.approx(psi(m1 * math.pi + m2) - m3, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("margins", [(1.0, 0.5, 0.0), (1.0, 0.0, 0.35), (1.35, 0.0, 0.0), (4.0, 1.0, 0.2)])
def test_the_gradient_is_finite_at_the_ends(margins: tuple[float, float, float], sign: int, dtype: Any) -> None:
    torch.manual_seed(0)
    loss = built(4, 8, *margins, 64.0).to(dtype)
    labels = torch.arange(4).repeat(50)
    lengths = torch.linspace(0.1, 100, len(labels), dtype=dtype)[:, None]  # so that roundings fall either way
    embedding = (sign * lengths * weight(loss).detach()[labels]).requires_grad_()
    total = loss(torch.zeros(len(labels), 4), {"embedding": embedding}, labels)["total"]
    assert total.isfinite()
    for gradient in torch.autograd.grad(total, [embedding, weight(loss)]):
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 64 * 10 * 4  # scale / least length * m1


def test_a_margin_alone_trains_its_classifier() -> None:
    torch.manual_seed(0)
    loss = built(3, 4, 1.0, 0.5, 0.0, 64.0)
    classifier = loss.classifier()
    assert isinstance(classifier, CosineClassifier)
    assert [id(parameter) for parameter in loss.parameters()] == [id(classifier.weight)]
    embedding, labels = torch.randn(30, 4), torch.arange(30) % 3
    embedding += 2 * torch.eye(3, 4)[labels]
    loss.check_classifier()
    optimizer = torch.optim.Adam(loss.groups(), lr=1.0)
    optimizer.param_groups[0]["lr"] = 0.05
    before = (classifier(embedding).argmax(1) == labels).float().mean()
    for _ in range(100):
        optimizer.zero_grad()
        torch.autograd.backward(loss(torch.zeros(30, 3), {"embedding": embedding}, labels)["total"])
        optimizer.step()
    after = (classifier(embedding).argmax(1) == labels).float().mean()
    assert after > max(0.8, before)


def test_the_classifier_is_the_scaled_cosine() -> None:
    classifier = build({"_target_": "fourm_ser.losses.margin.CosineClassifier", "scale": 64.0}, dim=5, classes=3)
    embedding = torch.randn(7, 5)
    logits = classifier(embedding)
    assert logits.shape == (7, 3)
    for row, found in zip(embedding, logits, strict=True):
        expected = [64 * cosine(row.tolist(), vector) for vector in classifier.weight.tolist()]
        assert found.tolist() == pytest.approx(expected, abs=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(classifier(embedding), logits)


def test_without_a_margin_the_loss_is_cross_entropy_of_the_classifier() -> None:
    loss = built(3, 4, 1.0, 0.0, 0.0, 10.0)
    embedding, labels = torch.randn(6, 4), torch.arange(6) % 3
    classifier = loss.classifier()
    assert classifier is not None
    expected = torch.nn.functional.cross_entropy(classifier(embedding), labels)
    torch.testing.assert_close(loss(torch.zeros(6, 3), {"embedding": embedding}, labels)["margin"], expected)


def test_a_margin_off_the_embedding_has_no_classifier() -> None:
    loss = MarginLoss(m1=1.0, m2=0.5, m3=0.0, scale=64.0, on=["text"], learning_rate=0.5).setup(
        3, {"embedding": 4, "text": 5}, [1] * 3
    )
    assert loss.classifier() is None
    with pytest.raises(InputError, match="trains no classifier"):
        loss.check_classifier()


def test_numbers_out_of_range_are_refused() -> None:
    def refused(key: str, value: Any) -> None:
        numbers: dict[str, Any] = {"m1": 1.0, "m2": 0.5, "m3": 0.0, "scale": 64.0, key: value}
        with pytest.raises(InputError, match=rf"loss\.{key}={value}: expected a number"):
            MarginLoss(**numbers, on=["embedding"], learning_rate=0.1)

    for key, value in (("m1", 0.0), ("m2", -0.1), ("m3", -0.1), ("scale", 0.0), ("scale", -1.0), ("m2", "half")):
        refused(key, value)
