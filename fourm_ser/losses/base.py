"""What every loss is: built from plain numbers, set up for the classes and widths, called on logits and features."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fourm_ser.checks import check_number
from fourm_ser.errors import InputError

FEATURES = ("embedding", "text", "audio")
GRADIENTS = ("whole", "detached")
"""Whether all of a formula takes part in the gradient, or a factor or margin of it is held constant."""


class Loss(nn.Module, ABC):
    """A loss, and the parameters of its own.

    The constructor takes the config's numbers and refuses bad ones; `setup` makes the parameters once the number of
    classes and the widths are known. A loss sees the whole batch, of all processes, and computes in float32 at least.

    Attributes:
        name: what the loss's value is called beside `total`.
        on: the features that the loss acts on, any of `FEATURES`; none where it takes the logits alone.
        learning_rate: the learning rate of the loss's own parameters; None where it has none.
        optimizer: builds the optimizer of the loss's own parameters from groups of them; None for the stage's.
        scheduler: builds the schedule of that optimizer, by epochs counted over all stages; None for the stage's.
        uses_head: whether the loss trains the head's logits.
    """

    name: str
    on: Sequence[str] = ()
    learning_rate: float | None = None
    optimizer: Callable[..., Optimizer] | None = None
    scheduler: Callable[..., LRScheduler] | None = None
    uses_head: bool = False

    @abstractmethod
    def setup(self, classes: int, dims: Mapping[str, int], counts: Sequence[int]) -> Self:
        """Make the parameters, and refuse what does not fit.

        Args:
            classes: number of classes.
            dims: width of each feature that there is, by its name.
            counts: training utterances of each class.

        Raises:
            InputError: numbers that do not fit the classes, or features that are not given.
        """

    @abstractmethod
    def forward(self, logits: Tensor, features: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """A batch -> `total`, and one scalar a term by its name.

        Args:
            logits: (batch, classes) logits of the head.
            features: (batch, dim of its own) of each feature that the loss acts `on`, by its name: `embedding`, the
                fused vector, `text` and `audio`, pooled.
            labels: (batch,) indices of classes.
        """

    def classifier(self) -> nn.Module | None:
        """The classifier that a loss trains in place of the head, embedding (batch, dim) -> logits; else None."""
        return None

    def groups(self) -> list[dict[str, Any]]:
        """The loss's own parameters as optimizer groups, untouched by weight decay."""
        parameters = list(self.parameters())
        return [{"params": parameters, "lr": self.learning_rate, "weight_decay": 0.0}] if parameters else []

    def train_by(
        self, optimizer: Callable[..., Optimizer] | None, scheduler: Callable[..., LRScheduler] | None
    ) -> None:
        """Train the loss's own parameters by an optimizer and a schedule of their own; None for the stage's.

        Raises:
            InputError: a schedule without an optimizer.
        """
        if scheduler is not None and optimizer is None:
            raise InputError(
                "loss.scheduler: is that of loss.optimizer, and there is none. Add optimizer@loss.optimizer=adam, or "
                "leave it out."
            )
        self.optimizer, self.scheduler = optimizer, scheduler

    def check_classifier(self) -> None:
        """Refuse a loss that trains neither the head nor a classifier of its own."""
        if not self.uses_head and self.classifier() is None:
            raise InputError(
                f"loss={self.name} draws embeddings together but trains no classifier: use it in a sum, such as "
                "loss=ce_center."
            )


class FeatureLoss(Loss):
    """A loss on features, with class vectors of its own for each feature it acts on; its value is the sum over them.

    Args:
        on: the features that the loss acts on: any of embedding, text, audio.
        learning_rate: the learning rate of the class vectors.
        optimizer: builds their optimizer; None for the stage's.
        scheduler: builds that optimizer's schedule, by epochs counted over all stages; None for the stage's.

    Raises:
        InputError: an unknown feature, one given twice, none, or a learning rate that is not positive; a schedule
            without an optimizer.
    """

    def __init__(
        self,
        on: Sequence[str],
        learning_rate: float,
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        given = [on] if isinstance(on, str) else list(on)
        if isinstance(on, str) or not given or len(set(given)) < len(given) or not set(given) <= set(FEATURES):
            shown = ", ".join(str(where) for where in given)
            raise InputError(f"loss.on=[{shown}]: expected a list of any of {', '.join(FEATURES)}, each once.")
        check_positive("learning_rate", learning_rate)
        self.on = given
        self.learning_rate = learning_rate
        self.train_by(optimizer, scheduler)

    def setup(self, classes: int, dims: Mapping[str, int], counts: Sequence[int]) -> Self:
        if not set(self.on) <= set(dims):
            raise InputError(f"loss.on=[{', '.join(self.on)}]: the fusion gives {', '.join(dims)}.")
        self.make({where: (classes, dims[where]) for where in self.on})
        return self

    @abstractmethod
    def make(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Make the class vectors, (classes, dim) for each feature."""

    @abstractmethod
    def term(self, where: str, features: Tensor, labels: Tensor) -> Tensor:
        """The value on one feature, (batch, dim), in float32 or float64."""

    def forward(self, logits: Tensor, features: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        terms = {where: self.term(where, at_least_float32(features[where]), labels) for where in self.on}
        total = torch.stack(list(terms.values())).sum()
        parts = {f"{self.name}/{where}": value for where, value in terms.items()} if len(terms) > 1 else {}
        return {"total": total, self.name: total, **parts}


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision widened to float32; float32 and float64 as they are."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def check_positive(key: str, value: Any) -> None:
    """Refuse what is not a number greater than 0 for the key below `loss`."""
    check_number(f"loss.{key}", value, "a number greater than 0", above=True)


def check_not_negative(key: str, value: Any) -> None:
    """Refuse what is not a number, 0 or more, for the key below `loss`."""
    check_number(f"loss.{key}", value, "a number, 0 or more")


def check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    """Refuse what is not one of `choices`, by an error that names the key below `loss`."""
    if value not in choices:
        raise InputError(f"loss.{key}={value}: expected one of {', '.join(choices)}.")
