"""SpecAugment of the self-supervised speech models, drawn where their features are."""

from typing import Any

import torch
from torch import Tensor, nn

from fourm_ser.encoders.base import length_mask


def mask_hidden_states(
    model: Any, hidden: Tensor, mask_time_indices: Tensor | None = None, attention_mask: Tensor | None = None
) -> Tensor:
    """SpecAugment of (batch, frames, width): Hugging Face's on a processor, elsewhere one that waits for nothing."""
    config = model.config
    if hidden.shape[1] < config.mask_time_length:
        return hidden  # Hugging Face's raises
    if hidden.device.type == "cpu":
        return type(model)._mask_hidden_states(
            model, hidden, mask_time_indices=mask_time_indices, attention_mask=attention_mask
        )
    return augment(model, hidden, attention_mask) if model.training and config.apply_spec_augment else hidden


def augment(model: Any, hidden: Tensor, own: Tensor | None) -> Tensor:
    """SpecAugment, as Hugging Face's model does it, drawn on the device.

    Park et al., 2019, https://arxiv.org/abs/1904.08779.

    Args:
        model: a self-supervised model, whose config says how much is masked, and whose vector it is masked with.
        hidden: (batch, frames, width).
        own: (batch, frames) bool, the frames that may be masked; None for all.

    Returns:
        The same, with the model's vector in spans of frames, and zeros in spans of features.
    """
    config, (batch, frames, width) = model.config, hidden.shape
    if config.mask_time_prob > 0:
        lengths = hidden.new_full((batch,), frames, dtype=torch.long) if own is None else own.sum(1)
        share, length, least = config.mask_time_prob, config.mask_time_length, config.mask_time_min_masks
        masked = draw_spans(lengths, frames, share, length, least)
        hidden = torch.where(masked[..., None], model.masked_spec_embed.to(hidden.dtype), hidden)
    if config.mask_feature_prob > 0:
        lengths = hidden.new_full((batch,), width, dtype=torch.long)
        share, length, least = (
            config.mask_feature_prob,
            config.mask_feature_length,
            getattr(config, "mask_feature_min_masks", 0),
        )
        hidden = hidden.masked_fill(draw_spans(lengths, width, share, length, least)[:, None], 0)
    return hidden


def draw_spans(lengths: Tensor, longest: int, share: float, length: int, least: int) -> Tensor:
    """Spans at random places, which may overlap, on the lengths' device.

    Args:
        lengths: (batch,) places of each row.
        longest: the largest of them, or more.
        share: of the places that are in spans, if none overlap; the number of spans is rounded up or down at random.
        length: of a span.
        least: spans of a row, where it has room.

    Returns:
        (batch, longest) bool, True in spans.
    """
    counts = (share * lengths / length + torch.rand(1, device=lengths.device)).long()
    counts = counts.clamp(min=least).clamp(max=longest // length)
    free = length_mask(lengths - length + 1, longest)  # where one may begin
    draws = torch.rand(free.shape, device=lengths.device).masked_fill(~free, 2)
    begins = (draws.argsort(1).argsort(1) < counts[:, None]) & free
    begun = begins.cumsum(1)
    return begun > nn.functional.pad(begun, (length, 0))[:, :longest]
