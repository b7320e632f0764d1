"""Focal loss (Lin et al. 2017)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fourm_ser.losses.base import GRADIENTS, at_least_float32, check_choice, check_not_negative
from fourm_ser.losses.class_weights import ClassWeights, WeightedLoss


class FocalLoss(WeightedLoss):
    """-a (1 - p)^gamma log p of the label's probability p, averaged over the batch: easy utterances count less.

    Lin, Goyal, Girshick, He, Dollar: "Focal Loss for Dense Object Detection", ICCV 2017, eq. 5, with the softmax in
    place of the sigmoid. The weight a of the label's class is a factor, as there: the average is over utterances,
    not over weights. gamma = 0 is cross-entropy. 4M-SER's code holds the factor (1 - p)^gamma constant in the gradient
    (`gradient`).

    Args:
        gamma: the exponent that says how much less easy utterances count.
        class_weights: the weight a of each class; `balanced` for those of `fourm_ser.losses.class_weights`; None for 1.
        gradient: that of the `whole` formula, or `detached`: with (1 - p)^gamma held constant.

    Raises:
        InputError: a negative gamma, or weights that are not positive numbers.
    """

    name = "focal"

    def __init__(self, gamma: float, class_weights: ClassWeights, gradient: str = "whole") -> None:
        super().__init__(class_weights)
        check_not_negative("gamma", gamma)
        check_choice("gradient", gradient, GRADIENTS)
        self.gamma, self.detached = gamma, gradient == "detached"

    def forward(self, logits: Tensor, features: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        log_p = nn.functional.log_softmax(at_least_float32(logits), dim=1).gather(1, labels[:, None])[:, 0]  # (batch,)
        # Where p rounds to 1, a gamma below 1 would have an infinite gradient times zero.
        rest = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
        factor = rest.pow(self.gamma)
        values = -(factor.detach() if self.detached else factor) * log_p
        if self.weights is not None:
            values = self.weights.to(values.dtype)[labels] * values
        loss = values.mean()
        return {"total": loss, "focal": loss}
