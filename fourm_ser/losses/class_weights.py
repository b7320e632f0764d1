"""Weights of classes, as cross-entropy and focal loss take them."""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from fourm_ser.errors import InputError
from fourm_ser.losses.base import Loss, check_positive

ClassWeights = Sequence[float] | str | None


class WeightedLoss(Loss):
    """A loss of the head's logits in which each class has a weight.

    Args:
        class_weights: a weight for each class; `balanced` for utterances / (classes that occur * count), by which an
            utterance weighs 1 on average, and a class that training lacks 1; None where all weigh the same.

    Attributes:
        weights: (classes,) weights, once `setup` was called; None where all weigh the same.

    Raises:
        InputError: weights that are not positive numbers.
    """

    uses_head = True
    weights: Tensor | None

    def __init__(self, class_weights: ClassWeights) -> None:
        super().__init__()
        if isinstance(class_weights, Sequence) and class_weights and not isinstance(class_weights, str):
            for index, weight in enumerate(class_weights):
                check_positive(f"class_weights[{index}]", weight)
        elif class_weights not in (None, "balanced"):
            raise InputError(
                f"loss.class_weights={class_weights}: expected balanced, null, or one positive number a class."
            )
        self.class_weights = class_weights
        self.register_buffer("weights", None, persistent=False)

    def setup(self, classes: int, dims: Mapping[str, int], counts: Sequence[int]) -> Self:
        weights = self.class_weights
        if weights == "balanced":
            occurring = sum(count > 0 for count in counts)
            weights = [sum(counts) / (occurring * count) if count else 1.0 for count in counts]
        if weights is not None:
            if len(weights) != classes:
                raise InputError(
                    f"loss.class_weights={list(weights)}: expected {classes} numbers, one a class in the order of the "
                    "emotions, or balanced, or null."
                )
            self.weights = torch.tensor(weights, dtype=torch.float32)
        return self
