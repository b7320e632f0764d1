"""One modality alone: what the other one adds is measured against it."""

from collections.abc import Mapping, Sequence

from torch import nn

from fourm_ser.encoders.base import Features
from fourm_ser.fusion.base import (
    Attention,
    Fusion,
    FusionOutput,
    MapAxes,
    check_heads,
    check_modalities,
    check_pool,
    check_width,
    pool,
    zero_padded,
)


class UnimodalFusion(Fusion):
    """One modality through what the self-attention fusion does with two: self-attention, linear, LayerNorm, pooling.

    Args:
        dims: width of each modality's features.
        modalities: the one modality, `[text]` or `[audio]`.
        dim: width of the embedding.
        heads: attention heads; divide the features' width.
        dropout: dropout on the attention weights.
        pool: `first`, `mean`, `max`, `min` or `sum`; see `fourm_ser.fusion.base.pool`.

    Raises:
        InputError: not one modality, heads that do not divide the width, an unknown pooling, a number out of range.
    """

    def __init__(
        self, *, dims: Mapping[str, int], modalities: Sequence[str], dim: int, heads: int, dropout: float, pool: str
    ) -> None:
        super().__init__()
        self.modalities = check_modalities(modalities, 1)
        (modality,) = self.modalities
        self.maps = {modality: MapAxes((modality,), (modality,))}
        self.dim = check_width(dim, "fusion.dim")
        self.widths = {modality: dim}
        self.pool = check_pool(pool, "fusion.pool")
        width = dims[modality]
        check_heads(heads, {modality: width})
        self.attention = Attention(queries=width, keys=width, heads=heads, dropout=dropout)
        self.linear = nn.Linear(width, dim)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, text: Features | None, audio: Features | None, return_attention: bool = False) -> FusionOutput:
        (modality,) = self.modalities
        sequence = {"text": text, "audio": audio}[modality]
        assert sequence is not None
        sequence = zero_padded(sequence)
        attended, weights = self.attention(sequence, sequence, self.linear, return_attention)
        sequence = zero_padded(Features(self.layer_norm(attended.features), sequence.mask))
        normalised = {modality: sequence}
        attention = {} if weights is None else {modality: weights}
        return FusionOutput(pool(sequence, self.pool), normalised.get("text"), normalised.get("audio"), attention)
