"""Where the test utterances lie in the embedding: python -m fourm_ser.analysis.projection RUN_DIR --output FILE.png."""

import argparse
import math
import sys
from collections.abc import Sequence as Items
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fourm_ser.errors import InputError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fourm_ser.analysis.runs import OpenRun


FORMATS = (".png", ".svg", ".pdf")
# Okabe and Ito's colours, which colour-blind readers tell apart; the markers tell more classes apart than these are.
COLOURS = ("#d55e00", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#f0e442", "#000000")
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "<", ">", "p", "h")


class Embeddings(NamedTuple):
    """A run's test utterances in its embedding.

    Attributes:
        emotions: the classes in the order of their indices.
        labels: (n,) class indices.
        vectors: (n, dim), as the fusion gives them.
        class_vectors: (classes, dim) of the loss: centres, or the vectors that a margin compares angles with; None
            where the loss has none for the embedding.
        ratio: the distance ratio of the vectors.
    """

    emotions: list[str]
    labels: np.ndarray
    vectors: np.ndarray
    class_vectors: np.ndarray | None
    ratio: float


class Panel(NamedTuple):
    """One run in the plane.

    Attributes:
        title: what stands above it.
        emotions: the classes in the order of their indices.
        labels: (n,) class indices.
        points: (n, 2) utterances.
        centres: (classes, 2); NaN where a class has none.
        learned: whether the centres are the loss's own class vectors, not the classes' means.
        shares: of the variance, along the first axis and the second.
    """

    title: str
    emotions: list[str]
    labels: np.ndarray
    points: np.ndarray
    centres: np.ndarray
    learned: bool
    shares: tuple[float, float]


def read_embeddings(run: "OpenRun", side: str = "test") -> Embeddings:
    """A finished run's utterances of a side in its embedding; see `OpenRun.features` and `OpenRun.class_vectors`."""
    features = run.features(run.trained, side)
    return Embeddings(run.emotions, features.labels, features.embedding, run.class_vectors(), features.ratio)


def project(vectors: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """Principal components (PCA) of vectors, and other vectors in the same plane.

    Args:
        vectors: (n, dim), which the components are taken from.
        others: (m, dim); a row with NaN stays one.

    Returns:
        (n, 2), (m, 2), and the share of the vectors' variance along each of the two axes.

    Raises:
        InputError: fewer than two vectors or dimensions.
    """
    from sklearn.decomposition import PCA

    if min(vectors.shape) < 2:
        raise InputError(f"{len(vectors)} embeddings of width {vectors.shape[1]}: a plane takes two or more of both.")
    pca = PCA(2, svd_solver="full").fit(vectors)
    flat = (others - pca.mean_) @ pca.components_.T
    first, second = pca.explained_variance_ratio_
    return pca.transform(vectors), flat, (float(first), float(second))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (n, dim) at length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(vectors.dtype).tiny)


def class_means(vectors: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """The mean of each class's rows, (classes, dim); NaN for a class that does not occur."""
    means = np.full((classes, vectors.shape[1]), math.nan, dtype=vectors.dtype)
    for label in np.unique(labels):
        means[label] = vectors[labels == label].mean(0)
    return means


def make_panel(name: str, embeddings: Embeddings, plain: bool = False) -> Panel:
    """A run's embeddings in the plane of their first two principal components.

    Args:
        name: what the run is called.
        embeddings: of the run.
        plain: take the embeddings as they are, and the classes' means; else all vectors have length 1, for a margin's
            class vectors have no length that means anything.
    """
    vectors, centres = embeddings.vectors, None if plain else embeddings.class_vectors
    vectors = vectors if plain else unit(vectors)
    learned = centres is not None
    centres = class_means(vectors, embeddings.labels, len(embeddings.emotions)) if centres is None else unit(centres)
    points, flat, shares = project(vectors, centres)
    title = f"{name}: distance ratio {embeddings.ratio:.3f}"
    return Panel(title, embeddings.emotions, embeddings.labels, points, flat, learned, shares)


def projection_figure(panels: Items[Panel]) -> "Figure":
    """Panels beside each other, with one legend; the same emotion has the same colour and marker in all."""
    from matplotlib.figure import Figure

    columns = math.ceil(math.sqrt(len(panels)))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.6 * columns, 3.5 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    emotions = list(dict.fromkeys(emotion for panel in panels for emotion in panel.emotions))
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel, emotions)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    handles: dict[str, Artist] = {}
    for axes in grid:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(str(label), handle)
    look: dict[str, Any] = {"loc": "outside lower center", "ncols": 3 * columns, "frameon": False, "markerscale": 0.8}
    figure.legend(list(handles.values()), list(handles), fontsize="small", **look)
    return figure


