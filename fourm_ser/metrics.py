"""What a model is judged by."""

import math
from collections.abc import Sequence as Items

import torch
from torch import Tensor, nn
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassRecall,
)

BINS = 15


class EmotionMetrics(nn.Module):
    """UA, WA, F1, calibration and per-class recall over a set of utterances.

    UA (unweighted accuracy) is the mean of the recalls of the classes that occur, WA (weighted accuracy) plain
    accuracy, ECE the expected calibration error in 15 bins (Guo et al. 2017).

    Args:
        emotions: the classes in the order of their indices.
    """

    def __init__(self, emotions: Items[str]) -> None:
        super().__init__()
        self.emotions = list(emotions)
        classes = len(self.emotions)
        self.recall = MulticlassRecall(classes, average=None)
        self.wa = MulticlassAccuracy(classes, average="micro")
        self.f1_macro = MulticlassF1Score(classes, average="macro")
        self.f1_weighted = MulticlassF1Score(classes, average="weighted")
        self.ece = MulticlassCalibrationError(classes, n_bins=BINS)
        self.confusion = MulticlassConfusionMatrix(classes)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (batch, classes), labels (batch,)."""
        probabilities = logits.detach().float().softmax(1)
        for metric in self._metrics():
            metric.update(probabilities, labels)

    def compute(self) -> dict[str, float]:
        """`ua`, `wa`, `f1_macro`, `f1_weighted`, `ece`, and `recall/<emotion>` (NaN where it does not occur)."""
        occurs = self.confusion.compute().sum(1) > 0
        recall = self.recall.compute().double().masked_fill(~occurs, math.nan)
        return {
            "ua": float(recall.nanmean()),
            "wa": float(self.wa.compute()),
            "f1_macro": float(self.f1_macro.compute()),
            "f1_weighted": float(self.f1_weighted.compute()),
            "ece": float(self.ece.compute()),
            **{f"recall/{emotion}": float(value) for emotion, value in zip(self.emotions, recall, strict=True)},
        }

    def confusion_matrix(self) -> Tensor:
        """(classes, classes) counts: rows are the labels, columns the predictions."""
        return self.confusion.compute().to(torch.int64)

    def reset(self) -> None:
        """Forget all batches."""
        for metric in self._metrics():
            metric.reset()

    def _metrics(self) -> list:  # type: ignore[type-arg]
        return [self.recall, self.wa, self.f1_macro, self.f1_weighted, self.ece, self.confusion]
