"""Speech encoders: equal to Hugging Face's models alone, exact under padding, what trains, the fingerprint."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

from fourm_ser.encoders.augment import draw_spans, mask_on_device
from fourm_ser.encoders.base import Unfreeze
from fourm_ser.encoders.convolutions import OwnConvolutions
from fourm_ser.encoders.speech import SpeechEncoder
from fourm_ser.errors import InputError

Build = Callable[..., SpeechEncoder]

KINDS = [(model_type, norm) for model_type in ("wav2vec2", "hubert", "wavlm") for norm in ("group", "layer")]


def original(encoder: SpeechEncoder) -> Any:
    """Hugging Face's own model with the encoder's weights."""
    model = AutoModel.from_config(encoder.stem.model.config).eval()
    model.load_state_dict(encoder.stem.model.state_dict())
    return model


@pytest.mark.parametrize(("model_type", "norm"), KINDS)
@pytest.mark.parametrize("normalize", [True, False])
def test_alone_and_in_a_padded_batch(
    speech_encoder: Build,
    waveforms: list[np.ndarray],
    check_padding: Callable[..., None],
    model_type: str,
    norm: str,
    normalize: bool,
) -> None:
    check_padding(speech_encoder(model_type, norm, normalize=normalize), waveforms)


@pytest.mark.parametrize(("model_type", "norm"), KINDS)
def test_alone_it_is_the_original_model(
    speech_encoder: Build, waveforms: list[np.ndarray], model_type: str, norm: str
) -> None:
    encoder = speech_encoder(model_type, norm).eval()
    model = original(encoder)
    for waveform in waveforms:
        item = encoder.frontend(waveform)
        with torch.no_grad():
            expected = model(item["samples"][None]).last_hidden_state
            torch.testing.assert_close(encoder(encoder.collate([item])).features, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("model_type", ["wav2vec2", "hubert", "wavlm"])
def test_the_original_model_with_a_group_norm_feels_padding(
    speech_encoder: Build, waveforms: list[np.ndarray], model_type: str
) -> None:
    encoder = speech_encoder(model_type, "group").eval()
    batch = encoder.collate([encoder.frontend(waveform) for waveform in waveforms])
    attention = (torch.arange(batch["samples"].shape[1]) < batch["lengths"][:, None]).long()
    with torch.no_grad():
        exact = encoder(batch)
        padded = original(encoder)(batch["samples"], attention_mask=attention).last_hidden_state
    for row in range(len(waveforms) - 1):
        own = exact.mask[row]
        assert (exact.features[row, own] - padded[row, own]).abs().max() > 1e-2


@pytest.mark.parametrize("count", [1, 399, 400, 401, 719, 720, 721, 5_000, 16_001])
def test_frames_are_counted_as_the_convolutions_make_them(speech_encoder: Build, count: int) -> None:
    encoder = speech_encoder().eval()
    inputs = encoder.collate([encoder.frontend(np.full(count, 0.1, dtype=np.float32))])
    with torch.no_grad():
        features, mask = encoder(inputs)
    assert features.shape[1] == max(1, (count - 400) // 320 + 1) == encoder.stem.frames(inputs["lengths"]).item()
    assert mask.all()


def test_a_recording_shorter_than_a_frame_is_padded(speech_encoder: Build) -> None:
    encoder = speech_encoder().eval()
    inputs = encoder.frontend(np.linspace(-1, 1, 100, dtype=np.float32))
    samples = inputs["samples"]
    assert samples.shape == (400,)
    assert (samples[100:] == 0).all()
    assert samples[:100].std() > 0.9  # scaled before it was padded
    assert torch.isfinite(encoder(encoder.collate([inputs])).features).all()


def test_waveforms_are_scaled_where_the_model_expects_it(speech_encoder: Build) -> None:
    raw = np.random.default_rng(0).normal(0.3, 0.05, 2_000).astype(np.float32)
    scaled = speech_encoder(normalize=True).frontend(raw)["samples"].numpy()
    np.testing.assert_allclose(scaled, (raw - raw.mean()) / raw.std(), atol=1e-3)
    np.testing.assert_array_equal(speech_encoder(normalize=False).frontend(raw)["samples"].numpy(), raw)
    silence = speech_encoder(normalize=True).frontend(np.zeros(500, dtype=np.float32))["samples"]
    assert (silence == 0).all()


@pytest.mark.parametrize(("scale", "equal"), [(32_768.0, True), (1.0, False)])
def test_integers_give_a_group_norm_what_scaled_waveforms_give_and_quiet_floats_do_not(
    speech_encoder: Build, scale: float, equal: bool
) -> None:
    """MemoCMT's HuBERT reads 16-bit integers, 4M-SER's the same / 32768: there the norm's epsilon counts."""
    raw = np.random.default_rng(0).normal(0, 0.003, 4_000).astype(np.float32)
    found = []
    for normalize, wave in ((True, raw), (False, raw * np.float32(scale))):
        encoder = speech_encoder("hubert", "group", normalize=normalize).eval()
        found.append(encoder(encoder.collate([encoder.frontend(wave)])).features)
    assert torch.allclose(found[0], found[1], atol=1e-3) is equal


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_the_gradient_of_a_padded_row_is_that_of_the_row_alone(speech_encoder: Build, norm: str) -> None:
    convolutions = speech_encoder("wav2vec2", norm).stem.model.feature_extractor
    torch.manual_seed(0)
    alone, padded = torch.randn(1, 900, requires_grad=True), torch.full((2, 1_400), float("nan"))
    padded[0, :900] = alone[0].detach()
    padded[1] = torch.randn(1_400)
    padded.requires_grad_()
    convolutions.lengths = torch.tensor([900])
    expected = convolutions(alone)
    convolutions.lengths = torch.tensor([900, 1_400])
    found = convolutions(padded)
    frames = expected.shape[2]
    assert frames < found.shape[2]
    torch.testing.assert_close(found[0, :, :frames], expected[0], rtol=0, atol=1e-6)
    assert (found[0, :, frames:] == 0).all()
    target = torch.randn_like(expected)
    (expected * target).sum().backward()
    (found[:1, :, :frames] * target).sum().backward()
    assert alone.grad is not None
    assert padded.grad is not None
    torch.testing.assert_close(padded.grad[0, :900], alone.grad[0], rtol=0, atol=1e-5)
    assert (padded.grad[0, 900:] == 0).all()


