"""Each modality as standardised statistics over time: for features of pretrained encoders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Summary:
    """Statistics over time of a modality's own frames; picklable.

    Attributes:
        names: Which, of `STATISTICS`.
        activity: Whether the last feature is the frames' activity.
    """

    names: tuple[str, ...]
    activity: bool

    def __call__(self, sequence: Features) -> Tensor:
        """Frames (batch, time, dim) -> (batch, numbers)."""
        # In fp32 throughout: the running variance is a difference of two large numbers.
        with torch.autocast(sequence.features.device.type, enabled=False):
            weigh = weighed_twice if self.activity else weighed
            found = dict(zip(STATISTICS, all_moments(*weigh(sequence)), strict=False))
            return torch.cat([found[name] for name in self.names], dim=-1)


class StandardisedFusion(Fusion):
    """By modality the mean, or mean and standard deviation, of its own frames; standardised, then projected together.

    The statistics are those of x-vectors (Snyder et al. 2018). Standardised (see `RunningScale`) they are what a linear
    probe reads: no feature weighs more for being large, as some of a transformer's are by two orders of magnitude. The
    projection is linear, so that two utterances' mixed embeddings are those of their mixed statistics. The deviation of
    an utterance of one frame, as pooled encoders give (`encode.pool`), is the same for all and becomes 0.

    The active ones are over speech alone: each frame counts by its voice activity, which the encoder tells (see
    `fourm_ser.encoders.activity`). Those of a modality whose encoder does not are left out.

    Of an encoder that gives several hidden states (`layer: [3, 6]`), each is a view of the utterance, which is
    projected by itself, beside all of a modality that gives one; where both give several, the two nearest in their
    order. The embedding holds the views' side by side.

    In place of a modality's frames it takes their `Summary` as one frame, which it knows by its width.

    Args:
        dims: width of each modality's features.
        modalities: the modalities it reads, one or both.
        statistics: what is taken of each modality, of `STATISTICS`; entries of modalities that it does not read have
            no effect.
        dim: width of the embedding.
        dropout: share of the standardised statistics that training drops.
        activity: the modalities whose last feature is the frames' activity.
        states: by modality, the places of each hidden state's features; None, and a modality that is not named, for
            one state.

    Raises:
        InputError: no modality or one twice, a modality without statistics, an unknown statistic or one twice, a number
            out of range.
    """

    reads_activity: ClassVar[bool] = True
    reads_states: ClassVar[bool] = True
    read: Tensor

    def __init__(
        self,
        *,
        dims: Mapping[str, int],
        modalities: Sequence[str],
        statistics: Mapping[str, Sequence[str]],
        dim: int,
        dropout: float,
        activity: Sequence[str] = (),
        states: Mapping[str, Sequence[Sequence[int]]] | None = None,
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
        told = {modality: modality in activity for modality in modalities}
        self.statistics = {
            modality: Summary(tuple(name for name in statistics[modality] if tells or name not in ACTIVE), tells)
            for modality, tells in told.items()
        }
        self.widths = {modality: dims[modality] for modality in modalities}
        check_width(dim, "fusion.dim")
        check_dropout(dropout, "fusion.dropout")
        features = {name: dims[name] - told[name] for name in modalities}
        places = {name: (states or {}).get(name) or [range(width)] for name, width in features.items()}
        self.views = max(map(len, places.values()))
        self.dim = self.views * dim
        total, views = 0, [list[Tensor]() for _ in range(self.views)]  # by view, which of all statistics it reads
        for name, width in features.items():
            own = torch.tensor([places[name][view * len(places[name]) // self.views] for view in range(self.views)])
            for _ in self.statistics[name].names:
                for view, row in zip(views, own, strict=True):
                    view.append(total + row)
                total += width
        self.numbers = {name: len(self.statistics[name].names) * width for name, width in features.items()}
        self.summaries = {
            name: summary
            for name, summary in self.statistics.items()
            if self.numbers[name] != dims[name] or summary.names == ("mean",)  # which is its own mean
        }
        self.scale = RunningScale(total)
        self.dropout = nn.Dropout(dropout)
        if self.views == 1:
            self.linear = nn.Linear(total, dim)
            return
        self.register_buffer("read", torch.stack([torch.cat(view) for view in views]), persistent=False)
        self.linears = nn.ModuleList(nn.Linear(self.read.shape[1], dim) for _ in views)

    def forward(self, text: Features | None, audio: Features | None, return_attention: bool = False) -> FusionOutput:
        given, parts = {"text": text, "audio": audio}, list[Tensor]()
        for modality in self.modalities:
            sequence = given[modality]
            assert sequence is not None
            if sequence.features.shape[-1] == self.numbers[modality] != self.widths[modality]:
                parts.append(sequence.features[:, 0].float())  # its summary
            else:
                parts.append(self.statistics[modality](sequence))
        found = self.scale(torch.cat(parts, dim=-1))
        if self.views == 1:
            return FusionOutput(self.linear(self.dropout(found)), text, audio, {})
        views = [linear(self.dropout(found[:, row])) for linear, row in zip(self.linears, self.read, strict=True)]
        return FusionOutput(torch.cat(views, dim=-1), text, audio, {})
