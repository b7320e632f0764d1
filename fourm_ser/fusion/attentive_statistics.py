"""Attentive statistics pooling (Okabe et al. 2018): each modality's mean and deviation under learned weights."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fourm_ser.encoders.base import Features
from fourm_ser.fusion.base import LEARNED, Fusion, FusionOutput, MapAxes, check_modalities, check_width, zero_padded
from fourm_ser.fusion.statistics import moments


class FrameWeights(nn.Module):
    """How much each frame counts: v . tanh(W h + b), through a softmax over an utterance's own frames."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, hidden)
        self.vector = nn.Linear(hidden, 1, bias=False)  # the same number for all frames would change nothing

    def forward(self, sequence: Features) -> Tensor:
        """(batch, time, width) -> (batch, time); a row sums to 1, and is 0 on padding."""
        scores = self.vector(torch.tanh(self.layer(sequence.features)))[..., 0].float()
        return scores.masked_fill(~sequence.mask, float("-inf")).softmax(1)


class AttentiveStatisticsFusion(Fusion):
    """By modality the weighted mean and standard deviation of its frames, under weights that are learned; side by side.

    "Attentive statistics pooling for deep speaker embedding" (https://arxiv.org/abs/1803.10963); so the baselines of
    the MSP-Podcast challenges (Goncalves et al. 2024) pool WavLM's frames. An utterance of one frame, as pooled
    encoders give (`encode.pool`), is that frame and a deviation of nearly nothing.

    Args:
        dims: width of each modality's features.
        modalities: the modalities it reads, one or both, in the embedding's order.
        hidden: width of the layer by which frames are weighed.

    Raises:
        InputError: no modality or one twice, a width out of range.
    """

    def __init__(self, dims: Mapping[str, int], modalities: Sequence[str], hidden: int) -> None:
        super().__init__()
        check_width(hidden, "fusion.hidden")
        self.modalities = check_modalities(modalities, None)
        self.widths = {modality: dims[modality] for modality in modalities}
        self.dim = 2 * sum(self.widths.values())
        self.maps = {modality: MapAxes((LEARNED,), (modality,)) for modality in modalities}
        self.weights = nn.ModuleDict({modality: FrameWeights(dims[modality], hidden) for modality in modalities})

    def forward(self, text: Features | None, audio: Features | None, return_attention: bool = False) -> FusionOutput:
        given, statistics, attention = {"text": text, "audio": audio}, list[Tensor](), dict[str, Tensor]()
        for modality in self.modalities:
            sequence = given[modality]
            assert sequence is not None
            sequence = given[modality] = zero_padded(sequence)
            weights = self.weights[modality](sequence)
            # In fp32 throughout: squares of differences, summed over hundreds of frames.
            with torch.autocast(weights.device.type, enabled=False):
                statistics += moments(sequence.features.float(), weights[..., None])
            if return_attention:
                attention[modality] = weights[:, None, None]  # (batch, 1 head, 1 query, time)
        return FusionOutput(torch.cat(statistics, dim=-1), given["text"], given["audio"], attention)