def _draw(axes: "Axes", panel: Panel, emotions: Items[str]) -> None:
    look = [(COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]) for place in range(len(emotions))]
    for label, emotion in enumerate(panel.emotions):
        colour, marker = look[emotions.index(emotion)]
        x, y = panel.points[panel.labels == label].T
        axes.scatter(x, y, s=14, color=colour, marker=marker, alpha=0.55, linewidths=0, label=emotion)
    centre: dict[str, Any] = {"s": 90, "linewidths": 1.8, "zorder": 3}
    for label, emotion in enumerate(panel.emotions):
        colour, marker = look[emotions.index(emotion)]
        face, edge = (colour, "black") if panel.learned else ("white", colour)
        x, y = panel.centres[label]
        axes.scatter(x, y, color=face, edgecolors=edge, marker=marker, **centre)
    face, edge = ("gray", "black") if panel.learned else ("white", "gray")
    what = "class vector of the loss" if panel.learned else "class mean"
    axes.scatter([], [], color=face, edgecolors=edge, label=what, **centre)
    axes.set_title(panel.title, fontsize="medium")
    axes.set_xlabel(f"component 1 ({100 * panel.shares[0]:.0f}% of variance)", fontsize="small")
    axes.set_ylabel(f"component 2 ({100 * panel.shares[1]:.0f}%)", fontsize="small")
    axes.tick_params(labelsize="small")
    axes.set_aspect("equal", adjustable="datalim")
    axes.grid(alpha=0.3)


def main(arguments: Items[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m fourm_ser.analysis.projection",
        description="Draw the test utterances of finished runs, one panel a run: their fused embeddings at unit length "
        "and the class vectors of the loss (where it has none: the classes' means), by PCA of the embeddings.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_DIR", help="a finished run, or a sweep of them")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="a .png, .svg or .pdf")
    parser.add_argument("--plain", action="store_true", help="embeddings as they are, with the classes' means")
    parser.add_argument("--by", default="loss", metavar="GROUP", help="config group that names the panels (loss)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="cache with the store (the one that the run used)")
    given = parser.parse_args(arguments)
    if given.output.suffix.lower() not in FORMATS:
        parser.error(f"--output {given.output}: expected a file that ends in {', '.join(FORMATS)}")
    try:
        draw(given.folders, given.output, given.plain, given.by, given.cache)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    print(given.output)


def draw(folders: Items[Path], output: Path, plain: bool = False, by: str = "loss", cache: Path | None = None) -> None:
    """Write the figure of finished runs.

    Args:
        folders: run directories, or sweeps, whose runs are drawn in the order of their jobs.
        output: where to write; its ending chooses the format.
        plain: see `make_panel`.
        by: the config group whose choice names a panel; a run that no command line started goes by its folder.
        cache: see `OpenRun`.

    Raises:
        InputError: a folder without a run, a run that has not finished; see `OpenRun`.
    """
    from fourm_ser.analysis.runs import OpenRun
    from fourm_ser.report.collect import collect
    from fourm_ser.report.figures import save_figure

    collection = collect(list(folders))
    problems = collection.problems + [
        f"{run.path}: {run.state}: {run.why}." for run in collection.runs if run.state != "finished"
    ]
    if problems:
        raise InputError(f"{' '.join(problems)} Give finished runs, or sweeps of nothing else.")
    panels = []
    for run in collection.runs:
        opened = OpenRun(run.path, cache)
        name = run.options.get(by, run.path.resolve().name)
        panels.append(make_panel(name, read_embeddings(opened), plain))
    save_figure(projection_figure(panels), output)


if __name__ == "__main__":
    main()
