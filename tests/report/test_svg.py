"""The report's figures show the numbers that they are given."""

import math

import numpy as np
import pytest

from fourm_ser.report.svg import Grid, bars, curves, heat_map, interval_plot
from tests.report.drawn import read_bars, read_curves, read_heat_map, read_points

SHADE = np.array([[0.0, 0.35, 1.0], [0.8, math.nan, 0.1]])
TEXTS = [[["11", "± 1"], ["12"], ["13"]], [["21"], ["-"], ["23", "± 2"]]]


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (["tiny", "bert"], ["ce", "focal", "center"]),
        (["a name of a row that is long", "another"], ["ce", "focal", "a loss with a long name"]),
    ],
    ids=["short", "long"],
)
def test_a_cell_of_a_heat_map_stands_at_its_names_and_is_the_stronger_the_larger(
    rows: list[str], columns: list[str]
) -> None:
    cells = read_heat_map(heat_map(Grid(rows, columns, SHADE, TEXTS, {(1, 0)}), "alt"), rows, columns)
    strengths = []
    for (row, column), shade in np.ndenumerate(SHADE):
        cell = cells[rows[row], columns[column]]
        assert cell.lines == TEXTS[row][column]
        assert cell.framed == ((row, column) == (1, 0))
        assert (cell.strength is None) == math.isnan(shade)
        if cell.strength is not None:
            strengths.append((shade, cell.strength))
    shades, opacities = np.array(sorted(strengths)).T
    assert (np.diff(opacities) > 0.02).all()
    assert np.diff(opacities) / np.diff(shades) == pytest.approx(np.full(4, opacities[-1] - opacities[0]), rel=0.05)


def test_effects_stand_on_their_side_of_zero() -> None:
    groups = {
        "encoder": [("tiny", -3.2, -4.0, -2.4), ("bert", 3.2, 2.4, 4.0)],
        "loss": [("ce", -0.4, -1.5, 0.7), ("focal", 0.4, math.nan, math.nan)],
    }
    found = read_points(interval_plot(groups, "points", "alt"), ["tiny", "bert", "ce", "focal"])
    for rows in groups.values():
        for name, *numbers in rows:
            assert found[name] == pytest.approx(numbers, abs=0.03, nan_ok=True)


def test_bars_are_as_long_as_their_seconds() -> None:
    rows = [("big", {"transfer": 30.0, "finetune": 90.0}), ("small", {"transfer": 12.0}), ("odd", {"finetune": 45.0})]
    found = read_bars(bars(rows, "alt"), [name for name, _ in rows])
    longest = sum(width for _, _, width in found["big"])
    for name, shares in rows:
        assert [part for part, _, _ in found[name]] == list(shares)
        begun = 0.0
        for seconds, (_, start, width) in zip(shares.values(), found[name], strict=True):
            assert [start, width] == pytest.approx([longest * begun / 120, longest * seconds / 120], abs=0.11)
            begun += seconds


@pytest.mark.parametrize("limits", [None, (0.0, 1.0)])
def test_curves_stand_at_their_epochs_and_values(limits: tuple[float, float] | None) -> None:
    generator = np.random.default_rng(0)
    runs = [(list(range(1, n + 1)), generator.uniform(0.1, 0.9, n).tolist()) for n in (8, 6)]
    alone = (list(range(1, 9)), np.linspace(0.95, 0.05, 8).tolist())
    image = curves([("several", runs), ("alone", [alone])], [("transfer", 1.0), ("finetune", 5.0)], "alt", limits)
    found = read_curves(image)
    mean = runs[1][0], np.mean([runs[0][1][:6], runs[1][1]], axis=0)
    for name, expected in (("several", [*runs, mean]), ("alone", [alone])):
        assert len(found[name]) == len(expected)
        for points, numbers in zip(found[name], expected, strict=True):
            assert points[:, 0] == pytest.approx(numbers[0], abs=0.02)
            assert points[:, 1] == pytest.approx(numbers[1], abs=0.01)  # the axis's numbers have two digits
