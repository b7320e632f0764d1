"""Positions of conformers without a memory of earlier batches, computed where the features are.

Hugging Face's keep the last batch's: on another device, in half precision or from `inference_mode` they stay what they
were then. Theirs are made on the host, too, which a device would be waited for.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn


class RotaryPositions(nn.Module):
    """Cosines and sines that turn queries and keys by their places (Su et al. 2021).

    https://arxiv.org/abs/2104.09864.
    """

    inv_freq: Tensor

    def __init__(self, original: Any) -> None:
        super().__init__()
        persistent = "inv_freq" in original.state_dict()
        self.register_buffer("inv_freq", original.inv_freq, persistent=persistent)

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, time, width) -> (2, time, 1, 1, width of a head) in float32."""
        places = torch.arange(hidden.shape[1], device=hidden.device, dtype=torch.float32)
        angles = (places[:, None] * self.inv_freq).repeat(1, 2)
        return torch.stack([angles.cos(), angles.sin()])[:, :, None, None]


class RelativePositions(nn.Module):
    """Sinusoids of the distance from a key to a query, from the farthest before it to the farthest behind.

    Dai et al. 2019, https://arxiv.org/abs/1901.02860.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.width = int(original.d_model)

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, time, width) -> (1, 2 * time - 1, width) in float32."""
        time = hidden.shape[1]
        distances = torch.arange(time - 1, -time, -1, device=hidden.device, dtype=torch.float32)
        steps = torch.arange(0, self.width, 2, device=hidden.device, dtype=torch.float32)
        angles = distances[:, None] * torch.exp(steps * -(math.log(10_000.0) / self.width))
        return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[None]


def replace_positions(encoder: Any) -> None:
    """Put these in place of a conformer's own, which depend on earlier batches."""
    if encoder.config.position_embeddings_type == "rotary":
        encoder.embed_positions = RotaryPositions(encoder.embed_positions)
    elif encoder.config.position_embeddings_type == "relative":
        encoder.embed_positions = RelativePositions(encoder.embed_positions)
