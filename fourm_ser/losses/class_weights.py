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
        class_weights: a weight for each class; `balanced` for those of `class_weights`; None for 1.

    Attributes:
        weights: (classes,) weights, once `setup` was called; None where all weigh the same.

    Raises:
        InputError: weights that are not positive numbers.
    """

    uses_head = True
    weights: Tensor | None

    def __init__(self, class_weights: ClassWeights) -> None:
        super().__init__()
        check_class_weights(class_weights)
        self.class_weights = class_weights
        self.register_buffer("weights", None, persistent=False)

    def setup(self, classes: int, dims: Mapping[str, int], counts: Sequence[int]) -> Self:
        self.weights = class_weights(self.class_weights, classes, counts)
        return self


def check_class_weights(weights: ClassWeights) -> None:
    """Refuse what can be weights of no number of classes.

    Raises:
        InputError: it is neither `balanced`, nor None, nor a list of positive numbers.
    """
    if weights is None or weights == "balanced":
        return
    if isinstance(weights, str) or not isinstance(weights, Sequence) or not weights:
        raise InputError(f"loss.class_weights={weights}: expected balanced, null, or one positive number a class.")
    for index, weight in enumerate(weights):
        check_positive(f"class_weights[{index}]", weight)


def class_weights(weights: ClassWeights, classes: int, counts: Sequence[int]) -> Tensor | None:
    """The weight of each class, (classes,); None where all weigh the same.

    Args:
        weights: one number a class; `balanced` for utterances / (classes that occur * count), by which an utterance
            weighs 1 on average; None for no weights. A class that training lacks weighs 1 in a balanced loss.
        classes: number of classes.
        counts: training utterances of each class.

    Raises:
        InputError: not as many weights as classes.
    """
    if weights is None:
        return None
    if isinstance(weights, str):
        occurring = sum(count > 0 for count in counts)
        weights = [sum(counts) / (occurring * count) if count else 1.0 for count in counts]
    if len(weights) != classes:
        raise InputError(
            f"loss.class_weights={list(weights)}: expected {classes} numbers, one a class in the order of the "
            "emotions, or balanced, or null."
        )
    return torch.tensor(weights, dtype=torch.float32)
