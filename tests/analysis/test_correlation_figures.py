"""What the figures of correlations show, read back from where and in which colour it stands."""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.container import BarContainer, ErrorbarContainer

from fourm_ser.analysis.correlation_figures import (
    canonical_figure,
    changes_figure,
    emotions_figure,
    heat_figure,
    retrieval_figure,
)
from tests.drawn import Drawn, distance, lightness, marks, names, pixels, written

PLACES = {"encoders": "behind the encoders", "fusion": "within the fusion"}
STATES = ["before training", "after transfer", "after finetune"]
EMOTIONS = ["all", "anger", "sadness"]


def with_arms(rows: list[dict[str, object]], value: str) -> pd.DataFrame:
    """Rows with made-up numbers from -0.6 to 0.8 and unlike arms on their two sides."""
    generator = np.random.default_rng(0)
    table = pd.DataFrame(rows)
    table[value] = generator.uniform(-0.6, 0.8, len(table))
    table["low"] = table[value] - generator.uniform(0.02, 0.1, len(table))
    table["high"] = table[value] + generator.uniform(0.1, 0.2, len(table))
    return table


def error_bars(axes: Axes) -> dict[str, tuple[np.ndarray, list[np.ndarray]]]:
    """The marks of each label, and the two ends of the bar through each of them, in pixels."""
    found = {}
    for container in axes.containers:
        if isinstance(container, ErrorbarContainer):
            points, _, (bars,) = container.lines
            assert points is not None
            ends = [bars.get_transform().transform(segment) for segment in bars.get_segments()]
            found[str(container.get_label())] = marks(points), ends
    return found


def test_changes_stand_on_their_side_of_zero_in_their_emotion_s_row() -> None:
    steps = [(STATES[0], STATES[1]), (STATES[1], STATES[2]), (STATES[0], STATES[2])]
    table = with_arms(
        [
            {"features": place, "from": before, "to": after, "emotion": emotion}
            for place, (before, after), emotion in product(PLACES, steps, EMOTIONS)
        ],
        "change",
    )
    figure = changes_figure(table, PLACES)
    Drawn(figure)
    rows = names(figure.axes[0].yaxis)
    assert rows["all"] > rows["anger"] > rows["sadness"]
    for axes, (place, title) in zip(figure.axes, PLACES.items(), strict=True):
        assert axes.get_title() == title
        assert "right: aligned more" in axes.get_xlabel()
        found = error_bars(axes)
        for before, after in steps:
            points, ends = found[f"from {before} to {after}"]
            own = table[(table["features"] == place) & (table["from"] == before) & (table["to"] == after)]
            assert points[:, 0] == pytest.approx(pixels(axes.xaxis, own["change"].to_numpy()), abs=0.5)
            assert [min(rows, key=lambda name: abs(rows[name] - y)) for y in points[:, 1]] == list(own["emotion"])
            for end, low, high, y in zip(ends, own["low"], own["high"], points[:, 1], strict=True):
                assert end[:, 0] == pytest.approx(pixels(axes.xaxis, [low, high]), abs=0.5)
                assert end[:, 1] == pytest.approx([y, y], abs=0.5)


def test_measures_stand_at_their_height_over_their_emotion() -> None:
    table = with_arms(
        [
            {"features": place, "state": state, "emotion": emotion, "measure": measure}
            for place, state, emotion, measure in product(PLACES, STATES, EMOTIONS, ("cka", "canonical_1"))
        ],
        "value",
    )
    figure = emotions_figure(table, PLACES, EMOTIONS)
    Drawn(figure)
    grid = np.array(figure.axes).reshape(2, 2)
    assert [axes.get_title() for axes in grid[0]] == list(PLACES.values())
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["debiased CKA", "first canonical\ncorrelation, held out"]
    for (row, measure), (column, place) in product(enumerate(("cka", "canonical_1")), enumerate(PLACES)):
        axes = grid[row, column]
        columns, found = names(axes.xaxis), error_bars(axes)
        for state in STATES:
            chosen = (table["features"] == place) & (table["state"] == state) & (table["measure"] == measure)
            own, (points, ends) = table[chosen], found[state]
            assert points[:, 1] == pytest.approx(pixels(axes.yaxis, own["value"].to_numpy()), abs=0.5)
            assert [min(columns, key=lambda name: abs(columns[name] - x)) for x in points[:, 0]] == list(own["emotion"])
            for end, low, high in zip(ends, own["low"], own["high"], strict=True):
                assert end[:, 1] == pytest.approx(pixels(axes.yaxis, [low, high]), abs=0.5)


