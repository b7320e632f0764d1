"""Center loss (Wen et al. 2016)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fourm_ser.losses.base import FeatureLoss, check_choice

FORMS = ("published", "4m_ser")


class CenterLoss(FeatureLoss):
    """1/2 ||x - c_y||^2, averaged over the batch: features are drawn to a learned centre of their class.

    Wen, Zhang, Li, Qiao: "A Discriminative Feature Learning Approach for Deep Face Recognition", ECCV 2016, eq. 2,
    which sums over the batch; the mean does not depend on the batch's size. The centres are parameters, trained by
    gradient with a learning rate of their own.

    4M-SER's code computes 1/(2B) sqrt(sum over the batch of ||x - c_y||^2) instead: the distance is not squared, and
    the root is taken over the whole batch of B. For B = 1, as trained there, it is 1/2 ||x - c_y||, whose pull does
    not grow with the distance.

    Args:
        form: `published` or `4m_ser`.
        on: the features that the loss acts on: any of embedding, text, audio.
        learning_rate: the learning rate of the centres.
        **training: `optimizer` and `scheduler`, see `FeatureLoss`.

    Raises:
        InputError: an unknown form or feature, or a learning rate that is not positive.
    """

    name = "center"

    def __init__(self, form: str, on: Sequence[str], learning_rate: float, **training: Any) -> None:
        super().__init__(on, learning_rate, **training)
        check_choice("form", form, FORMS)
        self.form = form
        self.centers = nn.ParameterDict()

    def make(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        self.centers = nn.ParameterDict({where: nn.Parameter(torch.randn(shape)) for where, shape in shapes.items()})

    def term(self, where: str, features: Tensor, labels: Tensor) -> Tensor:
        difference = features - self.centers[where][labels]  # (batch, dim)
        if self.form == "4m_ser":
            return 0.5 * torch.linalg.vector_norm(difference) / len(labels)
        return 0.5 * difference.square().sum(1).mean()
