"""A fitted support vector machine as a network's head."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourm_ser.baselines.base import ABSENT


class SupportVectors(nn.Module):
    """One machine with a radial kernel for each pair of classes, as libsvm's (Chang and Lin 2011); classes by votes.

    Of classes with as many votes those of the surer machines win. A logit is `factor` times votes + sureness, which
    ends between -1/3 and 1/3, as scikit-learn's `decision_function_shape="ovr"`.

    Args:
        dim: Width of the embedding.
        classes: Number of classes.
        vectors: Number of support vectors.
        known: The classes that were trained on, ascending.
    """

    vectors: Tensor
    weights: Tensor
    bias: Tensor
    gamma: Tensor
    factor: Tensor
    first: Tensor
    second: Tensor

    def __init__(self, *, dim: int, classes: int, vectors: int, known: list[int]) -> None:
        super().__init__()
        self.classes, self.known = classes, list(known)
        first, second = np.triu_indices(len(known), 1)
        self.register_buffer("vectors", torch.zeros(vectors, dim))
        self.register_buffer("weights", torch.zeros(vectors, len(first)))
        self.register_buffer("bias", torch.zeros(len(first)))
        self.register_buffer("gamma", torch.ones(()))
        self.register_buffer("factor", torch.ones(()))
        sides = np.eye(len(known))[first], np.eye(len(known))[second]
        for name, side in zip(("first", "second"), sides, strict=True):  # (pairs, classes that were trained on)
            self.register_buffer(name, torch.from_numpy(side).float(), persistent=False)

    def forward(self, embedding: Tensor) -> Tensor:
        """(batch, dim) -> logits (batch, classes)."""
        with torch.autocast(embedding.device.type, enabled=False):
            # (batch, vectors), by plain differences: a product of matrices would lose the digits of what is near.
            apart = torch.cdist(embedding.float(), self.vectors, compute_mode="donot_use_mm_for_euclid_dist")
            decisions = torch.exp(-self.gamma * apart.square()) @ self.weights + self.bias  # (batch, pairs)
            wins = (decisions > 0).float()
            votes = wins @ self.first + (1 - wins) @ self.second
            sureness = decisions @ (self.first - self.second)
            found = self.factor * (votes + sureness / (3 * (sureness.abs() + 1)))
            logits = found.new_full((len(found), self.classes), ABSENT)
            logits[:, self.known] = found
            return logits


def state_of(model: Any, gamma: float, factor: float) -> dict[str, Tensor]:
    """The state of a head that computes what a fitted `SVC` of scikit-learn does.

    Its `dual_coef_` (classes - 1, vectors) has for each vector a number for each class but the vector's own: the
    machine of two classes weighs the vectors of both.
    """
    count = len(model.classes_)
    own = np.repeat(np.arange(count), model.n_support_)  # vectors stand in the order of their classes
    pairs = list(zip(*np.triu_indices(count, 1), strict=True))
    weights = np.zeros((len(own), len(pairs)))
    for place, (first, second) in enumerate(pairs):
        weights[own == first, place] = model.dual_coef_[second - 1, own == first]
        weights[own == second, place] = model.dual_coef_[first, own == second]
    sign = -1 if count == 2 else 1  # of two classes scikit-learn turns the decision round: above 0 is the second
    arrays = {"vectors": model.support_vectors_, "weights": sign * weights, "bias": sign * model.intercept_}
    numbers = {"gamma": torch.tensor(gamma), "factor": torch.tensor(factor)}
    return {name: torch.from_numpy(array).float() for name, array in arrays.items()} | numbers
