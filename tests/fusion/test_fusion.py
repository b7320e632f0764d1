"""Fusions: padding never counts, attention maps are maps, and each is what its paper says."""

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fourm_ser.encoders.base import Sequence, length_mask, pad
from fourm_ser.errors import InputError
from fourm_ser.fusion.base import POOLS, Fusion, FusionOutput, pool
from fourm_ser.fusion.concat import ConcatFusion
from fourm_ser.fusion.self_attention import SelfAttentionFusion
from fourm_ser.fusion.unimodal import UnimodalFusion

DIMS = {"text": 16, "audio": 24}
TEXT_LENGTHS, AUDIO_LENGTHS = (2, 5, 40, 1), (60, 1, 7, 9)

FUSIONS: dict[str, tuple[type[Fusion], dict[str, Any]]] = {
    **{
        f"self_attention-{how}-{norm}": (
            SelfAttentionFusion,
            {"modalities": ["text", "audio"], "dim": 8, "heads": 4, "dropout": 0.1, "pool": how, "audio_norm": norm},
        )
        for how, norm in itertools.product(POOLS, ("layer_norm", "min_max", "none"))
    },
    **{
        f"concat-{how}-{width}": (
            ConcatFusion,
            {
                "modalities": ["text", "audio"],
                "project": {"text": width, "audio": width},
                "pool": {"text": how, "audio": how},
            },
        )
        for how, width in itertools.product(POOLS, (8, None))
    },
    **{
        f"{modality}_only-{how}": (
            UnimodalFusion,
            {"modalities": [modality], "dim": 8, "heads": 4, "dropout": 0.1, "pool": how},
        )
        for modality, how in itertools.product(("text", "audio"), POOLS)
    },
}
EVERY = pytest.mark.parametrize("name", FUSIONS)
ATTENTIVE = pytest.mark.parametrize("name", [name for name in FUSIONS if not name.startswith("concat")])


def build(name: str, **changes: Any) -> Fusion:
    kind, arguments = FUSIONS[name]
    torch.manual_seed(0)
    fusion = kind(dims=DIMS, **{**arguments, **changes})
    for parameter in fusion.parameters():  # biases and norms as after training, not zeros and ones
        nn.init.normal_(parameter, std=0.3)
    return fusion.eval()


def utterances(lengths: tuple[int, ...], width: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, width, generator=generator) * 2 + 0.5 for count in lengths]


TEXTS, AUDIOS = utterances(TEXT_LENGTHS, DIMS["text"], 1), utterances(AUDIO_LENGTHS, DIMS["audio"], 2)


def padded(rows: list[Tensor], value: float = 0.0) -> Sequence:
    features = pad(rows, value)
    return Sequence(features, length_mask(torch.tensor([len(row) for row in rows]), features.shape[1]))


def fuse(fusion: Fusion, texts: list[Tensor], audios: list[Tensor], value: float = 0.0, **flags: bool) -> FusionOutput:
    """Both modalities padded with `value`, of which the fusion gets those that it reads."""
    text = padded(texts, value) if "text" in fusion.modalities else None
    audio = padded(audios, value) if "audio" in fusion.modalities else None
    return fusion(text, audio, **flags)


# Without gradients torch takes another path through its attention.
GRADIENTS = pytest.mark.parametrize("gradients", [True, False])


@EVERY
@GRADIENTS
def test_alone_and_in_a_padded_batch(name: str, gradients: bool) -> None:
    fusion = build(name)
    with torch.set_grad_enabled(gradients):
        batch = fuse(fusion, TEXTS, AUDIOS)
        assert batch.embedding.shape == (4, fusion.dim)
        for row in range(4):
            alone = fuse(fusion, [TEXTS[row]], [AUDIOS[row]])
            torch.testing.assert_close(batch.embedding[row], alone.embedding[0], rtol=1e-5, atol=1e-4)
            for modality in ("text", "audio"):
                one, many = getattr(alone, modality), getattr(batch, modality)
                assert (one is None) == (many is None) == (modality not in fusion.modalities)
                if one is not None:
                    assert one.mask.sum() == many.mask[row].sum()
                    torch.testing.assert_close(many.features[row, many.mask[row]], one.features[0], rtol=0, atol=1e-4)
    assert (batch.embedding[0] - batch.embedding[1]).abs().max() > 1e-2


@EVERY
def test_rows_follow_a_permutation_of_the_batch(name: str) -> None:
    fusion, order = build(name), [2, 0, 3, 1]
    expected = fuse(fusion, TEXTS, AUDIOS).embedding[order]
    found = fuse(fusion, [TEXTS[row] for row in order], [AUDIOS[row] for row in order]).embedding
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@EVERY
@GRADIENTS
@pytest.mark.parametrize("value", [1e6, -1e6])
def test_what_stands_in_the_padding_does_not_matter(name: str, gradients: bool, value: float) -> None:
    fusion = build(name)
    with torch.set_grad_enabled(gradients):
        expected = fuse(fusion, TEXTS, AUDIOS).embedding
        torch.testing.assert_close(fuse(fusion, TEXTS, AUDIOS, value).embedding, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in FUSIONS if name.startswith("concat")])
