"""Where utterances lie in the embedding: python -m fourm_ser.analysis.projection RUN_DIR --output FILE.png."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fourm_ser.analysis.reduction import check_count, check_spread, class_means, perplexity, project, tsne, unit
from fourm_ser.errors import InputError
from fourm_ser.figures import COLOURS as COLOURS
from fourm_ser.figures import class_style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fourm_ser.analysis.findings import Finding
    from fourm_ser.runs.finished import OpenRun


FORMATS = (".png", ".svg", ".pdf")  # what matplotlib writes without a backend of its own
AXES = ("x", "y", "z")
DIMENSIONS = {2: "two", 3: "three"}


class Embeddings(NamedTuple):
    """A run's utterances of a side in its embedding.

    Attributes:
        emotions: the classes in the order of their indices.
        labels: (n,) class indices.
        vectors: (n, dim) embeddings as the fusion gives them.
        class_vectors: (classes, dim) the loss's centres, or the vectors that a margin compares angles with; None
            where the loss has none for the embedding.
        ratio: the distance ratio of the vectors.
        ids: the utterances' ids.
    """

    emotions: list[str]
    labels: np.ndarray
    vectors: np.ndarray
    class_vectors: np.ndarray | None
    ratio: float
    ids: list[str]


class Panel(NamedTuple):
    """One run in a plane, or in a space of three dimensions.

    Attributes:
        title: the panel's title.
        emotions: the classes in the order of their indices.
        labels: (n,) class indices.
        points: (n, dims) the utterances.
        centres: (classes, dims) class centres; NaN where a class has none; None where the projection cannot place them.
        learned: whether the centres are the loss's own class vectors, not the classes' means.
        axes: (dims,) what the axes are.
        shares: (dims,) share of the variance along each axis; empty where an axis is no direction of the embedding.
    """

    title: str
    emotions: list[str]
    labels: np.ndarray
    points: np.ndarray
    centres: np.ndarray | None
    learned: bool
    axes: tuple[str, ...]
    shares: tuple[float, ...]


def centre_name(learned: bool) -> str:
    """What class centres are: the loss's own, or the classes' means."""
    return "class vector of the loss" if learned else "class mean"


def read_embeddings(run: "OpenRun", side: str = "test") -> Embeddings:
    """A finished run's utterances of a side in its embedding; see `OpenRun.features` and `OpenRun.class_vectors`."""
    features = run.features(run.trained, side)
    ids = run.corpus.frame["id"].iloc[features.rows].tolist()
    ratio = features.metrics["intra_inter"]
    return Embeddings(run.emotions, features.labels, features.embedding, run.class_vectors(), ratio, ids)


def projection(runs: "list[OpenRun]", side: str, seed: int) -> "list[Finding]":
    """The embedding at unit length by PCA and by t-SNE, in two dimensions and in three, a panel a run.

    Args:
        runs: any finished runs.
        side: the side whose utterances are read: `train`, `val`, `test` or `all`.
        seed: the seed of t-SNE.

    Returns:
        Up to four findings; three dimensions only where every embedding has as many.

    Raises:
        InputError: under ten utterances.
        UnsuitedError: a run's embeddings are all the same.
    """
    from fourm_ser.analysis.alignment import names_of

    read = dict(zip(names_of(runs), (read_embeddings(run, side) for run in runs), strict=True))
    for name, embeddings in read.items():
        check_count(len(embeddings.labels), side)
        check_spread(embeddings.vectors, name)
    narrowest = min(embeddings.vectors.shape[1] for embeddings in read.values())
    findings = []
    drawn = [dims for dims in DIMENSIONS if narrowest >= dims]
    for dims in drawn:
        panels = {name: make_panel(name, embeddings, dims=dims) for name, embeddings in read.items()}
        findings.append(_pca_finding(panels, read, side, dims))
    for dims in drawn:
        panels = {name: make_tsne_panel(name, embeddings, dims, seed) for name, embeddings in read.items()}
        findings.append(_tsne_finding(panels, read, side, dims, seed))
    return findings


def make_panel(name: str, embeddings: Embeddings, plain: bool = False, dims: int = 2) -> Panel:
    """A run's embeddings along their first principal components.

    Args:
        name: what the run is called.
        embeddings: the run's embeddings.
        plain: take the embeddings as they are, and the classes' means; else all vectors have length 1, for a margin's
            class vectors have no length that means anything.
        dims: the number of components, 2 or 3.
    """
    vectors, centres = embeddings.vectors, None if plain else embeddings.class_vectors
    vectors = vectors if plain else unit(vectors)
    learned = centres is not None
    centres = class_means(vectors, embeddings.labels, len(embeddings.emotions)) if centres is None else unit(centres)
    points, flat, shares = project(vectors, centres, dims)
    axes = tuple(f"component {number}" for number in range(1, dims + 1))
    title = f"{name}: distance ratio {embeddings.ratio:.3f}"
    return Panel(title, embeddings.emotions, embeddings.labels, points, flat, learned, axes, shares)


