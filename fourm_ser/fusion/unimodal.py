"""One modality alone: what the other one adds is measured against it."""

from collections.abc import Mapping
from collections.abc import Sequence as Items

from torch import nn

from fourm_ser.encoders.base import Sequence
from fourm_ser.errors import InputError
from fourm_ser.fusion.base import Fusion, FusionOutput, SelfAttention, check_pool, pool


class UnimodalFusion(Fusion):
    """One modality through what the self-attention fusion does with two: self-attention, linear, LayerNorm, pooling.

    Args:
        dims: width of each modality's features.
        modalities: the one modality, `[text]` or `[audio]`.
        dim: width of the embedding.
        heads: attention heads; divide the features' width.
        dropout: dropout on the attention weights.
        pool: see `fourm_ser.fusion.base.pool`.

    Raises:
        InputError: not one modality, heads that do not divide the width, an unknown pooling.
    """

    def __init__(
        self, dims: Mapping[str, int], modalities: Items[str], dim: int, heads: int, dropout: float, pool: str
    ) -> None:
        super().__init__()
        if len(modalities) != 1:
            raise InputError(f"fusion.modalities={list(modalities)}: expected one modality.")
        self.modalities = tuple(modalities)
        self.dim = dim
        self.pool = check_pool(pool, "fusion.pool")
        width = dims[self.modalities[0]]
        self.attention = SelfAttention(width, heads, dropout, "fusion.heads")
        self.linear = nn.Linear(width, dim)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, text: Sequence | None, audio: Sequence | None, return_attention: bool = False) -> FusionOutput:
        sequences = {"text": text, "audio": audio}
        modality = self.modalities[0]
        sequence = sequences[modality]
        assert sequence is not None
        attended, weights = self.attention(sequence, return_attention)
        sequence = Sequence(self.layer_norm(self.linear(attended.features)), sequence.mask)
        normalised = {modality: sequence}
        attention = {} if weights is None else {modality: weights}
        return FusionOutput(pool(sequence, self.pool), normalised.get("text"), normalised.get("audio"), attention)
