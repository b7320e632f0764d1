"""Utterances for tests of fusions."""

import torch
from torch import Tensor, nn

from fourm_ser.encoders.base import Features, length_mask, pad
from fourm_ser.fusion.base import Fusion, FusionOutput


def utterances(lengths: tuple[int, ...], width: int, seed: int) -> list[Tensor]:
    """One utterance's features [length, width] for each length."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, width, generator=generator) * 2 + 0.5 for count in lengths]


def padded(rows: list[Tensor], value: float = 0.0) -> Features:
    """Utterances as a batch, `value` where padding stands."""
    features = pad(rows, value)
    return Features(features, length_mask(torch.tensor([len(row) for row in rows]), features.shape[1]))


def fuse(fusion: Fusion, texts: list[Tensor], audios: list[Tensor], value: float = 0.0, **flags: bool) -> FusionOutput:
    """Both modalities padded with `value`, of which the fusion gets those that it reads."""
    text = padded(texts, value) if "text" in fusion.modalities else None
    audio = padded(audios, value) if "audio" in fusion.modalities else None
    return fusion(text, audio, **flags)


def train_a_little(fusion: Fusion) -> Fusion:
    """Parameters as after training: biases and norms are not zeros and ones."""
    generator = torch.Generator().manual_seed(0)
    for parameter in fusion.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return fusion.eval()
