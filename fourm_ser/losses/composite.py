"""Sums of losses, in config alone."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from fourm_ser.checks import check_number
from fourm_ser.errors import InputError
from fourm_ser.losses.base import Loss, check_choice, check_not_negative, check_positive

WEIGHTINGS = ("sum", "convex", "learned")


class SumLoss(Loss):
    """The weighted sum of several losses L_i.

    - `sum`: sum of w_i L_i, with `weights`.
    - `convex`: alpha L_1 + (1 - alpha) L_2.
    - `learned`: sum of exp(-s_i) L_i + s_i / 2, with s_i trained from 0 (Kendall, Gal, Cipolla: "Multi-Task Learning
      Using Uncertainty to Weigh Losses for Scene Geometry and Semantics", CVPR 2018, eqs. 7 and 10). There a term is
      the negative log-likelihood of an output with the noise sigma_i: L_i / sigma_i^2 + log sigma_i for a softmax of
      logits over sigma_i^2, and s_i = log sigma_i^2. Its least value over s_i is at exp(-s_i) = 1 / (2 L_i): the
      weight is never negative, and s_i / 2 keeps it from 0, unlike the relu(a_i) of 4M-SER.

    Args:
        terms: the losses by name, in order.
        weighting: `sum`, `convex` or `learned`.
        weights: the weight of each term by its name, for `sum`.
        alpha: the first term's share, for `convex`.
        learning_rate: the learning rate of s, for `learned`.

    Raises:
        InputError: weights that do not fit the terms, numbers out of range, other than two terms in a convex sum.
    """

    def __init__(
        self,
        *,
        terms: Mapping[str, Loss],
        weighting: str,
        weights: Mapping[str, float],
        alpha: float,
        learning_rate: float,
    ) -> None:
        super().__init__()
        check_choice("weighting", weighting, WEIGHTINGS)
        check_number("loss.alpha", alpha, "a number from 0 to 1", most=1)
        check_positive("learning_rate", learning_rate)
        for name, term in terms.items():
            if not isinstance(term, Loss) or name == "total":
                raise InputError(f"loss.terms.{name}={term}: expected a loss under another name than total.")
        if not terms:
            raise InputError("loss.terms: no terms to sum. Expected one loss or more.")
        if set(weights) != set(terms):
            raise InputError(f"loss.weights: expected a weight for {', '.join(terms)}; found {', '.join(weights)}.")
        for name, weight in weights.items():
            check_not_negative(f"weights.{name}", weight)
        if not any(weights.values()):
            raise InputError("loss.weights: all are 0. Expected one greater than 0.")
        if weighting == "convex" and len(terms) != 2:
            raise InputError(f"loss.weighting=convex: expected two terms; found {', '.join(terms)}.")
        self.weighting = weighting
        self.terms = nn.ModuleDict(terms)
        shares = dict(zip(terms, (alpha, 1 - alpha), strict=False))
        self.weights = {"sum": dict(weights), "convex": shares, "learned": dict.fromkeys(terms, 1.0)}[weighting]
        if weighting == "learned":
            self.learning_rate = learning_rate
            self.log_variances = nn.Parameter(torch.zeros(len(terms)))

    @property
    def losses(self) -> dict[str, Loss]:
        """The terms by name."""
        return dict(self.terms.items())  # type: ignore[arg-type]

    @property
    def active(self) -> dict[str, Loss]:
        """The terms whose weight is not 0."""
        return {name: term for name, term in self.losses.items() if self.weights[name] > 0}

    @property
    def name(self) -> str:  # type: ignore[override]
        return "+".join(self.active)

    @property
    def on(self) -> Sequence[str]:  # type: ignore[override]
        return list(dict.fromkeys(where for term in self.losses.values() for where in term.on))

    @property
    def uses_head(self) -> bool:  # type: ignore[override]
        return any(term.uses_head for term in self.active.values())

    def setup(self, classes: int, dims: Mapping[str, int], counts: Sequence[int]) -> Self:
        for name, term in self.losses.items():
            try:
                term.setup(classes, dims, counts)
            except InputError as error:
                raise InputError(str(error).replace("loss.", f"loss.terms.{name}.", 1)) from None
        return self

    def forward(self, logits: Tensor, features: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        totals: dict[str, Tensor] = {}
        parts: dict[str, Tensor] = {}
        for name, term in self.losses.items():
            values = term(logits, features, labels)
            totals[name] = values["total"]
            parts |= {
                f"{name}/{part.removeprefix(f'{term.name}/')}": value
                for part, value in values.items()
                if part not in ("total", term.name)
            }
        if self.weighting == "learned":
            weights = torch.exp(-self.log_variances)
            total = (weights * torch.stack(list(totals.values())) + self.log_variances / 2).sum()
            parts |= {f"weight/{name}": weight for name, weight in zip(totals, weights, strict=True)}
        else:
            total = torch.stack([self.weights[name] * value for name, value in totals.items()]).sum()
        return {"total": total, **totals, **parts}

    def classifier(self) -> nn.Module | None:
        """The classifier of the first term that has one; None where a term trains the head."""
        if self.uses_head:
            return None
        return next((found for term in self.active.values() if (found := term.classifier()) is not None), None)

    def groups(self) -> list[dict[str, Any]]:
        groups = [group for term in self.losses.values() for group in term.groups()]
        if self.weighting == "learned":
            groups.append({"params": [self.log_variances], "lr": self.learning_rate, "weight_decay": 0.0})
        return groups
