"""The fusion of MemoCMT: each modality attended by the other's queries."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from torch import Tensor, nn

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


class CrossAttentionFusion(Fusion):
    """Audio frames ask the text, tokens ask the audio; what they were told is pooled as one sequence.

    text attended by audio queries -> linear to `dim` -> LayerNorm -> dropout; audio attended by text queries -> the
    same; both one after the other in time -> dropout -> pooling (MemoCMT, 2025; https://github.com/tpnam0901/MemoCMT,
    whose fusion attention and fusion linear layer are built but never used).

    The text features that it returns have a time step for each audio frame, and the audio features one for each token:
    an attention's result is as long as its queries. `first` pools the first audio frame's.

    Args:
        dims: width of each modality's features. Where they differ, each attention has its queries' width; where they
            are equal, this is the published network.
        modalities: `[text, audio]`.
        dim: width of the embedding.
        heads: attention heads; divide both widths.
        dropout: dropout on the attention weights, on each modality's normalised features and on both together.
        pool: `first`, `mean`, `max` or `min` over both together; see `fourm_ser.fusion.base.pool`.

    Raises:
        InputError: heads that do not divide a width, an unknown pooling, a number out of range.
    """

    maps = MappingProxyType(
        {"text": MapAxes(queries=("audio",), keys=("text",)), "audio": MapAxes(queries=("text",), keys=("audio",))}
    )

    def __init__(
        self, *, dims: Mapping[str, int], modalities: Sequence[str], dim: int, heads: int, dropout: float, pool: str
    ) -> None:
        super().__init__()
        self.modalities = check_modalities(modalities, 2)
        self.dim = check_width(dim, "fusion.dim")
        self.widths = {"text": dim, "audio": dim}
        self.pool = check_pool(pool, "fusion.pool")
        check_heads(heads, dims)
        self.text_attention = Attention(queries=dims["audio"], keys=dims["text"], heads=heads, dropout=dropout)
        self.text_linear = nn.Linear(dims["audio"], dim)
        self.text_layer_norm = nn.LayerNorm(dim)
        self.audio_attention = Attention(queries=dims["text"], keys=dims["audio"], heads=heads, dropout=dropout)
        self.audio_linear = nn.Linear(dims["text"], dim)
        self.audio_layer_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, text: Features | None, audio: Features | None, return_attention: bool = False) -> FusionOutput:
        assert text is not None
        assert audio is not None
        text, audio = zero_padded(text), zero_padded(audio)
        # (batch, frames, dim), (batch, tokens, dim)
        attended_text, text_map = self.text_attention(audio, text, self.text_linear, return_attention)
        attended_audio, audio_map = self.audio_attention(text, audio, self.audio_linear, return_attention)
        text = self._finish(attended_text, self.text_layer_norm(attended_text.features))
        audio = self._finish(attended_audio, self.audio_layer_norm(attended_audio.features))
        both = concatenate(text, audio)
        both = Features(self.dropout(both.features), both.mask)
        attention = {"text": text_map, "audio": audio_map} if return_attention else {}
        return FusionOutput(pool(both, self.pool), text, audio, attention)

    def _finish(self, attended: Features, normalised: Tensor) -> Features:
        return zero_padded(Features(self.dropout(normalised), attended.mask))
