"""What baselines classify: each modality's stored features, pooled over time, side by side and standardised."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fourm_ser.encoders.base import Features
from fourm_ser.encoders.pooling import FACTORS, pooled
from fourm_ser.fusion.base import Fusion, FusionOutput
from fourm_ser.fusion.statistics import all_moments, weighed_twice

STATISTICS = {"mean": 1, "mean_std": 2, "active": 4}
"""What may be read of an utterance's frames, and how many times as wide as these it is."""

Layers = Mapping[str, Sequence[int]]
"""By modality, the numbers of the hidden states that are read of those that its store holds."""


class PooledFeatures(Fusion):
    """Statistics of each modality's stored features over an utterance's own frames, side by side; (x - mean) / scale.

    Args:
        dims: Width of each modality's stored features.
        modalities: The modalities, in the order of their features.
        statistics: By modality, what of its frames: `mean`; `mean_std`, mean and deviation; or `active`, these and the
            same over speech without its pauses, where the encoder tells them apart (`activity`), else `mean_std`.
        stored: By modality, how its features were pooled before they were stored (`encode.pool`): of those whose
            means alone are stored, there are means alone, whatever `statistics` says.
        states: By modality, the numbers of the hidden states that lie side by side, or how many there are from the
            first; None for one.
        layers: The hidden states that are read; None, and a modality that is not named, for all.
        activity: The modalities whose last feature is the frames' activity; it counts in `dims`.
    """

    over_stems: ClassVar[bool] = True
    reads_activity: ClassVar[bool] = True
    mean: Tensor
    scale: Tensor
    columns: Tensor

    def __init__(
        self,
        *,
        dims: Mapping[str, int],
        modalities: Sequence[str],
        statistics: Mapping[str, str],
        stored: Mapping[str, str],
        states: Mapping[str, int | Sequence[int]] | None = None,
        layers: Layers | None = None,
        activity: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.modalities, self.widths = tuple(modalities), {modality: dims[modality] for modality in modalities}
        self.stored = dict(stored)
        given = {modality: (states or {}).get(modality, 1) for modality in modalities}
        self.states = {name: list(range(held) if isinstance(held, int) else held) for name, held in given.items()}
        self.activity = tuple(activity)
        self.statistics = {modality: self._readable(modality, statistics[modality]) for modality in modalities}
        chosen = torch.from_numpy(self.places(layers or {}))
        self.register_buffer("columns", chosen, persistent=False)
        self.dim = len(chosen)
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("scale", torch.ones(self.dim))

    def _readable(self, modality: str, wanted: str) -> str:
        """What there is of what is wanted."""
        if self.stored[modality] == "mean":
            return "mean"
        return "mean_std" if wanted == "active" and modality not in self.activity else wanted

    def places(self, layers: Layers, modalities: Sequence[str] | None = None) -> np.ndarray:
        """Where the numbers of some hidden states, of all or some modalities, lie among all that are computed."""
        found, begin = [np.empty(0, np.int64)], 0
        for modality in self.modalities:
            factors = STATISTICS[self.statistics[modality]]
            frames = self.widths[modality] - (modality in self.activity)
            width = factors * frames // FACTORS[self.stored[modality]]
            own = np.arange(begin, begin + width).reshape(factors, len(self.states[modality]), -1)
            begin += width
            if modalities is None or modality in modalities:
                held = self.states[modality]
                found.append(own[:, [held.index(number) for number in layers.get(modality, held)]].ravel())
        return np.concatenate(found)

    def gather(self, given: Mapping[str, Features]) -> Tensor:
        """Stored features (batch, time, width) by modality -> all statistics (batch, numbers), of all hidden states."""
        return torch.cat([self._gather(modality, given[modality]) for modality in self.modalities], dim=-1)

    def _gather(self, modality: str, given: Features) -> Tensor:
        how, stored = self.statistics[modality], self.stored[modality]
        if modality in self.activity:
            if how == "active":
                return torch.cat(all_moments(*weighed_twice(given)), dim=-1)
            return pooled(given.features[..., :-1], given.mask, how)[:, 0]
        if stored == "none":
            return pooled(given.features, given.mask, how)[:, 0]
        found = given.features[:, 0].float()
        return found[:, : self.widths[modality] // 2] if stored != how else found  # of mean and deviation the mean

    def forward(self, text: Features | None, audio: Features | None, return_attention: bool = False) -> FusionOutput:
        own = {name: given for name, given in (("text", text), ("audio", audio)) if given is not None}
        numbers = self.gather(own)
        with torch.autocast(numbers.device.type, enabled=False):
            embedding = (numbers[:, self.columns] - self.mean) / self.scale
        return FusionOutput(embedding, text, audio, {})
