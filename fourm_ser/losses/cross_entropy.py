"""Cross-entropy over the classes."""

from collections.abc import Mapping, Sequence
from typing import Self

from torch import Tensor, nn

from fourm_ser.checks import check_number
from fourm_ser.losses.base import Loss, at_least_float32
from fourm_ser.losses.class_weights import ClassWeights, check_class_weights, class_weights


class CrossEntropyLoss(Loss):
    """-log p(label), averaged over the batch; with class weights the average is weighted by the labels' weights.

    Args:
        label_smoothing: share of the target that is spread over all classes (Szegedy et al. 2016).
        class_weights: a weight for each class; `balanced`, see `fourm_ser.losses.class_weights`; None for 1.

    Raises:
        InputError: smoothing outside [0, 1), or weights that are not positive numbers.
    """

    name = "ce"
    uses_head = True
    weights: Tensor | None

    def __init__(self, label_smoothing: float, class_weights: ClassWeights) -> None:
        super().__init__()
        check_number("loss.label_smoothing", label_smoothing, "a share from 0 to below 1", most=1, below=True)
        check_class_weights(class_weights)
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.register_buffer("weights", None, persistent=False)

    def setup(self, classes: int, dims: Mapping[str, int], counts: Sequence[int]) -> Self:
        self.weights = class_weights(self.class_weights, classes, counts)
        return self

    def forward(self, logits: Tensor, features: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        logits = at_least_float32(logits)
        weights = None if self.weights is None else self.weights.to(logits.dtype)
        loss = nn.functional.cross_entropy(logits, labels, weight=weights, label_smoothing=self.label_smoothing)
        return {"total": loss, "ce": loss}
