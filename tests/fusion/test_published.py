"""Each fusion is the published network, written out here for one utterance by its description, head by head."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fourm_ser.fusion import base
from fourm_ser.fusion.base import Attention, FusionOutput
from fourm_ser.fusion.concat import ConcatFusion
from fourm_ser.fusion.cross_attention import CrossAttentionFusion
from fourm_ser.fusion.self_attention import SelfAttentionFusion
from fourm_ser.kernels.attention import attend as attend_by_head
from tests.fusion.sequences import fuse, train_a_little, utterances

HEADS = 4
BOTH = ["text", "audio"]
WIDER, EQUAL, NARROWER = {"text": 24, "audio": 16}, {"text": 16, "audio": 16}, {"text": 16, "audio": 24}
POOLED: dict[str, Callable[[Tensor], Tensor]] = {
    "first": lambda both: both[0],
    "mean": lambda both: both.sum(0) / len(both),
    "max": lambda both: both.max(0).values,
    "min": lambda both: both.min(0).values,
}


def attend(attention: Attention, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of queries [q, width] to keys [k, their width] -> [q, width], and its maps [heads, q, k]."""
    inner = attention.attention
    if queries.shape[1] == keys.shape[1]:
        query_weight, key_weight, value_weight = inner.in_proj_weight.chunk(3)
    else:
        query_weight, key_weight, value_weight = inner.q_proj_weight, inner.k_proj_weight, inner.v_proj_weight
    query_bias, key_bias, value_bias = inner.in_proj_bias.chunk(3)
    query = queries @ query_weight.T + query_bias
    key = keys @ key_weight.T + key_bias
    value = keys @ value_weight.T + value_bias
    size = queries.shape[1] // HEADS
    maps, told = [], []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        scores = (query[:, part] @ key[:, part].T / size**0.5).exp()
        maps.append(scores / scores.sum(1, keepdim=True))
        told.append(maps[-1] @ value[:, part])
    return torch.cat(told, 1) @ inner.out_proj.weight.T + inner.out_proj.bias, torch.stack(maps)


def linear(layer: nn.Linear, features: Tensor) -> Tensor:
    return features @ layer.weight.T + layer.bias


def normalise(layer: Any, features: Tensor) -> Tensor:
    centred = features - features.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias


def one(lengths: tuple[int, int], dims: dict[str, int]) -> tuple[Tensor, Tensor]:
    """The text and the audio of one utterance, small enough for exact exponentials."""
    (text,), (audio,) = utterances(lengths[:1], dims["text"], 1), utterances(lengths[1:], dims["audio"], 2)
    return text / 2, audio / 2


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def same_output(output: FusionOutput, embedding: Tensor, text: Tensor, audio: Tensor) -> None:
    assert output.text is not None
    assert output.audio is not None
    same(output.embedding, embedding[None])
    same(output.text.features, text[None])
    same(output.audio.features, audio[None])


@pytest.mark.parametrize(
    ("dims", "lengths", "how", "norm"),
    [
        (WIDER, (5, 3), "first", "layer_norm"),
        (EQUAL, (1, 7), "mean", "min_max"),
        (NARROWER, (12, 1), "max", "none"),
        (EQUAL, (5, 3), "min", "layer_norm"),
    ],
)
def test_self_attention_is_that_of_3m_ser_and_4m_ser(
    dims: dict[str, int], lengths: tuple[int, int], how: str, norm: str
) -> None:
    fusion = SelfAttentionFusion(
        dims=dims, modalities=BOTH, dim=dims["audio"], heads=HEADS, dropout=0.5, pool=how, audio_norm=norm
    )
    train_a_little(fusion)
    text, audio = one(lengths, dims)
    attended, text_map = attend(fusion.text_attention, text, text)
    text_norm = normalise(fusion.text_layer_norm, linear(fusion.text_linear, attended))
    if norm == "layer_norm":
        audio_norm = normalise(fusion.audio_layer_norm, audio)
    else:
        audio_norm = (audio - audio.min()) / (audio.max() - audio.min()) if norm == "min_max" else audio
    both = torch.cat([text_norm, audio_norm])
    fused, fusion_map = attend(fusion.fusion_attention, both, both)
    fused = normalise(fusion.fusion_layer_norm, linear(fusion.fusion_linear, fused))
    for asked in (False, True):
        output = fuse(fusion, [text], [audio], return_attention=asked)
        same_output(output, POOLED[how](fused), text_norm, audio_norm)
    same(output.attention["text"], text_map[None])
    same(output.attention["fusion"], fusion_map[None])


