"""One modality alone, as functionals of descriptors in the frames of a kind, voiced ones, and in the others."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fourm_ser.errors import InputError
from fourm_ser.fusion.statistics import LEAST, OneModalityStatistics, moments


class SplitStatisticsFusion(OneModalityStatistics):
    """Functionals of one modality's frames of a kind, and means of the others, standardised.

    A feature says how much a frame is of the kind. Of these frames there are mean, standard deviation, and the means of
    rising and of falling steps; of the others, the mean. eGeMAPS tells voiced from unvoiced stretches likewise (Eyben
    et al. 2016, https://doi.org/10.1109/TAFFC.2015.2457417).

    Args:
        dims: width of each modality's features.
        modalities: the one modality, `[text]` or `[audio]`.
        weight: the feature, from 0 to 1, that says how much a frame is of the kind; -1 is the last one (of
            `descriptors` and `prosody_cnn`: whether it is voiced).

    Raises:
        InputError: not one modality, a feature that there is not.
    """

    def __init__(self, *, dims: Mapping[str, int], modalities: Sequence[str], weight: int) -> None:
        super().__init__(dims, modalities, 5)
        (width,) = self.widths.values()
        if isinstance(weight, bool) or not isinstance(weight, int) or not -width <= weight < width:
            raise InputError(f"fusion.weight={weight}: expected one of the {width} features, from 0 or -1.")
        self.weight = weight

    def parts(self, features: Tensor, own: Tensor) -> list[Tensor]:
        kind = own * features[..., self.weight, None].clamp(0, 1)
        others, _ = moments(features, own - kind)
        return [*moments(features, kind), *mean_slopes(features, kind), others]


def mean_slopes(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Means of what features (batch, time, dim) rise by, and of what they fall by, from a frame to the next.

    Both (batch, dim), from 0, a step weighing as the lighter of its frames does, by weights (batch, time, 1). Where no
    step weighs anything both are nothing.
    """
    both = torch.minimum(weights[:, 1:], weights[:, :-1])
    steps = (features[:, 1:] - features[:, :-1]) * both
    total = both.sum(1).clamp(min=LEAST)
    return steps.clamp(min=0).sum(1) / total, (-steps).clamp(min=0).sum(1) / total
