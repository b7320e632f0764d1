"""Cross-entropy over the classes."""

from collections.abc import Mapping

from torch import Tensor, nn

from fourm_ser.checks import check_number
from fourm_ser.losses.base import at_least_float32
from fourm_ser.losses.class_weights import ClassWeights, WeightedLoss


class CrossEntropyLoss(WeightedLoss):
    """-log p(label), averaged over the batch; with class weights the average is weighted by the labels' weights.

    Args:
        label_smoothing: share of the target that is spread over all classes (Szegedy et al. 2016).
        class_weights: a weight for each class; `balanced` for those of `fourm_ser.losses.class_weights`; None for 1.

    Raises:
        InputError: smoothing outside [0, 1), or weights that are not positive numbers.
    """

    name = "ce"

    def __init__(self, label_smoothing: float, class_weights: ClassWeights) -> None:
        super().__init__(class_weights)
        check_number("loss.label_smoothing", label_smoothing, "a share from 0 to below 1", most=1, below=True)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, features: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        logits = at_least_float32(logits)
        weights = None if self.weights is None else self.weights.to(logits.dtype)
        smoothing = self.label_smoothing
        if weights is None:
            loss = nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        else:  # PyTorch's own mean of smoothed and weighted values waits for the device
            values = nn.functional.cross_entropy(logits, labels, weights, label_smoothing=smoothing, reduction="none")
            loss = values.sum() / weights[labels].sum()
        return {"total": loss, "ce": loss}
