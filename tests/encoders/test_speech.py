"""Speech encoders: equal to Hugging Face's models alone, exact under padding, what trains, the fingerprint."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from fourm_ser.encoders.base import Unfreeze
from fourm_ser.encoders.speech import SpeechEncoder
from fourm_ser.errors import InputError

Build = Callable[..., SpeechEncoder]

KINDS = [(model_type, norm) for model_type in ("wav2vec2", "hubert", "wavlm") for norm in ("group", "layer")]


def original(encoder: SpeechEncoder) -> Any:
    """Hugging Face's own model with the encoder's weights."""
    model = AutoModel.from_config(encoder.model.config).eval()
    model.load_state_dict(encoder.model.state_dict())
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
    assert features.shape[1] == max(1, (count - 400) // 320 + 1) == encoder.frames(inputs["lengths"]).item()
    assert mask.all()


def test_a_recording_shorter_than_a_frame_is_padded(speech_encoder: Build) -> None:
    encoder = speech_encoder().eval()
    samples = encoder.frontend(np.linspace(-1, 1, 100, dtype=np.float32))["samples"]
    assert samples.shape == (400,)
    assert (samples[100:] == 0).all()
    assert samples[:100].std() > 0.9  # scaled before it was padded
    assert torch.isfinite(encoder(encoder.collate([{"samples": samples}])).features).all()


def test_waveforms_are_scaled_where_the_model_expects_it(speech_encoder: Build) -> None:
    raw = np.random.default_rng(0).normal(0.3, 0.05, 2_000).astype(np.float32)
    scaled = speech_encoder(normalize=True).frontend(raw)["samples"].numpy()
    np.testing.assert_allclose(scaled, (raw - raw.mean()) / raw.std(), atol=1e-3)
    np.testing.assert_array_equal(speech_encoder(normalize=False).frontend(raw)["samples"].numpy(), raw)
    silence = speech_encoder(normalize=True).frontend(np.zeros(500, dtype=np.float32))["samples"]
    assert (silence == 0).all()


def test_the_front_end_travels_to_workers(speech_encoder: Build, waveforms: list[np.ndarray]) -> None:
    frontend = speech_encoder().frontend
    copy = pickle.loads(pickle.dumps(frontend))
    assert torch.equal(copy(waveforms[2])["samples"], frontend(waveforms[2])["samples"])


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_the_gradient_of_a_padded_row_is_that_of_the_row_alone(speech_encoder: Build, norm: str) -> None:
    convolutions = speech_encoder("wav2vec2", norm).model.feature_extractor
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
    convolutions = {id(parameter) for parameter in encoder.model.feature_extractor.parameters()}
    for parameter in encoder.parameters():
        if id(parameter) in convolutions:
            assert not parameter.requires_grad
        elif id(parameter) not in inside:
            assert parameter.requires_grad == (what == "all")
    assert encoder.frozen == (not any(expected))


def test_convolutions_train_when_they_are_told_to(speech_encoder: Build, waveforms: list[np.ndarray]) -> None:
    encoder = speech_encoder(train_convolutions=True, spec_augment=0.0, layerdrop=0.0)
    encoder.unfreeze(2)
    assert not any(parameter.requires_grad for parameter in encoder.model.feature_extractor.parameters())
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
    assert not any(module.training for module in encoder.model.modules())
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
    for part in (encoder.model.feature_extractor, encoder.model.encoder.layers[-1]):
        weight = next(part.parameters())
        with torch.no_grad():
            weight.view(-1)[0] += 1.0
        changed = encoder.fingerprint()
        assert changed != first
        first = changed
