"""Figures of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fourm_ser.files import whole

BINS = 15  # of the expected calibration error


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, whole, in the format of the path's ending."""
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=150, bbox_inches="tight")


def confusion_figure(counts: np.ndarray, emotions: Sequence[str]) -> Figure:
    """The confusion matrix: share of each label's utterances by colour, counts as numbers.

    Args:
        counts: (classes, classes): rows are the labels, columns the predictions.
        emotions: the classes in the order of their indices.
    """
    size = 1.1 * len(emotions) + 1.6
    figure = Figure(figsize=(size + 0.8, size))
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for row, column in np.ndindex(*counts.shape):
        share = shares[row, column]
        text = f"{counts[row, column]}\n{100 * share:.0f}%"
        axes.text(column, row, text, ha="center", va="center", color="white" if share > 0.5 else "black")
    axes.set_xticks(range(len(emotions)), emotions, rotation=30, ha="right")
    axes.set_yticks(range(len(emotions)), emotions)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the label's utterances")
    return figure


def curves_figure(stages: Mapping[str, pd.DataFrame]) -> Figure:
    """Loss and validation accuracy over the epochs, a column a stage.

    Args:
        stages: each stage's metrics.csv by its name: `epoch`, `train/loss`, `val/loss`, `val/ua`, `val/wa`.
    """
    figure = Figure(figsize=(4.2 * len(stages) + 0.6, 5.4))
    grid = figure.subplots(2, len(stages), sharex="col", sharey="row", squeeze=False)
    for column, (name, table) in enumerate(stages.items()):
        losses, accuracies = grid[0][column], grid[1][column]
        for key, style in (("train/loss", "-"), ("val/loss", "--")):
            losses.plot(table["epoch"], table[key], style, label=key)
        for key, style in (("val/ua", "-"), ("val/wa", "--")):
            accuracies.plot(table["epoch"], table[key], style, label=key)
        best = int(table["val/ua"].to_numpy().argmax())
        accuracies.plot(table["epoch"].iloc[best], table["val/ua"].iloc[best], "o", color="C3", label="best UA")
        losses.set_title(name)
        accuracies.set_xlabel("epoch")
        accuracies.set_ylim(0.0, 1.02)
        for axes in (losses, accuracies):
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")
    grid[0][0].set_ylabel("loss")
    grid[1][0].set_ylabel("validation accuracy")
    return figure


def reliability_figure(confidence: np.ndarray, correct: np.ndarray, ece: float) -> Figure:
    """The reliability diagram (Guo et al. 2017): accuracy of the predictions of each confidence, and how many they are.

    Args:
        confidence: (n,) the probability of the emotion that was predicted.
        correct: (n,) whether it is the label.
        ece: the expected calibration error, for the title.
    """
    figure = Figure(figsize=(4.8, 5.4))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    edges = np.linspace(0.0, 1.0, BINS + 1)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    for place in range(BINS):
        inside = bins == place
        if inside.any():
            accuracy, mean = correct[inside].mean(), confidence[inside].mean()
            upper.bar(edges[place], accuracy, 1 / BINS, align="edge", color="#0072b2", edgecolor="white")
            upper.plot([mean, mean], [accuracy, mean], color="#d55e00", linewidth=2)
    upper.plot([], [], color="#d55e00", linewidth=2, label="gap to the confidence")
    upper.plot([0, 1], [0, 1], "--", color="gray", label="calibrated")
    upper.set_ylabel("accuracy")
    upper.set_ylim(0.0, 1.0)
    upper.set_title(f"expected calibration error {ece:.3f}")
    upper.legend(fontsize="small", loc="upper left")
    lower.bar(edges[:-1], np.bincount(bins, minlength=BINS), 1 / BINS, align="edge", color="gray", edgecolor="white")
    lower.set_xlabel("confidence: probability of the predicted emotion")
    lower.set_ylabel("utterances")
    lower.set_xlim(0.0, 1.0)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    return figure
