"""Cross-entropy over the classes."""

from collections.abc import Sequence as Items

import torch
from torch import Tensor, nn

from fourm_ser.errors import InputError
from fourm_ser.losses.base import Loss
from fourm_ser.network import NetworkOutput


class CrossEntropyLoss(Loss):
    """-log p(label), averaged over the batch.

    Args:
        classes: number of classes.
        dim: not used.
        counts: training utterances of each class.
        label_smoothing: share of the target that is spread over all classes (Szegedy et al. 2016).
        class_weights: a weight for each class; `balanced` for utterances / (classes * count); None for 1.

    Raises:
        InputError: smoothing outside [0, 1), or weights that do not fit the classes.
    """

    def __init__(
        self,
        classes: int,
        dim: int,
        counts: Items[int],
        label_smoothing: float,
        class_weights: Items[float] | str | None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise InputError(f"loss.label_smoothing={label_smoothing}: expected a share from 0 to below 1.")
        if class_weights == "balanced":
            class_weights = [sum(counts) / (classes * count) if count else 0.0 for count in counts]
        if isinstance(class_weights, str) or (class_weights is not None and len(class_weights) != classes):
            raise InputError(f"loss.class_weights={class_weights}: expected balanced, null, or {classes} numbers.")
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, output: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        loss = nn.functional.cross_entropy(
            output.logits.float(),
            labels,
            weight=self.weights,  # type: ignore[arg-type]
            label_smoothing=self.label_smoothing,
        )
        return {"total": loss, "ce": loss}
