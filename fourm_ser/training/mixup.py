"""Mixup of utterances (Zhang et al. 2018, https://arxiv.org/abs/1710.09412) in the embedding.

Recordings of different lengths cannot be mixed frame by frame. Mixed is the fused embedding, as one hidden layer of
manifold mixup (Verma et al. 2019, https://arxiv.org/abs/1806.05236). As in the authors' code a batch has one share and
one order of partners.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from fourm_ser.devices import sent
from fourm_ser.distributed import first_row, gather_rows
from fourm_ser.losses.base import Loss


class Mixing(NamedTuple):
    """Which utterances of a batch are mixed, and how.

    Attributes:
        share: What an utterance has of itself; the rest is its partner's.
        partners: (batch of all processes,) Each utterance's partner by its place in the batch.
        first: The place of this process's first utterance there.
    """

    share: float
    partners: Tensor
    first: int

    @classmethod
    def drawn(cls, alpha: float, numbers: Sequence[int], rows: Tensor) -> Self:
        """The share from Beta(alpha, alpha), and partners, for a batch of positions `rows` in the manifest.

        They are drawn by `numbers` alone, and partners in the order of the positions: several processes draw what one
        draws that has the whole batch.
        """
        whole = gather_rows(rows)
        generator = np.random.default_rng(list(numbers))
        share = float(generator.beta(alpha, alpha))
        order = whole.argsort(stable=True)
        others = order[sent(torch.from_numpy(generator.permutation(len(whole))), rows.device)]
        return cls(share, torch.empty_like(order).scatter(0, order, others), first_row(rows))

    def mix(self, vectors: Tensor) -> Tensor:
        """This process's vectors (batch, dim), each mixed with its partner's; gradients reach both."""
        partners = self.partners[self.first : self.first + len(vectors)]
        return self.share * vectors + (1 - self.share) * gather_rows(vectors)[partners]

    def loss(self, loss: Loss, logits: Tensor, features: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Each term of a loss of mixed logits and features: that of the utterances' labels and that of the partners'.

        Both labels' class weights have the same sum over the batch, so that a weighted average is one over both.
        """
        own, other = (loss(logits, features, given) for given in (labels, labels[self.partners]))
        return {name: self.share * value + (1 - self.share) * other[name] for name, value in own.items()}
