"""One modality alone, as statistics of its features over time: for encoders that are trained from nothing."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fourm_ser.distributed import gather_rows
from fourm_ser.encoders.base import Features
from fourm_ser.errors import InputError
from fourm_ser.fusion.base import Fusion, FusionOutput, check_modalities

FLOOR = 1e-4  # below a root: its slope at nothing is endless
LEAST = 1e-3  # weight of an utterance's frames, together
MEMORY = 0.05  # share of a batch in the running statistics, once there were twenty: about the last twenty count


class RunningScale(nn.Module):
    """Standardises each component by its mean and deviation over the utterances that training has shown so far.

    As batch norm in evaluation, but in training, too: an utterance does not depend on the batch it comes in, which may
    hold it alone, and no gradient runs through the statistics. They are a part of the state.
    """

    mean: Tensor
    square: Tensor
    batches: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("square", torch.ones(dim))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def forward(self, embedding: Tensor) -> Tensor:
        """(batch, dim) -> the same."""
        if self.training:
            whole = gather_rows(embedding.detach())  # the batch of all processes
            self.batches += 1
            share = (1 / self.batches).clamp(min=MEMORY)  # the first batches count alike
            self.mean.lerp_(whole.mean(0), share)
            self.square.lerp_(whole.square().mean(0), share)
        variance = (self.square - self.mean.square()).clamp(min=0)
        return (embedding - self.mean) * torch.rsqrt(variance + FLOOR)


class OneModalityStatistics(Fusion):
    """Statistics over one modality's own frames, `count` of each feature, standardised: what `parts` gives."""

    def __init__(self, dims: Mapping[str, int], modalities: Sequence[str], count: int) -> None:
        super().__init__()
        self.modalities = check_modalities(modalities, 1)
        width = dims[self.modalities[0]]
        self.widths = {self.modalities[0]: width}
        self.dim = count * width
        self.scale = RunningScale(self.dim)

    @abstractmethod
    def parts(self, features: Tensor, own: Tensor) -> list[Tensor]:
        """Features (batch, time, width) and weights (batch, time, 1), as by `weighed` -> `count` of (batch, width)."""

    def forward(self, text: Features | None, audio: Features | None, return_attention: bool = False) -> FusionOutput:
        sequence = {"text": text, "audio": audio}[self.modalities[0]]
        assert sequence is not None
        # In fp32 throughout: the running variance is a difference of two large numbers.
        with torch.autocast(sequence.features.device.type, enabled=False):
            embedding = self.scale(torch.cat(self.parts(*weighed(sequence)), dim=-1))
        return FusionOutput(embedding, text, audio, {})


class StatisticsFusion(OneModalityStatistics):
    """Mean, standard deviation and mean step of one modality's features over its own frames, standardised.

    Mean and deviation are the statistics pooling of x-vectors (Snyder et al. 2018). The step is the mean absolute
    difference of one frame from the next, which tells how fast the features move; 0 where there is one frame.

    Args:
        dims: width of each modality's features.
        modalities: the one modality, `[text]` or `[audio]`.
        weight: the feature, from 0 to 1, that says how much a frame counts in a second mean and deviation; -1 is the
            last one (of `prosody_cnn`: whether the frame is voiced). None for no second ones.

    Raises:
        InputError: not one modality, a feature that there is not.
    """

    def __init__(self, dims: Mapping[str, int], modalities: Sequence[str], weight: int | None) -> None:
        super().__init__(dims, modalities, 3 if weight is None else 5)
        (width,) = self.widths.values()
        if weight is not None and not -width <= weight < width:
            raise InputError(f"fusion.weight={weight}: expected one of the {width} features, from 0 or -1, or null.")
        self.weight = weight

    def parts(self, features: Tensor, own: Tensor) -> list[Tensor]:
        found = [*moments(features, own), mean_step(features, own[..., 0] > 0)]
        if self.weight is not None:
            found += moments(features, own * features[..., self.weight, None].clamp(0, 1))
        return found


def weighed(sequence: Features) -> tuple[Tensor, Tensor]:
    """Features in float32, 0 where padding stands, whatever stood there; and weights (batch, time, 1): 1 and 0."""
    own = sequence.mask[..., None].float()
    return sequence.features.float().masked_fill(own == 0, 0.0), own


def weighed_twice(sequence: Features) -> tuple[Tensor, Tensor]:
    """As `weighed`, of features whose last is the frames' activity: without it, and beside the weights these times it.

    (batch, time, dim + 1) -> (batch, time, dim) and (batch, time, 2).
    """
    features, own = weighed(sequence)
    return features[..., :-1], torch.cat([own, own * features[..., -1:].clamp(0, 1)], dim=-1)


def moments(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (batch, dim) of features (batch, time, dim) by weights (batch, time, 1).

    Where no frame weighs anything both are nothing.
    """
    total = weights.sum(1).clamp(min=LEAST)
    mean = (features * weights).sum(1) / total
    variance = ((features - mean[:, None]).square() * weights).sum(1) / total
    return mean, (variance + FLOOR).sqrt()


def all_moments(features: Tensor, weights: Tensor) -> list[Tensor]:
    """Mean and standard deviation (batch, dim) by each of several weights, one after the other.

    All weights share two passes over the features, which are first brought to their plain mean: what is then squared
    and summed are no large numbers with small differences.

    Args:
        features: (batch, time, dim), 0 where padding stands.
        weights: (batch, time, weights); the first ones are 1 on an utterance's own frames and 0 on padding. By weights
            that are all 0 the mean is the plain one and the deviation nothing.
    """
    total = weights.sum(1)  # (batch, weights)
    shares = (weights / total.clamp(min=LEAST)[:, None]).transpose(1, 2)
    middle = features.sum(1) / total[:, :1]
    centred = features - middle[:, None]
    shift = shares @ centred  # (batch, weights, dim)
    variance = (shares @ centred.square() - shift.square()).clamp(min=0)
    means, deviations = middle[:, None] + shift, (variance + FLOOR).sqrt()
    return [part[:, place] for place in range(weights.shape[2]) for part in (means, deviations)]


def mean_step(features: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference between neighbours in time: (batch, time, dim), mask (batch, time) -> (batch, dim)."""
    both = (mask[:, 1:] & mask[:, :-1])[..., None]
    steps = (features[:, 1:] - features[:, :-1]).abs() * both
    return steps.sum(1) / both.sum(1).clamp(min=1)
