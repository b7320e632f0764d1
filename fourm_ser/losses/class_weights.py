"""Weights of classes, as cross-entropy and focal loss take them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fourm_ser.errors import InputError
from fourm_ser.losses.base import check_positive

ClassWeights = Sequence[float] | str | None


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
