"""Fusions: padding never counts, attention maps are maps, and what does not fit is refused."""

import itertools
from collections.abc import Mapping
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from fourm_ser.errors import InputError
from fourm_ser.fusion import base
from fourm_ser.fusion.base import POOLS, Fusion, pool
from fourm_ser.fusion.concat import ConcatFusion
from fourm_ser.fusion.cross_attention import CrossAttentionFusion
from fourm_ser.fusion.self_attention import SelfAttentionFusion
from fourm_ser.fusion.unimodal import UnimodalFusion
from fourm_ser.kernels.attention import attend
from tests.fusion.sequences import fuse, padded, train_a_little, utterances

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
        f"cross_attention-{how}": (
            CrossAttentionFusion,
            {"modalities": ["text", "audio"], "dim": 12, "heads": 4, "dropout": 0.1, "pool": how},
        )
        for how in POOLS
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
    return train_a_little(kind(dims=DIMS, **{**arguments, **changes}))


TEXTS, AUDIOS = utterances(TEXT_LENGTHS, DIMS["text"], 1), utterances(AUDIO_LENGTHS, DIMS["audio"], 2)


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


@EVERY
def test_not_even_nan_in_the_padding_matters(name: str) -> None:
    fusion = build(name)
    parameters = list(fusion.parameters())
    found = []
    for value in (float("nan"), 0.0):
        embedding = fuse(fusion, TEXTS, AUDIOS, value).embedding
        found.append((embedding, *(torch.autograd.grad(embedding.square().sum(), parameters) if parameters else ())))
    for with_nan, with_zero in zip(*found, strict=True):
        assert torch.equal(with_nan, with_zero)


@EVERY
def test_padding_gets_no_gradient(name: str) -> None:
    fusion = build(name)
    given = {modality: padded(rows, 1e6) for modality, rows in (("text", TEXTS), ("audio", AUDIOS))}
    for sequence in given.values():
        sequence.features.requires_grad_()
    output = fusion(*(given[modality] if modality in fusion.modalities else None for modality in ("text", "audio")))
    total = output.embedding.square().sum()
    for returned in (output.text, output.audio):
        if returned is not None:
            total = total + returned.features[returned.mask].square().sum()
    features = [given[modality].features for modality in fusion.modalities]
    for modality, gradient in zip(fusion.modalities, torch.autograd.grad(total, features), strict=True):
        mask = given[modality].mask
        assert (gradient[~mask] == 0).all()
        assert gradient[mask].abs().max() > 0
        assert torch.isfinite(gradient).all()


@EVERY
def test_widths_are_those_of_the_sequences_returned(name: str) -> None:
    fusion = build(name)
    output = fuse(fusion, TEXTS, AUDIOS)
    returned = {"text": output.text, "audio": output.audio}
    found = {modality: part.features.shape[-1] for modality, part in returned.items() if part is not None}
    assert fusion.widths == found
    assert set(fusion.widths) == set(fusion.modalities)


@ATTENTIVE
def test_what_is_returned_is_zero_where_padding_stands(name: str) -> None:
    output = fuse(build(name), TEXTS, AUDIOS, 1e6)
    for returned in (output.text, output.audio):
        if returned is not None:
            assert (~returned.mask).any()
            assert (returned.features[~returned.mask] == 0).all()
            assert torch.isfinite(returned.features).all()


def maps(fusion: Fusion) -> dict[str, tuple[Tensor, Tensor]]:
    """For each attention map the mask of its queries and of its keys."""
    masks = {"text": padded(TEXTS).mask, "audio": padded(AUDIOS).mask}
    return {
        name: (
            torch.cat([masks[modality] for modality in span.queries], 1),
            torch.cat([masks[modality] for modality in span.keys], 1),
        )
        for name, span in fusion.maps.items()
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("self_attention-mean-layer_norm", {"text": ("text", "text"), "fusion": ("text audio", "text audio")}),
        ("cross_attention-mean", {"text": ("audio", "text"), "audio": ("text", "audio")}),
        ("text_only-mean", {"text": ("text", "text")}),
        ("audio_only-mean", {"audio": ("audio", "audio")}),
        ("concat-mean-8", {}),
    ],
)
def test_maps_say_who_asks_whom(name: str, expected: dict[str, tuple[str, str]]) -> None:
    found = {key: (" ".join(span.queries), " ".join(span.keys)) for key, span in build(name).maps.items()}
    assert found == expected


