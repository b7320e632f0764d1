"""What a run's figures show, read back from where and in which colour it stands."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from fourm_ser.figures import confusion_figure, curves_figure, reliability_figure
from tests.drawn import Drawn, distance, lightness, marks, names, pixels, written

EMOTIONS = ["anger", "happiness", "sadness"]
COUNTS = np.array([[14, 5, 1], [2, 9, 9], [0, 0, 0]])


def test_a_cell_of_the_confusion_matrix_has_the_shade_and_count_of_its_label_and_prediction() -> None:
    figure = confusion_figure(COUNTS, EMOTIONS)
    drawn = Drawn(figure)
    axes, bar = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "label")
    columns, rows, numbers = names(axes.xaxis), names(axes.yaxis), written(axes)
    aside = 0.4 * (columns["happiness"] - columns["anger"])  # away from the numbers
    shades = {}
    for (row, label), (column, predicted) in product(enumerate(EMOTIONS), repeat=2):
        share = COUNTS[row, column] / max(COUNTS[row].sum(), 1)
        colour = drawn.colour(columns[predicted] + aside, rows[label] + aside)
        assert distance(colour, drawn.bar_colour(bar.yaxis, share)) < 0.03
        shades[share] = lightness(colour)
        assert numbers[label, predicted] == f"{COUNTS[row, column]}\n{100 * share:.0f}%"
    darker = [shades[share] for share in sorted(shades)]
    assert darker == sorted(darker, reverse=True)
    assert len(set(darker)) == len(shades) == 6


def test_training_curves_stand_at_their_epochs_and_values() -> None:
    generator = np.random.default_rng(0)
    stages = {
        name: pd.DataFrame(
            {
                "epoch": range(epochs),
                "train/loss": 1.4 - 0.2 * np.arange(epochs) / epochs,
                "val/loss": generator.uniform(1.0, 1.5, epochs),
                "val/ua": generator.uniform(0.2, 0.9, epochs),
                "val/wa": np.linspace(0.3, 0.8, epochs),
            }
        )
        for name, epochs in (("transfer", 6), ("finetune", 4))
    }
    figure = curves_figure(stages)
    Drawn(figure)
    grid = np.array(figure.axes).reshape(2, 2)
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["loss", "validation accuracy"]
    for (name, table), (losses, accuracies) in zip(stages.items(), grid.T, strict=True):
        assert losses.get_title() == name
        lines = {line.get_label(): line for axes in (losses, accuracies) for line in axes.lines}
        assert set(lines) == {"train/loss", "val/loss", "val/ua", "val/wa", "best UA"}
        for key, line in lines.items():
            rows = table.nlargest(1, "val/ua") if key == "best UA" else table
            values = rows["val/ua" if key == "best UA" else str(key)]
            assert line.axes is (losses if "loss" in str(key) else accuracies)
            expected = pixels(line.axes.xaxis, rows["epoch"].to_numpy()), pixels(line.axes.yaxis, values.to_numpy())
            assert marks(line) == pytest.approx(np.stack(expected, 1), abs=0.5)


def test_bars_of_the_reliability_diagram_are_as_high_as_the_accuracy_at_their_confidence() -> None:
    confidence = np.array([0.29, 0.31, 0.52, 0.53, 0.55, 0.56, 0.58, 0.84, 0.85, 0.95, 0.97, 0.99, 1.0])
    correct = np.array([0, 0, 1, 0, 0, 0, 0, 1, 0, 1, 1, 1, 1], dtype=bool)
    # The utterances of each fifteenth of the confidence, put in by hand.
    bins = {4: [0, 1], 7: [2, 3], 8: [4, 5, 6], 12: [7, 8], 14: [9, 10, 11, 12]}
    numbers = {
        place: (float(correct[own].mean()), float(confidence[own].mean()), len(own)) for place, own in bins.items()
    }
    figure = reliability_figure(confidence, correct, 0.123, 15)
    Drawn(figure)
    upper, lower = figure.axes
    bars = {round(15 * patch.get_x()): patch.get_window_extent() for patch in upper.patches}  # type: ignore[attr-defined]
    assert bars.keys() == numbers.keys()
    gaps = {tuple(np.round(marks(line)[:, 0])): marks(line) for line in upper.lines if len(marks(line))}
    for place, (accuracy, sure, _) in numbers.items():
        box = bars[place]
        assert [box.x0, box.x1] == pytest.approx(pixels(upper.xaxis, [place / 15, (place + 1) / 15]), abs=0.5)
        assert [box.y0, box.y1] == pytest.approx(pixels(upper.yaxis, [0.0, accuracy]), abs=0.5)
        x = pixels(upper.xaxis, sure)
        gap = gaps[round(float(x)), round(float(x))]
        assert gap[:, 1] == pytest.approx(pixels(upper.yaxis, [accuracy, sure]), abs=0.5)
    (diagonal,) = [marks(line) for line in upper.lines if line.get_label() == "calibrated"]
    assert diagonal == pytest.approx(
        np.stack([pixels(axis, [0, 1]) for axis in (upper.xaxis, upper.yaxis)], 1), abs=0.5
    )
    heights = [patch.get_window_extent().height for patch in lower.patches]
    zero = float(pixels(lower.yaxis, 0))
    counts = [numbers[place][2] if place in numbers else 0 for place in range(15)]
    assert heights == pytest.approx(pixels(lower.yaxis, [float(count) for count in counts]) - zero, abs=0.5)
    assert "0.123" in upper.get_title()
