"""A network's answers where a modality is taken away, or given to another utterance."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fourm_ser.encoders.base import Features, length_mask, pad
from fourm_ser.errors import InputError
from fourm_ser.models.network import EmotionNetwork
from fourm_ser.runs.finished import OpenRun

BATCH = 32  # utterances fused together: only memory and time depend on it


class Encoded(NamedTuple):
    """A side's utterances as the encoders hand them to the fusion.

    Attributes:
        labels: (n,) class indices, in the order of the rows in the manifest.
        features: (time, dim) features of each utterance, without padding, by modality.
        average: (dim,) mean over all tokens or frames of the side, by modality.
    """

    labels: np.ndarray
    features: dict[str, list[Tensor]]
    average: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.labels)

    def removed(self, modality: str) -> list[Tensor]:
        """Utterances as long as they are that hold the average token or frame at every position."""
        return [self.average[modality].expand_as(features) for features in self.features[modality]]

    def shuffled(self, modality: str, order: np.ndarray) -> list[Tensor]:
        """What another utterance said, or how: the k-th gets that of the `order[k]`-th."""
        return [self.features[modality][index] for index in order]


@torch.no_grad()
def gather(run: OpenRun, side: str) -> Encoded:
    """Encode a side's utterances once; all of them are held in memory (in fp32, on the processor)."""
    parts: dict[int, dict[str, Tensor]] = {}
    for batch in run.batches(run.network, run.corpus.rows(side), f"{run.name}, features"):
        for modality, sequence in run.network.encode(batch._asdict()).items():
            for row, own, mask in zip(batch.rows.tolist(), sequence.features, sequence.mask, strict=True):
                parts.setdefault(row, {})[modality] = own[mask].float().cpu()
    rows = sorted(parts)
    features = {modality: [parts[row][modality] for row in rows] for modality in run.network.by_modality}
    average = {
        modality: (sum(own.double().sum(0) for own in every) / sum(map(len, every))).float()  # type: ignore[union-attr]
        for modality, every in features.items()
    }
    return Encoded(run.corpus.label[rows], features, average)


@torch.no_grad()
def answer(network: EmotionNetwork, features: Mapping[str, list[Tensor]], device: torch.device) -> np.ndarray:
    """Logits (n, classes) in fp32 of utterances put together anew, of features (time, dim) each by modality."""
    lengths = np.array([[len(own) for own in every] for every in features.values()])
    order = np.argsort(lengths.sum(0), kind="stable")  # batches of similar length
    logits: list[np.ndarray] = []
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        given = {modality: _padded([every[index] for index in chosen], device) for modality, every in features.items()}
        fused = network.fusion(given.get("text"), given.get("audio"))
        logits.append(network.head(fused.embedding).float().cpu().numpy())
    return np.concatenate(logits)[np.argsort(order)]


def _padded(rows: list[Tensor], device: torch.device) -> Features:
    features = pad(rows)
    mask = length_mask(torch.tensor([len(row) for row in rows]), features.shape[1])
    return Features(features.to(device), mask.to(device))


def derangements(count: int, shuffles: int, seed: int) -> list[np.ndarray]:
    """Random orders (count,) in which nobody stands in their own place, all of them alike in chance.

    Raises:
        InputError: there is nobody to change places with.
    """
    if count < 2:
        raise InputError(f"{count} utterance: shuffling takes two or more.")
    generator = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    while len(found) < shuffles:  # one order in three has no fixed point, whatever the count
        order = generator.permutation(count)
        if (order != np.arange(count)).all():
            found.append(order)
    return found