def test_pooled_modalities_do_not_even_mind_nan_in_the_padding(name: str) -> None:
    fusion = build(name)
    found = fuse(fusion, TEXTS, AUDIOS, float("nan")).embedding
    assert torch.equal(found, fuse(fusion, TEXTS, AUDIOS).embedding)


@EVERY
def test_padding_gets_no_gradient(name: str) -> None:
    fusion = build(name)
    text, audio = padded(TEXTS), padded(AUDIOS)
    for sequence in (text, audio):
        sequence.features.requires_grad_()
    given = {"text": text, "audio": audio}
    read = {modality: given[modality] if modality in fusion.modalities else None for modality in given}
    output = fusion(read["text"], read["audio"])
    features = [given[modality].features for modality in fusion.modalities]
    for modality, gradient in zip(
        fusion.modalities, torch.autograd.grad(output.embedding.square().sum(), features), strict=True
    ):
        mask = given[modality].mask
        assert (gradient[~mask] == 0).all()
        assert gradient[mask].abs().max() > 0
        assert torch.isfinite(gradient).all()


def maps(fusion: Fusion) -> dict[str, tuple[Tensor, Tensor]]:
    """For each attention map the mask of its queries and of its keys."""
    text, audio = padded(TEXTS).mask, padded(AUDIOS).mask
    if isinstance(fusion, SelfAttentionFusion):
        both = torch.cat([text, audio], 1)
        return {"text": (text, text), "fusion": (both, both)}
    (modality,) = fusion.modalities
    own = text if modality == "text" else audio
    return {modality: (own, own)}


@ATTENTIVE
@GRADIENTS
def test_attention_maps_are_maps(name: str, gradients: bool) -> None:
    fusion = build(name)
    with torch.set_grad_enabled(gradients):
        without = fuse(fusion, TEXTS, AUDIOS)
        asked = fuse(fusion, TEXTS, AUDIOS, return_attention=True)
    assert without.attention == {}
    torch.testing.assert_close(asked.embedding, without.embedding, rtol=1e-5, atol=1e-5)
    expected = maps(fusion)
    assert set(asked.attention) == set(expected)
    for key, (queries, keys) in expected.items():
        weights = asked.attention[key]
        assert weights.shape == (4, 4, queries.shape[1], keys.shape[1])
        own = weights.transpose(1, 2)[queries]  # (own queries of all rows, heads, keys)
        torch.testing.assert_close(own.sum(-1), torch.ones_like(own[..., 0]), rtol=0, atol=1e-5)
        nothing = ~keys[:, None, None, :].expand_as(weights).transpose(1, 2)[queries]
        assert (own[nothing] == 0).all()
        assert (own >= 0).all()
        assert (weights[:, 0] - weights[:, 1]).abs().max() > 1e-3  # a map a head, no average


@pytest.mark.parametrize("name", [name for name in FUSIONS if name.startswith("concat")])
def test_a_fusion_without_attention_has_no_maps(name: str) -> None:
    assert fuse(build(name), TEXTS, AUDIOS, return_attention=True).attention == {}


