"""Sums of losses, in config alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fourm_ser.checks import check_number
from fourm_ser.errors import InputError
from fourm_ser.losses.base import Loss, check_choice, check_not_negative, check_positive

WEIGHTINGS = ("sum", "convex", "learned", "relu")


class SumLoss(Loss):
    """The weighted sum of several losses L_i.

    - `sum`: sum of w_i L_i, with `weights`.
    - `convex`: alpha L_1 + (1 - alpha) L_2.
    - `learned`: sum of exp(-s_i) L_i + s_i / 2, with s_i trained from 0 (Kendall, Gal, Cipolla: "Multi-Task Learning
      Using Uncertainty to Weigh Losses for Scene Geometry and Semantics", CVPR 2018, eqs. 7 and 10). There a term is
      the negative log-likelihood of an output with the noise sigma_i: L_i / sigma_i^2 + log sigma_i for a softmax of
      logits over sigma_i^2, and s_i = log sigma_i^2. Its least value over s_i is at exp(-s_i) = 1 / (2 L_i): the
      weight is never negative, and s_i / 2 keeps it from 0.
    - `relu`: sum of relu(a_i) L_i, with a_i trained from 1, as 4M-SER tried. It collapses: where all L_i are positive
      each a_i only falls, to 0 and below, and then nothing trains any more. For comparison alone.

    Args:
        terms: the losses by name, in order.
        weighting: `sum`, `convex`, `learned` or `relu`.
        weights: the weight of each term by its name, for `sum`.
        alpha: the first term's share, for `convex`.
        learning_rate: the learning rate of s, for `learned`, and of a, for `relu`.
        optimizer: builds the optimizer of the sum's and all terms' own parameters, which keep their learning rates;
            None for the stage's.
        scheduler: builds that optimizer's schedule, by epochs counted over all stages; None for the stage's.

    Raises:
        InputError: weights that do not fit the terms, numbers out of range, other than two terms in a convex sum; an
            optimizer of a term's own, or one where nothing has parameters.
    """

    def __init__(
        self,
        *,
        terms: Mapping[str, Loss],
        weighting: str,
        weights: Mapping[str, float],
        alpha: float,
        learning_rate: float,
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        self.train_by(optimizer, scheduler)
        check_choice("weighting", weighting, WEIGHTINGS)
        check_number("loss.alpha", alpha, "a number from 0 to 1", most=1)
        check_positive("learning_rate", learning_rate)
        for name, term in terms.items():
            if not isinstance(term, Loss) or name == "total":
                raise InputError(f"loss.terms.{name}={term}: expected a loss under another name than total.")
            if term.optimizer is not None:
                raise InputError(
                    f"loss.terms.{name}.optimizer: the terms of a sum have one optimizer. Use loss.optimizer."
                )
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
        equal = dict.fromkeys(terms, 1.0)
        self.weights = {"sum": dict(weights), "convex": shares}.get(weighting, equal)
        if weighting == "learned":
            self.learning_rate = learning_rate
            self.log_variances = nn.Parameter(torch.zeros(len(terms)))
        if weighting == "relu":
            self.learning_rate = learning_rate
            self.factors = nn.Parameter(torch.ones(len(terms)))

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
        if self.optimizer is not None and not self.groups():
            raise InputError("loss.optimizer: no term of this sum has parameters. Leave it out.")
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
        elif self.weighting == "relu":
            weights = self.factors.relu()
            total = (weights * torch.stack(list(totals.values()))).sum()
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
        if self.weighting in ("learned", "relu"):
            own = self.log_variances if self.weighting == "learned" else self.factors
            groups.append({"params": [own], "lr": self.learning_rate, "weight_decay": 0.0})
        return groups
