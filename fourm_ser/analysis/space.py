"""The embedding space of a run: utterances and class centres in a plane, by emotion and by speaker."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import silhouette_samples

from fourm_ser.analysis.findings import Finding
from fourm_ser.analysis.projection import centre_name, draw_centres, read_embeddings
from fourm_ser.analysis.reduction import check_embeddings, class_means, neighbour_map, unit
from fourm_ser.figures import GREY, class_style, speaker_style
from fourm_ser.runs.finished import OpenRun

MOST_SPEAKERS = 12  # that colours and markers tell apart
SHOWN_SPEAKERS = 8  # of more than that: those with most utterances, for the others are grey


def space(run: OpenRun, side: str, seed: int) -> list[Finding]:
    """A run's embedding at unit length in a plane that keeps neighbours together, coloured by emotion and by speaker.

    The class centres, the loss's own or the classes' means, are embedded together with the utterances. UMAP draws the
    plane where the package umap-learn is there, t-SNE elsewhere; the finding says which.

    Raises:
        InputError: under ten utterances.
        UnsuitedError: the embeddings are all the same.
    """
    embeddings = read_embeddings(run, side)
    check_embeddings(embeddings.vectors, run.name, side)
    vectors, centres = unit(embeddings.vectors), embeddings.class_vectors
    learned = centres is not None
    if centres is None:
        centres = class_means(vectors, embeddings.labels, len(run.emotions))
    there = np.flatnonzero(np.isfinite(centres).all(1))
    points, how = neighbour_map(np.concatenate([vectors, unit(centres[there])]), seed)
    placed = dict(zip(there.tolist(), points[len(vectors) :], strict=True))
    frame = run.corpus.frame.iloc[run.corpus.rows(side)]
    utterances = pd.DataFrame(
        {
            "what": "utterance",
            "id": embeddings.ids,
            "emotion": [run.emotions[label] for label in embeddings.labels],
            "speaker": frame["speaker"].astype(str).to_numpy(),
            "x": points[: len(vectors), 0],
            "y": points[: len(vectors), 1],
            "silhouette_emotion": silhouettes(vectors, embeddings.labels),
            "silhouette_speaker": silhouettes(vectors, np.unique(frame["speaker"], return_inverse=True)[1]),
        }
    )
    name = centre_name(learned)
    marks = [
        {"what": name, "id": "", "emotion": run.emotions[label], "speaker": "", "x": point[0], "y": point[1]}
        for label, point in placed.items()
    ]
    table = pd.concat([utterances, pd.DataFrame(marks)], ignore_index=True)
    shown = _summary(utterances, embeddings.ratio, run.emotions)
    figure = space_figure(table, run.emotions, learned)
    caption, method = _words(utterances, embeddings.ratio, how, side, name, seed)
    alt = (
        "The same marks twice, an utterance each: coloured by emotion with the class centres as large marks, and "
        "coloured by speaker."
    )
    title = f"{run.name}: the embedding space ({how.split(',')[0]})"
    return [Finding("space", title, caption, table, figure, alt, shown, method)]


def silhouettes(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The silhouette (Rousseeuw 1987) of each vector (n, dim) under cosine distance, by labels (n,).

    Returns:
        (n,) from -1 to 1; NaN where there is one label, or as many as vectors.
    """
    if not 1 < len(np.unique(labels)) < len(labels):
        return np.full(len(labels), np.nan)
    return silhouette_samples(vectors.astype(np.float64), labels, metric="cosine")


def _summary(utterances: pd.DataFrame, ratio: float, emotions: Sequence[str]) -> pd.DataFrame:
    """Means of the silhouettes, over all utterances and of each emotion; the ratio is one number of all."""
    found = (
        pd.concat([utterances.assign(emotion="all"), utterances])
        .groupby("emotion")
        .agg(
            utterances=("id", "size"),
            speakers=("speaker", "nunique"),
            silhouette_emotion=("silhouette_emotion", "mean"),
            silhouette_speaker=("silhouette_speaker", "mean"),
        )
    )
    found.loc["all", "distance_ratio"] = ratio
    return found.loc[[emotion for emotion in ("all", *emotions) if emotion in found.index]].reset_index()


