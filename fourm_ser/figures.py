"""Figures of a run, and the colours, markers and lines that all figures share."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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
CURVES = {"train/loss": "training loss", "val/loss": "validation loss", "val/ua": "UA", "val/wa": "WA"}
MASS = 20  # utterances of a bin of confidence: with fewer, an accuracy may be anything
LINE = 0.05  # of accuracy, a line of small print in the reliability diagram


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


def confusion_figure(counts: np.ndarray, emotions: Sequence[str], title: str = "") -> Figure:
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
    if title:
        axes.set_title(title, fontsize="medium")
    figure.colorbar(image, ax=axes, fraction=0.046, label="share of the label's utterances")
    return figure


def curves_figure(stages: Mapping[str, pd.DataFrame], title: str = "") -> Figure:
    """Loss and validation accuracy over the epochs, a column a stage, out of each stage's metrics.csv by its name."""
    figure = Figure(figsize=(4.2 * len(stages) + 0.6, 5.4))
    grid = figure.subplots(2, len(stages), sharex="col", sharey="row", squeeze=False)
    for column, (name, table) in enumerate(stages.items()):
        losses, accuracies = grid[0][column], grid[1][column]
        for axes, keys in ((losses, ("train/loss", "val/loss")), (accuracies, ("val/ua", "val/wa"))):
            for key, style in zip(keys, ("-", "--"), strict=True):
                axes.plot(table["epoch"], table[key], style, label=CURVES[key])
        best = int(table["val/ua"].to_numpy().argmax())
        accuracies.plot(table["epoch"].iloc[best], table["val/ua"].iloc[best], "o", color="C3", label="best UA")
        losses.set_title(name)
        accuracies.set_xlabel("epoch")
        accuracies.set_ylim(0.0, 1.02)
        accuracies.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        for axes in (losses, accuracies):
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")
    grid[0][0].set_ylabel("loss")
    grid[1][0].set_ylabel("validation accuracy")
    _head(figure, title)
    return figure


def reliability_figure(confidence: np.ndarray, correct: np.ndarray, ece: float, bins: int, title: str = "") -> Figure:
    """The reliability diagram (Guo et al. 2017): accuracy of the predictions of each confidence, and how many they are.

    The bins above hold about equally many utterances each, `MASS` if there are enough (Nguyen and O'Connor 2015,
    https://arxiv.org/abs/1508.05154): how many, and the 95% interval of their accuracy (Wilson 1927), stand on each.
    Bins of fewer utterances than that are pale. Below are all utterances, in equally wide bins.

    Args:
        confidence: Of each utterance, (n,), the probability of what was predicted.
        correct: Whether it is the label, (n,).
        ece: The expected calibration error, which was computed over `bins` equally wide bins.
        bins: How many these are.
        title: What stands above the figure.
    """
    figure = Figure(figsize=(5.4, 5.8))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    edges = mass_edges(confidence)
    bin_of = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, len(edges) - 2)
    written: list[tuple[float, float]] = []  # where numbers stand
    for number in range(len(edges) - 1):
        inside = bin_of == number
        count = int(inside.sum())
        if not count:
            continue
        accuracy, mean = float(correct[inside].mean()), float(confidence[inside].mean())
        pale = 0.35 if count < MASS else 1.0
        left, width = edges[number], edges[number + 1] - edges[number]
        upper.bar(left, accuracy, width, align="edge", color="#0072b2", edgecolor="white", alpha=pale)
        low, high = wilson(accuracy, count)
        upper.plot([mean, mean], [low, high], color="black", linewidth=1.2, alpha=max(pale, 0.6), gid="interval")
        upper.plot([mean], [accuracy], "o", color="#d55e00", markersize=4, gid="accuracy")
        height = above(mean, high, written)
        written.append((mean, height))
        upper.annotate(str(count), (mean, height), (0, 2), textcoords="offset points", ha="center", fontsize="x-small")
    upper.plot([], [], "o", color="#d55e00", markersize=4, label="accuracy at the mean confidence")
    upper.plot([], [], color="black", linewidth=1.2, label="95% interval, and how many utterances")
    upper.plot([0, 1], [0, 1], "--", color="gray", label="calibrated")
    upper.set_ylabel("accuracy")
    upper.set_ylim(0.0, max(height for _, height in [*written, (0.0, 1.0)]) + 0.08)
    upper.set_yticks(np.linspace(0.0, 1.0, 6))
    upper.set_title(f"expected calibration error {ece:.3f} (over {bins} equally wide bins)", fontsize="medium")
    upper.legend(fontsize="x-small", loc="upper left")
    wide = np.linspace(0.0, 1.0, bins + 1)
    counts = np.bincount(np.minimum((confidence * bins).astype(int), bins - 1), minlength=bins)
    lower.bar(wide[:-1], counts, 1 / bins, align="edge", color="gray", edgecolor="white")
    for left, count in zip(wide[:-1], counts, strict=True):
        if count:
            top = (left + 0.5 / bins, count)
            lower.annotate(str(count), top, (0, 1), textcoords="offset points", ha="center", fontsize="x-small")
    lower.set_ylim(0.0, 1.25 * max(int(counts.max()), 1))
    lower.set_xlabel("confidence: probability of the predicted emotion")
    lower.set_ylabel("utterances")
    lower.set_xlim(0.0, 1.0)
    lower.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    _head(figure, title)
    return figure


def above(place: float, height: float, written: Sequence[tuple[float, float]], width: float = 0.06) -> float:
    """The least height from `height` on at which a number at a place covers none that is written: of three digits."""
    for _, other in sorted(((at, top) for at, top in written if abs(at - place) < width), key=lambda found: found[1]):
        if abs(other - height) < LINE:
            height = other + LINE
    return height


def mass_edges(confidence: np.ndarray) -> np.ndarray:
    """Edges of three to ten bins that hold about equally many values each, `MASS` where there are enough."""
    count = int(np.clip(len(confidence) // MASS, 3, 10))
    edges = np.unique(np.quantile(confidence, np.linspace(0.0, 1.0, count + 1)))
    if len(edges) < 2:  # one value throughout
        edges = np.array([max(edges[0] - 0.02, 0.0), min(edges[0] + 0.02, 1.0)])
    return edges


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95% interval of a share of so many that were drawn (Wilson 1927)."""
    z = 1.959964
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _head(figure: Figure, title: str) -> None:
    """Write a title above all panels, if there is one."""
    if title:
        figure.suptitle(title, fontsize="medium")
        figure.tight_layout()
