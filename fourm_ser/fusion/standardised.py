"""Each modality as standardised statistics over time: for features of pretrained encoders."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from fourm_ser.checks import check_word
from fourm_ser.encoders.base import Features
from fourm_ser.errors import InputError
from fourm_ser.fusion.base import Fusion, FusionOutput, check_dropout, check_modalities, check_width
from fourm_ser.fusion.statistics import RunningScale, all_moments, weighed, weighed_twice

STATISTICS = ("mean", "deviation", "active_mean", "active_deviation")
ACTIVE = STATISTICS[2:]  # over speech alone


class StandardisedFusion(Fusion):
    """By modality the mean, or mean and standard deviation, of its own frames; standardised, then projected together.

    The statistics are those of x-vectors (Snyder et al. 2018). Standardised (see `RunningScale`) they are what a linear
    probe reads: no feature weighs more for being large, as some of a transformer's are by two orders of magnitude. The
    projection is linear, so that two utterances' mixed embeddings are those of their mixed statistics. The deviation of
    an utterance of one frame, as pooled encoders give (`encode.pool`), is the same for all and becomes 0.

    The active ones are over speech alone: each frame counts by its voice activity, which the encoder tells (see
    `fourm_ser.encoders.activity`). Those of a modality whose encoder does not are left out.

    Args:
        dims: width of each modality's features.
        modalities: the modalities it reads, one or both.
        statistics: what is taken of each modality, of `STATISTICS`; entries of modalities that it does not read have
            no effect.
        dim: width of the embedding.
        dropout: share of the standardised statistics that training drops.
        activity: the modalities whose last feature is the frames' activity.

    Raises:
        InputError: no modality or one twice, a modality without statistics, an unknown statistic or one twice, a number
            out of range.
    """

    reads_activity: ClassVar[bool] = True

    def __init__(
        self,
        *,
        dims: Mapping[str, int],
        modalities: Sequence[str],
        statistics: Mapping[str, Sequence[str]],
        dim: int,
        dropout: float,
        activity: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.modalities = check_modalities(modalities, None)
        unknown = set(statistics) - {"text", "audio"}
        if unknown:
            raise InputError(f"fusion.statistics: unknown key {', '.join(sorted(unknown))}. Expected text and audio.")
        for modality in modalities:
            wanted = statistics.get(modality)
            if isinstance(wanted, str) or not wanted or len(set(wanted)) < len(wanted):
                raise InputError(
                    f"fusion.statistics.{modality}={wanted}: expected a list of any of {', '.join(STATISTICS)}."
                )
            for name in wanted:
                check_word(f"fusion.statistics.{modality}", name, STATISTICS)
            if modality not in activity and set(wanted) <= set(ACTIVE):
                raise InputError(
                    f"fusion.statistics.{modality}={list(wanted)}: its encoder does not tell speech from pauses, or "
                    "encode.pool leaves no frames. Expected mean or deviation among them."
                )
        self.activity = tuple(activity)
        self.statistics = {
            modality: tuple(name for name in statistics[modality] if modality in activity or name not in ACTIVE)
            for modality in modalities
        }
        self.widths = {modality: dims[modality] for modality in modalities}
        self.dim = check_width(dim, "fusion.dim")
        check_dropout(dropout, "fusion.dropout")
        width = sum(len(names) * (dims[name] - (name in activity)) for name, names in self.statistics.items())
        self.scale = RunningScale(width)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, dim)

    def forward(self, text: Features | None, audio: Features | None, return_attention: bool = False) -> FusionOutput:
        given, parts = {"text": text, "audio": audio}, list[Tensor]()
        for modality in self.modalities:
            sequence = given[modality]
            assert sequence is not None
            # In fp32 throughout: the running variance is a difference of two large numbers.
            with torch.autocast(sequence.features.device.type, enabled=False):
                weigh = weighed_twice if modality in self.activity else weighed
                found = dict(zip(STATISTICS, all_moments(*weigh(sequence)), strict=False))
            parts += [found[name] for name in self.statistics[modality]]
        embedding = self.linear(self.dropout(self.scale(torch.cat(parts, dim=-1))))
        return FusionOutput(embedding, text, audio, {})
