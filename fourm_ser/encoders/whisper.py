"""Whisper's encoder as an audio encoder (Radford et al., 2022, https://arxiv.org/abs/2212.04356)."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.models.whisper import modeling_whisper

from fourm_ser.checks import check_word
from fourm_ser.encoders.activity import WithActivity
from fourm_ser.encoders.augment import draw_spans
from fourm_ser.encoders.base import Features, Inputs, Resources, Unfreeze, length_mask, zero_padding
from fourm_ser.encoders.hub import load_transformer
from fourm_ser.encoders.layers import Layer, TransformerEncoder, TransformerStem
from fourm_ser.encoders.whisper_frontend import POOLED, WhisperMel
from fourm_ser.errors import InputError

CONTEXTS = ("full", "own")
MASKED = 20  # frames of a span of SpecAugment: 0.2 s, as in the self-supervised models
FIELDS = (  # of the config: what the encoder's features depend on
    "d_model",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "activation_function",
    "num_mel_bins",
    "max_source_positions",
    "scale_embedding",
)


class Network(modeling_whisper.WhisperEncoder):
    """Hugging Face's encoder, loaded from a checkpoint of the whole model without its decoder."""

    @classmethod
    def from_config(cls, config: Any, dtype: torch.dtype) -> Any:
        """One with random weights."""
        return cls._from_config(config, dtype=dtype)

    @classmethod
    def from_pretrained(cls, folder: Any, **options: Any) -> Any:
        """One with a checkpoint's weights, and what else Transformers tells of them."""
        return super().from_pretrained(folder, key_mapping={r"^(model\.)?encoder\.": ""}, **options)


def network_class(config: Any, source: str) -> Any:
    """What a checkpoint of this config is loaded by.

    Raises:
        InputError: it is no Whisper.
    """
    if not isinstance(config, WhisperConfig):
        raise InputError(
            f"{source}: {config.model_type} is no Whisper. Other speech models take another option of encoder/audio, "
            "such as encoder/audio=wav2vec."
        )
    return Network


