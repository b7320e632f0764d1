"""A small convolutional audio encoder that is trained from nothing: log-mel frames, augmentation, 2-D convolutions."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fourm_ser.encoders.base import Encoder, Features, Inputs, Resources, length_mask
from fourm_ser.encoders.frontends import LogMel
from fourm_ser.errors import InputError


class SpecAugment(nn.Module):
    """Changes log-mel frames at random in training: speed, frequency scale, and masks in time and frequency.

    The masks are those of SpecAugment (Park et al. 2019, https://arxiv.org/abs/1904.08779), set to zero. Its time
    warping is replaced by a plain change of speed. Moving the spectrum up or down the mel axis stands for another
    vocal tract (Jaitly and Hinton 2013). Each utterance draws for itself, within its own length, from torch's
    generator, and keeps at least one frame and one band.

    Args:
        stretch: the length is multiplied by a number from 1 - stretch to 1 + stretch; 0 for never.
        shift: bands by which the spectrum moves at most, up or down; 0 for never.
        time_masks: masks in time, and
        time_share: the share of the utterance that one hides at most.
        band_masks: masks in frequency, and
        band_width: the bands that one hides at most.
        bands: mel bands in all.

    Raises:
        InputError: the masks could hide everything, or a number is out of range.
    """

    def __init__(
        self,
        stretch: float,
        shift: float,
        time_masks: int,
        time_share: float,
        band_masks: int,
        band_width: int,
        bands: int,
    ) -> None:
        super().__init__()
        if min(stretch, shift, time_masks, time_share, band_masks, band_width) < 0 or stretch >= 1:
            raise InputError("encoder.audio.augment: expected numbers from 0, and stretch below 1.")
        if time_masks * time_share >= 1 or band_masks * band_width >= bands:
            raise InputError(
                f"encoder.audio.augment: {time_masks} masks of a share {time_share} of the time and {band_masks} masks "
                f"of {band_width} of {bands} bands could hide all of an utterance. Make them fewer or smaller."
            )
        self.stretch, self.shift = stretch, shift
        self.time_masks, self.time_share = time_masks, time_share
        self.band_masks, self.band_width = band_masks, band_width

    def forward(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (batch, time, bands) and lengths (batch,) -> the same, changed in training."""
        if not self.training:
            return frames, lengths
        if self.stretch:
            frames, lengths = self.change_speed(frames, lengths)
        if self.shift:
            frames = self.move(frames)
        time, bands = frames.shape[1:]
        whole = torch.full_like(lengths, bands)
        hidden = self._masks(self.time_masks, self.time_share * lengths, lengths, time)[..., None]
        widest = torch.full_like(lengths, self.band_width)
        hidden = hidden | self._masks(self.band_masks, widest + 1 - 1e-3, whole, bands)[:, None]
        return frames.masked_fill(hidden, 0.0), lengths

    def change_speed(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Read each row's own frames at another speed, in a line between neighbours."""
        rate = 1 + self.stretch * (2 * torch.rand(len(frames), device=frames.device) - 1)
        after = (lengths * rate).round().long().clamp(min=1)
        last = (lengths - 1)[:, None]
        # A device would be waited for, were it asked for the longest: there it is what the longest can be at most.
        most = math.ceil(frames.shape[1] * (1 + self.stretch)) if frames.device.type != "cpu" else int(after.max())
        places = torch.arange(most, device=frames.device) * (last / (after - 1).clamp(min=1)[:, None])
        places = places.clamp(max=last)
        lower = places.floor().long()
        share = (places - lower)[..., None].to(frames.dtype)
        before, behind = (
            frames.gather(1, index[..., None].expand(-1, -1, frames.shape[2]))
            for index in (lower, (lower + 1).clamp(max=last))
        )
        return before + share * (behind - before), after

    def move(self, frames: Tensor) -> Tensor:
        """Move each row's spectrum by a fraction of bands; the outermost band repeats where nothing is left."""
        bands = torch.arange(frames.shape[2], device=frames.device)
        distance = self.shift * (2 * torch.rand(len(frames), 1, device=frames.device) - 1)
        source = (bands + distance).clamp(0, frames.shape[2] - 1)  # (batch, bands)
        weights = (1 - (bands[:, None] - source[:, None]).abs()).clamp(min=0)  # (batch, bands before, bands after)
        return frames @ weights.to(frames.dtype)

    def _masks(self, count: int, widest: Tensor, sizes: Tensor, longest: int) -> Tensor:
        """`count` runs a row, together (batch, longest): up to `widest` places (rounded down) below `sizes`."""
        hidden = torch.zeros(len(sizes), longest, dtype=torch.bool, device=sizes.device)
        places = torch.arange(longest, device=sizes.device)
        for _ in range(count):
            width, place = torch.rand(2, len(sizes), device=sizes.device)
            width = (width * widest).floor()
            start = (place * (sizes - width + 1)).floor()
            hidden |= (places >= start[:, None]) & (places < (start + width)[:, None])
        return hidden


class FrameNorm(nn.LayerNorm):
    """A layer norm over the channels and bands of each frame: no frame sees another, so neither padding.

    Args:
        bands: height of the map.
        channels: channels of the map.
    """

    def __init__(self, bands: int, channels: int) -> None:
        super().__init__((bands, channels))

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, channels, time, bands) -> the same."""
        return super().forward(hidden.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # contiguous in channels_last


class Block(nn.Module):
    """A convolution, `FrameNorm`, ReLU.

    Args:
        before, after: channels.
        kernel: size of the convolution in both directions; odd.
        stride: its steps in time and in frequency.
        bands: height of the map that it makes.
    """

    def __init__(self, before: int, after: int, kernel: int, stride: tuple[int, int], bands: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = FrameNorm(bands, after)
        self.step = stride[0]

    def forward(self, hidden: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, before, time, bands), zero from `lengths` on -> the same of `after`, and its lengths."""
        hidden = torch.relu(self.norm(self.convolution(hidden)))
        lengths = (lengths - 1) // self.step + 1
        # Alone, an utterance's end meets the convolution's zeros: in a batch it has to meet the same.
        return hidden * length_mask(lengths, hidden.shape[2])[:, None, :, None], lengths


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
        if weights != "random":
            raise InputError(f"encoder.audio.weights={weights}: {name} has random weights only. Use weights=random.")
        if len(strides) != len(channels) or not channels:
            raise InputError(
                f"encoder.audio: {len(channels)} channels and {len(strides)} strides; expected one of each a block."
            )
        self.name = name
        self.weights = weights
        self.frontend = frontend
        self.augment = SpecAugment(**augment, bands=frontend.mels)
        widths, bands = [1, *channels], frontend.mels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(init_seed)
            self.convolutions = nn.ModuleList()
            for place, (before, after) in enumerate(pairwise(widths)):
                time_step, band_step = strides[place]
                bands = (bands - 1) // band_step + 1
                size = kernel if place == 0 else 3
                self.convolutions.append(Block(before, after, size, (time_step, band_step), bands))
            self.frames = nn.Sequential(
                nn.Linear(bands * widths[-1], dim), nn.LayerNorm(dim), nn.ReLU(), nn.Dropout(dropout)
            )
        self.stem_dim = self.dim = dim

    @classmethod
    def width(cls, arguments: Mapping[str, Any]) -> int | None:
        return int(arguments["dim"])

    def stem(self, inputs: Inputs) -> Features:
        """`frames` (batch, time, mels), `lengths` (batch,) -> features (batch, time / product of steps, dim)."""
        frames, lengths = self.augment(inputs["frames"], inputs["lengths"])
        hidden = (frames * length_mask(lengths, frames.shape[1])[..., None])[:, None]  # (batch, 1, time, mels)
        hidden = hidden.contiguous(memory_format=torch.channels_last)
        for block in self.convolutions:
            hidden, lengths = block(hidden, lengths)
        # (batch, channels, time, bands) -> (batch, time, bands * channels)
        features = self.frames(hidden.permute(0, 2, 3, 1).flatten(2))
        return Features(features, length_mask(lengths, features.shape[1]))

    def stem_modules(self) -> list[nn.Module]:
        return [self.augment, self.convolutions, self.frames]

    def blocks(self) -> list[nn.Module]:
        """The convolutions, and the linear layer over each frame."""
        return [*self.convolutions, self.frames]

    def describe(self) -> dict[str, Any]:
        """The steps: the weights' shapes do not tell them."""
        return {"strides": [list(block.convolution.stride) for block in self.convolutions]}  # type: ignore
