"""4M-SER's losses, against plain restatements of what its code computes: values, gradients, and rates by epoch."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fourm_ser.config import build
from fourm_ser.errors import InputError
from fourm_ser.losses.base import Loss
from tests.conftest import Compose

CLASSES, DIM = 4, 6
Plain = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([row.logsumexp(0) - row[label] for row, label in zip(logits, labels, strict=True)]).mean()


def center(logits: Tensor, features: Tensor, vectors: Tensor, labels: Tensor) -> Tensor:
    return (features - vectors[labels]).pow(2).sum().sqrt() / 2 / len(labels)


def contrastive(logits: Tensor, features: Tensor, vectors: Tensor, labels: Tensor) -> Tensor:
    distances = torch.stack([torch.stack([(row - vector).pow(2).sum() for vector in vectors]) for row in features])
    own = torch.stack([distances[index, label] for index, label in enumerate(labels)]).sum()
    return own / 2 / len(labels) / (distances.sum() - own + 1e-6) / 0.1


def cosines(features: Tensor, vectors: Tensor) -> Tensor:
    unit = [rows / rows.pow(2).sum(1, keepdim=True).sqrt() for rows in (features, vectors)]
    return unit[0] @ unit[1].T


def cosface(logits: Tensor, features: Tensor, vectors: Tensor, labels: Tensor) -> Tensor:
    margin = 0.5 * torch.nn.functional.one_hot(labels, CLASSES)
    return cross_entropy(64 * (cosines(features, vectors) - margin), labels)


def arcface(logits: Tensor, features: Tensor, vectors: Tensor, labels: Tensor) -> Tensor:
    """The margin is put in after the graph was made: the gradient is that of the cosines without it."""
    found = cosines(features, vectors)
    shown = found.detach().clone()
    for row, label in enumerate(labels):
        shown[row, label] = math.cos(math.acos(max(-1.0, min(1.0, float(shown[row, label])))) + 0.5)
    return cross_entropy(64 * (found + (shown - found).detach()), labels)


def focal(logits: Tensor, features: Tensor, vectors: Tensor, labels: Tensor) -> Tensor:
    terms = []
    for row, label in zip(logits, labels, strict=True):
        log_p = row[label] - row.logsumexp(0)
        terms.append(-((1 - math.exp(float(log_p.detach()))) ** 1.5) * log_p)
    return torch.stack(terms).mean()


TERMS: dict[str, Plain] = {
    "4m_ser_ce_center": center,
    "4m_ser_ce_contrastive_center": contrastive,
    "4m_ser_cosface": cosface,
    "4m_ser_arcface": arcface,
}


def built(composed: Compose, option: str, *words: str) -> Loss:
    loss: Loss = build(composed(f"loss={option}", *words).loss)
    torch.manual_seed(0)
    return loss.setup(CLASSES, {"embedding": DIM}, [1] * CLASSES).double()


def batch(seed: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, CLASSES, dtype=torch.float64, generator=generator).requires_grad_()
    features = torch.randn(size, DIM, dtype=torch.float64, generator=generator).requires_grad_()
    return logits, features, torch.randint(CLASSES, (size,), generator=generator)


def assert_equal(
    loss: Loss, expected: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], seed: int, size: int
) -> None:
    """Value and all gradients are those of a restatement, to 1e-6."""
    logits, features, labels = batch(seed, size)
    own = [parameter for parameter in loss.parameters() if parameter.shape == (CLASSES, DIM)]
    inputs = [logits, features, *own]
    value = loss(logits, {"embedding": features}, labels)["total"]
    wanted = expected(logits, features, own[0] if own else features, labels)
    assert value.item() == pytest.approx(wanted.item(), rel=1e-6)
    for found, right in zip(*(torch.autograd.grad(v, inputs, allow_unused=True) for v in (value, wanted)), strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(
            zero if found is None else found, zero if right is None else right, atol=1e-6, rtol=1e-6
        )


sizes = given(seed=st.integers(0, 1000), size=st.integers(1, 4))


@pytest.mark.slow(but=["4m_ser_ce_center"])
@pytest.mark.parametrize("option", TERMS)
@sizes
def test_a_sum_is_what_its_code_computes(composed: Compose, option: str, seed: int, size: int) -> None:
    loss, term = _cached(composed, option), TERMS[option]
    assert_equal(loss, lambda *given: cross_entropy(given[0], given[3]) + term(*given), seed, size)


@pytest.mark.parametrize("option", TERMS)
@pytest.mark.parametrize("alpha", [0.1, 0.9])
def test_a_weighted_sum_is_what_its_code_computes(composed: Compose, option: str, alpha: float) -> None:
    loss, term = built(composed, option, "loss.weighting=convex", f"loss.alpha={alpha}"), TERMS[option]
    assert_equal(loss, lambda *given: alpha * cross_entropy(given[0], given[3]) + (1 - alpha) * term(*given), 3, 2)


@sizes
def test_focal_loss_holds_its_factor_constant(composed: Compose, seed: int, size: int) -> None:
    assert_equal(_cached(composed, "4m_ser_focal"), focal, seed, size)


_BUILT: dict[str, Loss] = {}


def _cached(composed: Compose, option: str) -> Loss:
    if option not in _BUILT:
        _BUILT[option] = built(composed, option)
    return _BUILT[option]


def test_class_vectors_are_drawn_as_its_code_draws_them(composed: Compose) -> None:
    for option, std in (("4m_ser_arcface", 0.01), ("4m_ser_cosface", 0.01), ("4m_ser_ce_center", 1.0)):
        loss: Loss = build(composed(f"loss={option}").loss)
        torch.manual_seed(1)
        loss.setup(100, {"embedding": 128}, [1] * 100)
        (vectors,) = loss.parameters()
        assert vectors.std().item() == pytest.approx(std, rel=0.02)


def test_free_weights_collapse_as_they_did(composed: Compose) -> None:
    """Of positive losses, each step takes from all of relu's weights, until nothing trains."""
    loss = built(composed, "4m_ser_ce_contrastive_center", "loss.weighting=relu")
    logits, features, labels = batch(0, 3)
    assert_equal(loss, lambda *given: cross_entropy(given[0], given[3]) + contrastive(*given), 3, 2)
    groups = loss.groups()
    assert all(group["lr"] == 1e-4 and group["weight_decay"] == 0 for group in groups)
    optimizer = torch.optim.SGD([{**group, "lr": 0.5} for group in groups])
    for _ in range(300):
        optimizer.zero_grad()
        values = loss(logits, {"embedding": features}, labels)
        values["total"].backward()
        optimizer.step()
    assert values["total"].item() == values["weight/ce"].item() == values["weight/contrastive_center"].item() == 0


