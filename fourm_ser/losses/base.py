"""What every loss is: built from (classes, embedding width, class counts), called on (network output, labels)."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from fourm_ser.network import NetworkOutput


class Loss(nn.Module, ABC):
    """A loss, and the parameters of its own.

    Attributes:
        learning_rate: of the loss's own parameters; None where it has none.
    """

    learning_rate: float | None = None

    @abstractmethod
    def forward(self, output: NetworkOutput, labels: Tensor) -> dict[str, Tensor]:
        """Network output and labels (batch,) -> `total`, and one scalar a term by its name."""

    def groups(self) -> list[dict[str, Any]]:
        """The loss's own parameters as optimizer groups, untouched by weight decay."""
        parameters = list(self.parameters())
        return [{"params": parameters, "lr": self.learning_rate, "weight_decay": 0.0}] if parameters else []