# Of equal widths an attention has one matrix for queries, keys and values; of different ones it has three.
@pytest.mark.parametrize(
    ("dims", "lengths", "how"),
    [(WIDER, (5, 3), "mean"), (EQUAL, (1, 7), "first"), (NARROWER, (12, 1), "max"), (EQUAL, (12, 1), "min")],
)
def test_cross_attention_is_that_of_memocmt(dims: dict[str, int], lengths: tuple[int, int], how: str) -> None:
    fusion = CrossAttentionFusion(dims=dims, modalities=BOTH, dim=12, heads=HEADS, dropout=0.5, pool=how)
    train_a_little(fusion)
    text, audio = one(lengths, dims)
    told_by_text, text_map = attend(fusion.text_attention, audio, text)
    text_norm = normalise(fusion.text_layer_norm, linear(fusion.text_linear, told_by_text))
    told_by_audio, audio_map = attend(fusion.audio_attention, text, audio)
    audio_norm = normalise(fusion.audio_layer_norm, linear(fusion.audio_linear, told_by_audio))
    for asked in (False, True):
        output = fuse(fusion, [text], [audio], return_attention=asked)
        same_output(output, POOLED[how](torch.cat([text_norm, audio_norm])), text_norm, audio_norm)
    same(output.attention["text"], text_map[None])
    same(output.attention["audio"], audio_map[None])


def test_concatenation_is_that_of_server() -> None:
    dims = {"text": 24, "audio": 16}
    fusion = ConcatFusion(
        dims=dims, modalities=BOTH, project={"text": 16, "audio": None}, pool={"text": "first", "audio": "sum"}
    )
    train_a_little(fusion)
    text, audio = one((5, 3), dims)
    projection = fusion.linear["text"]
    assert isinstance(projection, nn.Linear)
    expected = torch.cat([linear(projection, text)[0], audio[0] + audio[1] + audio[2]])
    same(fuse(fusion, [text], [audio]).embedding, expected[None])
    assert fusion.dim == 32


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Dropout that doubles what it gets, and attention without any: what drops, and how much, is written down."""
    seen: list[tuple[str, float]] = []

    def attention(projected: list[Tensor], heads: int, mask: Tensor, dropout: float) -> Tensor:
        seen.append(("attention", dropout))
        return attend_by_head(projected, heads, mask)

    def dropout(features: Tensor, p: float, training: bool, inplace: bool) -> Tensor:
        seen.append(("features", p if training else 0.0))
        return features * 2

    monkeypatch.setattr(base, "attend", attention)
    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    return seen


def test_dropout_of_4m_ser_is_on_the_attention_weights_alone(dropped: list[tuple[str, float]]) -> None:
    dims = WIDER
    fusion = SelfAttentionFusion(
        dims=dims, modalities=BOTH, dim=None, heads=HEADS, dropout=0.5, pool="mean", audio_norm="layer_norm"
    )
    train_a_little(fusion)
    text, audio = one((5, 3), dims)
    expected = fuse(fusion, [text], [audio]).embedding
    dropped.clear()
    same(fuse(fusion.train(), [text], [audio]).embedding, expected)
    assert dropped == [("attention", 0.5)] * 2


def test_dropout_of_memocmt_is_on_what_is_normalised_too_and_twice(dropped: list[tuple[str, float]]) -> None:
    dims = WIDER
    fusion = CrossAttentionFusion(dims=dims, modalities=BOTH, dim=12, heads=HEADS, dropout=0.05, pool="mean")
    train_a_little(fusion).train()
    text, audio = one((5, 3), dims)
    output = fuse(fusion, [text], [audio])
    text_norm = normalise(
        fusion.text_layer_norm, linear(fusion.text_linear, attend(fusion.text_attention, audio, text)[0])
    )
    audio_norm = normalise(
        fusion.audio_layer_norm, linear(fusion.audio_linear, attend(fusion.audio_attention, text, audio)[0])
    )
    same_output(output, torch.cat([text_norm, audio_norm]).mean(0) * 4, text_norm * 2, audio_norm * 2)
    assert sorted(dropped) == [("attention", 0.05)] * 2 + [("features", 0.05)] * 3
