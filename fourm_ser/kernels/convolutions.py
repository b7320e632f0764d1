"""Convolutions without padding over a long signal, a piece at a time; and narrow ones, computed in float32.

Pieces, where: encoding passes of the self-supervised speech models on a processor, without gradients. Gain: the largest
tensors, a hundred times the features, stay near a processor's caches. Measured alone, 3% of the pass on a processor
with AVX2; together with a folded norm and fuller batches, on one with AVX-512, from 0.87 to 1.27 times the speed of a
plain loop over utterances (wav2vec2-base in fp32).

Narrow ones, where: speech models under autocast. With torch 2.14, a processor with AMX makes of them in bfloat16 what
is wrong by the result's own size, where a group has 2 to 14 channels and these times the taps are a multiple of 32 from
64 on (8 channels and 8, 12, 16, 20, ... taps; 4 and 16, 24, ...). No checkpoint that we know has such a layer; models
made small have.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

NARROW = 16  # channels of a group from which on all kernels are right
PIECE = 32_000  # samples: of a base model's first layer 13 MB


def in_pieces(layers: Callable[[Tensor], Tensor], samples: Tensor, hop: int, field: int) -> Tensor:
    """What convolutions without padding, whose frames see `field` samples each, make of (1, channels, samples).

    Returns:
        (1, channels, frames), one frame a `hop` of samples.
    """
    count, most = (samples.shape[2] - field) // hop + 1, PIECE // hop
    ends = [(start, min(count, start + most)) for start in range(0, count, most)]
    return torch.cat([layers(samples[:, :, start * hop : (end - 1) * hop + field]) for start, end in ends], dim=2)


def is_narrow(layer: nn.Module) -> bool:
    """Whether it is a convolution that some processor computes wrongly in bfloat16."""
    return isinstance(layer, nn.Conv1d | nn.Conv2d) and 1 < layer.in_channels // layer.groups < NARROW


def mend_narrow(model: nn.Module) -> None:
    """Let a model's narrow convolutions compute in float32 under autocast; what they give stays in half precision."""
    narrow: list[Any] = list(filter(is_narrow, model.modules()))
    for layer in narrow:
        layer._conv_forward = partial(_in_full, layer._conv_forward)


def _in_full(convolve: Callable[..., Tensor], features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    kind = features.device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return convolve(features, weight, bias)
    with torch.autocast(kind, enabled=False):
        done = convolve(features.float(), weight.float(), None if bias is None else bias.float())
    return done.to(torch.get_autocast_dtype(kind))
