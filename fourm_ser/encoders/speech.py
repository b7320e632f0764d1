"""Speech encoders: the self-supervised models of the wav2vec 2.0 family, exact under padding."""

import json
import logging
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from fourm_ser.encoders.activity import WithActivity
from fourm_ser.encoders.augment import mask_hidden_states
from fourm_ser.encoders.base import Features, Inputs, Resources, Unfreeze, length_mask
from fourm_ser.encoders.checkpoints import checkpoint_folder
from fourm_ser.encoders.convolutions import Count, OwnConvolutions, count_frames, receptive_field
from fourm_ser.encoders.fbank import FilterBank
from fourm_ser.encoders.frontends import Waveform
from fourm_ser.encoders.hub import load_transformer, read_preprocessor
from fourm_ser.encoders.layers import Layer, TransformerEncoder, TransformerStem
from fourm_ser.encoders.speech_models import KINDS, SpeechKind, keep_statistics, speech_kind
from fourm_ser.errors import InputError
from fourm_ser.kernels.convolutions import mend_narrow

log = logging.getLogger(__name__)

FELT_PADDING = ("wav2vec2-conformer", "sew", "sew-d")  # in earlier versions


def _as_given(frames: int, attention_mask: Tensor, add_adapter: bool | None = None) -> Tensor:
    """In place of Hugging Face's mask of frames from one of samples, which waits: it is given that of frames."""
    return attention_mask[:, :frames]


class SpeechStem(TransformerStem):
    """A self-supervised transformer over a waveform, or over the frames of a filter bank.

    Models that group frames for their transformer (SEW) have hidden states of whole groups, and as the `last` one the
    frames of whole groups.
    """

    def __init__(self, model: Any, layer: Layer) -> None:
        super().__init__(model, layer)
        self.group = int(getattr(model.config, "squeeze_factor", 1))

    def train(self, mode: bool = True) -> "SpeechStem":
        super().train(mode)
        keep_statistics(self)
        return self

    def forward(self, inputs: Inputs) -> Features:
        """`samples` (batch, samples) or `frames` (batch, frames, bands), `lengths` (batch,) of them -> features.

        They are (batch, frames, stem_dim).
        """
        lengths = inputs["lengths"]
        if "frames" in inputs:
            own = length_mask(lengths, inputs["frames"].shape[1])
            return Features(self.hidden_states(inputs["frames"], attention_mask=own), own)
        samples = inputs["samples"]
        self.model.feature_extractor.lengths = lengths
        counts = self.frames(lengths)
        own = length_mask(counts, self.frames(samples.shape[1]))  # see `_as_given`
        states = self.hidden_states(samples, attention_mask=own)
        if self.group > 1:
            groups = counts // self.group
            own = length_mask(groups * self.group if self.layer == "last" else groups, states.shape[1])
        return Features(states, own)

    def frames(self, samples: Count) -> Count:
        """How many frames the convolutions make of so many samples."""
        return count_frames(samples, self.model.config.conv_kernel, self.model.config.conv_stride)