def test_canonical_correlations_stand_at_their_pair_and_height() -> None:
    table = with_arms(
        [
            {"features": place, "state": state, "pair": pair}
            for place, state, pair in product(PLACES, STATES, range(1, 7))
        ],
        "held_out",
    )
    table["fitted"] = 1.0 - 0.1 * table["pair"] + 0.02 * table["state"].map(STATES.index)
    figure = canonical_figure(table, PLACES)
    Drawn(figure)
    for axes, (place, title) in zip(figure.axes, PLACES.items(), strict=True):
        assert axes.get_title() == title
        held_out = {str(line.get_label()): line for line in axes.lines if line.get_linestyle() == "-"}
        fitted = {
            str(line.get_color()): line for line in axes.lines if line.get_linestyle() == ":" and len(marks(line))
        }
        for state, shade in zip(STATES, axes.collections, strict=True):
            own = table[(table["features"] == place) & (table["state"] == state)]
            x = pixels(axes.xaxis, own["pair"].to_numpy())
            line = held_out[state]
            for key, drawn in (("held_out", line), ("fitted", fitted[str(line.get_color())])):
                assert marks(drawn) == pytest.approx(np.stack([x, pixels(axes.yaxis, own[key].to_numpy())], 1), abs=0.5)
            assert distance(np.asarray(shade.get_facecolor())[0, :3], str(line.get_color())) < 0.01
            outline = shade.get_transform().transform(shade.get_paths()[0].vertices)
            for at, low, high in zip(x, own["low"], own["high"], strict=True):
                heights = outline[np.abs(outline[:, 0] - at) < 0.5, 1]
                assert [heights.min(), heights.max()] == pytest.approx(pixels(axes.yaxis, [low, high]), abs=0.5)


def test_bars_of_retrieval_are_as_high_as_the_recall() -> None:
    counts = [1, 5, 10]
    generator = np.random.default_rng(1)
    rows = []
    for place, state in product(PLACES, STATES):
        row: dict[str, object] = {"features": place, "state": state}
        for count, recall in zip(counts, np.sort(generator.uniform(0.1, 0.4, 3)), strict=True):
            row |= {f"recall@{count}": recall, f"low@{count}": recall - 0.03, f"high@{count}": recall + 0.07}
            row[f"chance_recall@{count}"] = 0.01 * count
        rows.append(row)
    table = pd.DataFrame(rows)
    figure = retrieval_figure(table, PLACES, counts)
    Drawn(figure)
    for axes, place in zip(figure.axes, PLACES, strict=True):
        assert axes.get_title() == PLACES[place]
        slots, found = names(axes.xaxis), dict[str, Any]()
        for container in axes.containers:
            if isinstance(container, BarContainer):
                found[str(container.get_label())] = container
        dashes = [part for part in axes.collections if isinstance(part, LineCollection)]
        chances = np.concatenate([part.get_transform().transform(s) for part in dashes for s in part.get_segments()])
        for state in STATES:
            own = table[(table["features"] == place) & (table["state"] == state)].iloc[0]
            bars = found[state]
            (arms,) = bars.errorbar.lines[2]
            for count, patch, arm in zip(counts, bars.patches, arms.get_segments(), strict=True):
                box = patch.get_window_extent()
                middle = (box.x0 + box.x1) / 2
                assert min(slots, key=lambda name: abs(slots[name] - middle)) == f"recall@{count}"
                assert [box.y0, box.y1] == pytest.approx(pixels(axes.yaxis, [0.0, own[f"recall@{count}"]]), abs=0.5)
                ends = arms.get_transform().transform(arm)[:, 1]
                assert ends == pytest.approx(pixels(axes.yaxis, [own[f"low@{count}"], own[f"high@{count}"]]), abs=0.5)
                chance = chances[np.abs(chances[:, 0] - box.x0) < 3]
                assert np.abs(chance[:, 1] - pixels(axes.yaxis, 0.01 * count)).min() < 0.5


def test_a_cell_of_components_is_the_darker_the_larger_its_correlation() -> None:
    generator = np.random.default_rng(2)
    table = pd.DataFrame(
        [
            {"features": place, "state": state, "text_component": text, "audio_component": audio}
            for place, state, text, audio in product(PLACES, STATES[:2], (1, 2, 3), (1, 2, 3, 4))
        ]
    )
    table["r"] = generator.uniform(-0.7, 0.7, len(table))
    figure = heat_figure(table, PLACES)
    drawn = Drawn(figure)
    *panels, bar = figure.axes
    for axes, (place, state) in zip(panels, product(PLACES, STATES[:2]), strict=True):
        assert axes.get_title() == f"{PLACES[place]}\n{state}"
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("speech component", "text component")
        columns, rows = names(axes.xaxis), names(axes.yaxis)
        aside = 0.4 * (columns["2"] - columns["1"])
        numbers = written(axes)
        shades = []
        for row in table[(table["features"] == place) & (table["state"] == state)].itertuples():
            x, y, size = columns[str(row.audio_component)], rows[str(row.text_component)], abs(float(row.r))  # type: ignore[arg-type]
            colour = drawn.colour(x + aside, y + aside)
            assert distance(colour, drawn.bar_colour(bar.yaxis, size)) < 0.03
            shades.append((size, lightness(colour)))
            text = numbers.get((str(row.text_component), str(row.audio_component)))
            assert text == (f"{size:.1f}"[1:] if size >= 0.25 else None)
        order = [shade for _, shade in sorted(shades)]
        assert order == sorted(order, reverse=True)
