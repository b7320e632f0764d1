"""Contrastive-center loss (Qi and Su 2017)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fourm_ser.losses.base import check_positive
from fourm_ser.losses.center import CenterLoss


class ContrastiveCenterLoss(CenterLoss):
    """1/2 ||x - c_y||^2 / (sum over j != y of ||x - c_j||^2 + delta), averaged over the batch.

    Features are drawn to their class's centre and away from the others'. Qi, Su: "Contrastive-center loss for deep
    neural networks", ICIP 2017, eq. 3, which sums over the batch; the mean does not depend on the batch's size.

    4M-SER's code sums numerator and denominator over the batch of B before it divides, by another constant:
    1/(2B) (sum of ||x - c_y||^2) / (sum of the others + 1e-6) / 0.1. For B = 1, as trained there, it is ten times
    the published form with delta = 1e-6.

    Args:
        form: `published` or `4m_ser`.
        delta: keeps the published denominator from 0.
        on: the features that the loss acts on: any of embedding, text, audio.
        learning_rate: the learning rate of the centres.
        **training: `optimizer` and `scheduler`, see `FeatureLoss`.

    Raises:
        InputError: an unknown form or feature, a delta or a learning rate that is not positive.
    """

    name = "contrastive_center"

    def __init__(self, *, form: str, delta: float, on: Sequence[str], learning_rate: float, **training: Any) -> None:
        super().__init__(form, on, learning_rate, **training)
        check_positive("delta", delta)
        self.delta = delta

    def term(self, where: str, features: Tensor, labels: Tensor) -> Tensor:
        distances = (features[:, None] - self.centers[where]).square().sum(2)  # (batch, classes)
        own = distances.gather(1, labels[:, None])[:, 0]  # (batch,)
        is_own = nn.functional.one_hot(labels, distances.shape[1]).bool()
        others = distances.masked_fill(is_own, 0.0).sum(1)  # (batch,)
        if self.form == "4m_ser":
            return 0.5 * own.sum() / (others.sum() + 1e-6) / 0.1 / len(labels)
        return 0.5 * (own / (others + self.delta)).mean()
