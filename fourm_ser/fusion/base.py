"""What every fusion is: two feature sequences in, one embedding out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fourm_ser.encoders.base import Sequence
from fourm_ser.errors import InputError

POOLS = ("first", "mean", "max", "min", "sum")


class FusionOutput(NamedTuple):
    """What a fusion returns.

    Attributes:
        embedding: (batch, dim), the fused vector that heads and feature losses act on.
        text: the text features as the fusion normalises them; None where it reads no text.
        audio: the same of the audio.
        attention: maps by name, (batch, heads, queries, keys), when they were asked for; else empty.
    """

    embedding: Tensor
    text: Sequence | None
    audio: Sequence | None
    attention: Mapping[str, Tensor]


class Fusion(nn.Module, ABC):
    """From the encoders' sequences to one embedding an utterance.

    Attributes:
        modalities: the modalities it reads; encoders of others are not built.
        dim: width of the embedding.
    """

    modalities: tuple[str, ...]
    dim: int

    @abstractmethod
    def forward(self, text: Sequence | None, audio: Sequence | None, return_attention: bool = False) -> FusionOutput:
        """Fuse text (batch, tokens, dim) and audio (batch, frames, dim), each with its mask."""


def pool(sequence: Sequence, how: str) -> Tensor:
    """Pool (batch, time, dim) over each row's own frames into (batch, dim).

    Args:
        sequence: features and mask.
        how: `first` (the text's [CLS] where text comes first), `mean`, `max`, `min` or `sum`.
    """
    features, mask = sequence.features, sequence.mask[..., None]
    if how == "first":
        return features[:, 0]
    if how == "max":
        return features.masked_fill(~mask, float("-inf")).amax(1)
    if how == "min":
        return features.masked_fill(~mask, float("inf")).amin(1)
    total = features.masked_fill(~mask, 0.0).sum(1)
    return total if how == "sum" else total / mask.sum(1)


def check_pool(how: str, key: str) -> str:
    """`how`, if it is a way to pool.

    Raises:
        InputError: it is not; `key` is the config key to name.
    """
    if how not in POOLS:
        raise InputError(f"{key}={how}: expected one of {', '.join(POOLS)}.")
    return how


class SelfAttention(nn.Module):
    """Multi-head self-attention that never looks at padding.

    Args:
        dim: width of the features.
        heads: number of heads; divides `dim`.
        dropout: dropout on the attention weights.
        key: the config key to name when they do not fit.

    Raises:
        InputError: `heads` does not divide `dim`.
    """

    def __init__(self, dim: int, heads: int, dropout: float, key: str) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise InputError(f"{key}={heads}: does not divide the features' width {dim}.")
        self.attention = nn.MultiheadAttention(dim, heads, dropout, batch_first=True)

    def forward(self, sequence: Sequence, return_attention: bool = False) -> tuple[Sequence, Tensor | None]:
        """(batch, time, dim) -> the same, and the maps (batch, heads, time, time) when asked for."""
        features, weights = self.attention(
            sequence.features,
            sequence.features,
            sequence.features,
            key_padding_mask=~sequence.mask,
            need_weights=return_attention,
            average_attn_weights=False,
        )
        return Sequence(features, sequence.mask), weights


def concatenate(first: Sequence, second: Sequence) -> Sequence:
    """Two sequences one after the other in time, each with its padding where it was.

    The result's own frames do not stand first in a row any more; attention and pooling go by the mask alone.
    """
    return Sequence(torch.cat([first.features, second.features], 1), torch.cat([first.mask, second.mask], 1))
