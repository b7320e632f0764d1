"""Which hidden states of a transformer are its features."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fourm_ser.encoders.base import Features
from fourm_ser.errors import InputError


class LayerChoice(nn.Module):
    """The last hidden state, that of one layer, or a learned weighted sum over all of them.

    Hidden state 0 is what enters the first transformer layer, hidden state k what leaves the k-th. The weighted sum is
    that of SUPERB (Yang et al. 2021): the states side by side are the stem's features; the top, which always trains,
    is one weight a state, through a softmax.

    Args:
        layer: `last`, `weighted`, or a number from 0 to `layers`.
        layers: the transformer's layers.
        width: width of a hidden state.
        key: the config's key, for errors.

    Raises:
        InputError: there is no such layer.
    """

    def __init__(self, layer: str | int, layers: int, width: int, key: str) -> None:
        super().__init__()
        numbered = isinstance(layer, int) and not isinstance(layer, bool) and 0 <= layer <= layers
        if layer not in ("last", "weighted") and not numbered:
            raise InputError(f"{key}={layer}: expected last, weighted or a layer from 0 to {layers}.")
        self.layer, self.width = layer, width
        self.weights: nn.Parameter | None = nn.Parameter(torch.zeros(layers + 1)) if layer == "weighted" else None
        self.stem_dim = width * (layers + 1) if layer == "weighted" else width

    @property
    def count(self) -> int | None:
        """How many layers the features come through; None for all."""
        return self.layer if isinstance(self.layer, int) else None

    def describe(self) -> dict[str, Any]:
        """What it changes of the stem; nothing where the last state is taken."""
        return {} if self.layer == "last" else {"layer": self.layer}

    @property
    def asks_all(self) -> bool:
        """Whether the transformer has to return all hidden states."""
        return self.layer != "last"

    def pick(self, last: Tensor, states: Sequence[Tensor] | None) -> Tensor:
        """The stem's features (batch, time, stem_dim) out of the last hidden state and, where asked for, all."""
        if states is None:
            return last
        return torch.cat(list(states), dim=-1) if self.weights is not None else states[int(self.layer)]

    def forward(self, features: Features) -> Features:
        """The stem's features -> (batch, time, width)."""
        if self.weights is None:
            return features
        batch, time, _ = features.features.shape
        states = features.features.view(batch, time, -1, self.width)  # (batch, time, layers + 1, width)
        return Features(torch.einsum("btlw,l->btw", states, self.weights.softmax(0).to(states.dtype)), features.mask)