def make_tsne_panel(name: str, embeddings: Embeddings, dims: int, seed: int) -> Panel:
    """A run's embeddings at unit length by t-SNE, which places nothing but them."""
    points = tsne(unit(embeddings.vectors), dims, seed)
    axes = tuple(f"t-SNE {number}" for number in range(1, dims + 1))
    title = f"{name}: distance ratio {embeddings.ratio:.3f}"
    return Panel(title, embeddings.emotions, embeddings.labels, points, None, False, axes, ())


def _pca_finding(panels: dict[str, Panel], read: dict[str, Embeddings], side: str, dims: int) -> "Finding":
    from fourm_ser.analysis.findings import Finding

    shown = _summary(panels, read)
    held = "; ".join(f"{name} {100 * sum(panel.shares):.0f}%" for name, panel in panels.items())
    drawn = {centre_name(panel.learned) for panel in panels.values()}
    words = (
        f"The embeddings of the {side} utterances at length 1, along their own first {DIMENSIONS[dims]} principal "
        f"components, which hold this much of the variance: {held}. What looks mixed here can lie apart along the "
        f"others. {_ratio_words(read)} Large marks: each {' or '.join(sorted(drawn))}, at length 1."
    )
    alt = f"A panel a run: utterances as marks by emotion along {DIMENSIONS[dims]} components, class centres larger."
    title = f"The embedding in {DIMENSIONS[dims]} principal components"
    figure = projection_figure(list(panels.values()))
    return Finding(f"projection_pca_{dims}d", title, words, _tabulate(panels, read), figure, alt, shown)


def _tsne_finding(panels: dict[str, Panel], read: dict[str, Embeddings], side: str, dims: int, seed: int) -> "Finding":
    from fourm_ser.analysis.findings import Finding

    used = ", ".join(dict.fromkeys(f"{perplexity(len(embeddings.labels)):.3g}" for embeddings in read.values()))
    words = (
        f"The embeddings of the {side} utterances at length 1 by t-SNE in {DIMENSIONS[dims]} dimensions (perplexity "
        f"{used}, begun at the principal components, seed {seed}). It keeps neighbours together: which utterances "
        "stand side by side means something; how far clusters are apart, and how large they are, means nothing. "
        f"Class centres cannot be placed in it. {_ratio_words(read)}"
    )
    alt = f"A panel a run: utterances as marks by emotion, placed by t-SNE in {DIMENSIONS[dims]} dimensions."
    title = f"The embedding by t-SNE in {DIMENSIONS[dims]} dimensions"
    figure = projection_figure(list(panels.values()))
    shown = _summary(panels, read)
    return Finding(f"projection_tsne_{dims}d", title, words, _tabulate(panels, read), figure, alt, shown)


def _ratio_words(read: dict[str, Embeddings]) -> str:
    tightest = min(read, key=lambda name: read[name].ratio)
    told = ", ".join(f"{name} {embeddings.ratio:.3f}" for name, embeddings in read.items())
    least = f"; classes are tightest for how far they lie apart in {tightest}" if len(read) > 1 else ""
    return f"Distance ratio of the embeddings as they are: {told}{least}."


def _summary(panels: dict[str, Panel], read: dict[str, Embeddings]) -> "pd.DataFrame":
    import pandas as pd

    rows = []
    for name, panel in panels.items():
        shares = {f"share_{axis}": share for axis, share in zip(AXES, panel.shares, strict=False)}
        width = read[name].vectors.shape[1]
        about = {"run": name, "utterances": len(panel.labels), "width": width, "distance_ratio": read[name].ratio}
        rows.append({**about, **shares})
    return pd.DataFrame(rows)


def _tabulate(panels: dict[str, Panel], read: dict[str, Embeddings]) -> "pd.DataFrame":
    """A row a mark: `run`, `what`, `id` (empty for a centre), `emotion`, and where it is."""
    import pandas as pd

    tables = []
    for name, panel in panels.items():
        emotions = [panel.emotions[label] for label in panel.labels]
        about = {"run": name, "what": "utterance", "id": read[name].ids, "emotion": emotions}
        tables.append(pd.DataFrame({**about, **_columns(panel.points)}))
        if panel.centres is not None:
            about = {"run": name, "what": centre_name(panel.learned), "id": "", "emotion": panel.emotions}
            tables.append(pd.DataFrame({**about, **_columns(panel.centres)}))
    return pd.concat(tables, ignore_index=True)


