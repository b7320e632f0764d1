"""Random batches, and the comparison of a loss with its formula in plain Python."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from fourm_ser.losses.base import Loss

Plain = Callable[[np.ndarray, np.ndarray, np.ndarray], float]


class Case(NamedTuple):
    """A batch: logits (batch, classes), embedding (batch, dim), vectors of the classes (classes, dim), labels."""

    logits: np.ndarray
    embedding: np.ndarray
    vectors: np.ndarray
    labels: list[int]

    @property
    def classes(self) -> int:
        return len(self.vectors)

    @property
    def dim(self) -> int:
        return self.vectors.shape[1]


@st.composite
def cases(draw: st.DrawFn, narrowest: int = 1) -> Case:
    batch, classes, dim = draw(st.integers(1, 5)), draw(st.integers(2, 4)), draw(st.integers(narrowest, 4))

    def values(*shape: int) -> np.ndarray:
        return draw(arrays(np.float64, shape, elements=st.floats(-3, 3)))

    labels = draw(st.lists(st.integers(0, classes - 1), min_size=batch, max_size=batch))
    return Case(values(batch, classes), values(batch, dim), values(classes, dim), labels)


def log_softmax(row: Any) -> list[float]:
    highest = max(row)
    log_sum = highest + math.log(sum(math.exp(value - highest) for value in row))
    return [value - log_sum for value in row]


def numeric(function: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """The gradient of a function by central differences."""
    gradient = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[place] += step
        down[place] -= step
        gradient[place] = (function(up) - function(down)) / (2 * step)
    return gradient


def assert_is_formula(loss: Loss, case: Case, plain: Plain, vectors: Tensor | None = None) -> None:
    """Value and gradients in float64 are those of `plain(logits, embedding, vectors)`.

    Args:
        loss: the loss, set up.
        case: what it is called on.
        plain: the formula, by loops over numbers.
        vectors: the loss's own parameter that takes the case's vectors.
    """
    loss.double()
    inputs = [torch.tensor(case.logits).requires_grad_(), torch.tensor(case.embedding).requires_grad_()]
    if vectors is not None:
        with torch.no_grad():
            vectors.copy_(torch.tensor(case.vectors))
        inputs.append(vectors)
    found = loss(inputs[0], {"embedding": inputs[1]}, torch.tensor(case.labels))["total"]
    assert found.dtype == torch.float64
    given = case[:3]
    assert found.item() == pytest.approx(plain(*given), rel=1e-9, abs=1e-12)
    for place, tensor in enumerate(inputs):
        (gradient,) = torch.autograd.grad(found, [tensor], retain_graph=True, allow_unused=True)

        def moved(at: np.ndarray, place: int = place) -> float:
            logits, embedding, own = (at if index == place else value for index, value in enumerate(given))
            return plain(logits, embedding, own)

        expected = numeric(moved, given[place])
        actual = np.zeros_like(expected) if gradient is None else gradient.numpy()
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6 * max(1.0, np.abs(expected).max()))
