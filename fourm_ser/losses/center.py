"""Center loss (Wen et al. 2016)."""

from collections.abc import Sequence as Items

import torch
from torch import Tensor, nn

from fourm_ser.errors import InputError
from fourm_ser.losses.base import Loss
from fourm_ser.network import NetworkOutput


class CenterLoss(Loss):
    """1/2 ||x - c_y||^2, averaged over the batch: embeddings are drawn to a learned centre of their class.

    Wen, Zhang, Li, Qiao: "A Discriminative Feature Learning Approach for Deep Face Recognition", ECCV 2016, eq. 2,
    which sums over the batch; the mean does not depend on the batch's size. The centres are parameters, trained by
    gradient with a learning rate of their own.

    Args:
        classes: number of classes.
        dim: width of the embedding.
        counts: not used.
        learning_rate: of the centres.

    Raises:
        InputError: a learning rate that is not positive.
    """

    def __init__(self, classes: int, dim: int, counts: Items[int], learning_rate: float) -> None:
        super().__init__()
        if learning_rate <= 0:
            raise InputError(f"loss.learning_rate={learning_rate}: expected a positive number.")
        self.learning_rate = learning_rate
        self.centers = nn.Parameter(torch.randn(classes, dim))

    def forward(self, output: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        distances = (output.embedding.float() - self.centers[labels]).square().sum(1)  # (batch,)
        loss = 0.5 * distances.mean()
        return {"total": loss, "center": loss}
