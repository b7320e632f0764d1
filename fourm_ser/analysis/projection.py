"""Where utterances lie in the embedding: python -m fourm_ser.analysis.projection RUN_DIR --output FILE.png."""

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fourm_ser.analysis.reduction import check_embeddings, class_means, perplexity, project, tsne, unit
from fourm_ser.errors import InputError
from fourm_ser.runs.collect import Run, collect

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
RATIO = "The distance ratio is of the embeddings as they are: distances within classes to those between them."


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
        name: what the run is called.
        embeddings: what is drawn.
        points: (n, dims) the utterances.
        centres: (classes, dims) class centres; NaN where a class has none; None where the projection cannot place them.
        learned: whether the centres are the loss's own class vectors, not the classes' means.
        axes: what the axes are, but for their numbers.
        shares: (dims,) share of the variance along each axis; empty where an axis is no direction of the embedding.
    """

    name: str
    embeddings: Embeddings
    points: np.ndarray
    centres: np.ndarray | None
    learned: bool
    axes: str
    shares: tuple[float, ...]

    @property
    def title(self) -> str:
        """The name and the distance ratio."""
        return f"{self.name}: distance ratio {self.embeddings.ratio:.3f}"


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

    Returns:
        Up to four findings; three dimensions only where every embedding has as many.

    Raises:
        InputError: under ten utterances.
        UnsuitedError: a run's embeddings are all the same.
    """
    from fourm_ser.analysis.alignment import names_of

    read = {name: read_embeddings(run, side) for name, run in zip(names_of(runs), runs, strict=True)}
    for name, embeddings in read.items():
        check_embeddings(embeddings.vectors, name, side)
    narrowest = min(embeddings.vectors.shape[1] for embeddings in read.values())
    drawn = [dims for dims in DIMENSIONS if narrowest >= dims]
    by_pca = [[make_panel(*own, dims=dims) for own in read.items()] for dims in drawn]
    by_tsne = [[make_tsne_panel(*own, dims, seed) for own in read.items()] for dims in drawn]
    findings = [_pca_finding(panels, side) for panels in by_pca]
    return findings + [_tsne_finding(panels, side, seed) for panels in by_tsne]


def make_panel(name: str, embeddings: Embeddings, *, plain: bool = False, dims: int = 2) -> Panel:
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
    return Panel(name, embeddings, points, flat, learned, "component", shares)


def make_tsne_panel(name: str, embeddings: Embeddings, dims: int, seed: int) -> Panel:
    """A run's embeddings at unit length by t-SNE, which places nothing but them."""
    return Panel(name, embeddings, tsne(unit(embeddings.vectors), dims, seed), None, False, "t-SNE", ())


def _pca_finding(panels: Sequence[Panel], side: str) -> "Finding":
    from fourm_ser.analysis.findings import Finding

    dims = panels[0].points.shape[1]
    held = "; ".join(f"{panel.name} {100 * sum(panel.shares):.0f}%" for panel in panels)
    drawn = {centre_name(panel.learned) for panel in panels}
    caption = f"Of the variance these components hold: {held}. {_ratio_words(panels)}"
    method = (
        f"The embeddings of the {side} utterances at length 1, along their own first {DIMENSIONS[dims]} principal "
        "components. What looks mixed here can lie apart along the others. Large marks: each "
        f"{' or '.join(sorted(drawn))}, at length 1. {RATIO}"
    )
    alt = f"A panel a run: utterances as marks by emotion along {DIMENSIONS[dims]} components, class centres larger."
    title = f"The embedding in {DIMENSIONS[dims]} principal components"
    figure, shown = projection_figure(panels), _summary(panels)
    return Finding(f"projection_pca_{dims}d", title, caption, _tabulate(panels), figure, alt, shown, method)


def _tsne_finding(panels: Sequence[Panel], side: str, seed: int) -> "Finding":
    from fourm_ser.analysis.findings import Finding

    dims = panels[0].points.shape[1]
    used = ", ".join(dict.fromkeys(f"{perplexity(len(panel.points)):.3g}" for panel in panels))
    caption = (
        "Which utterances stand side by side means something; how far clusters are apart, and how large they are, "
        f"nothing. {_ratio_words(panels)}"
    )
    method = (
        f"The embeddings of the {side} utterances at length 1 by t-SNE in {DIMENSIONS[dims]} dimensions (perplexity "
        f"{used}, begun at the principal components, seed {seed}), which keeps neighbours together. Class centres "
        f"cannot be placed in it. {RATIO}"
    )
    alt = f"A panel a run: utterances as marks by emotion, placed by t-SNE in {DIMENSIONS[dims]} dimensions."
    title = f"The embedding by t-SNE in {DIMENSIONS[dims]} dimensions"
    figure, shown = projection_figure(panels), _summary(panels)
    return Finding(f"projection_tsne_{dims}d", title, caption, _tabulate(panels), figure, alt, shown, method)


def _ratio_words(panels: Sequence[Panel]) -> str:
    tightest = min(panels, key=lambda panel: panel.embeddings.ratio)
    told = ", ".join(f"{panel.name} {panel.embeddings.ratio:.3f}" for panel in panels)
    least = f"; classes are tightest for how far they lie apart in {tightest.name}" if len(panels) > 1 else ""
    return f"Distance ratio: {told}{least}."