@ATTENTIVE
def test_a_map_depends_on_the_modalities_that_it_names(name: str) -> None:
    fusion = build(name)
    first = fuse(fusion, TEXTS, AUDIOS, return_attention=True).attention
    other = {
        "text": fuse(fusion, [text.flip(0) + text for text in TEXTS], AUDIOS, return_attention=True).attention,
        "audio": fuse(fusion, TEXTS, [audio.flip(0) + audio for audio in AUDIOS], return_attention=True).attention,
    }
    for key, span in fusion.maps.items():
        for modality in ("text", "audio"):
            changes = not torch.allclose(first[key], other[modality][key], atol=1e-4)
            assert changes == (modality in (*span.queries, *span.keys))


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
        assert (weights.transpose(1, 2)[~queries] == 0).all()
        assert (own >= 0).all()
        assert (weights[:, 0] - weights[:, 1]).abs().max() > 1e-3  # a map a head, no average


@pytest.mark.parametrize("name", [name for name in FUSIONS if name.startswith("concat")])
def test_a_fusion_without_attention_has_no_maps(name: str) -> None:
    assert fuse(build(name), TEXTS, AUDIOS, return_attention=True).attention == {}


@ATTENTIVE
@pytest.mark.parametrize("mode", ["training", "evaluation", "evaluation without gradients"])
def test_maps_are_made_only_where_they_are_asked_for(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    with_maps = 0

    def spy(projected: list[Tensor], heads: int, mask: Tensor, dropout: float) -> Tensor:
        calls.append(dropout)
        return attend(projected, heads, mask, dropout)

    def spy_with_maps(self: nn.MultiheadAttention, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        nonlocal with_maps
        with_maps += 1
        return forward(self, *arguments, **options)

    forward = nn.MultiheadAttention.forward
    monkeypatch.setattr(base, "attend", spy)
    monkeypatch.setattr(nn.MultiheadAttention, "forward", spy_with_maps)
    fusion = build(name, dropout=0.25).train(mode == "training")
    with torch.set_grad_enabled(mode != "evaluation without gradients"):
        count = len(fuse(fusion, TEXTS, AUDIOS, return_attention=True).attention)
        assert not calls
        assert with_maps == count
        fuse(fusion, TEXTS, AUDIOS)
    assert with_maps == count > 0
    assert calls == [0.25 if mode == "training" else 0.0] * count


@pytest.mark.parametrize("frames", [3, 50])
@pytest.mark.parametrize("training", [True, False])
def test_two_linear_layers_in_turn(frames: int, training: bool) -> None:
    torch.manual_seed(0)
    first, second = (nn.Linear(*widths).double().train(training) for widths in ((6, 9), (9, 20)))
    features = torch.randn(2, frames, 6, dtype=torch.float64, requires_grad=True)
    wanted = [features, *first.parameters(), *second.parameters()]
    results = []
    for result in (second(first(features)), base.in_turn(first, second, features)):
        results.append([result, *torch.autograd.grad(result.square().sum(), wanted)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_an_utterance_of_one_value_stays_finite_under_min_max() -> None:
    fusion = build("self_attention-mean-min_max")
    still = [torch.full((count, DIMS["audio"]), 0.3) for count in (1, 5)]
    output = fuse(fusion, TEXTS[:2], still)
    assert output.audio is not None
    assert torch.isfinite(output.embedding).all()
    assert (output.audio.features[output.audio.mask] == 0).all()


def test_min_max_is_over_all_features_of_an_utterance() -> None:
    audio = fuse(build("self_attention-mean-min_max"), TEXTS, AUDIOS, -1e6).audio
    assert audio is not None
    for row, utterance in enumerate(AUDIOS):
        expected = (utterance - utterance.min()) / (utterance.max() - utterance.min())
        torch.testing.assert_close(audio.features[row, : len(utterance)], expected, rtol=0, atol=1e-6)


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
    fusion = ConcatFusion(dims=DIMS, modalities=order, project=project, pool=how).eval()
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


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_batch_of_one_is_its_row_in_a_batch_of_many(data: st.DataObject) -> None:
    fusion = build(data.draw(st.sampled_from(list(FUSIONS))))
    lengths = st.lists(st.integers(1, 60), min_size=32, max_size=32)
    texts = utterances(tuple(data.draw(lengths)), DIMS["text"], data.draw(st.integers(0, 99)))
    audios = utterances(tuple(data.draw(lengths)), DIMS["audio"], data.draw(st.integers(100, 199)))
    row = data.draw(st.integers(0, 31))
    with torch.no_grad():
        batch = fuse(fusion, texts, audios, 1e6)
        alone = fuse(fusion, [texts[row]], [audios[row]])
    torch.testing.assert_close(batch.embedding[row], alone.embedding[0], rtol=1e-5, atol=1e-4)
    for one, many in ((alone.text, batch.text), (alone.audio, batch.audio)):
        if one is not None and many is not None:
            torch.testing.assert_close(many.features[row, many.mask[row]], one.features[0], rtol=1e-5, atol=1e-4)


KINDS = ["self_attention-mean-layer_norm", "cross_attention-mean", "text_only-mean", "audio_only-mean"]


@pytest.mark.parametrize("name", [*KINDS, "concat-mean-8"])
def test_an_unknown_pooling_is_refused(name: str) -> None:
    bad: Any = {"text": "mean", "audio": "median"} if name.startswith("concat") else "median"
    with pytest.raises(InputError, match=r"fusion\.pool.*median.*expected one of first, mean, max, min, sum"):
        build(name, pool=bad)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("heads", [0, -1, 5, 9, True, 2.0])
def test_heads_that_do_not_divide_the_width_are_refused(name: str, heads: Any) -> None:
    fit = {"text_only-mean": "1, 2, 4, 8, 16", "audio_only-mean": "1, 2, 3, 4, 6, 8, 12, 24"}.get(name, "1, 2, 4, 8")
    with pytest.raises(InputError, match=rf"^fusion\.heads={heads}: .*Expected one of {fit}\.$"):
        build(name, heads=heads)


@pytest.mark.parametrize("name", KINDS[:2])
def test_heads_have_to_divide_both_widths(name: str) -> None:
    with pytest.raises(InputError, match=r"fusion\.heads=16: does not divide the audio features' width 24\."):
        build(name, heads=16)
    with pytest.raises(InputError, match=r"fusion\.heads=12: does not divide the text features' width 16\."):
        build(name, heads=12)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dropout", [-0.1, 1.0, 1, True, "much", float("nan")])
def test_dropout_out_of_range_is_refused(name: str, dropout: Any) -> None:
    with pytest.raises(InputError, match=rf"fusion\.dropout={dropout}: expected a number from 0 to less than 1"):
        build(name, dropout=dropout)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dim", [0, -8, 2.5, True])
def test_a_width_out_of_range_is_refused(name: str, dim: Any) -> None:
    with pytest.raises(InputError, match=rf"fusion\.dim={dim}: expected a whole number from 1"):
        build(name, dim=dim)
    with pytest.raises(InputError, match=rf"fusion\.project\.audio={dim}: expected a whole number from 1"):
        build("concat-mean-8", project={"text": 8, "audio": dim})


@pytest.mark.parametrize("key", ["project", "pool"])
def test_an_entry_for_what_is_no_modality_is_refused(key: str) -> None:
    entries = {"text": 8, "audio": 8} if key == "project" else {"text": "mean", "audio": "mean"}
    with pytest.raises(InputError, match=rf"fusion\.{key}: unknown key vidoe\. Expected text and audio"):
        build("concat-mean-8", **{key: {**entries, "vidoe": entries["text"]}})


def test_other_nonsense_is_refused() -> None:
    with pytest.raises(InputError, match=r"fusion\.audio_norm=batch"):
        build("self_attention-mean-none", audio_norm="batch")
    for name in FUSIONS:
        for modalities in ([], ["text", "text"], ["audio", "text", "audio"]):
            with pytest.raises(InputError, match=r"fusion\.modalities=\["):
                build(name, modalities=modalities)
    for key in ("project", "pool"):
        with pytest.raises(InputError, match=rf"fusion\.{key}: expected an entry for audio"):
            build("concat-mean-8", **{key: {"text": None if key == "project" else "mean"}})


def test_without_a_width_of_its_own_the_embedding_has_the_audio_s() -> None:
    fusion = build("self_attention-mean-layer_norm", dim=None)
    assert fusion.dim == DIMS["audio"]
    assert fuse(fusion, TEXTS, AUDIOS).embedding.shape == (4, DIMS["audio"])
