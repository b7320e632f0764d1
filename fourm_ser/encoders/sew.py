"""The encoders of SEW and SEW-D (Wu et al., 2021, https://arxiv.org/abs/2109.06870), exact under padding.

Their transformers see groups of frames. Alone, frames that fill no last group are in none; in Hugging Face's own models
a padded batch fills it up, and every frame attends to it.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput

from fourm_ser.encoders.base import length_mask


class SqueezedEncoder(nn.Module):
    """What the encoders of SEW and SEW-D do, with their parts under their names.

    Frames that fill no last group are left out of the result, where the originals put zeros.
    """

    config: Any
    pos_conv_embed: nn.Module
    pool: nn.Module
    upsample: nn.Module

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.config = original.config
        for name, part in original.named_children():
            self.add_module(name, part)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **others: Any) -> BaseModelOutput:
        """Frames (batch, time, width) and which are whose own (batch, time) -> all groups' frames."""
        own = hidden_states.new_ones(hidden_states.shape[:2], dtype=torch.bool)
        if attention_mask is not None:
            own = attention_mask.bool()
        hidden = hidden_states.masked_fill(~own[..., None], 0).transpose(1, 2)  # (batch, width, time)
        groups = self.pool(hidden)
        groups = (groups + self.pos_conv_embed(hidden)[..., : groups.shape[2]]).transpose(1, 2)
        full = length_mask(own.sum(1) // self.config.squeeze_factor, groups.shape[1])
        return BaseModelOutput(last_hidden_state=self.upsample(self.transform(groups, full, **others)))

    @abstractmethod
    def transform(self, groups: Tensor, full: Tensor, **others: Any) -> Tensor:
        """Groups of frames (batch, groups, width) and which are full (batch, groups) -> what the last layer makes."""


class SewEncoder(SqueezedEncoder):
    """SEW's: scaled dot-product attention."""

    layer_norm: nn.Module
    dropout: nn.Module
    layers: nn.ModuleList

    def transform(self, groups: Tensor, full: Tensor, **others: Any) -> Tensor:
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=groups, attention_mask=full)
        hidden: Tensor = self.dropout(self.layer_norm(groups))
        for layer in self.layers:
            if not (self.training and self.config.layerdrop > 0 and torch.rand([]) < self.config.layerdrop):
                hidden = layer(hidden, attention_mask=mask, **others)
        return hidden


class SewDEncoder(SqueezedEncoder):
    """SEW-D's: disentangled attention, whose distances Hugging Face's sends to the device one number at a time."""

    encoder: Any

    def transform(self, groups: Tensor, full: Tensor, **others: Any) -> Tensor:
        places = None
        if self.encoder.relative_attention:
            places = distances(groups, int(self.encoder.position_buckets), int(self.encoder.max_relative_positions))
        hidden: Tensor = self.encoder(groups, full.long(), relative_pos=places, **others).last_hidden_state
        return hidden


def distances(groups: Tensor, buckets: int, farthest: int) -> Tensor:
    """How far each key of (batch, groups, width) lies before each query (1, groups, groups), far ones by the logarithm.

    He et al., 2021, https://arxiv.org/abs/2006.03654. Where `buckets` is not positive, all distances are themselves.
    """
    places = torch.arange(groups.shape[1], device=groups.device)
    distance = (places[:, None] - places)[None]
    if buckets <= 0 or farthest <= 0:
        return distance
    near = buckets // 2
    steps = distance.abs()
    # The last bucket is rounded as in the original, in float32.
    most = float(torch.log(torch.tensor((farthest - 1) / near)))
    far = torch.ceil(torch.log(steps.clamp(min=near) / near) / most * (near - 1)).long() + near
    return torch.where(steps <= near, distance, far * distance.sign())
