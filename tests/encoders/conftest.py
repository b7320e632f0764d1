"""Tiny encoders of the real classes, and the package's first law as a check."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from fourm_ser.encoders.base import Encoder, Resources
from fourm_ser.encoders.frontends import LogMel
from fourm_ser.encoders.mel_lstm import MelLSTM
from fourm_ser.encoders.speech import SpeechEncoder
from fourm_ser.encoders.text import TextEncoder

SPEECH_FIELDS: dict[str, dict[str, Any]] = {
    "data2vec-audio": {"conv_dim": [8] * 7, "conv_pos_kernel_size": 7, "num_conv_pos_embedding_groups": 4},
    "wav2vec2-bert": {},
    "sew": {"conv_dim": [8] * 13, "num_conv_pos_embedding_groups": 4},
    "sew-d": {"conv_dim": [8] * 13, "num_conv_pos_embedding_groups": 4, "position_buckets": 8},
}
"""What makes a speech model small, by its type; others have seven convolutions."""

WORDS = ("angry", "ball", "calm", "door", "every", "fire", "green", "happy", "ice", "jolly", "kind", "lonely")


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Transcripts: an empty one, one word, and many."""
    rng = np.random.default_rng(0)
    return ["", "calm", *(" ".join(rng.choice(WORDS, count)) for count in (3, 9, 60))]


@pytest.fixture(scope="session")
def waveforms() -> list[np.ndarray]:
    """Recordings of very different lengths; the first is shorter than one frame of a speech model."""
    rng = np.random.default_rng(0)
    return [
        (rng.normal(0, 0.1, count) * np.sin(np.arange(count) / 40)).astype(np.float32)
        for count in (100, 400, 4_800, 16_000, 64_000)
    ]


@pytest.fixture(scope="session")
def resources(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Resources:
    return Resources(tmp_path_factory.mktemp("cache"), texts)


@pytest.fixture(scope="session")
def text_encoder(resources: Resources) -> Callable[..., TextEncoder]:
    """Builds a two-layer text encoder; arguments change it, `architecture` field by field."""

    def build(model_type: str = "bert", architecture: dict[str, Any] | None = None, **arguments: Any) -> TextEncoder:
        fields = {
            "model_type": model_type,
            "vocab_size": 120,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 130,
        }
        settings: dict[str, Any] = {
            "name": f"tiny_{model_type}",
            "checkpoint": None,
            "tokenizer": "wordpiece",
            "weights": "random",
            "init_seed": 0,
            "max_tokens": 128,
            "vocabulary": 120,
            "layer": "last",
            "gradient_checkpointing": False,
            "resources": resources,
        }
        return TextEncoder(**{**settings, "architecture": {**fields, **(architecture or {})}, **arguments})

    return build


@pytest.fixture(scope="session")
def speech_encoder(resources: Resources) -> Callable[..., SpeechEncoder]:
    """Builds a two-layer speech encoder; arguments change it, `architecture` field by field."""

    def build(
        model_type: str = "wav2vec2", norm: str = "group", architecture: dict[str, Any] | None = None, **arguments: Any
    ) -> SpeechEncoder:
        fields = {
            "model_type": model_type,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            **SPEECH_FIELDS.get(model_type, {"conv_dim": [8] * 7}),
        }
        if model_type not in ("data2vec-audio", "wav2vec2-bert"):
            fields["feat_extract_norm"] = norm
        if model_type in ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat"):
            fields["do_stable_layer_norm"] = norm == "layer"  # as in the large checkpoints
        settings: dict[str, Any] = {
            "name": f"tiny_{model_type}",
            "checkpoint": None,
            "weights": "random",
            "init_seed": 0,
            "normalize": True,
            "layer": "last",
            "spec_augment": 0.05,
            "layerdrop": 0.0 if model_type == "sew-d" else 0.1,
            "train_convolutions": False,
            "gradient_checkpointing": False,
            "resources": resources,
        }
        return SpeechEncoder(**{**settings, "architecture": {**fields, **(architecture or {})}, **arguments})

    return build


@pytest.fixture(scope="session")
def mel_lstm(resources: Resources) -> Callable[..., MelLSTM]:
    """Builds a small `MelLSTM`; arguments change it, or its front end."""

    def build(**arguments: Any) -> MelLSTM:
        settings: dict[str, Any] = {
            "name": "tiny_lstm",
            "weights": "random",
            "init_seed": 0,
            "channels": [16, 24],
            "hidden": 12,
            "layers": 2,
            "resources": resources,
        }
        numbers = {"mels": 20, "window": 400, "hop": 320, "low": 50.0, "high": 8000.0, "mean": -5.5, "std": 4.5}
        given = {key: arguments.pop(key) for key in [*arguments] if key in numbers}
        return MelLSTM(**{**settings, "frontend": LogMel(**{**numbers, **given}), **arguments})

    return build


@pytest.fixture(scope="session")
def known_fingerprint() -> Callable[[Encoder], str]:
    """Fills an encoder's stem with numbers that hang on no generator, and gives its fingerprint."""

    def fill(encoder: Encoder) -> str:
        with torch.no_grad():
            for tensor in encoder.stem.state_dict().values():
                tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape) % 251)
        return encoder.fingerprint()

    return fill


@pytest.fixture(scope="session")
def check_padding() -> Callable[[Encoder, Sequence[Any]], None]:
    """Checks that an encoder gives each utterance alone what it gives it in a batch, in whatever order."""

    def check(encoder: Encoder, raws: Sequence[Any]) -> None:
        encoder.eval()
        items = [encoder.frontend(raw) for raw in raws]
        with torch.no_grad():
            batch = encoder(encoder.collate(items))
            turned = encoder(encoder.collate(items[::-1]))
            counts = []
            for place, item in enumerate(items):
                alone = encoder(encoder.collate([item]))
                count = alone.features.shape[1]
                counts.append(count)
                assert alone.features.shape == (1, count, encoder.dim)
                assert torch.isfinite(alone.features).all()
                assert alone.mask.all()
                for padded, row in ((batch, place), (turned, len(items) - 1 - place)):
                    assert padded.mask[row].sum() == count
                    assert padded.mask[row, :count].all()
                    torch.testing.assert_close(padded.features[row, :count], alone.features[0], rtol=0, atol=1e-4)
        assert batch.features.shape == (len(items), max(counts), encoder.dim)
        assert counts[0] < counts[-1]
        features = [batch.features[row, : counts[row]].mean(0) for row in range(len(items))]
        assert all((features[row] - features[-1]).abs().max() > 1e-3 for row in range(2, len(items) - 1))

    return check