def _summary(panels: Sequence[Panel]) -> "pd.DataFrame":
    import pandas as pd

    rows = []
    for panel in panels:
        count, width = panel.embeddings.vectors.shape
        about = {"run": panel.name, "utterances": count, "width": width, "distance_ratio": panel.embeddings.ratio}
        rows.append({**about, **{f"share_{axis}": share for axis, share in zip(AXES, panel.shares, strict=False)}})
    return pd.DataFrame(rows)


def _tabulate(panels: Sequence[Panel]) -> "pd.DataFrame":
    """A row a mark: `run`, `what`, `id` (empty for a centre), `emotion`, and where it is."""
    import pandas as pd

    tables = []
    for panel in panels:
        own = panel.embeddings
        emotions = [own.emotions[label] for label in own.labels]
        marks = [("utterance", own.ids, emotions, panel.points)]
        if panel.centres is not None:
            marks.append((centre_name(panel.learned), [""] * len(own.emotions), own.emotions, panel.centres))
        for what, ids, names, points in marks:
            about = {"run": panel.name, "what": what, "id": ids, "emotion": names}
            tables.append(pd.DataFrame({**about, **dict(zip(AXES, points.T, strict=False))}))
    return pd.concat(tables, ignore_index=True)


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
    emotions = list(dict.fromkeys(emotion for panel in panels for emotion in panel.embeddings.emotions))
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


def _draw(axes: Any, panel: Panel, emotions: Sequence[str]) -> None:
    from fourm_ser.figures import class_style

    dims, looks = panel.points.shape[1], [emotions.index(emotion) for emotion in panel.embeddings.emotions]
    style: dict[str, Any] = {"s": 14, "alpha": 0.55, "linewidths": 0}
    if dims == 3:
        axes.computed_zorder = False  # centres stay in front, whatever the depth
        style["depthshade"] = False
    for label, look in enumerate(looks):
        colour, marker = class_style(look)
        points = panel.points[panel.embeddings.labels == label].T
        axes.scatter(*points, color=colour, marker=marker, label=emotions[look], **style)
    if panel.centres is not None:
        draw_centres(axes, zip(looks, panel.centres, strict=True), panel.learned, 90)
    shares = [f" ({100 * share:.0f}%)" for share in panel.shares] or [""] * dims
    if panel.shares:
        shares[0] = shares[0].replace("%", "% of variance")
    axes.set_title(panel.title, fontsize="medium", y=None if dims == 2 else 0.95)
    names = [f"{panel.axes} {number}{share}" for number, share in enumerate(shares, start=1)]
    axes.set_xlabel(names[0], fontsize="small")
    axes.set_ylabel(names[1], fontsize="small")
    axes.tick_params(labelsize="small" if dims == 2 else "x-small")
    if dims == 3:
        axes.set_zlabel(names[2], fontsize="small")
        axes.locator_params(nbins=5)
        axes.set_aspect("equal")
        axes.set_box_aspect(None, zoom=0.85)  # the third axis has its name outside the cube
    else:
        axes.set_aspect("equal", adjustable="datalim")
    if not panel.shares:  # numbers along an axis of t-SNE mean nothing
        axes.tick_params(labelbottom=False, labelleft=False)
        if dims == 3:
            axes.set(xticklabels=[], yticklabels=[], zticklabels=[])
    axes.grid(alpha=0.3)


def draw_centres(axes: "Axes", places: Iterable[tuple[int, np.ndarray]], learned: bool, size: float) -> None:
    """Class centres as large marks, with one entry in the legend.

    Args:
        axes: the axes to draw on.
        places: the number of each class, which chooses its look, and where its centre is, (dims,).
        learned: whether they are the loss's own class vectors, which are filled, not the classes' means.
        size: the marks' area.
    """
    from fourm_ser.figures import class_style

    style: dict[str, Any] = {"s": size, "linewidths": 1.8, "zorder": 4}
    for look, place in places:
        colour, marker = class_style(look)
        face, edge = (colour, "black") if learned else ("white", colour)
        axes.scatter(*place, color=face, edgecolors=edge, marker=marker, **style)
    face, edge = ("gray", "black") if learned else ("white", "gray")
    nowhere: list[list[float]] = [[]] * (3 if axes.name == "3d" else 2)
    axes.scatter(*nowhere, color=face, edgecolors=edge, label=centre_name(learned), **style)


def finished_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs under some folders.

    Raises:
        InputError: a folder without a run, or a run that has not finished.
    """
    collection = collect(list(folders))
    unfinished = [f"{run.path}: {run.state}: {run.why}." for run in collection.runs if run.state != "finished"]
    problems = [*collection.problems, *unfinished]
    if problems:
        raise InputError(f"{' '.join(problems)} Give finished runs, or sweeps of nothing else.")
    return collection.runs


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
    from fourm_ser.figures import save_figure
    from fourm_ser.runs.finished import OpenRun

    panels = []
    try:
        for run in finished_runs(given.folders):
            # A run that no command line started has no options.
            name = run.options.get(given.by, run.path.resolve().name)
            embeddings = read_embeddings(OpenRun(run.path, cache=given.cache))
            panels.append(make_panel(name, embeddings, plain=given.plain))
        save_figure(projection_figure(panels), given.output)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    print(given.output)


if __name__ == "__main__":
    main()
