"""The convolutions of the self-supervised speech models, exact under padding."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fourm_ser.encoders.base import length_mask, pad
from fourm_ser.kernels.convolutions import in_pieces

Count = TypeVar("Count", int, Tensor)
"""How many there are, or of each row of a batch."""


class OwnConvolutions(nn.Module):
    """The convolutional feature extractor of the self-supervised models, which gives each utterance what it gets alone.

    The base models normalise the first convolution's output over time, so that in a padded batch an utterance's
    features depend on how far it is padded. Here they never do. Set `lengths` (batch,) in samples before each forward
    pass.
    """

    lengths: Tensor
    conv_layers: Any  # for a type checker: layers of Hugging Face

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.conv_layers = layers
        convolutions = [layer.conv for layer in self.conv_layers]
        self.kernels: list[int] = [convolution.kernel_size[0] for convolution in convolutions]
        self.strides: list[int] = [convolution.stride[0] for convolution in convolutions]

    def forward(self, samples: Tensor) -> Tensor:
        """(batch, samples) -> (batch, channels, frames), zero behind an utterance's frames."""
        alone = samples.device.type == "cpu" and not torch.compiler.is_exporting()  # which knows no lengths
        return self.one_by_one(samples) if alone else self.at_once(samples)

    def one_by_one(self, samples: Tensor) -> Tensor:
        """Each utterance by itself, for a processor: padding costs no time. Without gradients, in pieces."""
        run: Callable[[Tensor], Tensor] = self._in_pieces
        if torch.is_grad_enabled():
            run = partial(_run, self.conv_layers)
        # (1, 1, samples) -> (1, channels, frames) -> (frames, channels)
        rows = [run(row[None, None, :count])[0].T for row, count in zip(samples, self.lengths.tolist(), strict=True)]
        return pad(rows).transpose(1, 2)

    def at_once(self, samples: Tensor) -> Tensor:
        """The whole batch, for other devices: nothing here waits for them.

        The convolutions have no padding, so that an utterance's frames see its own samples alone; a norm over time is
        one over own frames.
        """
        samples = samples.masked_fill(~length_mask(self.lengths, samples.shape[1]), 0)
        first, *others = self.conv_layers
        if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
            begin = partial(_convolve_and_norm, first)
            if first.gradient_checkpointing and first.training:
                begin = partial(first._gradient_checkpointing_func, begin)
            seen = samples.unfold(1, self.kernels[0], self.strides[0])  # (batch, frames, kernel)
            frames = count_frames(self.lengths, self.kernels[:1], self.strides[:1])
            hidden = begin(seen, length_mask(frames, seen.shape[1]))
        else:
            hidden = first(samples[:, None])
        hidden = _run(others, hidden)
        own = length_mask(count_frames(self.lengths, self.kernels, self.strides), hidden.shape[2])
        return hidden.masked_fill(~own[:, None], 0)

    def _in_pieces(self, samples: Tensor) -> Tensor:
        """(1, 1, samples) -> (1, channels, frames)."""
        begin, *others = self.conv_layers
        if isinstance(getattr(begin, "layer_norm", None), nn.GroupNorm):  # over all of the time: folded
            seen = samples[0].unfold(1, self.kernels[0], self.strides[0])  # (1, frames, kernel)
            own = seen.new_ones(seen.shape[:2], dtype=torch.bool)
            weight, bias = _with_group_norm(begin.conv, begin.layer_norm, seen, own)
            begin = partial(self._first, weight[0], bias[0])
        hop, field = math.prod(self.strides), receptive_field(self.kernels, self.strides)
        return in_pieces(partial(_run, [begin, *others]), samples, hop, field)

    def _first(self, weight: Tensor, bias: Tensor, samples: Tensor) -> Tensor:
        """The first layer, its norm folded: of one channel a convolution is a linear layer."""
        seen = samples[:, 0].unfold(1, self.kernels[0], self.strides[0])  # (1, frames, kernel)
        return self.conv_layers[0].activation(nn.functional.linear(seen, weight, bias)).transpose(1, 2)


def count_frames(samples: Count, kernels: Sequence[int], strides: Sequence[int]) -> Count:
    """How many frames a stack of convolutions makes of so many samples."""
    for kernel, stride in zip(kernels, strides, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def _run(layers: Iterable[Callable[[Tensor], Tensor]], hidden: Tensor) -> Tensor:
    for layer in layers:
        hidden = layer(hidden)
    return hidden


def _convolve_and_norm(layer: Any, seen: Tensor, own: Tensor) -> Tensor:
    """The first layer, its norm over own frames; see `_with_group_norm`. -> (batch, channels, frames)."""
    weight, bias = _with_group_norm(layer.conv, layer.layer_norm, seen, own)
    return layer.activation(torch.baddbmm(bias[..., None], weight, seen.transpose(1, 2)))


def _with_group_norm(convolution: nn.Conv1d, norm: nn.GroupNorm, seen: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and biases of convolutions that do what a convolution of one channel and a group norm after it do.

    The norm's mean and variance follow from those of the samples that a frame sees: a channel with the weight w has
    the mean w m and the variance w C w, where m and C are mean and covariance over the frames. Of what each frame sees
    (batch, frames, kernel), and which count (batch, frames), (batch, channels, kernel) and (batch, channels) in fp32.
    """
    kind = seen.device.type
    exact = torch.float64 if kind in ("cpu", "cuda") else torch.float32  # MPS and some of Intel's GPUs have no float64
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
        counts, kept = own.sum(1)[:, None, None], own[..., None]
        seen = seen.to(exact)
        centre = (seen * kept).sum(1, keepdim=True) / counts  # (batch, 1, kernel)
        away = (seen - centre) * kept
        covariance = away.transpose(1, 2) @ away / counts  # (batch, kernel, kernel)
        weight = convolution.weight[:, 0].to(exact)  # (channels, kernel)
        bias = weight.new_zeros(len(weight)) if convolution.bias is None else convolution.bias.to(exact)
        groups = (-1, norm.num_groups, norm.num_channels // norm.num_groups)
        mean = (centre[:, 0] @ weight.T + bias).view(groups)  # (batch, groups, channels of a group)
        variance = ((weight @ covariance) * weight).sum(2).view(groups)
        grouped = mean.mean(2, keepdim=True)  # (batch, groups, 1)
        spread = (variance + (mean - grouped).square()).mean(2, keepdim=True)
        scale = norm.weight.to(exact).view(groups) / (spread + norm.eps).sqrt()
        shift = norm.bias.to(exact) + ((bias.view(groups) - grouped) * scale).flatten(1)
        return (weight * scale.flatten(1)[..., None]).float(), shift.float()


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Samples that one frame of a stack of convolutions sees."""
    field = 1
    for kernel, stride in reversed(list(zip(kernels, strides, strict=True))):
        field = (field - 1) * stride + kernel
    return field
