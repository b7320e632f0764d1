"""A small convolutional audio encoder that is trained from nothing: log-mel frames, augmentation, 2-D convolutions."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fourm_ser.encoders.augment import SpecAugment
from fourm_ser.encoders.base import Encoder, Features, Inputs, Resources, length_mask, require_random, zero_padding
from fourm_ser.encoders.frontends import LogMel
from fourm_ser.errors import InputError


class FrameNorm(nn.LayerNorm):
    """A layer norm over the channels and bands of each frame: no frame sees another, so neither padding."""

    def __init__(self, bands: int, channels: int) -> None:
        super().__init__((bands, channels))

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, channels, time, bands) -> the same."""
        return super().forward(hidden.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # contiguous in channels_last


class Block(nn.Module):
    """A convolution with an odd kernel and a stride in time and in frequency, `FrameNorm` over `bands`, ReLU."""

    def __init__(self, *, before: int, after: int, kernel: int, stride: tuple[int, int], bands: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = FrameNorm(bands, after)
        self.step = stride[0]

    def forward(self, hidden: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, before, time, bands), zero from `lengths` on -> the same of `after`, and its lengths."""
        hidden = torch.relu(self.norm(self.convolution(hidden)))
        lengths = (lengths - 1) // self.step + 1
        return zero_padding(hidden, lengths), lengths


class MelCnnStem(nn.Module):
    """Augmentation in training, convolutions, and `frames` over the channels and bands of each frame."""

    def __init__(self, augment: SpecAugment, convolutions: nn.ModuleList, frames: nn.Module) -> None:
        super().__init__()
        self.augment, self.convolutions, self.frames = augment, convolutions, frames

    def forward(self, inputs: Inputs) -> Features:
        """`frames` (batch, time, mels), `lengths` (batch,) -> features (batch, time / product of steps, dim)."""
        frames, lengths = self.augment(inputs["frames"], inputs["lengths"])
        hidden = zero_padding(frames[:, None], lengths)  # (batch, 1, time, mels)
        hidden = hidden.contiguous(memory_format=torch.channels_last)
        for block in self.convolutions:
            hidden, lengths = block(hidden, lengths)
        # (batch, channels, time, bands) -> (batch, time, bands * channels)
        features = self.frames(hidden.permute(0, 2, 3, 1).flatten(2))
        return Features(features, length_mask(lengths, features.shape[1]))


class MelCnn(Encoder):
    """Two-dimensional convolutions over log-mel frames, then a linear layer a frame; all of it is the stem.

    It is small enough to be trained from random weights on some hundred utterances; frozen, it is a random projection.
    Every frame is normalised by itself, in place of batch norm, whose statistics would mix utterances.

    Args:
        name: The encoder's name in the store and in the log.
        weights: `random`, as the architecture has no pretrained weights.
        init_seed: Seed of the random weights.
        channels: Output channels of each block.
        strides: Each block's steps in time and in frequency.
        kernel: Size of the first block's convolution; the others' is 3.
        dim: Width of the features.
        dropout: Share of the features that training drops.
        augment: What training changes at random: the arguments of `SpecAugment` but for `bands`.
        frontend: From waveforms to log-mel frames.
        resources: Not used.

    Raises:
        InputError: Other weights than `random`, not a stride a block, numbers that `SpecAugment` refuses.
    """

    modality: ClassVar[str] = "audio"
    stem: MelCnnStem

    def __init__(
        self,
        *,
        name: str,
        weights: str,
        init_seed: int,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernel: int,
        dim: int,
        dropout: float,
        augment: dict[str, Any],
        frontend: LogMel,
        resources: Resources,
    ) -> None:
        super().__init__()
        self.check({"name": name, "weights": weights, "channels": channels, "strides": strides})
        self.name = name
        self.weights = weights
        self.frontend = frontend
        widths, bands = [1, *channels], frontend.mels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(init_seed)
            convolutions = nn.ModuleList()
            for (before, after), (time_step, band_step) in zip(pairwise(widths), strides, strict=True):
                bands = (bands - 1) // band_step + 1
                size = 3 if convolutions else kernel
                stride = (time_step, band_step)
                convolutions.append(Block(before=before, after=after, kernel=size, stride=stride, bands=bands))
            frames = nn.Sequential(
                nn.Linear(bands * widths[-1], dim), nn.LayerNorm(dim), nn.ReLU(), nn.Dropout(dropout)
            )
        self.stem = MelCnnStem(SpecAugment(**augment, bands=frontend.mels), convolutions, frames)
        self.top = nn.Identity()
        self.stem_dim = self.dim = dim

    @classmethod
    def check(cls, arguments: Mapping[str, Any]) -> None:
        require_random(arguments["weights"], arguments["name"])
        channels, strides = arguments["channels"], arguments["strides"]
        if len(strides) != len(channels) or not channels:
            raise InputError(
                f"encoder.audio: {len(channels)} channels and {len(strides)} strides; expected one of each a block."
            )

    @classmethod
    def width(cls, arguments: Mapping[str, Any]) -> int | None:
        return int(arguments["dim"])

    def blocks(self) -> list[nn.Module]:
        """The convolutions, and the linear layer over each frame."""
        return [*self.stem.convolutions, self.stem.frames]

    def describe(self) -> dict[str, Any]:
        """The steps: the weights' shapes do not tell them."""
        return {"strides": [list(block.convolution.stride) for block in self.stem.convolutions]}  # type: ignore
