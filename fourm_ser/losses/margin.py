"""Angular margins: SphereFace, CosFace, ArcFace, and their combination (Deng et al. 2019)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fourm_ser.checks import check_number
from fourm_ser.losses.base import (
    GRADIENTS,
    FeatureLoss,
    at_least_float32,
    check_choice,
    check_not_negative,
    check_positive,
)


class CosineClassifier(nn.Module):
    """scale * cos(angle between the features and each class's vector).

    Args:
        dim: width of the features.
        classes: number of classes.
        scale: the factor on the cosines.
        std: deviation of the numbers that the vectors are drawn of; None for vectors of length 1.
    """

    def __init__(self, dim: int, classes: int, scale: float, std: float | None = None) -> None:
        super().__init__()
        self.scale = scale
        # Only the direction counts, but the length sets how far one optimizer step turns it.
        drawn = torch.randn(classes, dim)
        self.weight = nn.Parameter(nn.functional.normalize(drawn, dim=1) if std is None else std * drawn)

    def cosine(self, features: Tensor) -> Tensor:
        """(batch, dim) -> cosines (batch, classes)."""
        features = nn.functional.normalize(at_least_float32(features), dim=1)
        # Not a matrix product, which autocast would compute in half precision.
        return (features[:, None] * nn.functional.normalize(self.weight, dim=1)).sum(2)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, dim) -> logits (batch, classes)."""
        return self.scale * self.cosine(features)


class MarginLoss(FeatureLoss):
    """Cross-entropy of scaled cosines, where the label's class must win by a margin, averaged over the batch.

    The logits are s cos(theta_j), and s (psi(m1 theta_y + m2) - m3) for the label y, where theta_j is the angle
    between the features and class j's vector. Deng, Guo, Xue, Zafeiriou: "ArcFace: Additive Angular Margin Loss for
    Deep Face Recognition", CVPR 2019, eq. 4, joins by it the multiplicative angular margin m1 of SphereFace (Liu et
    al. 2017), the additive angular margin m2 of ArcFace and the additive cosine margin m3 of CosFace (Wang et al.
    2018). Features are normalised, so the factor of the original SphereFace, the features' length, is s here.

    psi is the cosine as far as pi, where the cosine would rise again. From there on it is SphereFace's continuation
    (Liu, Wen, Yu, Li, Raj, Song: "SphereFace: Deep Hypersphere Embedding for Face Recognition", CVPR 2017, section
    3.2) with the whole m1 theta + m2 in place of m1 theta:

        psi(t) = (-1)^k cos(t) - 2k    for t from k pi to (k + 1) pi

    It falls all the way, without a jump in value or slope. (ArcFace's own code goes on with cos(theta) -
    m2 sin(m2), which jumps there; 4M-SER's goes on with the cosine, which rises (`past_pi`), takes the margin out of
    the gradient (`gradient`), and has no m1.)

    d psi / d cos(theta) = (-1)^k m1 sin(t) / sin(theta) grows without bound towards theta = 0 and pi. Cosines are
    therefore held 4 roundings away from -1 and 1 (about 0.001 rad in float32), where the label's logit is constant
    and its gradient 0. CosFace needs no angle and no such bound, nor does what takes no part in the gradient.

    Args:
        m1: the factor on the angle; 1 for none.
        m2: the margin that is added to the angle, in radians; 0 for none.
        m3: the margin that is taken from the cosine; 0 for none.
        scale: the factor s on the cosines.
        past_pi: what psi does from pi on: `falls`, or `rises` as the cosine.
        gradient: `whole`, or `detached`: what the margin adds is held constant in it, so that the slope of the label's
            logit over its cosine is that of the others.
        std: deviation of the numbers that the class vectors are drawn of; None for vectors of length 1.
        on: the features that the loss acts on: any of embedding, text, audio.
        learning_rate: the learning rate of the class vectors.
        **training: `optimizer` and `scheduler`, see `FeatureLoss`.

    Raises:
        InputError: a number out of range, or an unknown feature.
    """

    name = "margin"

    def __init__(
        self,
        *,
        m1: float,
        m2: float,
        m3: float,
        scale: float,
        on: Sequence[str],
        learning_rate: float,
        # Records of earlier versions have none of these.
        past_pi: str = "falls",
        gradient: str = "whole",
        std: float | None = None,
        **training: Any,
    ) -> None:
        super().__init__(on, learning_rate, **training)
        check_positive("m1", m1)
        check_not_negative("m2", m2)
        check_not_negative("m3", m3)
        check_positive("scale", scale)
        check_choice("past_pi", past_pi, ("falls", "rises"))
        check_choice("gradient", gradient, GRADIENTS)
        check_number("loss.std", std, "a number greater than 0", above=True, null=True)
        self.m1, self.m2, self.m3 = m1, m2, m3
        self.scale, self.std = scale, std
        self.falls, self.detached = past_pi == "falls", gradient == "detached"
        self.classifiers = nn.ModuleDict()

    def make(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        self.classifiers = nn.ModuleDict(
            {where: CosineClassifier(dim, classes, self.scale, self.std) for where, (classes, dim) in shapes.items()}
        )

    def classifier(self) -> nn.Module | None:
        """The cosines with the embedding, without the margin; None where the loss does not act on the embedding."""
        return self.classifiers["embedding"] if "embedding" in self.on else None

    def term(self, where: str, features: Tensor, labels: Tensor) -> Tensor:
        classifier = self.classifiers[where]
        assert isinstance(classifier, CosineClassifier)
        cosine = classifier.cosine(features)  # (batch, classes)
        target = labels[:, None]
        own = cosine.gather(1, target)
        if self.detached:
            with torch.no_grad():
                added = self._with_margin(own, 1.0) - own
            own = own + added
        else:
            own = self._with_margin(own, 1 - 4 * torch.finfo(own.dtype).eps)
        return nn.functional.cross_entropy(self.scale * cosine.scatter(1, target, own), labels)

    def _with_margin(self, cosine: Tensor, bound: float) -> Tensor:
        """psi(m1 theta + m2) - m3 of cos(theta), which is held within a bound."""
        if self.m1 == 1 and self.m2 == 0:
            return cosine - self.m3
        angle = self.m1 * cosine.clamp(-bound, bound).acos() + self.m2
        if not self.falls:
            return angle.cos() - self.m3
        turns = (angle / math.pi).floor()
        return (1 - 2 * (turns % 2)) * angle.cos() - 2 * turns - self.m3