class SpeechEncoder(TransformerEncoder):
    """wav2vec 2.0, HuBERT, WavLM or their kin: hidden states of the transformer, one feature vector every 20 ms.

    The types are those of `speech_models.KINDS`.

    Args:
        name: the encoder's name in the store and in the log.
        checkpoint: hub id or folder of the pretrained model; None where there is none.
        weights: `pretrained`, `random`, or a folder written by save_pretrained.
        architecture: `model_type` and fields of the model's config, for random weights.
        init_seed: seed of random weights.
        normalize: whether to scale waveforms (of wav2vec2-bert, each band of the filter bank) to zero mean and unit
            variance over the utterance: `checkpoint`, as its preprocessor_config.json says that it was trained (True
            where nothing says it); or True or False, whatever that says.
        layer: which hidden states are the features: `last`, a number, several, or `weighted`; see
            `TransformerEncoder`.
        spec_augment: share of frames that SpecAugment masks while the stem trains; 0 turns it off.
        layerdrop: probability that a transformer layer is skipped while the stem trains; none is with another `layer`
            than `last`. SEW-D has none to skip: 0.
        train_convolutions: let `unfreeze: all` train the convolutional feature extractor too; by custom it is frozen.
            wav2vec2-bert has none: false.
        gradient_checkpointing: while the stem trains, compute activations anew for the backward pass: less memory,
            about a third more time.
        resources: not used.

    Raises:
        InputError: weights cannot be had, or do not fit; another `normalize`; a model of another type; something is
            asked for that its type does not have.
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
        normalize: bool | str,
        layer: Layer,
        spec_augment: float,
        layerdrop: float,
        train_convolutions: bool,
        gradient_checkpointing: bool,
        resources: Resources,
    ) -> None:
        source = _told(checkpoint, weights)
        self.kind = speech_kind(read_type(checkpoint, weights, architecture), source)
        _refuse_what_is_missing(self.kind, source, layerdrop, train_convolutions)
        _check_normalize(normalize)
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
        self.normalize = _normalize(normalize, source, weights)
        config = model.config
        if getattr(config, "add_adapter", False):
            raise InputError(
                f"{source}: its config.json says add_adapter=true: convolutions behind the transformer, of which this "
                "encoder has none. Expected a checkpoint without them, such as the one it was fine-tuned from."
            )
        if self.kind.convolutions:
            model.feature_extractor = OwnConvolutions(model.feature_extractor.conv_layers)
            model._get_feature_vector_attention_mask = _as_given
        self.kind.mend(model)
        mend_narrow(model)
        model._mask_hidden_states = partial(mask_hidden_states, model)
        super().__init__(
            name=name,
            weights=weights,
            stem=SpeechStem(model, layer),
            # Models with pre-norm layers normalise what leaves their last one: the layer behind the chosen one stays.
            spare=int(self.kind.behind_of(model) is not None),
            gradient_checkpointing=gradient_checkpointing,
        )
        self.frontend, self.tells_activity = WithActivity(_front_end(self.kind, config, self.normalize)), True
        self.train_convolutions = train_convolutions

    @classmethod
    def check(cls, arguments: Mapping[str, Any]) -> None:
        super().check(arguments)
        _check_normalize(arguments["normalize"])
        if arguments["weights"] == "random":  # else the checkpoint says what it is
            source = _told(None, "random")
            kind = speech_kind(arguments["architecture"].get("model_type"), source)
            _refuse_what_is_missing(kind, source, arguments["layerdrop"], arguments["train_convolutions"])

    @property
    def layers(self) -> nn.ModuleList:
        return self.kind.layers_of(self.stem.model)

    def blocks(self) -> list[nn.Module]:
        """The projection of what the transformer is given, and each of its layers."""
        return [self.kind.projection_of(self.stem.model), *self.layers[: self.used]]

    def behind(self) -> nn.Module | None:
        return self.kind.behind_of(self.stem.model)

    def describe(self) -> dict[str, Any]:
        config = self.stem.model.config
        felt = config.model_type in FELT_PADDING or getattr(config, "conv_pos_batch_norm", False)
        # Earlier versions stored features of these which padding had changed: they are not to be taken for ours.
        return {**super().describe(), **({"padding": "exact"} if felt else {})}

    def save(self, folder: Path) -> dict[str, Any]:
        return {**super().save(folder), "normalize": self.normalize}

    def unfreeze(self, what: Unfreeze) -> None:
        super().unfreeze(what)
        model = self.stem.model
        if self.kind.convolutions and (what != "all" or not self.train_convolutions):
            model.feature_extractor.requires_grad_(False)
        behind = self.kind.behind_of(model)
        if self.stem.layer != "last" and behind is not None:
            behind.requires_grad_(False)


def _told(checkpoint: str | None, weights: str) -> str:
    """Where a model comes from, for errors."""
    if weights == "random":
        return "encoder.audio.architecture"
    return str(checkpoint if weights == "pretrained" else weights)


def _check_normalize(normalize: Any) -> None:
    if normalize != "checkpoint" and not isinstance(normalize, bool):
        raise InputError(f"encoder.audio.normalize={normalize}: expected checkpoint, true or false.")


def _normalize(normalize: bool | str, source: str, weights: str) -> bool:
    """Whether inputs are scaled; where that is not as the checkpoint was trained, the log says so."""
    stated = None
    if weights != "random":
        stated = read_preprocessor(checkpoint_folder(source, [], "encoder.audio.checkpoint")).get("do_normalize")
    if isinstance(normalize, str):
        return True if stated is None else bool(stated)
    if stated not in (None, normalize):
        told = str(stated).lower(), str(normalize).lower()
        log.warning("%s: was trained with do_normalize=%s and is used with encoder.audio.normalize=%s", source, *told)
    return normalize


def read_type(checkpoint: str | None, weights: str, architecture: dict[str, Any]) -> Any:
    """The `model_type` of the model that these name, before it is loaded; None where nothing says."""
    if weights == "random" or (weights == "pretrained" and checkpoint is None):
        return architecture.get("model_type")
    path: Path = checkpoint_folder(_told(checkpoint, weights), [], "encoder.audio.checkpoint") / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind, has_code = config.get("model_type"), "auto_map" in config
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: no config.json that can be read. Expected what save_pretrained writes.") from error
    if has_code and kind not in KINDS:
        raise InputError(
            f"{_told(checkpoint, weights)}: it asks for code of its own to be run (trust_remote_code), which this "
            f"package never does. Expected a checkpoint of one of {', '.join(KINDS)}."
        )
    return kind


def _refuse_what_is_missing(kind: SpeechKind, source: str, layerdrop: float, train_convolutions: bool) -> None:
    """Refuse what is asked for and a type of model does not have."""
    if layerdrop and not kind.skips_layers:
        raise InputError(
            f"encoder.audio.layerdrop={layerdrop}: {source} can skip no layers. Use encoder.audio.layerdrop=0."
        )
    if train_convolutions and not kind.convolutions:
        raise InputError(
            f"encoder.audio.train_convolutions=true: {source} has no convolutional feature extractor. "
            "Use encoder.audio.train_convolutions=false."
        )


def _front_end(kind: SpeechKind, config: Any, normalize: bool) -> Waveform | FilterBank:
    """What a type of model reads."""
    if not kind.convolutions:
        together = 2  # of wav2vec2-bert, whose config does not say
        return FilterBank(normalize=normalize, mels=config.feature_projection_input_dim // together, together=together)
    field, stride = receptive_field(config.conv_kernel, config.conv_stride), math.prod(config.conv_stride)
    group = getattr(config, "squeeze_factor", 1)
    return Waveform(normalize, field + (group - 1) * stride, group * stride)
