"""Speech encoders: the self-supervised models of the wav2vec 2.0, HuBERT and WavLM family, exact under padding."""

import math
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fourm_ser.encoders.base import Encoder, Inputs, Resources, Sequence, Unfreeze, length_mask, pad
from fourm_ser.encoders.layers import LayerChoice
from fourm_ser.encoders.weights import checkpoint_folder, describe_config, hidden_size, load_model, read_preprocessor
from fourm_ser.errors import InputError

PIECE = 32_000  # samples of an utterance that are taken at a time
TAPS = 8  # parts that the convolution over positions is taken in


class Waveform:
    """Front end of the self-supervised models: a waveform, normalised where the model expects it.

    Args:
        normalize: scale each utterance to zero mean and unit variance.
        receptive_field: samples that one frame needs; a shorter utterance is padded to it with zeros.
    """

    def __init__(self, normalize: bool, receptive_field: int) -> None:
        self.normalize = normalize
        self.receptive_field = receptive_field

    def __call__(self, raw: np.ndarray) -> Inputs:
        """A waveform [samples] at 16 kHz -> `samples` [samples]."""
        samples = torch.from_numpy(np.asarray(raw, dtype=np.float32))
        if self.normalize:
            samples = (samples - samples.mean()) / torch.sqrt(samples.var(unbiased=False) + 1e-7)
        missing = self.receptive_field - len(samples)
        return {"samples": nn.functional.pad(samples, (0, missing)) if missing > 0 else samples}

    def collate(self, items: Items[Inputs]) -> Inputs:
        """`samples` (batch, samples) and `lengths` (batch,) in samples."""
        rows = [item["samples"] for item in items]
        return {"samples": pad(rows), "lengths": torch.tensor([len(row) for row in rows])}

    def describe(self) -> dict[str, Any]:
        return {"normalize": self.normalize, "receptive_field": self.receptive_field}


