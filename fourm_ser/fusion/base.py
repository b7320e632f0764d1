"""What every fusion is: two feature sequences in, one embedding out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fourm_ser.checks import check_number, check_word
from fourm_ser.encoders.base import Features
from fourm_ser.errors import InputError
from fourm_ser.kernels.attention import attend

POOLS = ("first", "mean", "max", "min", "sum")
LEARNED = "learned"
"""In place of a modality: what asks in a map is one vector that the fusion has learned, and no frame."""


class FusionOutput(NamedTuple):
    """What a fusion returns.

    Attributes:
        embedding: (batch, dim), the fused vector that heads and feature losses act on.
        text: the text features as the fusion normalises them; None where it reads no text.
        audio: the audio features as the fusion normalises them; None where it reads no audio.
        attention: maps by name, (batch, heads, queries, keys), when they were asked for; else empty. A row sums to 1
            over the utterance's own keys and is 0 on padding; the rows of padded queries are 0. While training, the
            attention's dropout is on them.
    """

    embedding: Tensor
    text: Features | None
    audio: Features | None
    attention: Mapping[str, Tensor]


class MapAxes(NamedTuple):
    """What an attention map's two axes are.

    Attributes:
        queries: the modalities whose frames ask, one after the other in time, each with its padding where it was; or
            `LEARNED` alone, for one query, which then asks one modality.
        keys: the modalities whose frames are asked, one after the other in time, each with its padding where it was.
    """

    queries: tuple[str, ...]
    keys: tuple[str, ...]


class Fusion(nn.Module, ABC):
    """From the encoders' sequences to one embedding an utterance.

    Attributes:
        modalities: the modalities that the fusion reads; encoders of others are not built.
        dim: width of the embedding.
        widths: width of each sequence that is returned beside the embedding, by modality: `text`, `audio`.
        over_stems: whether it is given the features of the encoders' stems, as the store holds them: then their tops
            are left out of the network.
        reads_activity: whether the features it is given may have one more, their last: how far each frame is speech. It
            is built with `activity`, the modalities of which they have it.
        reads_states: whether it tells several hidden states of an encoder apart. It is built with `states`, by modality
            the places of each one's features.
        summaries: by modality, all that it reads of an utterance's frames, where that is a function of them alone:
            features (batch, time, dim) -> (batch, numbers), picklable. These as one frame are then as good as all.
        views: how many parts of equal width the embedding has, each a view of the utterance with a head of its own.
        maps: what the axes of each attention map are, by the map's name; empty where the fusion has no attention.
    """

    modalities: tuple[str, ...]
    dim: int
    widths: dict[str, int]
    over_stems: ClassVar[bool] = False
    reads_activity: ClassVar[bool] = False
    reads_states: ClassVar[bool] = False
    summaries: Mapping[str, Callable[[Features], Tensor]] = MappingProxyType({})
    views: int = 1
    maps: Mapping[str, MapAxes] = MappingProxyType({})

    @abstractmethod
    def forward(self, text: Features | None, audio: Features | None, return_attention: bool = False) -> FusionOutput:
        """Fuse text (batch, tokens, dim) and audio (batch, frames, dim), each with its mask."""


def zero_padded(sequence: Features) -> Features:
    """The same sequence with zeros where padding stands, whatever stood there."""
    return Features(sequence.features.masked_fill(~sequence.mask[..., None], 0.0), sequence.mask)


def pool(sequence: Features, how: str) -> Tensor:
    """Pool (batch, time, dim) over each row's own frames into (batch, dim).

    `how` is `first` (the text's [CLS] where text comes first), `mean`, `max`, `min` or `sum`.
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


def concatenate(first: Features, second: Features) -> Features:
    """Two sequences one after the other in time, each with its padding where it was.

    The result's own frames do not stand first in a row any more; attention and pooling go by the mask alone.
    """
    return Features(torch.cat([first.features, second.features], 1), torch.cat([first.mask, second.mask], 1))


class Attention(nn.Module):
    """Multi-head attention of one sequence to another, or to itself, that never looks at padding.

    Args:
        queries: width of the features that attend, and of the result.
        keys: width of the features that are attended to.
        heads: number of heads; divides `queries`.
        dropout: share of the attention weights that training drops, the config's `fusion.dropout`.

    Raises:
        InputError: a dropout out of range.
    """

    def __init__(self, *, queries: int, keys: int, heads: int, dropout: float) -> None:
        super().__init__()
        check_dropout(dropout, "fusion.dropout")
        self.attention = nn.MultiheadAttention(queries, heads, dropout, kdim=keys, vdim=keys, batch_first=True)

    def forward(
        self, queries: Features, keys: Features, linear: nn.Linear, return_attention: bool = False
    ) -> tuple[Features, Tensor | None]:
        """Attend from (batch, queries, width) to (batch, keys, width), both with zeros where padding stands.

        Returns:
            (batch, queries, width that `linear` gives), and the maps (batch, heads, queries, keys) when asked for:
            else they are never held in memory.
        """
        attending, attended = queries.features, keys.features
        if return_attention:
            features, weights = self.attention(
                attending, attended, attended, key_padding_mask=~keys.mask, average_attn_weights=False
            )
            weights = weights.masked_fill(~queries.mask[:, None, :, None], 0.0)
            return Features(linear(features), queries.mask), weights
        layer = self.attention
        projected = [
            functional.linear(features, weight, bias).view(*features.shape[:2], -1, layer.head_dim)
            for features, weight, bias in self._projections(attending, attended)
        ]
        dropout = layer.dropout if self.training else 0.0
        features = attend(projected, layer.num_heads, keys.mask[:, None, None], dropout).flatten(2)
        return Features(in_turn(layer.out_proj, linear, features), queries.mask), None

    def _projections(self, attending: Tensor, attended: Tensor) -> Sequence[tuple[Tensor, Tensor, Tensor]]:
        """What is multiplied by what for queries, keys and values: as few products as can be."""
        layer = self.attention
        weight, bias, width = layer.in_proj_weight, layer.in_proj_bias, layer.embed_dim
        if attending is attended:
            return [(attending, weight, bias)]
        if weight is not None:
            return [(attending, weight[:width], bias[:width]), (attended, weight[width:], bias[width:])]
        weights = layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight
        return list(zip((attending, attended, attended), weights, bias.chunk(3), strict=True))


def in_turn(first: nn.Linear, second: nn.Linear, features: Tensor) -> Tensor:
    """Two linear layers, one after the other.

    In training, where there are more frames than the result is wide, their product is made first: one layer then, of
    fewer operations. In evaluation an utterance's result would feel, in bf16, how many others there are.
    """
    if not first.training or features.shape[:-1].numel() <= second.out_features:
        return second(first(features))
    bias = functional.linear(first.bias, second.weight, second.bias)
    return functional.linear(features, second.weight @ first.weight, bias)


def check_modalities(modalities: Sequence[str], count: int | None) -> tuple[str, ...]:
    """`modalities`, where they are so many different ones (None: any number); else an error that names the key."""
    if not modalities or len(modalities) != (count or len(modalities)) or len(set(modalities)) < len(modalities):
        expected = {1: "one modality", 2: "[text, audio]", None: "text, audio or both"}[count]
        raise InputError(f"fusion.modalities={list(modalities)}: expected {expected}.")
    return tuple(modalities)


def check_pool(how: str, key: str) -> str:
    """`how`, where it is a way to pool; else an error that names the config's key."""
    check_word(key, how, POOLS)
    return how


def check_width(width: int, key: str) -> int:
    """`width`, where a layer can be so wide; else an error that names the config's key."""
    check_number(key, width, "a whole number from 1", least=1, whole=True)
    return width


def check_dropout(dropout: float, key: str) -> None:
    """Refuse what is no share that can be dropped, by an error that names the config's key."""
    check_number(key, dropout, "a number from 0 to less than 1", most=1, below=True)


def check_heads(heads: int, dims: Mapping[str, int]) -> None:
    """Refuse `heads` that do not divide the width of each modality's features; the error names those that do."""
    is_count = isinstance(heads, int) and not isinstance(heads, bool) and heads > 0
    unfit = [modality for modality, width in dims.items() if not is_count or width % heads]
    if unfit:
        common = math.gcd(*dims.values())
        fit = ", ".join(str(count) for count in range(1, common + 1) if common % count == 0)
        widths = " and ".join(f"the {modality} features' width {dims[modality]}" for modality in unfit)
        raise InputError(f"fusion.heads={heads}: does not divide {widths}. Expected one of {fit}.")
