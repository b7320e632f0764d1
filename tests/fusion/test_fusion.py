"""Fusions: padding never counts, attention maps are maps, and what does not fit is refused."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from fourm_ser.errors import InputError
from fourm_ser.fusion import base
from fourm_ser.fusion.attentive_statistics import AttentiveStatisticsFusion
from fourm_ser.fusion.base import POOLS, Fusion, pool
from fourm_ser.fusion.concat import ConcatFusion
from fourm_ser.fusion.cross_attention import CrossAttentionFusion
from fourm_ser.fusion.self_attention import SelfAttentionFusion
from fourm_ser.fusion.split_statistics import SplitStatisticsFusion
from fourm_ser.fusion.standardised import StandardisedFusion
from fourm_ser.fusion.statistics import StatisticsFusion
from fourm_ser.fusion.unimodal import UnimodalFusion
from fourm_ser.kernels.attention import attend
from tests.fusion.sequences import fuse, padded, train_a_little, utterances

DIMS = {"text": 16, "audio": 24}
TEXTS = utterances((2, 5, 40, 1), DIMS["text"], seed=1)
AUDIOS = utterances((60, 1, 7, 9), DIMS["audio"], seed=2)

BOTH = ["text", "audio"]
SELF = {"modalities": BOTH, "dim": 8, "heads": 4, "dropout": 0.1}
PLAIN = {"statistics": {"text": ["mean"], "audio": ["deviation", "mean"]}, "dim": 7, "dropout": 0.5}
CROSS = {"modalities": BOTH, "dim": 12, "heads": 4, "dropout": 0.1}

# Every class, and every value of its options at least once; behind each, what no other one has.
FUSIONS: dict[str, tuple[type[Fusion], dict[str, Any]]] = {
    "self_attention": (SelfAttentionFusion, {**SELF, "pool": "mean", "audio_norm": "layer_norm"}),
    "self_attention-min_max": (SelfAttentionFusion, {**SELF, "pool": "max", "audio_norm": "min_max"}),
    "self_attention-none": (  # the audio as it is, and an embedding of the audio's width
        SelfAttentionFusion,
        {**SELF, "dim": None, "pool": "first", "audio_norm": "none"},
    ),
    "cross_attention": (CrossAttentionFusion, {**CROSS, "pool": "mean"}),
    "cross_attention-min": (CrossAttentionFusion, {**CROSS, "pool": "min"}),  # masked pooling of what lies in two parts
    "concat": (  # one projection and one modality as it is
        ConcatFusion,
        {"modalities": BOTH, "project": {"text": 8, "audio": None}, "pool": {"text": "first", "audio": "sum"}},
    ),
    "concat-reversed": (  # the audio first, poolings that padding could win
        ConcatFusion,
        {
            "modalities": ["audio", "text"],
            "project": {"text": None, "audio": 8},
            "pool": {"text": "max", "audio": "min"},
        },
    ),
    "concat-plain": (  # no parameters at all
        ConcatFusion,
        {"modalities": ["audio"], "project": {"audio": None}, "pool": {"audio": "mean"}},
    ),
    "text_attention": (UnimodalFusion, {**SELF, "modalities": ["text"], "pool": "mean"}),
    "audio_attention": (UnimodalFusion, {**SELF, "modalities": ["audio"], "pool": "max"}),
    "audio_attention-sum": (UnimodalFusion, {**SELF, "modalities": ["audio"], "pool": "sum"}),  # grows with the length
    "statistics": (StatisticsFusion, {"modalities": ["audio"], "weight": -1}),
    "standardised": (StandardisedFusion, {**PLAIN, "modalities": BOTH}),
    "standardised-text": (StandardisedFusion, {**PLAIN, "modalities": ["text"]}),
    "split_statistics": (SplitStatisticsFusion, {"modalities": ["audio"], "weight": -1}),
    "attentive_statistics": (AttentiveStatisticsFusion, {"modalities": BOTH, "hidden": 6}),
    "attentive_statistics-audio": (AttentiveStatisticsFusion, {"modalities": ["audio"], "hidden": 6}),
}
ATTENTIVE = [name for name, (_, arguments) in FUSIONS.items() if "heads" in arguments]  # frames attend to frames
every = pytest.mark.parametrize("name", FUSIONS)
attentive = pytest.mark.parametrize("name", ATTENTIVE)


def build(name: str, **changes: Any) -> Fusion:
    kind, arguments = FUSIONS[name]
    return train_a_little(kind(dims=DIMS, **{**arguments, **changes}))


GRADIENTS = (True, False)  # without them torch takes another path through its attention


@every
def test_alone_and_in_a_padded_batch(name: str) -> None:
    fusion = build(name)
    for gradients in GRADIENTS:
        with torch.set_grad_enabled(gradients):
            batch = fuse(fusion, TEXTS, AUDIOS)
            alone = [fuse(fusion, [text], [audio]) for text, audio in zip(TEXTS, AUDIOS, strict=True)]
        assert batch.embedding.shape == (4, fusion.dim)
        assert (batch.embedding[0] - batch.embedding[1]).abs().max() > 1e-2
        for row, own in enumerate(alone):
            torch.testing.assert_close(batch.embedding[row], own.embedding[0], rtol=1e-5, atol=1e-4)
            for modality in BOTH:
                one, many = getattr(own, modality), getattr(batch, modality)
                assert (one is None) == (many is None) == (modality not in fusion.widths)
                if one is not None:
                    assert one.features.shape[-1] == fusion.widths[modality]
                    assert one.mask.sum() == many.mask[row].sum()
                    torch.testing.assert_close(many.features[row, many.mask[row]], one.features[0], rtol=0, atol=1e-4)
    assert set(fusion.widths) == set(fusion.modalities)


@every
def test_what_stands_in_the_padding_does_not_matter(name: str) -> None:
    fusion = build(name)
    parameters = list(fusion.parameters())
    expected = fuse(fusion, TEXTS, AUDIOS).embedding
    for value in (float("nan"), 1e6, -1e6):
        found = fuse(fusion, TEXTS, AUDIOS, value).embedding
        assert torch.equal(found, expected), value
        if parameters:
            gradients = [
                torch.autograd.grad(each.square().sum(), parameters, retain_graph=True) for each in (found, expected)
            ]
            assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True)), value
        with torch.no_grad():
            found = fuse(fusion, TEXTS, AUDIOS, value).embedding
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@every
def test_padding_gets_no_gradient(name: str) -> None:
    fusion = build(name)
    given = {modality: padded(rows, 1e6) for modality, rows in zip(BOTH, (TEXTS, AUDIOS), strict=True)}
    for sequence in given.values():
        sequence.features.requires_grad_()
    output = fusion(*(given[modality] if modality in fusion.modalities else None for modality in BOTH))
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


@attentive
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


def test_maps_say_who_asks_whom() -> None:
    expected = {
        "self_attention": {"text": ("text", "text"), "fusion": ("text audio", "text audio")},
        "cross_attention": {"text": ("audio", "text"), "audio": ("text", "audio")},
        "text_attention": {"text": ("text", "text")},
        "audio_attention": {"audio": ("audio", "audio")},
    }
    for name, maps_of_it in expected.items():
        found = {key: (" ".join(span.queries), " ".join(span.keys)) for key, span in build(name).maps.items()}
        assert found == maps_of_it, name
    for name in [name for name in FUSIONS if name not in ATTENTIVE and not name.startswith("attentive")]:
        fusion = build(name)
        assert fusion.maps == fuse(fusion, TEXTS, AUDIOS, return_attention=True).attention == {}, name


@attentive
def test_a_map_depends_on_the_modalities_that_it_names(name: str) -> None:
    fusion = build(name)
    first = fuse(fusion, TEXTS, AUDIOS, return_attention=True).attention
    other = {
        "text": fuse(fusion, [text.flip(0) + text for text in TEXTS], AUDIOS, return_attention=True).attention,
        "audio": fuse(fusion, TEXTS, [audio.flip(0) + audio for audio in AUDIOS], return_attention=True).attention,
    }
    for key, span in fusion.maps.items():
        for modality in BOTH:
            changes = not torch.allclose(first[key], other[modality][key], atol=1e-4)
            assert changes == (modality in (*span.queries, *span.keys))


@attentive
def test_attention_maps_are_maps(name: str) -> None:
    fusion = build(name)
    for gradients in GRADIENTS:
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


@attentive
def test_maps_are_made_only_where_they_are_asked_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
    fusion = build(name, dropout=0.25)
    for training, gradients in ((True, True), (False, True), (False, False)):
        calls.clear()
        with_maps = 0
        fusion.train(training)
        with torch.set_grad_enabled(gradients):
            count = len(fuse(fusion, TEXTS, AUDIOS, return_attention=True).attention)
            assert not calls
            assert with_maps == count > 0
            fuse(fusion, TEXTS, AUDIOS)
        assert with_maps == count
        assert calls == [0.25 if training else 0.0] * count


@pytest.mark.parametrize(("frames", "training"), [(3, True), (50, True), (50, False)])
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
    fusion = build("self_attention-min_max")
    still = [torch.full((count, DIMS["audio"]), 0.3) for count in (1, 5)]
    output = fuse(fusion, TEXTS[:2], still)
    assert output.audio is not None
    assert torch.isfinite(output.embedding).all()
    assert (output.audio.features[output.audio.mask] == 0).all()


def test_min_max_is_over_all_features_of_an_utterance() -> None:
    audio = fuse(build("self_attention-min_max"), TEXTS, AUDIOS, -1e6).audio
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
def test_concatenation_is_in_the_order_of_the_modalities(order: list[str]) -> None:
    torch.manual_seed(0)
    project, how = {"text": None, "audio": 7}, {"text": "first", "audio": "max"}
    fusion = ConcatFusion(dims=DIMS, modalities=order, project=project, pool=how).eval()
    assert fusion.modalities == tuple(order)
    pooled = {
        "text": torch.stack([row[0] for row in TEXTS]),
        "audio": torch.stack([row.max(0).values for row in AUDIOS]),
    }
    expected = torch.cat([fusion.linear[modality](pooled[modality]) for modality in order], 1)
    assert fusion.dim == sum({"text": DIMS["text"], "audio": 7}[modality] for modality in order)
    torch.testing.assert_close(fuse(fusion, TEXTS, AUDIOS).embedding, expected, rtol=0, atol=1e-6)


@attentive
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


@pytest.mark.parametrize("name", ["self_attention", "cross_attention", "text_attention", "audio_attention"])
def test_what_does_not_fit_is_refused_by_its_key(name: str) -> None:
    fit = {"text_attention": "1, 2, 4, 8, 16", "audio_attention": "1, 2, 3, 4, 6, 8, 12, 24"}.get(name, "1, 2, 4, 8")
    wrong: dict[str, tuple[list[Any], str]] = {
        "pool": (["median"], r"expected one of first, mean, max, min, sum\.$"),
        "heads": ([0, -1, 5, 9, True, 2.0], rf".*Expected one of {fit}\.$"),
        "dropout": ([-0.1, 1.0, 1, True, "much", float("nan")], "expected a number from 0 to less than 1"),
        "dim": ([0, -8, 2.5, True], "expected a whole number from 1"),
    }
    for key, (values, message) in wrong.items():
        for value in values:
            with pytest.raises(InputError, match=rf"^fusion\.{key}={value}: {message}"):
                build(name, **{key: value})


@pytest.mark.parametrize("name", ["self_attention", "cross_attention"])
def test_heads_have_to_divide_both_widths(name: str) -> None:
    with pytest.raises(InputError, match=r"fusion\.heads=16: does not divide the audio features' width 24\."):
        build(name, heads=16)
    with pytest.raises(InputError, match=r"fusion\.heads=12: does not divide the text features' width 16\."):
        build(name, heads=12)


@every
def test_modalities_that_it_cannot_fuse_are_refused(name: str) -> None:
    for modalities in ([], ["text", "text"], ["audio", "text", "audio"]):
        with pytest.raises(InputError, match=r"fusion\.modalities=\["):
            build(name, modalities=modalities)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("self_attention", {"audio_norm": "batch"}, r"fusion\.audio_norm=batch"),
        ("concat", {"project": {"text": 8}}, r"fusion\.project: expected an entry for audio"),
        ("concat", {"project": {"text": 8, "audio": 0}}, r"fusion\.project\.audio=0: expected a whole number from 1"),
        ("concat", {"project": {"text": 8, "audio": 8, "vidoe": 8}}, r"fusion\.project: unknown key vidoe\. Expected"),
        ("concat", {"pool": {"text": "mean"}}, r"fusion\.pool: expected an entry for audio"),
        ("concat", {"pool": {"text": "mean", "audio": "median"}}, r"fusion\.pool\.audio=median: expected one of first"),
        ("concat", {"pool": {"text": "mean", "audio": "mean", "vidoe": "mean"}}, r"fusion\.pool: unknown key vidoe\."),
    ],
)
def test_options_of_one_fusion_are_checked(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(name, **change)


def test_without_a_width_of_its_own_the_embedding_has_the_audio_s() -> None:
    assert build("self_attention-none").dim == DIMS["audio"]
