"""The fusion of 3M-SER and 4M-SER: self-attention over text and audio together."""

from collections.abc import Mapping
from collections.abc import Sequence as Items

from torch import Tensor, nn

from fourm_ser.encoders.base import Sequence
from fourm_ser.errors import InputError
from fourm_ser.fusion.base import Fusion, FusionOutput, SelfAttention, check_pool, concatenate, pool


class SelfAttentionFusion(Fusion):
    """Text attends to itself and is brought to the audio's width; then both attend to each other as one sequence.

    text -> self-attention -> linear to the audio's width -> LayerNorm; audio -> normalisation; both one after the
    other in time -> self-attention -> linear to `dim` -> LayerNorm -> pooling (3M-SER, 2023; 4M-SER).

    Args:
        dims: width of each modality's features.
        modalities: `[text, audio]`.
        dim: width of the embedding.
        heads: attention heads; divide both widths.
        dropout: dropout on the attention weights.
        pool: `first`, `mean`, `max` or `min` over text and audio together; see `fourm_ser.fusion.base.pool`.
        audio_norm: `layer_norm`, `min_max` (each feature to 0..1 over the utterance) or `none`.

    Raises:
        InputError: heads that do not divide a width, an unknown pooling or normalisation.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        modalities: Items[str],
        dim: int,
        heads: int,
        dropout: float,
        pool: str,
        audio_norm: str,
    ) -> None:
        super().__init__()
        if audio_norm not in ("layer_norm", "min_max", "none"):
            raise InputError(f"fusion.audio_norm={audio_norm}: expected layer_norm, min_max or none.")
        self.modalities = tuple(modalities)
        self.dim = dim
        self.pool = check_pool(pool, "fusion.pool")
        self.audio_norm = audio_norm
        self.text_attention = SelfAttention(dims["text"], heads, dropout, "fusion.heads")
        self.text_linear = nn.Linear(dims["text"], dims["audio"])
        self.text_layer_norm = nn.LayerNorm(dims["audio"])
        self.audio_layer_norm = nn.LayerNorm(dims["audio"]) if audio_norm == "layer_norm" else nn.Identity()
        self.fusion_attention = SelfAttention(dims["audio"], heads, dropout, "fusion.heads")
        self.fusion_linear = nn.Linear(dims["audio"], dim)
        self.fusion_layer_norm = nn.LayerNorm(dim)

    def forward(self, text: Sequence | None, audio: Sequence | None, return_attention: bool = False) -> FusionOutput:
        assert text is not None
        assert audio is not None
        attended, text_map = self.text_attention(text, return_attention)
        text = Sequence(self.text_layer_norm(self.text_linear(attended.features)), text.mask)
        audio = self._normalised(audio)
        # (batch, tokens + frames, audio's width)
        fused, fusion_map = self.fusion_attention(concatenate(text, audio), return_attention)
        fused = Sequence(self.fusion_layer_norm(self.fusion_linear(fused.features)), fused.mask)
        attention = {"text": text_map, "fusion": fusion_map} if return_attention else {}
        return FusionOutput(pool(fused, self.pool), text, audio, attention)

    def _normalised(self, audio: Sequence) -> Sequence:
        if self.audio_norm == "min_max":
            return Sequence(_min_max(audio), audio.mask)
        return Sequence(self.audio_layer_norm(audio.features), audio.mask)


def _min_max(sequence: Sequence) -> Tensor:
    """Each feature scaled to 0..1 over the utterance's own frames; padding does not count."""
    low, high = pool(sequence, "min")[:, None], pool(sequence, "max")[:, None]
    return (sequence.features - low) / (high - low).clamp_min(1e-6)
