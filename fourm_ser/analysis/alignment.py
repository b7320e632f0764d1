"""How near an utterance's speech and text features lie in the fusion, by emotion, under several runs."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fourm_ser.analysis.drawing import legend_below
from fourm_ser.analysis.findings import Finding, UnsuitedError
from fourm_ser.errors import InputError
from fourm_ser.figures import line_style
from fourm_ser.models.inference import Outputs
from fourm_ser.runs.finished import OpenRun

MEASURES = {"cosine": "cosine similarity", "distance": "Euclidean distance"}
WINDOW_SHARE = 0.1  # of an emotion's utterances: smooth lines that still show ten stretches
LEAST_WINDOW = 5  # utterances: the mean of fewer smooths nothing


def alignment(runs: list[OpenRun], side: str) -> list[Finding]:
    """Similarity and distance between the speech and text features of each utterance, a line a run.

    The features are those that a fusion hands on, pooled over time: text and speech brought to one width and
    normalised, as the 4M-SER study compares losses by them.

    Raises:
        InputError: runs of other utterances, or labels, than the first.
        UnsuitedError: no run has two such sequences.
    """
    names = names_of(runs)
    left_out, used = [], []
    for name, run in zip(names, runs, strict=True):
        widths = run.network.fusion.widths
        if {"text", "audio"} - set(widths):
            left_out.append(f"{name} (its fusion reads {' and '.join(run.network.by_modality)} alone)")
        elif widths["text"] != widths["audio"]:
            text, audio = widths["text"], widths["audio"]
            left_out.append(f"{name} (its fusion leaves text {text} and speech {audio} wide)")
        else:
            features = run.features(run.trained, side)
            if all(np.array_equal(features.fused[key], features.encoded[key]) for key in ("text", "audio")):
                left_out.append(f"{name} (its fusion hands the encoders' features on as they are, in no common space)")
            else:
                used.append((name, run, features))
    if not used:
        raise UnsuitedError(
            f"No run has speech and text features of one width and space to compare: {'; '.join(left_out)}."
        )
    tables = [similarities(name, run, features) for name, run, features in used]
    _check_same(used, tables, side)
    table = pd.concat(tables, ignore_index=True)
    sizes = tables[0]["emotion"].value_counts()
    windows = {emotion: window_of(int(sizes[emotion])) for emotion in used[0][1].emotions if emotion in sizes}
    shown = _summary(table, list(windows))
    caption, method = _words(used, shown, windows, left_out)
    alt = (
        "A column an emotion; above, cosine similarity of speech and text features along the emotion's utterances, "
        "below, their Euclidean distance; a smoothed line a run."
    )
    title = f"Speech and text features within the fusion ({side})"
    figure = alignment_figure(table, windows)
    return [Finding("alignment", title, caption, table, figure, alt, shown, method)]


def names_of(runs: Sequence[OpenRun]) -> list[str]:
    """What each run is called; runs of the same name go by their folders.

    Raises:
        InputError: a run is given twice.
    """
    counts = Counter(run.name for run in runs)
    names = [run.name if counts[run.name] == 1 else str(run.run_dir) for run in runs]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]} is given twice: give each run once, or a name of its own.")
    return names


def similarities(name: str, run: OpenRun, features: Outputs) -> pd.DataFrame:
    """Cosine similarity and Euclidean distance of each utterance's speech and text features, in manifest order.

    Returns:
        `run`, `id`, `emotion`, `cosine`, `distance`.
    """
    text, audio = (features.fused[modality].astype(np.float64) for modality in ("text", "audio"))
    lengths = np.linalg.norm(text, axis=1) * np.linalg.norm(audio, axis=1)
    return pd.DataFrame(
        {
            "run": name,
            "id": run.corpus.frame["id"].to_numpy()[features.rows],
            "emotion": [run.emotions[label] for label in features.labels],
            "cosine": (text * audio).sum(1) / np.maximum(lengths, np.finfo(np.float64).tiny),
            "distance": np.linalg.norm(text - audio, axis=1),
        }
    )


def window_of(count: int) -> int:
    """Width of the moving average over an emotion's utterances: a tenth of them, odd, 5 at least."""
    window = max(LEAST_WINDOW, round(WINDOW_SHARE * count))
    return window + 1 - window % 2