COUNTS = (400, 719, 5_000, 16_001)  # samples of utterances of 1, 1, 15 and 49 frames


def convolve(
    convolutions: OwnConvolutions, run: Callable[[Tensor], Tensor], samples: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Features of a padded batch, and the gradients by the samples and all parameters of a sum of them."""
    convolutions.zero_grad()
    samples = samples.clone().requires_grad_()
    convolutions.lengths = torch.tensor(COUNTS)
    found = run(samples)
    torch.manual_seed(1)
    torch.autograd.backward((found * torch.randn(found.shape)).sum())
    slopes = [samples.grad, *(parameter.grad for parameter in convolutions.parameters())]
    assert all(slope is not None for slope in slopes)
    return found.detach(), [slope.clone() for slope in slopes if slope is not None]


def check_slopes(found: list[Tensor], expected: list[Tensor]) -> None:
    """Gradients to a 1e-5th of the largest: by a bias before a norm, to which nothing is sensitive, they are noise."""
    largest = max(float(slope.abs().max()) for slope in expected)
    for other, slope in zip(found, expected, strict=True):
        torch.testing.assert_close(other, slope, rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_batch_at_once_is_each_utterance_by_itself(
    speech_encoder: Build, norm: str, bias: bool, checkpointing: bool
) -> None:
    encoder = speech_encoder(
        "wav2vec2", norm, {"conv_bias": bias}, train_convolutions=True, gradient_checkpointing=checkpointing
    )
    encoder.unfreeze("all")
    encoder.train()
    convolutions = encoder.stem.model.feature_extractor
    torch.manual_seed(0)
    for name, parameter in convolutions.named_parameters():
        if "layer_norm" in name:
            nn.init.normal_(parameter)
    samples = torch.full((len(COUNTS), max(COUNTS)), float("nan"))
    for row, count in zip(samples, COUNTS, strict=True):
        row[:count] = 0.1 + torch.randn(count) * torch.rand(())
    expected, slopes = convolve(convolutions, convolutions.one_by_one, samples)
    found, others = convolve(convolutions, convolutions.at_once, samples)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    check_slopes(others, slopes)
    for row, count in enumerate(COUNTS):
        frames = (count - 400) // 320 + 1
        assert (found[row, :, frames:] == 0).all()
        assert (found[row, :, :frames] != 0).any()
        assert (others[0][row, count:] == 0).all()
    with torch.no_grad():  # by pieces
        torch.testing.assert_close(convolutions.one_by_one(samples), expected, rtol=1e-5, atol=1e-5)


def test_a_norm_of_few_groups_is_folded_as_one_of_many(speech_encoder: Build) -> None:
    encoder = speech_encoder("wav2vec2", "group", train_convolutions=True)
    encoder.unfreeze("all")
    convolutions = encoder.stem.model.feature_extractor
    norm = convolutions.conv_layers[0].layer_norm = nn.GroupNorm(2, 8)
    torch.manual_seed(0)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    samples = torch.randn(len(COUNTS), max(COUNTS)) + 0.2
    expected, slopes = convolve(convolutions, convolutions.one_by_one, samples)
    found, others = convolve(convolutions, convolutions.at_once, samples)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    check_slopes(others, slopes)


def test_checkpoints_remember_the_lengths_of_their_batch(speech_encoder: Build) -> None:
    gradients: list[list[Tensor | None]] = []
    for checkpointing in (False, True):
        encoder = speech_encoder(train_convolutions=True, gradient_checkpointing=checkpointing)
        encoder.unfreeze("all")
        encoder.train()
        convolutions = encoder.stem.model.feature_extractor
        torch.manual_seed(0)
        samples = torch.randn(2, 5_000)
        convolutions.lengths = torch.tensor([5_000, 900])
        first = convolutions.at_once(samples)
        convolutions.lengths = torch.tensor([600, 5_000])
        convolutions.at_once(samples)
        first.square().sum().backward()
        gradients.append([parameter.grad for parameter in convolutions.parameters()])
    for without, within in zip(*gradients, strict=True):
        torch.testing.assert_close(within, without)


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_batch_at_once_in_half_precision_is_near(speech_encoder: Build, norm: str, dtype: torch.dtype) -> None:
    convolutions = speech_encoder("wav2vec2", norm).stem.model.feature_extractor
    torch.manual_seed(0)
    samples = torch.randn(len(COUNTS), max(COUNTS)) * torch.tensor([1.0, 1e-2, 1e-4, 0.0])[:, None]  # down to silence
    convolutions.lengths = torch.tensor(COUNTS)
    with torch.no_grad():
        expected = convolutions.at_once(samples)
        with torch.autocast("cpu", dtype):
            found = convolutions.at_once(samples)
            alone = convolutions.one_by_one(samples)
    assert found.dtype == dtype
    own = (expected != 0).any(1)
    for features in (found, alone):
        cosine = nn.functional.cosine_similarity(features.float(), expected, dim=1)[own]
        assert cosine.min() > 0.99
        assert cosine.mean() > 0.999


@pytest.mark.slow(but=["True-1-wav2vec2", "True-1-hubert-layer", "True-weighted-wavlm-group"])
@pytest.mark.parametrize(("model_type", "norm"), KINDS)
@pytest.mark.parametrize("layer", ["last", 1, "weighted"])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_waits_for_a_device(
    speech_encoder: Build, waveforms: list[np.ndarray], model_type: str, norm: str, layer: str | int, training: bool
) -> None:
    encoder = speech_encoder(
        model_type,
        norm,
        {"mask_feature_prob": 0.2, "mask_feature_length": 5},
        layer=layer,
        train_convolutions=True,
        gradient_checkpointing=training,
    )
    encoder.unfreeze("all" if training else "none")
    inputs = encoder.collate([encoder.frontend(waveform) for waveform in waveforms])
    frames = encoder.stem.frames(inputs["samples"].shape[1])
    # A device whose tensors have no numbers: there is nothing that one could wait for.
    encoder.to("meta").train()
    with torch.set_grad_enabled(training):
        found = encoder({name: tensor.to("meta") for name, tensor in inputs.items()})
    assert found.features.shape == (len(waveforms), frames, encoder.dim)
    assert found.mask.shape == (len(waveforms), frames)
    if training:
        found.features.square().sum().backward()


@pytest.mark.parametrize("padded", [False, True])
def test_a_mask_is_left_out_where_nobody_has_to_wait_to_know(speech_encoder: Build, padded: bool) -> None:
    config = speech_encoder("wav2vec2").stem.model.config
    own = torch.arange(7) < torch.tensor([7, 3 if padded else 7])[:, None]
    for device, skipped in (("cpu", not padded), ("meta", False)):
        features = torch.zeros(2, 7, 32, device=device)
        mask = create_bidirectional_mask(config=config, inputs_embeds=features, attention_mask=own.to(device))
        if skipped:
            assert mask is None
            continue
        assert mask is not None
        assert (mask.device.type, mask.dtype, mask.shape) == (device, torch.bool, (2, 1, 7, 7))
        if device == "cpu":
            assert torch.equal(mask, own[:, None, None].expand(2, 1, 7, 7))
        assert create_bidirectional_mask(config=config, inputs_embeds=features, attention_mask=None) is None


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("least", [0, 2])
def test_spans_are_drawn_as_hugging_faces_are(share: float, least: int) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    lengths, length, draws = torch.tensor([60, 47, 20, 10, 9, 1]), 10, 300
    own = torch.arange(60) < lengths[:, None]
    expected = np.zeros(own.shape)
    found = torch.zeros(own.shape)
    for _ in range(draws):
        expected += _compute_mask_indices((6, 60), share, length, own, least)
        spans = draw_spans(lengths, 60, share=share, length=length, least=least)
        assert not (spans & ~own).any()
        edges = nn.functional.pad(spans.int(), (1, 1)).diff(dim=1)
        begins, ends = (edges == 1).nonzero()[:, 1], (edges == -1).nonzero()[:, 1]
        assert (ends - begins >= length).all()
        found += spans
    # Where a row has no room for a span, Hugging Face's masks its padding.
    expected = expected * own.numpy()
    deviation = np.sqrt(0.25 / draws)
    np.testing.assert_allclose(found.numpy() / draws, expected / draws, atol=6 * deviation)


def test_spans_of_one_row_begin_at_different_places() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        spans = draw_spans(torch.tensor([6, 5]), 6, share=1.0, length=1, least=0)  # rounded, and no more than places
        assert spans.tolist() == [[True] * 6, [True] * 5 + [False]]
    assert not draw_spans(torch.tensor([6, 5]), 6, share=1.0, length=7, least=2).any()  # no room


def test_augmentation_puts_the_models_vector_in_spans(speech_encoder: Build) -> None:
    encoder = speech_encoder(spec_augment=0.5, architecture={"mask_feature_prob": 0.3, "mask_feature_length": 4})
    model = encoder.stem.model
    own = torch.arange(80) < torch.tensor([80, 40])[:, None]
    torch.manual_seed(0)
    hidden = torch.randn(2, 80, 32, requires_grad=True)
    found = mask_on_device(model, hidden, own)
    zeros = (found == 0).all(1)  # (batch, width)
    assert zeros.any(1).all()
    changed = (found != hidden).any(2, keepdim=True) & (found != 0).any(2, keepdim=True)
    masked = ((found == model.masked_spec_embed) | zeros[:, None]).all(2)
    assert masked.any(1).all()
    assert not (masked & ~own).any()
    kept = ~masked[..., None] & ~zeros[:, None]
    assert torch.equal(found[kept], hidden[kept])
    assert changed.any()
    torch.autograd.backward(found.sum())
    assert hidden.grad is not None
    assert torch.equal(hidden.grad != 0, kept)
    assert (model.masked_spec_embed.grad != 0).any()


@pytest.mark.parametrize("model_type", ["wav2vec2", "hubert", "wavlm"])
def test_on_a_processor_training_draws_what_the_original_model_draws(
    speech_encoder: Build, waveforms: list[np.ndarray], model_type: str
) -> None:
    # With WavLM's exception, attention of this package draws its dropout in its own way.
    dropout = {"attention_dropout": 0.1 if model_type == "wavlm" else 0.0}
    encoder = speech_encoder(model_type, "layer", dropout, spec_augment=0.4, layerdrop=0.5)
    encoder.unfreeze("all")
    encoder.train()
    model = original(encoder).train()
    inputs = encoder.collate([encoder.frontend(waveform) for waveform in waveforms])
    attention = (torch.arange(inputs["samples"].shape[1]) < inputs["lengths"][:, None]).long()
    for seed in range(3):
        with torch.no_grad():
            torch.manual_seed(seed)
            np.random.seed(seed)
            found, own = encoder(inputs)
            torch.manual_seed(seed)
            np.random.seed(seed)
            expected = model(inputs["samples"], attention_mask=attention).last_hidden_state
        torch.testing.assert_close(found[own], expected[own], rtol=0, atol=1e-4)


def test_a_batch_too_short_for_a_span_trains(speech_encoder: Build, waveforms: list[np.ndarray]) -> None:
    encoder = speech_encoder(spec_augment=0.4)
    encoder.unfreeze("all")
    encoder.train()
    inputs = encoder.collate([encoder.frontend(waveform) for waveform in waveforms[:2]])
    with pytest.raises(ValueError, match="mask_length"):
        original(encoder).train()(inputs["samples"])
    assert torch.isfinite(encoder(inputs).features).all()


def test_a_copy_augments_with_its_own_vector(speech_encoder: Build, waveforms: list[np.ndarray]) -> None:
    encoder = speech_encoder(spec_augment=0.9)
    copied = copy.deepcopy(encoder)
    assert copied.stem.model._mask_hidden_states.args == (copied.stem.model,)
    assert encoder.stem.model._mask_hidden_states.args == (encoder.stem.model,)
    copied.unfreeze("all")
    copied.train()
    copied(copied.collate([copied.frontend(waveforms[4])])).features.square().sum().backward()
    assert copied.stem.model.masked_spec_embed.grad is not None
    assert encoder.stem.model.masked_spec_embed.grad is None


@pytest.mark.parametrize(("model_type", "norm"), KINDS)
@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("none", [False, False, False]),
        ("all", [True, True, True]),
        (1, [False, False, True]),
        (3, [True, True, True]),
    ],
)
def test_what_is_unfrozen_trains(
    speech_encoder: Build, model_type: str, norm: str, what: Unfreeze, expected: list[bool]
) -> None:
    encoder = speech_encoder(model_type, norm)
    encoder.unfreeze(what)
    found = [[parameter.requires_grad for parameter in block.parameters()] for block in encoder.blocks()]
    assert [all(flags) for flags in found] == [any(flags) for flags in found] == expected
    inside = {id(parameter) for block in encoder.blocks() for parameter in block.parameters()}
    convolutions = {id(parameter) for parameter in encoder.stem.model.feature_extractor.parameters()}
    for parameter in encoder.parameters():
        if id(parameter) in convolutions:
            assert not parameter.requires_grad
        elif id(parameter) not in inside:
            assert parameter.requires_grad == (what == "all")
    assert encoder.frozen == (not any(expected))


def test_convolutions_train_when_they_are_told_to(speech_encoder: Build, waveforms: list[np.ndarray]) -> None:
    encoder = speech_encoder(train_convolutions=True, spec_augment=0.0, layerdrop=0.0)
    encoder.unfreeze(2)
    assert not any(parameter.requires_grad for parameter in encoder.stem.model.feature_extractor.parameters())
    encoder.unfreeze("all")
    encoder.train()
    inputs = encoder.collate([encoder.frontend(waveform) for waveform in waveforms[:3]])
    encoder(inputs).features.square().sum().backward()
    without = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert [name for name in without if "masked_spec_embed" not in name] == []


@pytest.mark.parametrize("what", ["some", "1", 0, -1, 4, None, True])
def test_nonsense_is_refused(speech_encoder: Build, what: Any) -> None:
    with pytest.raises(InputError, match=r"unfreeze\.audio=.*tiny_wav2vec2"):
        speech_encoder().unfreeze(what)


@pytest.mark.parametrize("model_type", ["wav2vec2", "hubert", "wavlm"])
def test_a_frozen_stem_is_neither_dropped_out_nor_augmented(
    speech_encoder: Build, waveforms: list[np.ndarray], model_type: str
) -> None:
    encoder = speech_encoder(model_type, spec_augment=0.5)
    inputs = encoder.collate([encoder.frontend(waveform) for waveform in waveforms])
    with torch.no_grad():
        expected = encoder.eval()(inputs).features
    encoder.unfreeze("none")
    encoder.train()
    assert not any(module.training for module in encoder.stem.model.modules())
    with torch.no_grad():
        assert torch.equal(encoder(inputs).features, expected)
    encoder.unfreeze("all")
    encoder.train()
    assert not torch.equal(encoder(inputs).features, encoder(inputs).features)


def test_two_builds_are_equal_and_another_seed_differs(speech_encoder: Build) -> None:
    torch.manual_seed(1)
    first = speech_encoder().fingerprint()
    before = torch.random.get_rng_state()
    torch.manual_seed(2)
    assert speech_encoder().fingerprint() == first
    assert speech_encoder(init_seed=1).fingerprint() != first
    torch.random.set_rng_state(before)
    speech_encoder(init_seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "change",
    [
        {"norm": "layer"},
        {"model_type": "hubert"},
        {"normalize": False},
        {"architecture": {"num_hidden_layers": 1}},
        {"architecture": {"hidden_act": "relu"}},
        {"architecture": {"do_stable_layer_norm": True}},
    ],
)
def test_the_fingerprint_changes_with_what_changes_features(speech_encoder: Build, change: dict[str, Any]) -> None:
    assert speech_encoder(**change).fingerprint() != speech_encoder().fingerprint()


@pytest.mark.parametrize("model_type", ["wav2vec2", "hubert", "wavlm"])
@pytest.mark.parametrize(
    "change",
    [
        {"layerdrop": 0.0},
        {"train_convolutions": True},
        {"spec_augment": 0.3},
        {"spec_augment": 0.0},
        {"architecture": {"hidden_dropout": 0.3, "attention_dropout": 0.0, "feat_proj_dropout": 0.2}},
        {"architecture": {"activation_dropout": 0.3, "final_dropout": 0.0}},
    ],
)
def test_the_fingerprint_does_not_change_with_regularisation(
    speech_encoder: Build, model_type: str, change: dict[str, Any]
) -> None:
    assert speech_encoder(model_type, **change).fingerprint() == speech_encoder(model_type).fingerprint()


def test_the_fingerprint_changes_with_the_weights_and_not_with_use(
    speech_encoder: Build, waveforms: list[np.ndarray]
) -> None:
    encoder = speech_encoder().eval()
    first = encoder.fingerprint()
    encoder(encoder.collate([encoder.frontend(waveform) for waveform in waveforms[:2]]))
    assert encoder.fingerprint() == first
    for part in (encoder.stem.model.feature_extractor, encoder.stem.model.encoder.layers[-1]):
        weight = next(part.parameters())
        with torch.no_grad():
            weight.view(-1)[0] += 1.0
        changed = encoder.fingerprint()
        assert changed != first
        first = changed
