"""Figures of correlations between speech and text features."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fourm_ser.analysis.drawing import legend_below
from fourm_ser.figures import MARKERS, state_colour

BARS: dict[str, Any] = {"capsize": 2, "linewidth": 1.2}


def changes_figure(table: pd.DataFrame, places: Mapping[str, str]) -> Figure:
    """Changes of CKA with their intervals: a panel a place, a row an emotion, a mark a pair of states.

    The table has `features`, which `places` have names for, `from`, `to`, `emotion`, `change`, `low`, `high`.
    """
    emotions = list(dict.fromkeys(table["emotion"]))
    steps = list(dict.fromkeys(zip(table["from"], table["to"], strict=True)))
    states = list(dict.fromkeys([state for step in steps for state in step]))
    height = 0.28 * len(emotions) * (len(steps) + 1) + 1.5
    figure, panels = _panels(table, places, 4.6, height, sharex=True)
    for place, axes in panels.items():
        for number, (before, after) in enumerate(steps):
            rows = table[(table["features"] == place) & (table["from"] == before) & (table["to"] == after)]
            spots = [emotions.index(emotion) + _spread(number, len(steps)) for emotion in rows["emotion"]]
            # One stage's change has the colour of the state that it led to.
            one_stage = states.index(after) == states.index(before) + 1
            colour = state_colour(states.index(after)) if one_stage else "black"
            look = {"fmt": MARKERS[number % len(MARKERS)], "color": colour, "markersize": 4.5, **BARS}
            arms = _arms(rows, "change")
            axes.errorbar(rows["change"], spots, xerr=arms, label=f"from {before} to {after}", **look)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel("change of CKA (right: aligned more)", fontsize="small")
        _finish(axes, "x")
        for spot in range(1, len(emotions)):
            axes.axhline(spot - 0.5, color="0.85", linewidth=0.8)
    figure.axes[0].set_yticks(range(len(emotions)), emotions)
    figure.axes[0].set_ylim(len(emotions) - 0.5, -0.5)
    legend_below(figure, figure.axes[0], 1 if len(panels) == 1 else min(len(steps), 2))
    return figure


def emotions_figure(table: pd.DataFrame, places: Mapping[str, str], emotions: Sequence[str]) -> Figure:
    """Debiased CKA, and below it the first canonical correlation: a column a place, along it the emotions.

    The table has `features`, which `places` have names for, `state`, `emotion`, `measure`, `value`, `low`, `high`.
    """
    found = [place for place in places if (table["features"] == place).any()]
    states = list(dict.fromkeys(table["state"]))
    measures = {"cka": "debiased CKA"}
    if table[table["measure"] == "canonical_1"]["emotion"].nunique() > 1:
        measures["canonical_1"] = "first canonical\ncorrelation, held out"
    width = max(4.2, 1.0 * len(emotions) + 1.2)
    figure = Figure(figsize=(width * len(found), 2.6 * len(measures) + 0.8), layout="constrained")
    grid = figure.subplots(len(measures), len(found), squeeze=False, sharey="row", sharex=True)
    for row, (measure, name) in enumerate(measures.items()):
        for column, place in enumerate(found):
            axes = grid[row][column]
            for number, state in enumerate(states):
                chosen = (table["features"] == place) & (table["state"] == state) & (table["measure"] == measure)
                rows = table[chosen]
                spots = [emotions.index(emotion) + _spread(number, len(states)) for emotion in rows["emotion"]]
                look = {"fmt": MARKERS[number % len(MARKERS)], "color": state_colour(number), "markersize": 5, **BARS}
                axes.errorbar(spots, rows["value"], yerr=_arms(rows, "value"), label=state, **look)
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set_xticks(range(len(emotions)), emotions, rotation=25, ha="right")
            axes.set_xlim(-0.6, len(emotions) - 0.4)
            _finish(axes, "y")
            if row == 0:
                axes.set_title(places[place], fontsize="medium")
        grid[row][0].set_ylabel(name, fontsize="small")
    legend_below(figure, grid[0][0], len(states))
    return figure


def canonical_figure(table: pd.DataFrame, places: Mapping[str, str]) -> Figure:
    """Canonical correlations by pair: held out as lines with their intervals shaded, fitted ones dotted.

    The table has `features`, which `places` have names for, `state`, `pair`, `fitted`, `held_out`, `low`, `high`.
    """
    figure, panels = _panels(table, places, 4.6, 3.7)
    for place, axes in panels.items():
        for number, state in enumerate(dict.fromkeys(table["state"])):
            rows = table[(table["features"] == place) & (table["state"] == state)]
            colour, marker = state_colour(number), MARKERS[number % len(MARKERS)]
            axes.fill_between(rows["pair"], rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0)
            axes.plot(rows["pair"], rows["held_out"], "-", marker=marker, color=colour, markersize=4, label=state)
            axes.plot(rows["pair"], rows["fitted"], ":", color=colour, linewidth=1.2)
        axes.plot([], [], ":", color="0.3", label="fitted to (not held out)")
        axes.axhline(0, color="black", linewidth=0.8)
        axes.locator_params("x", integer=True)
        axes.set_xlabel("canonical pair", fontsize="small")
        axes.set_ylim(top=1.02)
        _finish(axes, "y")
    figure.axes[0].set_ylabel("correlation, held out", fontsize="small")
    legend_below(figure, figure.axes[0], 4 if len(panels) > 1 else 2)
    return figure


def retrieval_figure(table: pd.DataFrame, places: Mapping[str, str], counts: Sequence[int]) -> Figure:
    """Recall at several ranks, a bar a state, with a dash at chance.

    The table has `features`, which `places` have names for, `state`, and for each of the ranks up to which an utterance
    counts as found `recall@`, `low@`, `high@` and `chance_recall@`.
    """
    states = list(dict.fromkeys(table["state"]))
    figure, panels = _panels(table, places, 4.4, 3.5)
    width = 0.8 / len(states)
    for place, axes in panels.items():
        for number, state in enumerate(states):
            chosen = table[(table["features"] == place) & (table["state"] == state)]
            if not len(chosen):
                continue
            spots = np.arange(len(counts)) + (number - (len(states) - 1) / 2) * width
            heights, low, high, chance = (
                chosen[[f"{what}@{count}" for count in counts]].to_numpy(float)[0]
                for what in ("recall", "low", "high", "chance_recall")
            )
            bars: dict[str, Any] = {"capsize": 2, "error_kw": {"linewidth": 1}, "label": state}
            arms = np.maximum([heights - low, high - heights], 0)
            axes.bar(spots, heights, 0.92 * width, yerr=arms, color=state_colour(number), **bars)
            axes.hlines(chance, spots - width / 2, spots + width / 2, color="black", linewidth=1.6)
        axes.hlines([], [], [], color="black", linewidth=1.6, label="chance")
        axes.set_xticks(range(len(counts)), [f"recall@{count}" for count in counts])
        axes.set_ylim(bottom=0)
        _finish(axes, "y")
    figure.axes[0].set_ylabel("share of utterances", fontsize="small")
    legend_below(figure, figure.axes[0], 4 if len(panels) > 1 else 2)
    return figure


def heat_figure(table: pd.DataFrame, places: Mapping[str, str]) -> Figure:
    """Sizes of Pearson correlations between principal components: a row a place, a column a state.

    The table has `features`, which `places` have names for, `state`, `text_component`, `audio_component`, `r`.
    """
    found = [place for place in places if (table["features"] == place).any()]
    states = list(dict.fromkeys(table["state"]))
    figure = Figure(figsize=(2.7 * len(states) + 1.0, 2.7 * len(found) + 0.3), layout="constrained")
    grid = figure.subplots(len(found), len(states), squeeze=False)
    top = max(0.5, float(np.ceil(10 * np.nan_to_num(table["r"].abs()).max()) / 10))
    for place, line in zip(found, grid, strict=True):
        for state, axes in zip(states, line, strict=True):
            rows = table[(table["features"] == place) & (table["state"] == state)]
            square = rows.pivot(index="text_component", columns="audio_component", values="r").abs()
            image = axes.imshow(square, cmap="Blues", vmin=0, vmax=top)
            axes.set_xticks(range(square.shape[1]), [str(number) for number in square.columns])
            axes.set_yticks(range(square.shape[0]), [str(number) for number in square.index])
            axes.tick_params(labelsize="x-small", length=2)
            for (row, column), value in np.ndenumerate(square.to_numpy()):
                if value >= 0.25:
                    colour = "white" if value > 0.6 * top else "black"
                    axes.text(column, row, f"{value:.1f}"[1:], ha="center", va="center", fontsize=6, color=colour)
            axes.set_title(f"{places[place]}\n{state}", fontsize="small")
            axes.set_xlabel("speech component", fontsize="x-small")
            axes.set_ylabel("text component", fontsize="x-small")
    bar = figure.colorbar(image, ax=grid, fraction=0.03)
    bar.set_label("size of Pearson's r", fontsize="small")
    bar.ax.tick_params(labelsize="small")
    return figure


def _panels(
    table: pd.DataFrame, places: Mapping[str, str], width: float, height: float, sharex: bool = False
) -> tuple[Figure, dict[str, Axes]]:
    """A figure and its panels, so many inches wide each, one for each place that the table has."""
    found = [place for place in places if (table["features"] == place).any()]
    figure = Figure(figsize=(width * len(found), height), layout="constrained")
    grid = figure.subplots(1, len(found), squeeze=False, sharex=sharex, sharey=True)[0]
    for axes, place in zip(grid, found, strict=True):
        axes.set_title(places[place], fontsize="medium")
    return figure, dict(zip(found, grid, strict=True))


def _spread(number: int, count: int) -> float:
    """How far the mark of one of several things stands from the middle of its slot."""
    return 0.0 if count == 1 else 0.5 * (number / (count - 1) - 0.5)


def _arms(rows: pd.DataFrame, value: str) -> np.ndarray:
    """The lengths of error bars, (2, rows)."""
    arms = np.array([rows[value] - rows["low"], rows["high"] - rows[value]])
    return np.maximum(arms, 0)


def _finish(axes: Axes, grid: Any) -> None:
    axes.grid(axis=grid, alpha=0.3)
    axes.tick_params(labelsize="small")
