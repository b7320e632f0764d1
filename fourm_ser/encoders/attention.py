"""Attention as plain matrix products, some heads at a time.

In bf16 on a processor this takes half the time of torch's fused kernel, whose small blocks keep the matrix units
waiting. Everywhere else the fused kernel serves.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "fourm_ser"
SCORES = 4_000_000  # held at a time: 8 MB


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention, as Hugging Face's models ask for it.

    Args:
        module: the layer.
        query, key, value: (batch, heads, time, width of a head).
        attention_mask: (batch or 1, heads or 1, time or 1, time) bool, True where a key counts; None for all.
        dropout: on the weights.
        scaling: of the scores; None for 1 / sqrt(width).
        **others: what the fused kernel takes besides.

    Returns:
        (batch, time, heads, width), and no weights.
    """
    suits = query.device.type == "cpu" and query.dtype == torch.bfloat16 and not torch.is_grad_enabled()
    plain = not getattr(module, "is_causal", True) and not any(isinstance(other, Tensor) for other in others.values())
    if not suits or not plain or dropout > 0:
        attended, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return attended, None
    batch, heads, time, width = query.shape
    query = query * (width**-0.5 if scaling is None else scaling)
    attended = torch.empty(batch, time, heads, width, dtype=query.dtype)
    together = max(1, SCORES // (time * key.shape[2]))
    hidden = None if attention_mask is None else ~attention_mask.expand(batch, -1, -1, -1)
    for row in range(batch):
        for first in range(0, heads, together):
            some = slice(first, first + together)
            scores = torch.bmm(query[row, some], key[row, some].transpose(1, 2))
            if hidden is not None:
                scores.masked_fill_(hidden[row, some if hidden.shape[1] > 1 else slice(None)], float("-inf"))
            attended[row, :, some] = torch.bmm(scores.softmax(-1), value[row, some]).transpose(0, 1)
    return attended, None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def speed_up(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, which uses `attend` where it used torch's fused kernel."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
    return model