class WhisperStem(TransformerStem):
    """Whisper's encoder over log-mel frames of the whole context, or of the utterance alone.

    In its full context an utterance is followed by silence to 30 s, and its features see that; in its own it ends
    where it ends, as if the network had no more positions.
    """

    def __init__(self, network: Network, *, layer: Layer, context: str, spec_augment: float) -> None:
        super().__init__(network, layer)
        self.full, self.spec_augment = context == "full", spec_augment
        self.depth = len(network.layers)  # before any is left out
        self.longest = POOLED * int(network.config.max_source_positions)

    def forward(self, inputs: Inputs) -> Features:
        """What `WhisperMel` collates -> features (batch, most features, stem_dim)."""
        frames, lengths = inputs["frames"], inputs["lengths"]
        if self.training and self.spec_augment:
            hidden = draw_spans(lengths, frames.shape[1], share=self.spec_augment, length=MASKED, least=0)
            frames = frames.masked_fill(hidden[..., None], 0)
        if self.full:
            frames = nn.functional.pad(frames, (0, 0, 0, self.longest - frames.shape[1]))
            own = length_mask(lengths, self.longest)[..., None]
            frames = torch.where(own, frames, inputs["silence"][:, None, None])
        places = inputs["places"]
        mask = length_mask(inputs["counts"], places.shape[1])
        alone = len(frames) == len(mask)  # an utterance a stretch
        wanted = places.shape[1] if alone else self.longest // POOLED
        states = self.states(frames.transpose(1, 2), None if self.full else lengths, wanted)
        return Features(states[:, : places.shape[1]] if alone else states.flatten(0, 1)[places], mask)

    def states(self, frames: Tensor, lengths: Tensor | None, wanted: int) -> Tensor:
        """Frames (batch, mels, time), of which `lengths` (batch,) count -> features (batch, time / 2, stem_dim).

        In the full context these may be the first `wanted` alone: the last layer is not asked for the silence behind
        them, which they hear all the same.
        """
        model, mask = self.model, None
        if lengths is not None:
            frames = zero_padding(frames, lengths)
        hidden = nn.functional.gelu(model.conv1(frames))
        if lengths is not None:
            hidden = zero_padding(hidden, lengths)  # alone, the next convolution meets zeros there
        hidden = nn.functional.gelu(model.conv2(hidden)).transpose(1, 2)
        if lengths is not None:
            own = length_mask(lengths // POOLED, hidden.shape[1])
            # A device would be waited for, and what is exported has to hold for any lengths.
            if own.device.type != "cpu" or torch.compiler.is_exporting() or not own.all():
                mask = own[:, None, None]
        hidden = hidden + model.embed_positions.weight[: hidden.shape[1]]
        hidden = nn.functional.dropout(hidden, model.dropout, self.training)
        states = [hidden]
        for place, layer in enumerate(model.layers, start=1):
            if self.full and place == len(model.layers):
                heard = layer.self_attn_layer_norm(hidden)
                hidden = layer(hidden[:, :wanted], mask, key_value_states=heard)
            else:
                hidden = layer(hidden, mask)
            states.append(hidden)
        if len(model.layers) == self.depth:
            states[-1] = model.layer_norm(hidden)
        return self.chosen([state[:, : hidden.shape[1]] for state in states])


class WhisperEncoder(TransformerEncoder):
    """Whisper's encoder: hidden states of the transformer, one feature vector every 20 ms.

    A recording that is longer than the 30 s that Whisper hears at once is heard stretch by stretch.

    Args:
        name: the encoder's name in the store and in the log.
        checkpoint: hub id or folder of the pretrained model; None where there is none.
        weights: `pretrained`, `random`, or a folder written by save_pretrained.
        architecture: `model_type` and fields of the model's config, for random weights.
        init_seed: seed of random weights.
        context: what an utterance is heard in: `full` for 30 s that silence fills up, as Whisper was trained; `own` for
            nothing but itself, which takes a fraction of the time.
        layer: which hidden states are the features: `last`, a number, several, or `weighted`; see
            `TransformerEncoder`.
        spec_augment: share of frames that SpecAugment sets to zero while the stem trains; 0 turns it off.
        gradient_checkpointing: while the stem trains, compute activations anew for the backward pass: less memory,
            about a third more time.
        resources: not used.

    Raises:
        InputError: weights cannot be had or are of another model, another `context`, no such layer.
    """

    modality: ClassVar[str] = "audio"
    stem: WhisperStem
    frontend: WithActivity

    def __init__(
        self,
        *,
        name: str,
        checkpoint: str | None,
        weights: str,
        architecture: dict[str, Any],
        init_seed: int,
        context: str,
        layer: Layer,
        spec_augment: float,
        gradient_checkpointing: bool,
        resources: Resources,
    ) -> None:
        check_word("encoder.audio.context", context, CONTEXTS)
        network: Any = load_transformer(
            checkpoint=checkpoint,
            weights=weights,
            architecture=architecture,
            overrides={},
            modality=self.modality,
            init_seed=init_seed,
            auto=network_class,
        )
        super().__init__(
            name=name,
            weights=weights,
            stem=WhisperStem(network, layer=layer, context=context, spec_augment=spec_augment),
            gradient_checkpointing=gradient_checkpointing,
        )
        mel = WhisperMel(int(network.config.num_mel_bins), self.stem.longest, tail=self.stem.full)
        self.frontend, self.tells_activity = WithActivity(mel), True

    @classmethod
    def check(cls, arguments: Mapping[str, Any]) -> None:
        check_word("encoder.audio.context", arguments["context"], CONTEXTS)
        super().check(arguments)

    @property
    def layers(self) -> nn.ModuleList:
        layers: nn.ModuleList = self.stem.model.layers
        return layers

    def lengths(self, read: Callable[[int], Any], known: np.ndarray) -> np.ndarray:
        """Seconds, silence that fills the context up included."""
        return self.frontend.own.seconds(known) if self.stem.full else known

    def blocks(self) -> list[nn.Module]:
        """The two convolutions, and each transformer layer."""
        model = self.stem.model
        return [nn.ModuleList([model.conv1, model.conv2]), *self.layers[: self.used]]

    def behind(self) -> nn.Module | None:
        norm: nn.Module = self.stem.model.layer_norm
        return norm

    def unfreeze(self, what: Unfreeze) -> None:
        super().unfreeze(what)
        self.stem.model.embed_positions.requires_grad_(False)  # sinusoids, which are not trained
        if len(self.layers) < self.stem.depth:
            self.stem.model.layer_norm.requires_grad_(False)  # it stands behind the last layer alone

    def describe(self) -> dict[str, Any]:
        config, stem = self.stem.model.config, self.stem
        about = {field: getattr(config, field) for field in FIELDS} | {"model_type": config.model_type}
        return {**about, "layer": stem.layer, "context": "full" if stem.full else "own"}
