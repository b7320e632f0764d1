"""What training changes at random: log-mel frames, and the hidden states of self-supervised speech models."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from fourm_ser.encoders.base import length_mask
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
        time_masks: how many masks in time there are.
        time_share: the share of the utterance that a mask in time hides at most.
        band_masks: how many masks in frequency there are.
        band_width: the bands that a mask in frequency hides at most.
        bands: mel bands in all.

    Raises:
        InputError: the masks could hide everything, or a number is out of range.
    """

    def __init__(
        self,
        *,
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


def mask_hidden_states(
    model: Any, hidden: Tensor, mask_time_indices: Tensor | None = None, attention_mask: Tensor | None = None
) -> Tensor:
    """SpecAugment of (batch, frames, width): Hugging Face's on a processor, elsewhere one that waits for nothing."""
    config = model.config
    if hidden.shape[1] < config.mask_time_length:
        return hidden  # Hugging Face's raises
    if hidden.device.type == "cpu":
        return type(model)._mask_hidden_states(
            model, hidden, mask_time_indices=mask_time_indices, attention_mask=attention_mask
        )
    return mask_on_device(model, hidden, attention_mask) if model.training and config.apply_spec_augment else hidden


def mask_on_device(model: Any, hidden: Tensor, own: Tensor | None) -> Tensor:
    """SpecAugment of (batch, frames, width), as Hugging Face's model does it by its config, drawn on the device.

    The model's vector stands in spans of `own` frames (batch, frames; None for all), zeros in spans of features. Park
    et al., 2019, https://arxiv.org/abs/1904.08779.
    """
    config, (batch, frames, width) = model.config, hidden.shape
    if config.mask_time_prob > 0:
        lengths = hidden.new_full((batch,), frames, dtype=torch.long) if own is None else own.sum(1)
        masked = draw_spans(
            lengths,
            frames,
            share=config.mask_time_prob,
            length=config.mask_time_length,
            least=config.mask_time_min_masks,
        )
        hidden = torch.where(masked[..., None], model.masked_spec_embed.to(hidden.dtype), hidden)
    if config.mask_feature_prob > 0:
        lengths = hidden.new_full((batch,), width, dtype=torch.long)
        masked = draw_spans(
            lengths,
            width,
            share=config.mask_feature_prob,
            length=config.mask_feature_length,
            least=getattr(config, "mask_feature_min_masks", 0),
        )
        hidden = hidden.masked_fill(masked[:, None], 0)
    return hidden


def draw_spans(lengths: Tensor, longest: int, *, share: float, length: int, least: int) -> Tensor:
    """Spans at random places, which may overlap, on the lengths' device.

    Args:
        lengths: (batch,) places of each row.
        longest: the largest of them, or more.
        share: the share of places in spans, if none overlap; the number of spans is rounded up or down at random.
        length: how many places a span has.
        least: how many spans a row has at least, where it has room.

    Returns:
        (batch, longest) bool, True in spans.
    """
    counts = (share * lengths / length + torch.rand(1, device=lengths.device)).long()
    counts = counts.clamp(min=least).clamp(max=longest // length)
    return _place_spans(counts, torch.full_like(lengths, length), lengths, longest)


def draw_share(lengths: Tensor, longest: int, *, share: float, length: int) -> Tensor:
    """Spans at random places, which may overlap, that never cover all of a row, on the lengths' device.

    Each row draws for itself: how many spans it has, its share of places in them, does not hang on the others.

    Args:
        lengths: (batch,) places of each row.
        longest: the largest of them, or more.
        share: the share of places in spans, if none overlap; the number of spans is rounded up or down at random.
        length: how many places a span has at most; of rows in which this is more than the share, as many as it is.

    Returns:
        (batch, longest) bool, True in spans.
    """
    wanted = share * lengths
    widths = wanted.clamp(1, length).long()
    counts = (wanted / widths + torch.rand(len(lengths), device=lengths.device)).long()
    return _place_spans(torch.minimum(counts, (lengths - 1) // widths), widths, lengths, longest)


def _place_spans(counts: Tensor, widths: Tensor, lengths: Tensor, longest: int) -> Tensor:
    """`counts` spans of `widths` places a row, each (batch,), at random places below `lengths`: (batch, longest)."""
    free = length_mask(lengths - widths + 1, longest)  # where one may begin
    draws = torch.rand(free.shape, device=lengths.device).masked_fill(~free, 2)
    begins = (draws.argsort(1).argsort(1) < counts[:, None]) & free
    begun = nn.functional.pad(begins.cumsum(1), (1, 0))  # how many before each place
    places = torch.arange(longest, device=lengths.device)
    return begun[:, 1:] > begun.gather(1, (places + 1 - widths[:, None]).clamp(min=0))