class OwnConvolutions(nn.Module):
    """The convolutional feature extractor of the self-supervised models, run over each utterance by itself.

    The base models normalise the first convolution's output over time, so that in a padded batch an utterance's
    features depend on how far it is padded. By itself it has no padding. Without gradients an utterance is taken a
    piece at a time: the extractor's largest tensors, a hundred times the features, then stay near a processor's caches.
    Set `lengths` (batch,) in samples before each forward pass.

    Args:
        layers: the extractor's convolutional layers.
    """

    lengths: Tensor

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.conv_layers = layers

    def forward(self, samples: Tensor) -> Tensor:
        """(batch, samples) -> (batch, channels, frames), zero behind an utterance's frames."""
        rows = []
        for row, count in zip(samples, self.lengths.tolist(), strict=True):
            own = row[None, None, :count]  # (1, 1, samples)
            hidden = _run(self.conv_layers, own) if torch.is_grad_enabled() else self._by_pieces(own)
            rows.append(hidden[0].T)
        return pad(rows).transpose(1, 2)

    def _by_pieces(self, samples: Tensor) -> Tensor:
        """(1, 1, samples) -> (1, channels, frames)."""
        layers: list[Any] = list(self.conv_layers)
        kernels, strides = [layer.conv.kernel_size[0] for layer in layers], [layer.conv.stride[0] for layer in layers]
        first, *others = layers
        norm = getattr(first, "layer_norm", None)
        if isinstance(norm, nn.GroupNorm):  # over all of the time: folded into the convolution
            weight, bias = _with_group_norm(first.conv, norm, samples)

            def begin(part: Tensor) -> Tensor:
                return first.activation(nn.functional.conv1d(part, weight, bias, strides[0]))
        else:
            begin = first
        hop = math.prod(strides)
        return torch.cat(
            [_run(others, begin(part)) for part in _pieces(samples, kernels, strides, max(1, PIECE // hop))], dim=2
        )


class Positions(nn.Module):
    """The convolution over 128 frames by which the self-supervised models tell positions.

    Without gradients on a processor it is the sum of convolutions over some of the taps each, which takes half the
    time.

    Args:
        original: the model's own module, whose parts it takes over.
    """

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.conv: nn.Conv1d = original.conv
        self.padding: nn.Module = original.padding
        self.activation: nn.Module = original.activation
        self.batch_norm: nn.Module | None = getattr(original, "batch_norm", None)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, frames, width) -> the same."""
        hidden = features.transpose(1, 2)
        fast = hidden.device.type == "cpu" and not torch.is_grad_enabled()
        if self.batch_norm is not None:
            hidden = self.batch_norm(hidden)
        hidden = self._by_taps(hidden) if fast else self.conv(hidden)
        return self.activation(self.padding(hidden)).transpose(1, 2)

    def _by_taps(self, hidden: Tensor) -> Tensor:
        conv = self.conv
        margin = int(conv.padding[0])
        padded = nn.functional.pad(hidden, (margin, margin))
        weight, groups = conv.weight, conv.groups
        frames = padded.shape[2] - weight.shape[2] + 1
        total, first = None, 0
        for taps in weight.chunk(TAPS, dim=2):
            seen = padded[:, :, first : first + frames + taps.shape[2] - 1]
            bias = conv.bias if total is None else None
            part = nn.functional.conv1d(seen, taps, bias, groups=groups)
            total = part if total is None else total.add_(part)
            first += taps.shape[2]
        assert total is not None
        return total


def _run(layers: Iterable[nn.Module], hidden: Tensor) -> Tensor:
    for layer in layers:
        hidden = layer(hidden)
    return hidden


def _pieces(samples: Tensor, kernels: Items[int], strides: Items[int], frames: int) -> Iterator[Tensor]:
    """What each run of so many frames of a stack of convolutions sees of samples (1, 1, time)."""
    hop, field = math.prod(strides), _receptive_field(kernels, strides)
    count = (samples.shape[2] - field) // hop + 1
    for start in range(0, count, frames):
        end = min(count, start + frames)
        yield samples[:, :, start * hop : (end - 1) * hop + field]


def _with_group_norm(convolution: nn.Conv1d, norm: nn.GroupNorm, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does what a convolution of one channel and a group norm after it do.

    The norm's mean and variance follow from those of the samples that a frame sees: a channel with the weight w has
    the mean w m and the variance w C w, where m and C are mean and covariance over the frames.

    Args:
        convolution, norm: the layers.
        samples: (1, 1, samples), one utterance.
    """
    (size,), (step,) = convolution.kernel_size, convolution.stride
    seen = samples[0, 0].double().unfold(0, size, step)  # (frames, size)
    centre = seen.mean(0)
    covariance = (seen - centre).T @ (seen - centre) / len(seen)
    weight = convolution.weight[:, 0].double()  # (channels, size)
    own = weight.new_zeros(len(weight)) if convolution.bias is None else convolution.bias.double()
    mean, variance = weight @ centre + own, ((weight @ covariance) * weight).sum(1)
    each = norm.num_channels // norm.num_groups
    grouped = mean.view(-1, each).mean(1)  # (groups,)
    spread = (variance + mean.square()).view(-1, each).mean(1) - grouped.square()
    scale = norm.weight.double() / (spread + norm.eps).sqrt().repeat_interleave(each)
    shift = norm.bias.double() + (own - grouped.repeat_interleave(each)) * scale
    return (weight * scale[:, None])[:, None].float(), shift.float()


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
        self.frontend = Waveform(normalize, _receptive_field(self.kernels, self.strides))
        self.dim = int(config.hidden_size)
        self.layers = LayerChoice(layer, len(self.model.encoder.layers), self.dim, "encoder.audio.layer")
        if self.layers.count is not None:
            # Models with pre-norm layers normalise what leaves their last one: the layer behind the chosen one stays.
            spare = int(config.do_stable_layer_norm)
            self.model.encoder.layers = self.model.encoder.layers[: max(1, self.layers.count + spare)]
        self.stem_dim = self.layers.stem_dim
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def frames(self, samples: Tensor) -> Tensor:
        """How many frames the convolutions make of so many samples."""
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    @classmethod
    def width(cls, arguments: Mapping[str, Any]) -> int | None:
        return hidden_size(arguments, cls.modality)

    def stem(self, inputs: Inputs) -> Sequence:
        """`samples` (batch, samples), `lengths` (batch,) -> features (batch, frames, dim)."""
        samples, lengths = inputs["samples"], inputs["lengths"]
        self.model.feature_extractor.lengths = lengths
        attention = length_mask(lengths, samples.shape[1])
        output = self.model(
            samples, attention_mask=attention.long(), output_hidden_states=self.layers.asks_all, return_dict=True
        )
        states = self.layers.pick(output.last_hidden_state, output.hidden_states)
        return Sequence(states, length_mask(self.frames(lengths), states.shape[1]))

    def top(self, features: Sequence) -> Sequence:
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


def _receptive_field(kernels: Items[int], strides: Items[int]) -> int:
    """Samples that one frame of a stack of convolutions sees."""
    field = 1
    for kernel, stride in reversed(list(zip(kernels, strides, strict=True))):
        field = (field - 1) * stride + kernel
    return field
