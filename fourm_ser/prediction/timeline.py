"""The figure of an emotion along a recording."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from fourm_ser.figures import COLOURS
from fourm_ser.prediction.predictor import Moment

MINUTES = 120.0  # seconds from which the axis counts in minutes
STEPS = (15, 30, 60, 120, 300, 600, 1200, 1800, 3600)  # seconds between the axis's marks
HATCHES = ("", "//", "..", "\\\\", "xx")  # tell more classes apart than there are colours


def timeline_figure(moments: Sequence[Moment], emotions: Sequence[str]) -> Figure:
    """The probabilities of a recording's windows, stacked over time, and above them which emotion is the likeliest.

    Windows may overlap: each is drawn from half way to the one before to half way to the one behind. One without a
    prediction stays empty.
    """
    middles = np.array([(moment.start + moment.end) / 2 for moment in moments])
    edges = np.concatenate([[moments[0].start], (middles[1:] + middles[:-1]) / 2, [moments[-1].end]])
    seconds = edges[-1] - edges[0]
    missing = dict.fromkeys(emotions, np.nan)
    found = [missing if moment.prediction is None else moment.prediction.probabilities for moment in moments]
    shares = np.array([[window[emotion] for emotion in emotions] for window in found])

    figure = Figure(figsize=(float(np.clip(4.0 + 0.16 * len(shares), 7.0, 16.0)), 3.8))
    band, axes = figure.subplots(2, sharex=True, height_ratios=(1, 6), gridspec_kw={"hspace": 0.06})
    base = np.zeros(len(shares))
    for place, emotion in enumerate(emotions):
        top = base + np.nan_to_num(shares[:, place])
        axes.stairs(
            top, edges, baseline=base, fill=True, label=emotion, edgecolor="white", linewidth=0.0, **_face(place)
        )
        base = top
    for first, last, place in _stretches(shares):
        left, right = edges[first], edges[last + 1]
        band.stairs([1.0], [left, right], fill=True, edgecolor="white", linewidth=1.0, **_face(place))
        # About 11 letters an inch: a name that does not fit its stretch is left to the colour.
        width = figure.get_figwidth() * 0.72 * (right - left) / seconds
        if len(emotions[place]) < 11 * width:
            name = band.text((left + right) / 2, 0.5, emotions[place], ha="center", va="center", fontsize="small")
            name.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.2})
    band.set_yticks([])
    band.set_ylim(0.0, 1.0)
    band.set_ylabel("likeliest", rotation=0, ha="right", va="center")
    band.tick_params(bottom=False)
    for side in band.spines.values():
        side.set_visible(False)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0.0, 1.0)
    axes.set_ylabel("probability")
    minutes = edges[-1] >= MINUTES
    if minutes:
        step = next((step for step in STEPS if seconds / step <= 10), STEPS[-1])
        axes.xaxis.set_major_locator(MultipleLocator(step))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{int(value // 60)}:{int(value % 60):02d}"))
    axes.set_xlabel("time (min:s)" if minutes else "time (s)")
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], names[::-1], loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def _face(place: int) -> dict[str, str]:
    """How the class of an index looks."""
    hatch = HATCHES[place // len(COLOURS) % len(HATCHES)]
    return {"facecolor": COLOURS[place % len(COLOURS)], "hatch": hatch}


def _stretches(shares: np.ndarray) -> list[tuple[int, int, int]]:
    """First and last window of each stretch with the same likeliest class, and that class."""
    likeliest = [-1 if np.isnan(row).any() else int(row.argmax()) for row in shares]
    stretches = []
    for place, windows in groupby(range(len(likeliest)), key=likeliest.__getitem__):
        members = list(windows)
        if place >= 0:
            stretches.append((members[0], members[-1], place))
    return stretches