def _check_same(used: Sequence[tuple[str, OpenRun, Outputs]], tables: Sequence[pd.DataFrame], side: str) -> None:
    """Refuse runs of other utterances than the first."""
    first, reference, _ = used[0]
    ids, emotions = tables[0]["id"].tolist(), tables[0]["emotion"].tolist()
    for (name, run, _), own in zip(used, tables, strict=True):
        if own["id"].tolist() != ids:
            shared = len(set(own["id"]) & set(ids))
            raise InputError(
                f"side={side}: {first} has {len(ids)} utterances of {reference.corpus.name} there and {name} "
                f"{len(own)} of {run.corpus.name}, of which {shared} are the same. Alignment compares runs on the "
                "same utterances: give runs of one corpus, split and fold."
            )
        if own["emotion"].tolist() != emotions:
            raise InputError(
                f"side={side}: {first} and {name} label the same utterances with other emotions. Alignment compares "
                "runs of one data.label_map."
            )


def _summary(table: pd.DataFrame, emotions: Sequence[str]) -> pd.DataFrame:
    """Mean and standard deviation by run and emotion."""
    wanted = {f"{measure}_{how}": (measure, how) for measure in MEASURES for how in ("mean", "std")}
    found = table.groupby(["run", "emotion"]).agg(utterances=("id", "size"), **wanted)
    order = pd.MultiIndex.from_product([table["run"].unique(), emotions], names=["run", "emotion"])
    return found.reindex(order).reset_index()


def _words(
    used: Sequence[tuple[str, OpenRun, Outputs]], shown: pd.DataFrame, windows: dict[str, int], left_out: Sequence[str]
) -> tuple[str, str]:
    """The caption, and how to read the figure."""
    told = []
    for run, part in shown.groupby("run", sort=False):
        ordered = part.sort_values("cosine_mean")[["emotion", "cosine_mean"]].to_numpy()
        (lowest, low), (highest, high) = ordered[0], ordered[-1]
        told.append(f"{run} from {low:.2f} ({lowest}) to {high:.2f} ({highest})")
    spans = ", ".join(f"{window} for {emotion}" for emotion, window in windows.items())
    if len(set(windows.values())) == 1:
        spans = str(next(iter(windows.values())))
    caption = f"Mean cosine over an emotion: {'; '.join(told)}."
    method = (
        "Each utterance's text and speech features as the fusion normalises them, averaged over time, compared with "
        "each other: the nearer the cosine is to 1 and the smaller the distance, the closer the modalities lie. Lines "
        "are centred moving averages over the utterances of an emotion in manifest order (utterances in the window: "
        f"{spans}; fewer at the ends); the thick mark at the right is the mean."
    )
    widths = {name: run.network.fusion.widths["text"] for name, run, _ in used}
    if len(set(widths.values())) > 1:
        each = ", ".join(f"{name} {width}" for name, width in widths.items())
        method += f" Distances grow with the width of the features, which differs ({each}): compare their cosines."
    if left_out:
        caption += f" Left out: {'; '.join(left_out)}."
    return caption, method


def alignment_figure(table: pd.DataFrame, windows: Mapping[str, int]) -> Figure:
    """Smoothed similarity and distance along the utterances: a column an emotion, a row a measure, a line a run.

    The table has the rows of `similarities`, and `windows` how many utterances each emotion's moving average is over.
    """
    runs = list(dict.fromkeys(table["run"]))
    figure = Figure(figsize=(max(2.5 * len(windows), 5.0) + 0.5, 5.2), layout="constrained")
    grid = figure.subplots(len(MEASURES), len(windows), squeeze=False, sharex="col", sharey="row")
    for column, (emotion, window) in enumerate(windows.items()):
        for row, measure in enumerate(MEASURES):
            axes = grid[row][column]
            for index, run in enumerate(runs):
                values = table[(table["run"] == run) & (table["emotion"] == emotion)][measure]
                colour, style = line_style(index)
                smooth = values.rolling(window, center=True, min_periods=1).mean()
                axes.plot(np.arange(1, len(values) + 1), smooth, style, color=colour, linewidth=1.4, label=run)
                axes.axhline(values.mean(), xmin=0.96, color=colour, linewidth=3)
            axes.grid(alpha=0.3)
            axes.tick_params(labelsize="small")
            axes.xaxis.get_major_locator().set_params(integer=True)
        grid[0][column].set_title(emotion, fontsize="medium")
        grid[-1][column].set_xlabel("utterance of the emotion", fontsize="small")
    for row, name in enumerate(MEASURES.values()):
        grid[row][0].set_ylabel(name, fontsize="small")
    legend_below(figure, grid[0][0], min(len(runs), max(2, len(windows))))
    return figure
