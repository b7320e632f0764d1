"""Speech encoders: the self-supervised models of the wav2vec 2.0, HuBERT and WavLM family, exact under padding."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from fourm_ser.encoders.base import Encoder, Features, Inputs, Resources, Unfreeze, length_mask
from fourm_ser.encoders.convolutions import Count, OwnConvolutions, Positions, count_frames, receptive_field
from fourm_ser.encoders.frontends import Waveform
from fourm_ser.encoders.hub import checkpoint_folder, describe_config, hidden_size, load_model, read_preprocessor
from fourm_ser.encoders.layers import LayerChoice
from fourm_ser.encoders.spec_augment import mask_hidden_states
from fourm_ser.encoders.wavlm import replace_attention
from fourm_ser.errors import InputError


def _as_given(frames: int, attention_mask: Tensor, add_adapter: bool | None = None) -> Tensor:
    """In place of Hugging Face's mask of frames from one of samples, which waits: it is given that of frames."""
    return attention_mask[:, :frames]


class SpeechEncoder(Encoder):
    """wav2vec 2.0, HuBERT or WavLM: hidden states of the transformer, one feature vector every 20 ms.

    Args:
        name: the encoder's name in the store and in the log.
        checkpoint: hub id or folder of the pretrained model; None where there is none.
        weights: `pretrained`, `random`, or a folder written by save_pretrained.
        architecture: `model_type` and fields of the model's config, for random weights.
        init_seed: seed of random weights.
        normalize: scale waveforms to zero mean and unit variance, as the checkpoint was trained.
        layer: which hidden states are the features: `last`, a number, or `weighted`; see `LayerChoice`.
        spec_augment: share of frames that SpecAugment masks while the stem trains; 0 turns it off.
        layerdrop: probability that a transformer layer is skipped while the stem trains; none is with another `layer`
            than `last`.
        train_convolutions: let `unfreeze: all` train the convolutional feature extractor too; by custom it is frozen.
        gradient_checkpointing: while the stem trains, compute activations anew for the backward pass: less memory,
            about a third more time.
        resources: not used.

    Raises:
        InputError: weights cannot be had, do not fit, or were trained with the other `normalize`.
    """

    modality: ClassVar[str] = "audio"
    skips_parts = True  # layers, and the vector that masks frames, where no frame is

    def __init__(
        self,
        name: str,
        checkpoint: str | None,
        weights: str,
        architecture: dict[str, Any],
        init_seed: int,
        normalize: bool,
        layer: str | int,
        spec_augment: float,
        layerdrop: float,
        train_convolutions: bool,
        gradient_checkpointing: bool,
        resources: Resources,
    ) -> None:
        super().__init__()
        self.name = name
        self.weights = weights
        self.train_convolutions = train_convolutions
        overrides = {
            "apply_spec_augment": spec_augment > 0,
            # Whether the model has a mask vector hangs on this, and by it all random weights: it always has one.
            "mask_time_prob": spec_augment or 0.05,
            # Hidden states are counted as they pass: a layer that is skipped would shift all behind it.
            "layerdrop": layerdrop if layer == "last" else 0.0,
        }
        self.model = load_model(checkpoint, weights, architecture, overrides, self.modality, init_seed)
        if weights != "random":
            source = str(checkpoint if weights == "pretrained" else weights)
            stated = read_preprocessor(checkpoint_folder(source, self.modality, [])).get("do_normalize", normalize)
            if stated != normalize:
                raise InputError(
                    f"{source}: its preprocessor_config.json says do_normalize={str(stated).lower()}, the config "
                    f"says encoder.audio.normalize={str(normalize).lower()}. Set it to {str(stated).lower()}."
                )
        config = self.model.config
        if not hasattr(config, "conv_kernel"):
            raise InputError(
                f"{checkpoint if weights == 'pretrained' else weights}: {config.model_type} is no speech model. "
                "Expected wav2vec 2.0, HuBERT or WavLM; text encoders belong to encoder.text."
            )
        self.kernels, self.strides = list(config.conv_kernel), list(config.conv_stride)
        self.model.feature_extractor = OwnConvolutions(self.model.feature_extractor.conv_layers)
        self.model.encoder.pos_conv_embed = Positions(self.model.encoder.pos_conv_embed)
        replace_attention(self.model)
        self.model._get_feature_vector_attention_mask = _as_given
        self.model._mask_hidden_states = partial(mask_hidden_states, self.model)
        self.frontend = Waveform(normalize, receptive_field(self.kernels, self.strides), math.prod(self.strides))
        self.dim = int(config.hidden_size)
        self.layers = LayerChoice(layer, len(self.model.encoder.layers), self.dim, "encoder.audio.layer")
        if self.layers.count is not None:
            # Models with pre-norm layers normalise what leaves their last one: the layer behind the chosen one stays.
            spare = int(config.do_stable_layer_norm)
            self.model.encoder.layers = self.model.encoder.layers[: max(1, self.layers.count + spare)]
        self.stem_dim = self.layers.stem_dim
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def frames(self, samples: Count) -> Count:
        """How many frames the convolutions make of so many samples."""
        return count_frames(samples, self.kernels, self.strides)

    @classmethod
    def width(cls, arguments: Mapping[str, Any]) -> int | None:
        return hidden_size(arguments, cls.modality)

    def stem(self, inputs: Inputs) -> Features:
        """`samples` (batch, samples), `lengths` (batch,) -> features (batch, frames, dim)."""
        samples, lengths = inputs["samples"], inputs["lengths"]
        self.model.feature_extractor.lengths = lengths
        own = length_mask(self.frames(lengths), self.frames(samples.shape[1]))  # see `_as_given`
        output = self.model(samples, attention_mask=own, output_hidden_states=self.layers.asks_all, return_dict=True)
        states = self.layers.pick(output.last_hidden_state, output.hidden_states)
        return Features(states, own[:, : states.shape[1]])

    def top(self, features: Features) -> Features:
        """(batch, frames, stem_dim) -> (batch, frames, dim)."""
        return self.layers(features)

    def top_parameters(self) -> list[nn.Parameter]:
        return list(self.layers.parameters())

    def stem_modules(self) -> list[nn.Module]:
        return [self.model]

    def blocks(self) -> list[nn.Module]:
        """The projection of the convolutional features, and each transformer layer."""
        return [self.model.feature_projection, *self.model.encoder.layers[: self.layers.count]]

    def unfreeze(self, what: Unfreeze) -> None:
        super().unfreeze(what)
        if what != "all" or not self.train_convolutions:
            self.model.feature_extractor.requires_grad_(False)
        if self.layers.count is not None:
            self.model.encoder.layers[self.layers.count :].requires_grad_(False)
        if self.layers.asks_all and self.model.config.do_stable_layer_norm:
            self.model.encoder.layer_norm.requires_grad_(False)  # it stands behind all hidden states

    def describe(self) -> dict[str, Any]:
        return {**describe_config(self.model.config), **self.layers.describe()}

    def save(self, folder: Path) -> dict[str, Any]:
        return {"architecture": self.model.config.to_dict()}