@pytest.mark.parametrize("option", TERMS)
def test_the_loss_s_parameters_train_by_an_adam_of_their_own(composed: Compose, option: str) -> None:
    loss = built(composed, option)
    assert loss.optimizer is not None
    assert loss.scheduler is not None
    optimizer = loss.optimizer(loss.groups())
    assert isinstance(optimizer, torch.optim.Adam)
    scheduler = loss.scheduler(optimizer, steps=60, steps_per_epoch=2)
    rates = []
    for _ in range(60):
        rates.append({group["lr"] for group in optimizer.param_groups})
        optimizer.step()
        scheduler.step()
    expected = [1e-4 * 0.1 ** sum(epoch >= fall for fall in (7, 13, 19, 24)) for epoch in range(30)]
    assert [rate for (rate,) in rates] == pytest.approx([rate for rate in expected for _ in range(2)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss=ce_center", "scheduler@loss.scheduler=constant"], r"loss\.scheduler: .*optimizer@loss\.optimizer=adam"),
        (
            ["loss=ce_center", "optimizer@loss.terms.center.optimizer=adam"],
            r"loss\.terms\.center\.optimizer: .*loss\.optimizer",
        ),
        (["loss=ce_arcface", "loss.terms.arcface.gradient=half"], r"gradient=half: expected one of whole, detached"),
        (["loss=arcface", "loss.past_pi=no"], r"past_pi=no: expected one of falls, rises"),
        (["loss=arcface", "loss.std=0"], r"loss\.std=0"),
        (["loss=focal", "loss.gradient=null"], r"gradient=None"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(composed: Compose, words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(composed(*words).loss)
    assert "\n" not in str(caught.value)


def test_an_optimizer_of_nothing_is_refused(composed: Compose) -> None:
    node: Mapping[str, Any] = composed("loss=ce_center", "optimizer@loss.optimizer=adam", "~loss.terms.center").loss
    loss = build({**node, "weights": {"ce": 1.0}})
    with pytest.raises(InputError, match=r"loss\.optimizer: no term"):
        loss.setup(2, {}, [1, 1])
