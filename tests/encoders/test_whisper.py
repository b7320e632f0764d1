"""Whisper's encoder: equal to Hugging Face's, exact under padding in both contexts, stretches, what trains."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor

from fourm_ser.encoders.base import Resources
from fourm_ser.encoders.whisper import WhisperEncoder
from fourm_ser.encoders.whisper_frontend import WhisperMel
from fourm_ser.errors import InputError

Build = Callable[..., WhisperEncoder]

SECONDS = 2  # of the small model's context
FIELDS = {
    "model_type": "whisper",
    "vocab_size": 60,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "decoder_start_token_id": 0,
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "max_source_positions": 50 * SECONDS,
}


@pytest.fixture(scope="module")
def build(resources: Resources) -> Build:
    """Builds a two-layer Whisper that hears two seconds at once; arguments change it."""

    def make(mels: int = 80, **arguments: Any) -> WhisperEncoder:
        settings: dict[str, Any] = {
            "name": "tiny_whisper",
            "checkpoint": None,
            "weights": "random",
            "architecture": {**FIELDS, "num_mel_bins": mels},
            "init_seed": 0,
            "context": "own",
            "layer": "last",
            "spec_augment": 0.05,
            "gradient_checkpointing": False,
            "resources": resources,
        }
        return WhisperEncoder(**{**settings, **arguments})

    return make


def reference(encoder: WhisperEncoder, wave: np.ndarray, context: str, mels: int = 80) -> tuple[Tensor, ...]:
    """The hidden states [features, width] that Hugging Face's encoder has of a recording, stretch by stretch.

    In its own context it is a model with no more positions than the stretch has.
    """
    extractor = WhisperFeatureExtractor(feature_size=mels, chunk_length=SECONDS)
    found = []
    for part in np.split(wave, range(SECONDS * 16_000, len(wave), SECONDS * 16_000)):
        model = copy.deepcopy(encoder.stem.model)
        count = -(-len(part) // 320)
        frames = extractor(part, sampling_rate=16_000, return_tensors="pt").input_features
        if context == "own":
            frames = frames[:, :, : 2 * count]
            model.config.max_source_positions = count
            model.embed_positions.weight = nn.Parameter(model.embed_positions.weight[:count])
            model.embed_positions.num_embeddings = count
        with torch.no_grad():
            states = model(frames, output_hidden_states=True).hidden_states
        found.append([state[0, :count] for state in states])
    return tuple(torch.cat(states) for states in zip(*found, strict=True))


@pytest.mark.parametrize(("context", "mels"), [("own", 80), ("full", 80), ("full", 128)])
def test_alone_it_is_the_original_model(build: Build, waveforms: list[np.ndarray], context: str, mels: int) -> None:
    encoders = {layer: build(mels, context=context, layer=layer).eval() for layer in ("last", 1, "weighted")}
    for wave in [*waveforms, waveforms[-1][:32_000], waveforms[-1][:31_900]]:
        states = reference(encoders["last"], wave, context, mels)
        expected = {"last": states[-1], 1: states[1], "weighted": torch.cat(states, dim=1)}
        for layer, encoder in encoders.items():
            with torch.no_grad():
                found = encoder.stem(encoder.collate([encoder.frontend(wave)])).features[0]
            torch.testing.assert_close(found, expected[layer], rtol=0, atol=1e-5)


@pytest.mark.parametrize("context", ["own", "full"])
@pytest.mark.parametrize("layer", ["last", "weighted", [0, 2]])
def test_alone_and_in_a_padded_batch(
    build: Build, waveforms: list[np.ndarray], check_padding: Callable[..., None], context: str, layer: str
) -> None:
    encoder = build(context=context, layer=layer)
    check_padding(encoder, waveforms)  # the last has two stretches
    check_padding(encoder, waveforms[:-1])


def test_the_context_changes_features_and_the_fingerprint(build: Build, waveforms: list[np.ndarray]) -> None:
    own, full = (build(context=context).eval() for context in ("own", "full"))
    with torch.no_grad():
        heard = [encoder(encoder.collate([encoder.frontend(waveforms[3])])).features for encoder in (own, full)]
    assert heard[0].shape == heard[1].shape == (1, 50, 32)
    assert (heard[0] - heard[1]).abs().max() > 1e-2
    assert own.fingerprint() != full.fingerprint()
    assert own.fingerprint() == build(spec_augment=0.0).fingerprint()


def test_in_the_full_context_a_batch_is_as_long_as_its_stretches(build: Build) -> None:
    known = np.array([0.0, 0.5, 2.0, 2.1, 5.0])
    assert build(context="full").lengths(lambda _: None, known).tolist() == [2, 2, 2, 4, 6]
    assert build().lengths(lambda _: None, known).tolist() == known.tolist()


def test_frames_lie_where_they_are_heard(build: Build) -> None:
    frontend = build().frontend
    wave = np.zeros(48_000, dtype=np.float32)
    wave[36_000:36_400] = np.sin(2 * np.pi * 1_000 * np.arange(400) / 16_000)  # a click of 1 kHz at 2.25 s
    begin, end = frontend.span(wave)
    values, hertz, hop = frontend.spectrogram(frontend(wave))
    assert len(values) == 300
    assert end - begin == pytest.approx(3.0)
    frame, band = divmod(int(values.argmax()), values.shape[1])
    assert begin + (frame + 0.5) * hop == pytest.approx(2.2625, abs=0.01)
    assert hertz[band] == pytest.approx(1_000, abs=60)


def test_a_checkpoint_of_the_whole_model_gives_its_encoder(build: Build, tmp_path: Path) -> None:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(3)
    fields = {key: value for key, value in FIELDS.items() if key != "model_type"}
    model = WhisperForConditionalGeneration(WhisperConfig(**fields))
    for place, saved in (("all", model), ("base", model.model)):
        saved.save_pretrained(tmp_path / place)
        encoder = build(weights=str(tmp_path / place))
        for name, tensor in model.model.encoder.state_dict().items():
            assert torch.equal(encoder.stem.model.state_dict()[name], tensor), name


def test_a_checkpoint_of_another_model_is_refused(build: Build, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="bert is no Whisper") as raised:
        build(weights=str(tmp_path))
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=r"encoder\.audio\.context=half: expected"):
        build(context="half")


def test_what_trains(build: Build, waveforms: list[np.ndarray]) -> None:
    encoder = build(gradient_checkpointing=True)
    encoder.unfreeze("all")
    trains = {name for name, parameter in encoder.stem.named_parameters() if parameter.requires_grad}
    assert len(trains) == len([*encoder.stem.parameters()]) - 1
    assert "model.embed_positions.weight" not in trains
    encoder.unfreeze(1)
    trains = {name for name, parameter in encoder.stem.named_parameters() if parameter.requires_grad}
    assert trains == {f"model.layers.1.{name}" for name, _ in encoder.layers[1].named_parameters()}
    encoder.train()
    features = encoder(encoder.collate([encoder.frontend(wave) for wave in waveforms])).features
    features.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.layers[1].parameters())
    assert all(parameter.grad is None for parameter in encoder.layers[0].parameters())
    cut = build(layer=1)
    cut.unfreeze("all")
    assert len(cut.layers) == 1
    assert not cut.stem.model.layer_norm.weight.requires_grad


def test_frames_are_masked_in_training_alone(build: Build) -> None:
    encoder = build(spec_augment=0.3)
    encoder.unfreeze("all")
    inputs = encoder.collate([encoder.frontend(np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32))])
    with torch.no_grad():
        assert (encoder.train()(inputs).features - encoder.eval()(inputs).features).abs().max() > 1e-3
        still = build(spec_augment=0.0)
        still.unfreeze("all")
        assert torch.equal(still.train()(inputs).features, encoder.eval()(inputs).features)


def test_frames_are_those_of_the_original_front_end() -> None:
    rng = np.random.default_rng(1)
    for count in (7, 200, 1_280, 31_000, 480_000 - 500, 480_000):
        wave = rng.normal(0, 0.05, count).astype(np.float32)
        expected = WhisperFeatureExtractor()(wave, sampling_rate=16_000, return_tensors="pt").input_features[0].T
        item = WhisperMel(80, 3_000, tail=True)(wave)
        own = len(item["frames"])
        torch.testing.assert_close(item["frames"], expected[:own], rtol=0, atol=1e-5)
        assert (expected[own:] == item["silence"]).all()
