"""What a model is judged by."""

import math
from collections.abc import Sequence as Items

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

BINS = 15


class DistanceRatio(Metric):
    """How tightly classes lie in the embedding: distances within a class over distances between classes.

    The root mean squared Euclidean distance of the embeddings to the mean of their own class, over that between the
    means of every two classes that occur. It does not change with the embedding's scale; the smaller, the better apart
    the classes. NaN where fewer than two classes occur.

    Args:
        classes: number of classes.
        dim: width of the embedding.
    """

    full_state_update = False
    count: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        shape = {"count": (classes,), "total": (classes, dim), "squares": (classes,)}
        for name, sizes in shape.items():
            self.add_state(name, torch.zeros(sizes, dtype=torch.float64), dist_reduce_fx="sum")
        self.set_dtype(torch.float64)

    def update(self, embedding: Tensor, labels: Tensor) -> None:
        """Add a batch: embedding (batch, dim), labels (batch,)."""
        embedding = embedding.detach().double()
        self.count.index_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))
        self.total.index_add_(0, labels, embedding)
        self.squares.index_add_(0, labels, embedding.square().sum(1))

    def compute(self) -> Tensor:
        """The ratio, a scalar."""
        occurs = self.count > 0
        count = self.count[occurs]
        means = self.total[occurs] / count[:, None]  # (classes that occur, dim)
        within = (self.squares[occurs] - count * means.square().sum(1)).clamp(min=0).sum() / count.sum()
        between = torch.pdist(means).square().mean()  # NaN over no pair
        return (within / between).sqrt()


class EmotionMetrics(nn.Module):
    """UA, WA, F1, calibration, per-class recall and the embedding's distance ratio over a set of utterances.

    UA (unweighted accuracy) is the mean of the recalls of the classes that occur, WA (weighted accuracy) plain
    accuracy, ECE the expected calibration error in 15 bins (Guo et al. 2017), `intra_inter` the `DistanceRatio`.

    Args:
        emotions: the classes in the order of their indices.
        dim: width of the embedding.
    """

    def __init__(self, emotions: Items[str], dim: int) -> None:
        super().__init__()
        self.emotions = list(emotions)
        classes = len(self.emotions)
        self.recall = MulticlassRecall(classes, average=None)
        self.wa = MulticlassAccuracy(classes, average="micro")
        self.f1_macro = MulticlassF1Score(classes, average="macro")
        self.f1_weighted = MulticlassF1Score(classes, average="weighted")
        self.ece = MulticlassCalibrationError(classes, n_bins=BINS)
        self.confusion = MulticlassConfusionMatrix(classes)
        self.intra_inter = DistanceRatio(classes, dim)

    def update(self, logits: Tensor, embedding: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (batch, classes), embedding (batch, dim), labels (batch,)."""
        probabilities = logits.detach().float().softmax(1)
        for metric in self._on_probabilities():
            metric.update(probabilities, labels)
        self.intra_inter.update(embedding, labels)

    def compute(self) -> dict[str, float]:
        """`ua`, `wa`, `f1_macro`, `f1_weighted`, `ece`, `intra_inter`, `recall/<emotion>`; NaN: does not occur."""
        occurs = self.confusion.compute().sum(1) > 0
        recall = self.recall.compute().double().masked_fill(~occurs, math.nan)
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
