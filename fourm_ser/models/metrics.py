"""What a model is judged by."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassRecall,
)
from torchmetrics.utilities import dim_zero_cat

BINS = 15  # of confidence, for the calibration error: those of Guo et al. 2017


class DistanceRatio(Metric):
    """How tightly classes lie in the embedding: distances within a class over distances between classes.

    The mean Euclidean distance of an embedding to the mean of its own class, over the mean distance between the means
    of every two classes that occur. It does not change with the embedding's scale; the smaller, the better apart the
    classes. NaN where fewer than two classes occur, or the means of all coincide.
    """

    full_state_update = False
    embeddings: list[Tensor] | Tensor
    labels: list[Tensor] | Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("embeddings", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, embedding: Tensor, labels: Tensor) -> None:
        """Add a batch: embedding (batch, dim), labels (batch,)."""
        assert isinstance(self.embeddings, list)
        assert isinstance(self.labels, list)
        self.embeddings.append(embedding.detach().float())
        self.labels.append(labels)

    def compute(self) -> Tensor:
        """The ratio, a scalar."""
        # On the host: once an epoch, by the class, and MPS has no kernel for distances.
        embeddings, labels = dim_zero_cat(self.embeddings).cpu(), dim_zero_cat(self.labels).cpu()
        classes = [embeddings[labels == label] for label in labels.bincount().nonzero()]
        means = torch.stack([rows.mean(0) for rows in classes])  # (classes that occur, dim)
        within = torch.cat([(rows - mean).norm(dim=1) for rows, mean in zip(classes, means, strict=True)]).mean()
        between = torch.pdist(means).mean()  # NaN over no pair
        return within / between.masked_fill(between == 0, math.nan)


class EmotionMetrics(nn.Module):
    """UA, WA, F1, calibration, per-class recall and the embedding's distance ratio over a set of utterances.

    UA (unweighted accuracy) is the mean of the recalls of the classes that occur, WA (weighted accuracy) plain
    accuracy, ECE the expected calibration error in 15 bins (Guo et al. 2017), `intra_inter` the `DistanceRatio`.

    Args:
        emotions: the classes in the order of their indices.
    """

    def __init__(self, emotions: Sequence[str]) -> None:
        super().__init__()
        self.emotions = list(emotions)
        classes = len(self.emotions)
        # Labels and probabilities are what they should be; to look at them would wait for the device at every batch.
        given: dict[str, Any] = {"num_classes": classes, "validate_args": False}
        self.recall = MulticlassRecall(**given, average=None)
        self.wa = MulticlassAccuracy(**given, average="micro")
        self.f1_macro = MulticlassF1Score(**given, average="macro")
        self.f1_weighted = MulticlassF1Score(**given, average="weighted")
        self.ece = MulticlassCalibrationError(**given, n_bins=BINS)
        self.confusion = MulticlassConfusionMatrix(**given)
        self.intra_inter = DistanceRatio()

    def update(self, logits: Tensor, embedding: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (batch, classes), embedding (batch, dim), labels (batch,)."""
        probabilities = logits.detach().float().softmax(1)
        for metric in self._on_probabilities():
            metric.update(probabilities, labels)
        self.intra_inter.update(embedding, labels)

    def compute(self) -> dict[str, float]:
        """`ua`, `wa`, `f1_macro`, `f1_weighted`, `ece`, `intra_inter`, `recall/<emotion>`; NaN: does not occur."""
        occurs = self.confusion.compute().cpu().sum(1) > 0
        recall = self.recall.compute().cpu().double().masked_fill(~occurs, math.nan)  # MPS has no float64
        return {
            "ua": float(recall.nanmean()),
            "wa": float(self.wa.compute()),
            "f1_macro": float(self.f1_macro.compute()),
            "f1_weighted": float(self.f1_weighted.compute()),
            "ece": float(self.ece.compute()),
            "intra_inter": float(self.intra_inter.compute()),
            **{f"recall/{emotion}": float(value) for emotion, value in zip(self.emotions, recall, strict=True)},
        }

    def confusion_matrix(self) -> Tensor:
        """(classes, classes) counts: rows are the labels, columns the predictions."""
        return self.confusion.compute().to(torch.int64)

    def reset(self) -> None:
        """Forget all batches."""
        for metric in [*self._on_probabilities(), self.intra_inter]:
            metric.reset()

    def _on_probabilities(self) -> list:  # type: ignore[type-arg]
        return [self.recall, self.wa, self.f1_macro, self.f1_weighted, self.ece, self.confusion]