def _words(utterances: pd.DataFrame, ratio: float, how: str, side: str, name: str, seed: int) -> tuple[str, str]:
    """The caption, and how to read the figure."""
    by_emotion, by_speaker = (utterances[f"silhouette_{key}"].mean() for key in ("emotion", "speaker"))
    parts: dict[str, float] = utterances.groupby("emotion")["silhouette_emotion"].mean().to_dict()  # type: ignore[assignment]
    best, worst = max(parts, key=parts.__getitem__), min(parts, key=parts.__getitem__)
    method = (
        f"The embeddings of the {side} utterances at length 1, with each {name} among them, by {how} (seed {seed}). "
        "Neighbours stay together in it; distances between clusters, and their sizes, mean nothing. The silhouette is "
        "of the embedding itself, under cosine distance: 1 for groups far apart, 0 for groups that touch, less for "
        "utterances nearer to another group than to their own. The distance ratio is that of distances within classes "
        "to those between them."
    )
    if np.isfinite(by_emotion):
        words = (
            f"Silhouette by emotion {by_emotion:.2f}, from {parts[worst]:.2f} ({worst}) to {parts[best]:.2f} ({best})"
        )
        if np.isfinite(by_speaker):
            told = (
                "speakers are not what the embedding groups by"
                if by_speaker < min(by_emotion, 0.1)
                else "it groups by speaker as well, or by what differs between speakers"
                if by_speaker < by_emotion
                else "it groups by speaker more than by emotion"
            )
            words += f"; by speaker {by_speaker:.2f}: {told}. "
        else:
            words += "; by speaker there is none, for it takes two speakers who say more than one utterance. "
    else:
        words = "A silhouette takes two emotions, and there is one here. "
    words += f"Distance ratio {ratio:.3f}."
    speakers = utterances["speaker"].nunique()
    if speakers > MOST_SPEAKERS:
        method += f" Of {speakers} speakers the {SHOWN_SPEAKERS} with most utterances are coloured, the others grey."
    return words, method


def space_figure(table: pd.DataFrame, emotions: Sequence[str], learned: bool) -> Figure:
    """The plane by emotion with the class centres, and by speaker.

    Args:
        table: a table of `what` (`utterance`, or a centre), `emotion`, `speaker`, `x`, `y`.
        emotions: the classes in the order of their indices.
        learned: whether the centres are the loss's own class vectors, not the classes' means.
    """
    utterances, centres = table[table["what"] == "utterance"], table[table["what"] != "utterance"]
    figure = Figure(figsize=(10.4, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, emotion in enumerate(emotions):
        _scatter(left, utterances[utterances["emotion"] == emotion], class_style(index), emotion)
    looks = [emotions.index(emotion) for emotion in centres["emotion"]]
    draw_centres(left, zip(looks, centres[["x", "y"]].to_numpy(), strict=True), learned, 120)
    left.set_title("by emotion", fontsize="medium")

    counts = utterances["speaker"].value_counts()
    named = sorted(counts.index if len(counts) <= MOST_SPEAKERS else counts.index[:SHOWN_SPEAKERS])
    others = utterances[~utterances["speaker"].isin(named)]
    if len(others):
        number = others["speaker"].nunique()
        right.scatter(others["x"], others["y"], s=10, color=GREY, alpha=0.35, linewidths=0, label=f"{number} others")
    for number, speaker in enumerate(named):
        _scatter(right, utterances[utterances["speaker"] == speaker], speaker_style(number), speaker)
    right.set_title("by speaker", fontsize="medium")
    middle, reach = (table[["x", "y"]].max() + table[["x", "y"]].min()) / 2, np.ptp(table[["x", "y"]], axis=0).max()
    for axes in (left, right):
        axes.set_xlim(middle["x"] - 0.54 * reach, middle["x"] + 0.54 * reach)
        axes.set_ylim(middle["y"] - 0.54 * reach, middle["y"] + 0.54 * reach)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        entries = len(axes.get_legend_handles_labels()[0])
        columns = math.ceil(entries / math.ceil(entries / 5))
        where: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.02), "ncols": columns}
        axes.legend(fontsize="small", frameon=False, columnspacing=1.0, handletextpad=0.3, **where)
    return figure


def _scatter(axes: Axes, rows: pd.DataFrame, style: tuple[str, str], name: str) -> None:
    colour, marker = style
    axes.scatter(rows["x"], rows["y"], s=16, color=colour, marker=marker, alpha=0.6, linewidths=0, label=name)
