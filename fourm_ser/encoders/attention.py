"""Hugging Face's models with this package's attention."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from fourm_ser.kernels.attention import attend

NAME = "fourm_ser"


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention, as Hugging Face's models ask for it, without the weights.

    Of queries, keys and values (batch, heads, time, width) it makes (batch, time, heads, width); keys and values may
    have fewer heads. The mask (batch or 1, heads or 1, time or 1, time) is True where a key counts, or numbers to add.
    """
    masks = attention_mask is None or attention_mask.dtype == torch.bool
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    alike = (attention_mask is not None or not causal) and query.shape[1] == key.shape[1]
    if not masks or not alike or any(isinstance(other, Tensor) for other in others.values()):
        attended, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **others
        )
        return attended, None
    projected = [tensor.transpose(1, 2) for tensor in (query, key, value)]
    return attend(projected, query.shape[1], attention_mask, dropout, scaling), None


def mask(
    *,
    attention_mask: Tensor | None,
    device: torch.device | str,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    **others: Any,
) -> Tensor | None:
    """The mask that `attention` gets, as Hugging Face's models ask for it: (batch, time) -> (batch, 1, time, time).

    Where nothing is padded, it is left out on a processor; to ask a device for that, the host would have to wait.
    """
    may_ask = attention_mask is None or torch.device(device).type == "cpu"
    found: Tensor | None = sdpa_mask(
        attention_mask=attention_mask,
        device=device,
        local_size=local_size,
        allow_is_causal_skip=allow_is_causal_skip and may_ask,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip and may_ask,
        **others,
    )
    if found is None or local_size is None or found.shape[-1] != found.shape[-2]:
        return found
    # Far behind an utterance's end nothing would be near but padding, and of no scores there is no softmax.
    return found | torch.eye(found.shape[-1], dtype=torch.bool, device=found.device)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)


def speed_up(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, which uses `attention` where it used torch's own."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
    return model
