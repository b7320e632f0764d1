"""Angular margins: SphereFace, CosFace, ArcFace, and their combination (Deng et al. 2019)."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fourm_ser.losses.base import FeatureLoss, at_least_float32, check_not_negative, check_positive


class CosineClassifier(nn.Module):
    """scale * cos(angle between the features and each class's vector)."""

    def __init__(self, dim: int, classes: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        # Only the direction counts, but the length sets how far one optimizer step turns it.
        self.weight = nn.Parameter(nn.functional.normalize(torch.randn(classes, dim), dim=1))

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
    m2 sin(m2), which jumps there; 4M-SER's goes on with the cosine, which rises, takes the angle out of the
    gradient, and has no m1.)

    d psi / d cos(theta) = (-1)^k m1 sin(t) / sin(theta) grows without bound towards theta = 0 and pi. Cosines are
    therefore held 4 roundings away from -1 and 1 (about 0.001 rad in float32), where the label's logit is constant
    and its gradient 0. CosFace needs no angle and no such bound.

    Args:
        m1: the factor on the angle; 1 for none.
        m2: the margin that is added to the angle, in radians; 0 for none.
        m3: the margin that is taken from the cosine; 0 for none.
        scale: the factor s on the cosines.
        on: the features that the loss acts on: any of embedding, text, audio.
        learning_rate: the learning rate of the class vectors.

    Raises:
        InputError: a number out of range, or an unknown feature.
    """

    name = "margin"

    def __init__(
        self, *, m1: float, m2: float, m3: float, scale: float, on: Sequence[str], learning_rate: float
    ) -> None:
        super().__init__(on, learning_rate)
        check_positive("m1", m1)
        check_not_negative("m2", m2)
        check_not_negative("m3", m3)
        check_positive("scale", scale)
        self.m1, self.m2, self.m3 = m1, m2, m3
        self.scale = scale
        self.classifiers = nn.ModuleDict()

    def make(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        self.classifiers = nn.ModuleDict(
            {where: CosineClassifier(dim, classes, self.scale) for where, (classes, dim) in shapes.items()}
        )

    def classifier(self) -> nn.Module | None:
        """The cosines with the embedding, without the margin; None where the loss does not act on the embedding."""
        return self.classifiers["embedding"] if "embedding" in self.on else None

    def term(self, where: str, features: Tensor, labels: Tensor) -> Tensor:
        classifier = self.classifiers[where]
        assert isinstance(classifier, CosineClassifier)
        cosine = classifier.cosine(features)  # (batch, classes)
        target = labels[:, None]
        logits = cosine.scatter(1, target, self._with_margin(cosine.gather(1, target)))
        return nn.functional.cross_entropy(self.scale * logits, labels)

    def _with_margin(self, cosine: Tensor) -> Tensor:
        """psi(m1 theta + m2) - m3 of cos(theta)."""
        if self.m1 == 1 and self.m2 == 0:
            return cosine - self.m3
        bound = 1 - 4 * torch.finfo(cosine.dtype).eps
        angle = self.m1 * cosine.clamp(-bound, bound).acos() + self.m2
        turns = (angle / math.pi).floor()
        return (1 - 2 * (turns % 2)) * angle.cos() - 2 * turns - self.m3