def test_attention_maps_say_what_was_attended_to() -> None:
    fusion = build("text_only-mean")
    assert isinstance(fusion, UnimodalFusion)
    attention = fusion.attention.attention
    output = fuse(fusion, [TEXTS[2]], [AUDIOS[2]], return_attention=True)
    projected = TEXTS[2] @ attention.in_proj_weight.T + attention.in_proj_bias
    query, key, value = (part.view(-1, 4, 4).transpose(0, 1) for part in torch.split(projected, 16, dim=1))
    weights = (query @ key.transpose(1, 2) / 2).softmax(-1)
    torch.testing.assert_close(output.attention["text"][0], weights, rtol=0, atol=1e-5)
    attended = (weights @ value).transpose(0, 1).reshape(-1, 16)
    features = fusion.layer_norm(fusion.linear(attention.out_proj(attended)))
    assert output.text is not None
    torch.testing.assert_close(output.text.features[0], features, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.embedding[0], features.mean(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", ["layer_norm", "min_max", "none"])
def test_self_attention_is_over_both_as_one_sequence(norm: str) -> None:
    fusion = build(f"self_attention-mean-{norm}")
    assert isinstance(fusion, SelfAttentionFusion)
    text, audio = TEXTS[2][None], AUDIOS[2][None]
    attend = [part.attention for part in (fusion.text_attention, fusion.fusion_attention)]
    brought = fusion.text_layer_norm(fusion.text_linear(attend[0](text, text, text)[0]))
    low, high = audio.amin(1, keepdim=True), audio.amax(1, keepdim=True)
    normalised = {
        "layer_norm": fusion.audio_layer_norm(audio),
        "min_max": (audio - low) / (high - low),
        "none": audio,
    }[norm]
    both = torch.cat([brought, normalised], 1)
    expected = fusion.fusion_layer_norm(fusion.fusion_linear(attend[1](both, both, both)[0])).mean(1)
    output = fusion(Sequence(text, torch.ones(1, 40, dtype=torch.bool)), Sequence(audio, torch.ones(1, 7) > 0))
    torch.testing.assert_close(output.embedding, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.text.features, brought, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.audio.features, normalised, rtol=0, atol=1e-5)


def test_a_feature_that_does_not_move_stays_finite_under_min_max() -> None:
    fusion = build("self_attention-mean-min_max")
    still = [torch.full((count, DIMS["audio"]), 0.3) for count in (1, 5)]
    output = fuse(fusion, TEXTS[:2], still)
    assert output.audio is not None
    assert torch.isfinite(output.embedding).all()
    assert (output.audio.features[output.audio.mask] == 0).all()


def test_pooling_is_over_a_row_s_own_frames() -> None:
    sequence = padded(AUDIOS, 1e6)
    by_hand = {
        "first": [row[0] for row in AUDIOS],
        "mean": [row.mean(0) for row in AUDIOS],
        "max": [row.max(0).values for row in AUDIOS],
        "min": [row.min(0).values for row in AUDIOS],
        "sum": [row.sum(0) for row in AUDIOS],
    }
    assert set(by_hand) == set(POOLS)
    for how, rows in by_hand.items():
        torch.testing.assert_close(pool(sequence, how), torch.stack(rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [["text", "audio"], ["audio", "text"], ["text"], ["audio"]])
@pytest.mark.parametrize(
    "project", [{"text": 5, "audio": 7}, {"text": None, "audio": 7}, {"text": None, "audio": None}]
)
def test_concatenation_is_in_the_order_of_the_modalities(order: list[str], project: Mapping[str, int | None]) -> None:
    torch.manual_seed(0)
    how = {"text": "first", "audio": "max"}
    fusion = ConcatFusion(DIMS, order, project, how).eval()
    assert fusion.modalities == tuple(order)
    output = fuse(fusion, TEXTS, AUDIOS)
    given = {"text": padded(TEXTS), "audio": padded(AUDIOS)}
    expected = torch.cat([fusion.linear[modality](pool(given[modality], how[modality])) for modality in order], 1)
    assert expected.shape == (4, fusion.dim)
    assert fusion.dim == sum(project[modality] or DIMS[modality] for modality in order)
    torch.testing.assert_close(output.embedding, expected, rtol=0, atol=1e-6)


@ATTENTIVE
def test_dropout_is_on_while_training_alone(name: str) -> None:
    fusion = build(name, dropout=0.5)
    assert torch.equal(fuse(fusion, TEXTS, AUDIOS).embedding, fuse(fusion, TEXTS, AUDIOS).embedding)
    fusion.train()
    assert not torch.equal(fuse(fusion, TEXTS, AUDIOS).embedding, fuse(fusion, TEXTS, AUDIOS).embedding)


@pytest.mark.parametrize("name", ["self_attention-mean-layer_norm", "concat-mean-8", "text_only-mean"])
def test_an_unknown_pooling_is_refused(name: str) -> None:
    bad: Any = {"text": "mean", "audio": "median"} if name.startswith("concat") else "median"
    with pytest.raises(InputError, match=r"fusion\.pool.*median.*expected one of first, mean, max, min, sum"):
        build(name, pool=bad)


@pytest.mark.parametrize("name", ["self_attention-mean-layer_norm", "text_only-mean", "audio_only-mean"])
@pytest.mark.parametrize("heads", [0, -1, 5, 9])
def test_heads_that_do_not_divide_the_width_are_refused(name: str, heads: int) -> None:
    with pytest.raises(InputError, match=rf"fusion\.heads={heads}"):
        build(name, heads=heads)


def test_heads_have_to_divide_both_widths() -> None:
    with pytest.raises(InputError, match=r"fusion\.heads=16.* 24"):
        build("self_attention-mean-layer_norm", heads=16)
    with pytest.raises(InputError, match=r"fusion\.heads=12.* 16"):
        build("self_attention-mean-layer_norm", heads=12)


def test_other_nonsense_is_refused() -> None:
    with pytest.raises(InputError, match=r"fusion\.audio_norm=batch"):
        build("self_attention-mean-none", audio_norm="batch")
    for modalities in ([], ["text", "audio"]):
        with pytest.raises(InputError, match=r"fusion\.modalities"):
            build("text_only-mean", modalities=modalities)
