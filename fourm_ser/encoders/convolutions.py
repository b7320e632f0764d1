"""The convolutions of the self-supervised speech models, exact under padding."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fourm_ser.encoders.base import length_mask, pad

PIECE = 32_000  # samples of an utterance that are taken at a time
TAPS = 8  # parts that the convolution over positions is taken in

Count = TypeVar("Count", int, Tensor)
"""How many there are, or of each row of a batch."""


class OwnConvolutions(nn.Module):
    """The convolutional feature extractor of the self-supervised models, which gives each utterance what it gets alone.

    The base models normalise the first convolution's output over time, so that in a padded batch an utterance's
    features depend on how far it is padded. Here they never do. Set `lengths` (batch,) in samples before each forward
    pass.

    Args:
        layers: the extractor's convolutional layers.
    """

    lengths: Tensor

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.conv_layers = layers
        convolutions = [layer.conv for layer in self._layers()]
        self.kernels: list[int] = [convolution.kernel_size[0] for convolution in convolutions]
        self.strides: list[int] = [convolution.stride[0] for convolution in convolutions]

    def forward(self, samples: Tensor) -> Tensor:
        """(batch, samples) -> (batch, channels, frames), zero behind an utterance's frames."""
        return self.one_by_one(samples) if samples.device.type == "cpu" else self.at_once(samples)

    def one_by_one(self, samples: Tensor) -> Tensor:
        """Each utterance by itself, for a processor: padding costs no time.

        Without gradients it is taken a piece at a time: the extractor's largest tensors, a hundred times the features,
        then stay near a processor's caches.
        """
        rows = []
        for row, count in zip(samples, self.lengths.tolist(), strict=True):
            own = row[None, None, :count]  # (1, 1, samples)
            hidden = _run(self.conv_layers, own) if torch.is_grad_enabled() else self._by_pieces(own)
            rows.append(hidden[0].T)
        return pad(rows).transpose(1, 2)

    def at_once(self, samples: Tensor) -> Tensor:
        """The whole batch, for other devices: nothing here waits for them.

        The convolutions have no padding, so that an utterance's frames see its own samples alone; a norm over time is
        one over own frames.
        """
        samples = samples.masked_fill(~length_mask(self.lengths, samples.shape[1]), 0)
        first, *others = self._layers()
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

    def _by_pieces(self, samples: Tensor) -> Tensor:
        """(1, 1, samples) -> (1, channels, frames)."""
        first, *others = self._layers()
        if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):  # over all of the time: folded
            whole = samples[0].unfold(1, self.kernels[0], self.strides[0])
            weight, bias = _with_group_norm(first.conv, first.layer_norm, whole, whole.new_ones(whole.shape[:2]).bool())

            def begin(part: Tensor) -> Tensor:
                if not torch.is_autocast_enabled("cpu"):
                    return first.activation(nn.functional.conv1d(part, weight[0][:, None], bias[0], self.strides[0]))
                # (1, frames, kernel): of one channel a convolution is a linear layer, in bf16 the faster of both
                seen = part.unfold(2, self.kernels[0], self.strides[0])[:, 0]
                return first.activation(nn.functional.linear(seen, weight[0], bias[0])).transpose(1, 2)
        else:
            begin = first
        frames = max(1, PIECE // math.prod(self.strides))
        return torch.cat(
            [_run(others, begin(part)) for part in _pieces(samples, self.kernels, self.strides, frames)], dim=2
        )

    def _layers(self) -> list[Any]:
        return list(self.conv_layers)


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


def count_frames(samples: Count, kernels: Sequence[int], strides: Sequence[int]) -> Count:
    """How many frames a stack of convolutions makes of so many samples."""
    for kernel, stride in zip(kernels, strides, strict=True):
        samples = (samples - kernel) // stride + 1
    return samples


def _run(layers: Iterable[nn.Module], hidden: Tensor) -> Tensor:
    for layer in layers:
        hidden = layer(hidden)
    return hidden


def _pieces(samples: Tensor, kernels: Sequence[int], strides: Sequence[int], frames: int) -> Iterator[Tensor]:
    """What each run of so many frames of a stack of convolutions sees of samples (1, 1, time)."""
    hop, field = math.prod(strides), receptive_field(kernels, strides)
    count = (samples.shape[2] - field) // hop + 1
    for start in range(0, count, frames):
        end = min(count, start + frames)
        yield samples[:, :, start * hop : (end - 1) * hop + field]


def _convolve_and_norm(layer: Any, seen: Tensor, own: Tensor) -> Tensor:
    """The first layer, its norm over own frames; see `_with_group_norm`. -> (batch, channels, frames)."""
    weight, bias = _with_group_norm(layer.conv, layer.layer_norm, seen, own)
    return layer.activation(torch.baddbmm(bias[..., None], weight, seen.transpose(1, 2)))


def _with_group_norm(convolution: nn.Conv1d, norm: nn.GroupNorm, seen: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and biases of convolutions that do what a convolution of one channel and a group norm after it do.

    The norm's mean and variance follow from those of the samples that a frame sees: a channel with the weight w has
    the mean w m and the variance w C w, where m and C are mean and covariance over the frames.

    Args:
        convolution, norm: the layers.
        seen: (batch, frames, kernel), what each frame sees.
        own: (batch, frames) bool, True where a frame counts.

    Returns:
        For each row (channels, kernel) and (channels,), in fp32.
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
