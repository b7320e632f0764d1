"""Sums of losses, in config alone."""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from typing import Any

import torch
from torch import Tensor, nn

from fourm_ser.errors import InputError
from fourm_ser.losses.base import Loss
from fourm_ser.network import NetworkOutput


class SumLoss(Loss):
    """The weighted sum of several losses.

    Args:
        classes, dim, counts: passed on to each term.
        terms: what builds each term, by name.
        weights: the weight of each term, by the same names.

    Raises:
        InputError: weights that do not fit the terms, or a negative one.
    """

    def __init__(
        self,
        classes: int,
        dim: int,
        counts: Items[int],
        terms: Mapping[str, Callable[..., Loss]],
        weights: Mapping[str, float],
    ) -> None:
        super().__init__()
        if set(weights) != set(terms):
            raise InputError(f"loss.weights: expected a weight for {', '.join(terms)}; found {', '.join(weights)}.")
        negative = [name for name, weight in weights.items() if weight < 0]
        if negative:
            raise InputError(f"loss.weights.{negative[0]}={weights[negative[0]]}: expected 0 or more.")
        self.weights = dict(weights)
        self.terms = nn.ModuleDict(
            {name: build(classes=classes, dim=dim, counts=counts) for name, build in terms.items()}
        )

    def forward(self, output: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        values = {name: term(output, labels)["total"] for name, term in self.terms.items()}
        total = torch.stack([self.weights[name] * value for name, value in values.items()]).sum()
        return {"total": total, **values}

    def groups(self) -> list[dict[str, Any]]:
        return [group for term in self.terms.values() if isinstance(term, Loss) for group in term.groups()]
