"""Figures of a run, and the colours, markers and lines that all figures share."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fourm_ser.files import whole

# Okabe and Ito's colours, which colour-blind readers tell apart; the markers tell more classes apart than these are.
COLOURS = ("#d55e00", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#f0e442", "#000000")
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "<", ">", "p", "h")
# Thin lines in yellow cannot be seen on white.
LINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
LINES = ("-", "--", "-.", ":")
# Tol's muted colours: speakers do not look like emotions.
SPEAKER_COLOURS = ("#332288", "#cc6677", "#44aa99", "#ddcc77", "#882255", "#88ccee", "#999933", "#aa4499", "#117733")
GREY = "#9a9a9a"


def class_style(index: int) -> tuple[str, str]:
    """Colour and marker of a class."""
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]


def speaker_style(index: int) -> tuple[str, str]:
    """Colour and marker of a speaker."""
    return SPEAKER_COLOURS[index % len(SPEAKER_COLOURS)], MARKERS[index % len(MARKERS)]


def line_style(index: int) -> tuple[str, str]:
    """Colour and style of a line: no two of the first 28 are the same."""
    return LINE_COLOURS[index % len(LINE_COLOURS)], LINES[index // len(LINE_COLOURS) % len(LINES)]


def state_colour(index: int) -> str:
    """Colour of a state of training: grey before it, then one for each stage."""
    return GREY if index == 0 else LINE_COLOURS[(index - 1) % len(LINE_COLOURS)]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, whole, in the format of the path's ending."""
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=150, bbox_inches="tight")


def confusion_figure(counts: np.ndarray, emotions: Sequence[str]) -> Figure:
    """The confusion matrix, (classes, classes) by label and prediction: shares of the label by colour, and counts."""
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
    """Loss and validation accuracy over the epochs, a column a stage, out of each stage's metrics.csv by its name."""
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


def reliability_figure(confidence: np.ndarray, correct: np.ndarray, ece: float, bins: int) -> Figure:
    """The reliability diagram (Guo et al. 2017): accuracy of the predictions of each confidence, and how many they are.

    Of each utterance, (n,), the probability of what was predicted, and whether it is the label; `ece`, the expected
    calibration error, was computed over the same number of bins.
    """
    figure = Figure(figsize=(4.8, 5.4))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    edges = np.linspace(0.0, 1.0, bins + 1)
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    for number in range(bins):
        inside = bin_of == number
        if inside.any():
            accuracy, mean = correct[inside].mean(), confidence[inside].mean()
            upper.bar(edges[number], accuracy, 1 / bins, align="edge", color="#0072b2", edgecolor="white")
            upper.plot([mean, mean], [accuracy, mean], color="#d55e00", linewidth=2)
    upper.plot([], [], color="#d55e00", linewidth=2, label="gap to the confidence")
    upper.plot([0, 1], [0, 1], "--", color="gray", label="calibrated")
    upper.set_ylabel("accuracy")
    upper.set_ylim(0.0, 1.0)
    upper.set_title(f"expected calibration error {ece:.3f}")
    upper.legend(fontsize="small", loc="upper left")
    lower.bar(edges[:-1], np.bincount(bin_of, minlength=bins), 1 / bins, align="edge", color="gray", edgecolor="white")
    lower.set_xlabel("confidence: probability of the predicted emotion")
    lower.set_ylabel("utterances")
    lower.set_xlim(0.0, 1.0)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    return figure
