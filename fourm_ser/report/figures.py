"""Figures of a run."""

from collections.abc import Mapping
from collections.abc import Sequence as Items
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fourm_ser.files import whole


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, whole, in the format of the path's ending."""
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=150, bbox_inches="tight")


def confusion_figure(counts: np.ndarray, emotions: Items[str]) -> Figure:
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
