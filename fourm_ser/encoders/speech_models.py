"""The self-supervised speech models that can be encoders: where their parts are, and what makes them exact.

Each type feels padding in its own way. What is put right here has its parts under their names, so that weights and
fingerprints are those of Hugging Face's models.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

from torch import Tensor, nn

from fourm_ser.encoders.conformer import replace_positions
from fourm_ser.encoders.sew import SewDEncoder, SewEncoder
from fourm_ser.encoders.wavlm import replace_attention
from fourm_ser.errors import InputError


class Ends:
    """Zeros behind each utterance's end, where a convolution over time is about to look there.

    Alone, it meets its own padding of zeros; in a batch, whatever biases and norms made of zeros. Its methods are hooks
    of modules: they are copied with them.
    """

    def __init__(self) -> None:
        self.own: Tensor | None = None  # (batch, time); None where nothing is padded

    def remember(self, module: nn.Module, positional: Any, named: dict[str, Any]) -> None:
        """Before a module that is given `attention_mask`: (batch, time), or (batch, 1, queries, keys)."""
        mask: Tensor | None = named["attention_mask"]
        self.own = mask if mask is None or mask.ndim == 2 else mask[:, 0, 0]

    def before(self, module: nn.Module, positional: tuple[Tensor]) -> tuple[Tensor]:
        """Before a module that is given (batch, channels, time)."""
        return (self.clear(positional[0]),)

    def behind(self, module: nn.Module, positional: Any, hidden: Tensor) -> Tensor:
        """Behind a module that makes (batch, channels, time)."""
        return self.clear(hidden)

    def clear(self, hidden: Tensor) -> Tensor:
        """(batch, channels, time), zero behind each utterance's end."""
        return hidden if self.own is None else hidden.masked_fill(~self.own[:, None], 0)


class NormedPositions(nn.Module):
    """HuBERT's convolution over positions with a batch norm before it, which makes something of zeros."""

    batch_norm: nn.Module
    conv: nn.Module
    padding: nn.Module
    activation: nn.Module

    def __init__(self, original: Any, ends: Ends) -> None:
        super().__init__()
        self.ends = ends
        for name, part in original.named_children():
            self.add_module(name, part)

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, time, width) -> the same."""
        normed = self.ends.clear(self.batch_norm(hidden.transpose(1, 2)))
        done: Tensor = self.activation(self.padding(self.conv(normed)))
        return done.transpose(1, 2)


def mend_nothing(model: Any) -> None:
    """Its encoder puts zeros behind each utterance's end by itself, and looks there no more."""


def mend_hubert(model: Any) -> None:
    """Checkpoints with a batch norm before the convolution over positions feel padding."""
    if getattr(model.config, "conv_pos_batch_norm", False):
        ends = Ends()
        model.encoder.register_forward_pre_hook(ends.remember, with_kwargs=True)
        model.encoder.pos_conv_embed = NormedPositions(model.encoder.pos_conv_embed, ends)


def mend_data2vec(model: Any) -> None:
    """Several convolutions over positions, one behind the other: each but the first meets what the last one made."""
    ends = Ends()
    model.encoder.register_forward_pre_hook(ends.remember, with_kwargs=True)
    for layer in model.encoder.pos_conv_embed.layers:
        layer.register_forward_pre_hook(ends.before)


def mend_conformer(model: Any) -> None:
    """Each layer has a convolution over time behind a layer norm."""
    replace_positions(model.encoder)
    for layer in model.encoder.layers:
        ends = Ends()
        # Of the layer's attention: it is within what gradient checkpointing computes anew.
        layer.self_attn.register_forward_pre_hook(ends.remember, with_kwargs=True)
        layer.conv_module.glu.register_forward_hook(ends.behind)


def mend_bert(model: Any) -> None:
    """Its convolutions look back only; its positions are those of a conformer."""
    replace_positions(model.encoder)


def mend_sew(model: Any) -> None:
    model.encoder = SewEncoder(model.encoder)


def mend_sew_d(model: Any) -> None:
    model.encoder = SewDEncoder(model.encoder)


class SpeechKind(NamedTuple):
    """How a type of speech model is read.

    Attributes:
        mend: makes a model of it exact under padding.
        layers: where its transformer layers are.
        projection: what stands between the front and the layers, and trains as the first block.
        behind: what stands behind all hidden states, if anything; of types whose config has `do_stable_layer_norm`
            only where that is true.
        convolutions: whether it reads waveforms, by convolutions; otherwise it reads a filter bank.
        skips_layers: whether training can skip layers at random.
    """

    mend: Callable[[Any], object]
    layers: str = "encoder.layers"
    projection: tuple[str, ...] = ("feature_projection",)
    behind: str | None = "encoder.layer_norm"
    convolutions: bool = True
    skips_layers: bool = True

    def layers_of(self, model: Any) -> nn.ModuleList:
        """The transformer's layers."""
        layers: nn.ModuleList = attrgetter(self.layers)(model)
        return layers

    def projection_of(self, model: Any) -> nn.Module:
        """What stands between the front and the layers."""
        parts = [getattr(model, name) for name in self.projection if hasattr(model, name)]
        return parts[0] if len(parts) == 1 else nn.ModuleList(parts)

    def behind_of(self, model: Any) -> nn.Module | None:
        """What stands behind all hidden states; None where nothing does."""
        if self.behind is None or not getattr(model.config, "do_stable_layer_norm", True):
            return None
        part: nn.Module = attrgetter(self.behind)(model)
        return part


SQUEEZED = ("layer_norm", "feature_projection")
KINDS = {
    "wav2vec2": SpeechKind(mend_nothing),
    "hubert": SpeechKind(mend_hubert),
    "wavlm": SpeechKind(replace_attention),
    "data2vec-audio": SpeechKind(mend_data2vec, behind=None),
    "unispeech": SpeechKind(mend_nothing),
    "unispeech-sat": SpeechKind(mend_nothing),
    "wav2vec2-conformer": SpeechKind(mend_conformer),
    "wav2vec2-bert": SpeechKind(mend_bert, behind=None, convolutions=False),
    "sew": SpeechKind(mend_sew, projection=SQUEEZED, behind="encoder.upsample"),
    "sew-d": SpeechKind(
        mend_sew_d,
        layers="encoder.encoder.layer",
        projection=SQUEEZED,
        behind="encoder.upsample",
        skips_layers=False,
    ),
}
"""The types of speech models of Transformers, by their `model_type`."""


def speech_kind(model_type: Any, source: str) -> SpeechKind:
    """How a type of speech model is read; the source is named where it is none.

    Raises:
        InputError: it is no type that is known to be exact under padding.
    """
    if model_type not in KINDS:
        raise InputError(
            f"{source}: {model_type} is no speech model that this encoder reads. Expected one of {', '.join(KINDS)}; "
            "Whisper is encoder/audio=whisper_base, and text models belong to encoder.text."
        )
    return KINDS[model_type]


def keep_statistics(model: nn.Module) -> None:
    """Keep batch norms in evaluation mode.

    Statistics of a batch are statistics of its padding, too, and of whatever neighbours an utterance has.
    """
    for module in model.modules():
        # Whichever class of norm: Lightning turns them into others for several processes.
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
