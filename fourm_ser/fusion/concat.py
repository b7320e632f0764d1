"""The fusion of SERVER: each modality pooled by itself, then side by side."""

from collections.abc import Mapping
from collections.abc import Sequence as Items

import torch
from torch import nn

from fourm_ser.encoders.base import Sequence
from fourm_ser.fusion.base import Fusion, FusionOutput, check_pool, pool


class ConcatFusion(Fusion):
    """Each modality pooled over time and projected; the embedding is the vectors one after the other (SERVER, 2023).

    Args:
        dims: width of each modality's features.
        modalities: the modalities it reads, in the embedding's order.
        project: width of each modality's projection; None takes the pooled features as they are.
        pool: how each modality is pooled; see `fourm_ser.fusion.base.pool`.

    Raises:
        InputError: an unknown pooling.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        modalities: Items[str],
        project: Mapping[str, int | None],
        pool: Mapping[str, str],
    ) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        self.pool = {modality: check_pool(pool[modality], f"fusion.pool.{modality}") for modality in modalities}
        widths = {modality: project[modality] or dims[modality] for modality in modalities}
        self.linear = nn.ModuleDict(
            {
                modality: nn.Identity() if project[modality] is None else nn.Linear(dims[modality], widths[modality])
                for modality in modalities
            }
        )
        self.dim = sum(widths.values())

    def forward(self, text: Sequence | None, audio: Sequence | None, return_attention: bool = False) -> FusionOutput:
        vectors = []
        given = {"text": text, "audio": audio}
        for modality in self.modalities:
            sequence = given[modality]
            assert sequence is not None
            vectors.append(self.linear[modality](pool(sequence, self.pool[modality])))
        return FusionOutput(torch.cat(vectors, dim=1), text, audio, {})