def _columns(points: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(AXES, points.T, strict=False))


def projection_figure(panels: Sequence[Panel]) -> "Figure":
    """Panels beside each other, with one legend; the same emotion has the same colour and marker in all."""
    from matplotlib.figure import Figure

    dims = panels[0].points.shape[1]
    columns = math.ceil(math.sqrt(len(panels)))
    rows = math.ceil(len(panels) / columns)
    side = 3.6 if dims == 2 else 4.4
    figure = Figure(figsize=(side * columns, (side - 0.1) * rows + 0.5), layout="constrained")
    kind: dict[str, Any] = {} if dims == 2 else {"projection": "3d"}
    grid = figure.subplots(rows, columns, squeeze=False, subplot_kw=kind).flatten()
    emotions = list(dict.fromkeys(emotion for panel in panels for emotion in panel.emotions))
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel, emotions)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    handles: dict[str, Artist] = {}
    for axes in grid:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(str(label), handle)
    style: dict[str, Any] = {"loc": "outside lower center", "ncols": 3 * columns, "frameon": False, "markerscale": 0.8}
    figure.legend(list(handles.values()), list(handles), fontsize="small", **style)
    return figure


def _draw(axes: "Axes", panel: Panel, emotions: Sequence[str]) -> None:
    dims = panel.points.shape[1]
    axes_3d: Any = axes
    style: dict[str, Any] = {"s": 14, "alpha": 0.55, "linewidths": 0}
    if dims == 3:
        axes_3d.computed_zorder = False  # centres stay in front, whatever the depth
        style["depthshade"] = False
    for label, emotion in enumerate(panel.emotions):
        colour, marker = class_style(emotions.index(emotion))
        points = panel.points[panel.labels == label].T
        axes.scatter(*points, color=colour, marker=marker, label=emotion, **style)
    if panel.centres is not None:
        _draw_centres(axes, panel, panel.centres, emotions)
    shares = [f" ({100 * share:.0f}%)" for share in panel.shares] or [""] * dims
    if panel.shares:
        shares[0] = shares[0].replace("%", "% of variance")
    axes.set_title(panel.title, fontsize="medium", y=None if dims == 2 else 0.95)
    names = [f"{name}{share}" for name, share in zip(panel.axes, shares, strict=True)]
    axes.set_xlabel(names[0], fontsize="small")
    axes.set_ylabel(names[1], fontsize="small")
    axes.tick_params(labelsize="small" if dims == 2 else "x-small")
    if dims == 3:
        axes_3d.set_zlabel(names[2], fontsize="small")
        axes_3d.locator_params(nbins=5)
        axes_3d.set_aspect("equal")
        axes_3d.set_box_aspect(None, zoom=0.85)  # the third axis has its name outside the cube
    else:
        axes.set_aspect("equal", adjustable="datalim")
    if not panel.shares:  # numbers along an axis of t-SNE mean nothing
        axes.tick_params(labelbottom=False, labelleft=False)
        if dims == 3:
            axes_3d.set(xticklabels=[], yticklabels=[], zticklabels=[])
    axes.grid(alpha=0.3)


def _draw_centres(axes: "Axes", panel: Panel, centres: np.ndarray, emotions: Sequence[str]) -> None:
    style: dict[str, Any] = {"s": 90, "linewidths": 1.8, "zorder": 3}
    for label, emotion in enumerate(panel.emotions):
        colour, marker = class_style(emotions.index(emotion))
        face, edge = (colour, "black") if panel.learned else ("white", colour)
        axes.scatter(*centres[label], color=face, edgecolors=edge, marker=marker, **style)
    face, edge = ("gray", "black") if panel.learned else ("white", "gray")
    nowhere: list[list[float]] = [[]] * centres.shape[1]
    axes.scatter(*nowhere, color=face, edgecolors=edge, label=centre_name(panel.learned), **style)


def main(arguments: Sequence[str] | None = None) -> None:
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


def draw(
    folders: Sequence[Path], output: Path, plain: bool = False, by: str = "loss", cache: Path | None = None
) -> None:
    """Write the figure of finished runs.

    Args:
        folders: run directories, or sweeps, whose runs are drawn in the order of their jobs.
        output: the file to write; its ending chooses the format.
        plain: draw the embeddings as they are, with the classes' means, instead of all at unit length.
        by: the config group whose choice names a panel; a run that no command line started goes by its folder.
        cache: the folder with the store; None for the one that each run used.

    Raises:
        InputError: a folder without a run, a run that has not finished or cannot be opened.
    """
    from fourm_ser.figures import save_figure
    from fourm_ser.runs.collect import collect
    from fourm_ser.runs.finished import OpenRun

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
