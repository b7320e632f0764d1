"""What a run's figures show, read back from where and in which colour it stands."""

from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from fourm_ser.figures import CURVES, MASS, confusion_figure, curves_figure, mass_edges, reliability_figure, wilson
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
                "epoch": range(1, epochs + 1),
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
        assert set(lines) == {*CURVES.values(), "best UA"}
        assert all(float(tick).is_integer() for tick in losses.get_xticks())
        for key, line in [(key, lines[name]) for key, name in CURVES.items()] + [("best UA", lines["best UA"])]:
            rows = table.nlargest(1, "val/ua") if key == "best UA" else table
            values = rows["val/ua" if key == "best UA" else str(key)]
            assert line.axes is (losses if "loss" in str(key) else accuracies)
            expected = pixels(line.axes.xaxis, rows["epoch"].to_numpy()), pixels(line.axes.yaxis, values.to_numpy())
            assert marks(line) == pytest.approx(np.stack(expected, 1), abs=0.5)


def confident(number: int) -> tuple[np.ndarray, np.ndarray]:
    """So many predictions, and whether they are right: as often as they are sure."""
    generator = np.random.default_rng(number)
    confidence = generator.beta(4, 2, number)
    return confidence, generator.random(number) < confidence


def test_numbers_of_narrow_bins_cover_none_of_each_other() -> None:
    generator = np.random.default_rng(0)
    confidence = 1 - 0.6 * generator.beta(1, 12, 1200)
    figure = reliability_figure(confidence, generator.random(1200) < confidence, 0.05, 15)
    drawn = Drawn(figure)
    upper = figure.axes[0]
    boxes = [text.get_window_extent() for text in upper.texts]
    assert len(boxes) == 10
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2)), drawn
    assert max(box.y1 for box in boxes) <= upper.get_window_extent().y1


@pytest.mark.parametrize("number", [1, 13, 45, 400])
def test_the_reliability_diagram_shows_accuracy_interval_and_number_of_each_bin(number: int) -> None:
    confidence, correct = confident(number)
    figure = reliability_figure(confidence, correct, 0.123, 15, "demo, UA 50%")
    Drawn(figure)
    upper, lower = figure.axes
    edges = mass_edges(confidence)
    assert len(edges) - 1 <= max(3, number // MASS)
    intervals = [line for line in upper.lines if line.get_gid() == "interval"]
    points = [line for line in upper.lines if line.get_gid() == "accuracy"]
    assert len(upper.patches) == len(intervals) == len(points) == len(upper.texts)
    seen = 0
    for patch, interval, point, text in zip(upper.patches, intervals, points, upper.texts, strict=True):
        left, right = patch.get_x(), patch.get_x() + patch.get_width()  # type: ignore[attr-defined]
        right += 1.0 if patch is upper.patches[-1] else 0.0
        inside = (confidence >= left - 1e-9) & (confidence < right - 1e-9)
        accuracy, mean, count = correct[inside].mean(), confidence[inside].mean(), int(inside.sum())
        box = patch.get_window_extent()
        assert [box.y0, box.y1] == pytest.approx(pixels(upper.yaxis, [0.0, accuracy]), abs=0.5)
        assert marks(point)[0] == pytest.approx([pixels(upper.xaxis, mean), pixels(upper.yaxis, accuracy)], abs=0.5)
        low, high = proportion_ci(int(correct[inside].sum()), count)
        assert marks(interval)[:, 1] == pytest.approx(pixels(upper.yaxis, [low, high]), abs=0.5)
        assert text.get_text() == str(count)
        assert ((patch.get_alpha() or 1.0) < 1) == (count < MASS)
        seen += count
    assert seen == number
    (diagonal,) = [marks(line) for line in upper.lines if line.get_label() == "calibrated"]
    assert diagonal == pytest.approx(
        np.stack([pixels(axis, [0, 1]) for axis in (upper.xaxis, upper.yaxis)], 1), abs=0.5
    )
    counts = [((confidence * 15).astype(int) == place).sum() for place in range(15)]
    heights = [patch.get_window_extent().height for patch in lower.patches]
    zero = float(pixels(lower.yaxis, 0))
    assert heights == pytest.approx(pixels(lower.yaxis, [float(count) for count in counts]) - zero, abs=0.5)
    assert [text.get_text() for text in lower.texts] == [str(count) for count in counts if count]
    assert "0.123" in upper.get_title()
    assert figure.get_suptitle() == "demo, UA 50%"


def proportion_ci(hits: int, count: int) -> tuple[float, float]:
    """Wilson's interval by SciPy."""
    found = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def test_the_interval_of_a_share_is_wilson_s() -> None:
    for count in (1, 7, 100):
        for hits in (0, count // 2, count):
            assert wilson(hits / count, count) == pytest.approx(proportion_ci(hits, count), abs=1e-6)
