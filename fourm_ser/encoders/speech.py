"""Speech encoders: the self-supervised models of the wav2vec 2.0, HuBERT and WavLM family, exact under padding."""

import math
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from fourm_ser.encoders.augment import mask_hidden_states
from fourm_ser.encoders.base import Features, Inputs, Resources, Unfreeze, length_mask
from fourm_ser.encoders.checkpoints import checkpoint_folder
from fourm_ser.encoders.convolutions import Count, OwnConvolutions, count_frames, receptive_field
from fourm_ser.encoders.frontends import Waveform
from fourm_ser.encoders.hub import load_transformer, read_preprocessor
from fourm_ser.encoders.layers import TransformerEncoder, TransformerStem
from fourm_ser.encoders.wavlm import replace_attention
from fourm_ser.errors import InputError


def _as_given(frames: int, attention_mask: Tensor, add_adapter: bool | None = None) -> Tensor:
    """In place of Hugging Face's mask of frames from one of samples, which waits: it is given that of frames."""
    return attention_mask[:, :frames]


class SpeechStem(TransformerStem):
    """A self-supervised transformer over a waveform."""

    def forward(self, inputs: Inputs) -> Features:
        """`samples` (batch, samples), `lengths` (batch,) -> features (batch, frames, stem_dim)."""
        samples, lengths = inputs["samples"], inputs["lengths"]
        self.model.feature_extractor.lengths = lengths
        own = length_mask(self.frames(lengths), self.frames(samples.shape[1]))  # see `_as_given`
        states = self.hidden_states(samples, attention_mask=own)
        return Features(states, own[:, : states.shape[1]])

    def frames(self, samples: Count) -> Count:
        """How many frames the convolutions make of so many samples."""
        return count_frames(samples, self.model.config.conv_kernel, self.model.config.conv_stride)


class SpeechEncoder(TransformerEncoder):
    """wav2vec 2.0, HuBERT or WavLM: hidden states of the transformer, one feature vector every 20 ms.

    Args:
        name: the encoder's name in the store and in the log.
        checkpoint: hub id or folder of the pretrained model; None where there is none.
        weights: `pretrained`, `random`, or a folder written by save_pretrained.
        architecture: `model_type` and fields of the model's config, for random weights.
        init_seed: seed of random weights.
        normalize: scale waveforms to zero mean and unit variance, as the checkpoint was trained.
        layer: which hidden states are the features: `last`, a number, or `weighted`; see `TransformerEncoder`.
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
    stem: SpeechStem
    skips_parts = True  # layers, and the vector that masks frames, where no frame is

    def __init__(
        self,
        *,
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
        overrides = {
            "apply_spec_augment": spec_augment > 0,
            # Whether the model has a mask vector hangs on this, and by it all random weights: it always has one.
            "mask_time_prob": spec_augment or 0.05,
            # Hidden states are counted as they pass: a layer that is skipped would shift all behind it.
            "layerdrop": layerdrop if layer == "last" else 0.0,
        }
        model: Any = load_transformer(
            checkpoint=checkpoint,
            weights=weights,
            architecture=architecture,
            overrides=overrides,
            modality=self.modality,
            init_seed=init_seed,
        )
        source = str(checkpoint if weights == "pretrained" else weights)
        if weights != "random":
            folder = checkpoint_folder(source, [], "encoder.audio.checkpoint")
            stated = read_preprocessor(folder).get("do_normalize", normalize)
            if stated != normalize:
                raise InputError(
                    f"{source}: its preprocessor_config.json says do_normalize={str(stated).lower()}, the config "
                    f"says encoder.audio.normalize={str(normalize).lower()}. Set it to {str(stated).lower()}."
                )
        config = model.config
        if not hasattr(config, "conv_kernel"):
            raise InputError(
                f"{source}: {config.model_type} is no speech model. Expected wav2vec 2.0, HuBERT or WavLM; text "
                "encoders belong to encoder.text."
            )
        model.feature_extractor = OwnConvolutions(model.feature_extractor.conv_layers)
        replace_attention(model)
        model._get_feature_vector_attention_mask = _as_given
        model._mask_hidden_states = partial(mask_hidden_states, model)
        super().__init__(
            name=name,
            weights=weights,
            stem=SpeechStem(model, layer),
            # Models with pre-norm layers normalise what leaves their last one: the layer behind the chosen one stays.
            spare=int(config.do_stable_layer_norm),
            gradient_checkpointing=gradient_checkpointing,
        )
        self.frontend = Waveform(
            normalize, receptive_field(config.conv_kernel, config.conv_stride), math.prod(config.conv_stride)
        )
        self.train_convolutions = train_convolutions

    @property
    def layers(self) -> nn.ModuleList:
        layers: nn.ModuleList = self.stem.model.encoder.layers
        return layers

    def blocks(self) -> list[nn.Module]:
        """The projection of the convolutional features, and each transformer layer."""
        return [self.stem.model.feature_projection, *self.layers[: self.used]]

    def unfreeze(self, what: Unfreeze) -> None:
        super().unfreeze(what)
        model = self.stem.model
        if what != "all" or not self.train_convolutions:
            model.feature_extractor.requires_grad_(False)
        if self.stem.layer != "last" and model.config.do_stable_layer_norm:
            model.encoder.layer_norm.requires_grad_(False)  # it stands behind all hidden states
