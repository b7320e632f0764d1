"""Every type of speech model that is accepted: Hugging Face's own on each utterance alone, exact in a padded batch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel

from fourm_ser.encoders.speech import SpeechEncoder
from fourm_ser.encoders.speech_models import KINDS
from fourm_ser.errors import InputError
from tests.encoders.test_speech import original

Build = Callable[..., SpeechEncoder]

VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{model_type: (model_type, "group", {}) for model_type in KINDS},
    "hubert with a batch norm": ("hubert", "layer", {"conv_pos_batch_norm": True}),
    "unispeech, pre-norm": ("unispeech", "layer", {}),
    "unispeech-sat, pre-norm": ("unispeech-sat", "layer", {}),
    "wav2vec2-conformer, rotary": ("wav2vec2-conformer", "layer", {"position_embeddings_type": "rotary"}),
    "wav2vec2-conformer without positions": ("wav2vec2-conformer", "group", {"position_embeddings_type": None}),
    "wav2vec2-bert, relative": ("wav2vec2-bert", "group", {"position_embeddings_type": "relative"}),
    "wav2vec2-bert, rotary": ("wav2vec2-bert", "group", {"position_embeddings_type": "rotary"}),
    "sew of three": ("sew", "layer", {"squeeze_factor": 3}),
    "sew-d of one": ("sew-d", "layer", {"squeeze_factor": 1, "position_buckets": -1, "max_position_embeddings": 300}),
}
NEW = [name for name, (model_type, *_) in VARIANTS.items() if model_type not in ("wav2vec2", "hubert", "wavlm")]
QUIET = dict.fromkeys(
    ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "conformer_conv_dropout"), 0.0
)


def stirred(build: Build, name: str, **arguments: Any) -> Any:
    """An encoder of a variant, whose biases, norms and statistics are no longer zeros and ones."""
    model_type, norm, architecture = VARIANTS[name]
    given = {**architecture, **arguments.pop("architecture", {})}
    encoder = build(model_type, norm, given, **arguments).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in encoder.stem.parameters():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_(generator=generator)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2.0, generator=generator)  # type: ignore[union-attr]
    return encoder


@pytest.mark.slow(but=["last"])
@pytest.mark.parametrize(
    ("name", "layer"), [*((name, "last") for name in VARIANTS), *((name, "weighted") for name in KINDS)]
)
def test_features_are_the_original_s_alone_and_the_same_in_a_batch(
    name: str, layer: str, speech_encoder: Build, waveforms: list[np.ndarray], check_padding: Callable[..., None]
) -> None:
    encoder = stirred(speech_encoder, name, layer=layer)
    raws = [waveforms[0], waveforms[2], waveforms[3][:5_100], waveforms[3]]  # of 1, 14, 15 and 49 frames
    check_padding(encoder, raws)
    model = original(encoder)
    for waveform in raws:
        item = encoder.frontend(waveform)
        given = item.get("samples", item.get("frames"))[None]
        with torch.no_grad():
            output = model(given, output_hidden_states=layer != "last")
            found = encoder.stem(encoder.collate([item])).features
        expected = output.last_hidden_state if layer == "last" else torch.cat(output.hidden_states, dim=-1)
        assert (expected[:, found.shape[1] :] == 0).all()  # SEW's of frames that fill no group
        torch.testing.assert_close(found, expected[:, : found.shape[1]], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["hubert with a batch norm", "data2vec-audio", "wav2vec2-conformer", "sew", "sew-d"])
def test_the_original_feels_padding_of_its_own_kind(
    name: str, speech_encoder: Build, waveforms: list[np.ndarray]
) -> None:
    encoder = stirred(speech_encoder, name, architecture={"feat_extract_norm": "layer"})
    model = original(encoder)
    inputs = encoder.collate([encoder.frontend(raw) for raw in (waveforms[3][:5_100], waveforms[3])])
    attention = torch.arange(inputs["samples"].shape[1]) < inputs["lengths"][:, None]
    with torch.no_grad():
        found, own = encoder(inputs)
        padded = model(inputs["samples"], attention_mask=attention.long()).last_hidden_state[:, : own.shape[1]]
    assert (found - padded)[own].abs().max() > 1e-2


def gradients(encoder: Any, batches: list[Any]) -> dict[str, Tensor]:
    """Of several batches, computed one after the other and only then gone back through."""
    encoder.zero_grad()
    torch.manual_seed(0)
    total = torch.zeros(())
    for inputs in batches:
        features, mask = encoder(inputs)
        total = total + (features[mask] * torch.linspace(-1, 1, features.shape[-1])).tanh().mean()
    torch.autograd.backward(total)
    return {name: parameter.grad for name, parameter in encoder.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", ["data2vec-audio", "wav2vec2-conformer", "wav2vec2-bert", "sew", "sew-d"])
def test_all_of_it_trains_alike_with_checkpoints(name: str, speech_encoder: Build, waveforms: list[np.ndarray]) -> None:
    found = []
    for checkpointing in (False, True):
        encoder = stirred(
            speech_encoder,
            name,
            architecture=QUIET,
            layerdrop=0.0,
            spec_augment=0.0,
            train_convolutions=name != "wav2vec2-bert",
            gradient_checkpointing=checkpointing,
        )
        encoder.unfreeze("all")
        encoder.train()
        raws = [waveforms[2], waveforms[3][:9_000], waveforms[3][:6_000]]
        batches = [encoder.collate([encoder.frontend(raw) for raw in pair]) for pair in (raws[:2], raws[2:], raws[1:])]
        found.append(gradients(encoder, batches))
    own = {parameter for parameter, _ in encoder.stem.model.named_parameters()}
    without = own - {parameter.removeprefix("stem.model.") for parameter in found[0]}
    assert all("masked_spec_embed" in parameter or "encoder.pos_conv_embed" in parameter for parameter in without)
    assert len(without) < 5  # of a conformer, which has a convolution over positions and does not use it
    assert found[0].keys() == found[1].keys()
    for parameter, gradient in found[0].items():
        torch.testing.assert_close(found[1][parameter], gradient, rtol=0, atol=1e-5)


@pytest.mark.slow(but=["True"])
@pytest.mark.parametrize("name", [name for name in NEW if name in KINDS and name != "sew-d"])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_waits_for_a_device(
    name: str, training: bool, speech_encoder: Build, waveforms: list[np.ndarray]
) -> None:
    encoder = stirred(speech_encoder, name, gradient_checkpointing=training)
    encoder.unfreeze("all" if training else "none")
    inputs = encoder.collate([encoder.frontend(waveform) for waveform in waveforms])
    # A device whose tensors have no numbers: there is nothing that one could wait for.
    encoder.to("meta").train()
    found = encoder({name: tensor.to("meta") for name, tensor in inputs.items()})
    assert found.features.shape[:2] == found.mask.shape
    if training:
        found.features.square().sum().backward()


@pytest.mark.parametrize("model_type", KINDS)
def test_the_last_blocks_train_and_what_is_behind_a_layer_does_not(model_type: str, speech_encoder: Build) -> None:
    encoder = speech_encoder(model_type, layer=1)
    assert len(encoder.blocks()) == 2
    encoder.unfreeze(1)
    trained = {name for name, parameter in encoder.stem.model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in trained if f"{KINDS[model_type].layers}.0." in name}
    assert trained
    encoder.unfreeze("all")
    trained = {name for name, parameter in encoder.stem.model.named_parameters() if parameter.requires_grad}
    assert not any("upsample" in name or f"{KINDS[model_type].layers}.1." in name for name in trained)
    assert any("feature_projection" in name for name in trained)
    assert not any("feature_extractor" in name for name in trained)


def test_features_that_padding_changed_in_earlier_versions_are_not_taken_for_exact_ones(speech_encoder: Build) -> None:
    told = {name: "padding" in stirred(speech_encoder, name).describe() for name in VARIANTS}
    assert told["wav2vec2-conformer"]
    assert told["hubert with a batch norm"]
    assert not told["wav2vec2"]
    assert not told["hubert"]


@pytest.mark.parametrize("name", ["wav2vec2-conformer", "hubert with a batch norm"])
def test_batch_norms_keep_their_statistics(name: str, speech_encoder: Build, waveforms: list[np.ndarray]) -> None:
    encoder = stirred(speech_encoder, name, layerdrop=0.0)
    encoder.unfreeze("all")
    encoder.train()
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm1d)]
    before = [module.running_mean.clone() for module in norms]  # type: ignore[union-attr]
    encoder(encoder.collate([encoder.frontend(waveforms[3])])).features.sum().backward()
    assert all(torch.equal(module.running_mean, mean) for module, mean in zip(norms, before, strict=True))  # type: ignore[arg-type]
    assert all(module.weight.grad is not None for module in norms)


@pytest.mark.parametrize("name", ["wav2vec2-conformer", "wav2vec2-conformer, rotary", "wav2vec2-bert, rotary"])
def test_positions_remember_no_earlier_batch(name: str, speech_encoder: Build, waveforms: list[np.ndarray]) -> None:
    encoder = stirred(speech_encoder, name)
    inputs = encoder.collate([encoder.frontend(waveforms[3])])
    with torch.no_grad():
        expected = encoder(inputs).features
        with torch.autocast("cpu", torch.bfloat16):
            encoder(inputs)
        assert torch.equal(encoder(inputs).features, expected)
    with torch.inference_mode():
        encoder(inputs)
    encoder.unfreeze("all")
    encoder(inputs).features.sum().backward()


@pytest.mark.parametrize("model_type", ["data2vec-audio", "wav2vec2-conformer", "wav2vec2-bert", "sew", "sew-d"])
def test_a_saved_checkpoint_is_the_saved_model(
    model_type: str, speech_encoder: Build, waveforms: list[np.ndarray], tmp_path: Path
) -> None:
    encoder = stirred(speech_encoder, model_type)
    original(encoder).save_pretrained(tmp_path)
    found = speech_encoder(model_type, weights=str(tmp_path), architecture={})
    assert found.fingerprint() == encoder.fingerprint()


OTHERS = {
    "bert": "bert",
    "whisper": "whisper",
    "speecht5": "speecht5",
    "nothing": None,
}


@pytest.mark.parametrize("model_type", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("saved", [False, True])
def test_every_other_type_is_refused_before_it_is_loaded(
    model_type: str | None, saved: bool, speech_encoder: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoModel, "from_config", None)
    monkeypatch.setattr(AutoModel, "from_pretrained", None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    where = {"weights": str(tmp_path)} if saved else {"architecture": {"model_type": model_type}}
    accepted = ", ".join(KINDS)
    with pytest.raises(InputError, match=f"{model_type} is no speech model .* one of {accepted}; Whisper") as told:
        speech_encoder(**where)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("model_type", "given", "said"),
    [
        ("sew-d", {"layerdrop": 0.1}, r"layerdrop=0\.1: .* can skip no layers"),
        ("wav2vec2-bert", {"train_convolutions": True}, r"train_convolutions=true: .* no convolutional"),
        ("wav2vec2", {"architecture": {"add_adapter": True}}, "add_adapter=true"),
        ("wav2vec2-bert", {"architecture": {"add_adapter": True}}, "add_adapter=true"),
    ],
)
def test_what_a_type_does_not_have_is_refused(
    model_type: str, given: dict[str, Any], said: str, speech_encoder: Build
) -> None:
    with pytest.raises(InputError, match=said):
        speech_encoder(model_type, **given)
