"""The fusion of 3M-SER and 4M-SER: self-attention over text and audio together."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from torch import Tensor, nn

from fourm_ser.checks import check_word
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
    concatenate,
    pool,
    zero_padded,
)


class SelfAttentionFusion(Fusion):
    """Text attends to itself and is brought to the audio's width; then both attend to each other as one sequence.

    text -> self-attention -> linear to the audio's width -> LayerNorm; audio -> normalisation; both one after the
    other in time -> self-attention -> linear to `dim` -> LayerNorm -> pooling (3M-SER, 2023,
    https://github.com/tpnam0901/3m-ser; 4M-SER, https://github.com/tpnam0901/4M-MER).

    Args:
        dims: width of each modality's features.
        modalities: `[text, audio]`.
        dim: width of the embedding; None for the audio's width, as published.
        heads: attention heads; divide both widths.
        dropout: dropout on the attention weights.
        pool: `first`, `mean`, `max` or `min` over text and audio together; see `fourm_ser.fusion.base.pool`.
        audio_norm: `layer_norm`, `min_max` (the utterance's least value to 0 and its greatest to 1, over all features
            together) or `none`.

    Raises:
        InputError: heads that do not divide a width, an unknown pooling or normalisation, a number out of range.
    """

    maps = MappingProxyType(
        {"text": MapAxes(("text",), ("text",)), "fusion": MapAxes(queries=("text", "audio"), keys=("text", "audio"))}
    )

    def __init__(
        self,
        *,
        dims: Mapping[str, int],
        modalities: Sequence[str],
        dim: int | None,
        heads: int,
        dropout: float,
        pool: str,
        audio_norm: str,
    ) -> None:
        super().__init__()
        check_word("fusion.audio_norm", audio_norm, ("layer_norm", "min_max", "none"))
        self.modalities = check_modalities(modalities, 2)
        width = dims["audio"]
        self.dim = width if dim is None else check_width(dim, "fusion.dim")
        self.widths = {"text": width, "audio": width}
        self.pool = check_pool(pool, "fusion.pool")
        self.audio_norm = audio_norm
        check_heads(heads, dims)
        self.text_attention = Attention(queries=dims["text"], keys=dims["text"], heads=heads, dropout=dropout)
        self.text_linear = nn.Linear(dims["text"], width)
        self.text_layer_norm = nn.LayerNorm(width)
        self.audio_layer_norm = nn.LayerNorm(width) if audio_norm == "layer_norm" else nn.Identity()
        self.fusion_attention = Attention(queries=width, keys=width, heads=heads, dropout=dropout)
        self.fusion_linear = nn.Linear(width, self.dim)
        self.fusion_layer_norm = nn.LayerNorm(self.dim)

    def forward(self, text: Features | None, audio: Features | None, return_attention: bool = False) -> FusionOutput:
        assert text is not None
        assert audio is not None
        text = zero_padded(text)
        attended, text_map = self.text_attention(text, text, self.text_linear, return_attention)
        text = zero_padded(Features(self.text_layer_norm(attended.features), text.mask))
        audio = zero_padded(audio)
        normalised = _min_max(audio) if self.audio_norm == "min_max" else self.audio_layer_norm(audio.features)
        audio = zero_padded(Features(normalised, audio.mask))
        # (batch, tokens + frames, audio's width)
        both = concatenate(text, audio)
        fused, fusion_map = self.fusion_attention(both, both, self.fusion_linear, return_attention)
        fused = Features(self.fusion_layer_norm(fused.features), fused.mask)
        attention = {"text": text_map, "fusion": fusion_map} if return_attention else {}
        return FusionOutput(pool(fused, self.pool), text, audio, attention)


def _min_max(sequence: Features) -> Tensor:
    """The utterance scaled so that its least value is 0 and its greatest 1; padding does not count."""
    # (batch, dim) -> (batch, 1, 1)
    low = pool(sequence, "min").amin(1)[:, None, None]
    high = pool(sequence, "max").amax(1)[:, None, None]
    return (sequence.features - low) / (high - low).clamp_min(1e-6)
