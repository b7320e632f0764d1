"""The fusion of SERVER: each modality pooled by itself, then side by side."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fourm_ser.encoders.base import Features
from fourm_ser.errors import InputError
from fourm_ser.fusion.base import Fusion, FusionOutput, check_modalities, check_pool, check_width, pool


class ConcatFusion(Fusion):
    """Each modality pooled over time and projected; the embedding is the vectors one after the other.

    SERVER (2023, https://github.com/nhattruongpham/mmser) takes BERT's pooled output through a projection and the sum
    of VGGish's examples as it is.

    Args:
        dims: width of each modality's features.
        modalities: the modalities it reads, in the embedding's order.
        project: width of each modality's projection; None takes the pooled features as they are.
        pool: how each modality is pooled; see `fourm_ser.fusion.base.pool`.

    Raises:
        InputError: no modality or one twice, a modality without its entry, an unknown pooling, a width out of range.
    """

    def __init__(
        self,
        *,
        dims: Mapping[str, int],
        modalities: Sequence[str],
        project: Mapping[str, int | None],
        pool: Mapping[str, str],
    ) -> None:
        super().__init__()
        self.modalities = check_modalities(modalities, None)
        for key, entries in (("project", project), ("pool", pool)):
            lacking = [modality for modality in modalities if modality not in entries]
            if lacking:
                raise InputError(f"fusion.{key}: expected an entry for {lacking[0]}, which the fusion reads.")
            unknown = set(entries) - {"text", "audio"}
            if unknown:
                raise InputError(f"fusion.{key}: unknown key {', '.join(sorted(unknown))}. Expected text and audio.")
        self.pool = {modality: check_pool(pool[modality], f"fusion.pool.{modality}") for modality in modalities}
        self.widths = {modality: dims[modality] for modality in modalities}
        self.linear = nn.ModuleDict()
        self.dim = 0
        for modality in modalities:
            width = project[modality]
            if width is None:
                self.linear[modality] = nn.Identity()
                self.dim += dims[modality]
            else:
                self.linear[modality] = nn.Linear(dims[modality], check_width(width, f"fusion.project.{modality}"))
                self.dim += width

    def forward(self, text: Features | None, audio: Features | None, return_attention: bool = False) -> FusionOutput:
        vectors = []
        given = {"text": text, "audio": audio}
        for modality in self.modalities:
            sequence = given[modality]
            assert sequence is not None
            vectors.append(self.linear[modality](pool(sequence, self.pool[modality])))
        return FusionOutput(torch.cat(vectors, dim=1), text, audio, {})
