"""The report's figures are of the runs: read back from their SVG, and compared with what the run directories hold."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fourm_ser.report.cells import Section, make_sections
from fourm_ser.report.drawings import confusion_map, effects_figure, heat_maps, recall_map, time_figure, training_curves
from fourm_ser.report.significance import read_predictions
from fourm_ser.runs.collect import collect
from tests.report.drawn import Heat, read_bars, read_curves, read_heat_map, read_points
from tests.report.runs import EMOTIONS, write_sweep

FOLDS = 2
ENCODERS, LOSSES = ["tiny", "bert_vggish"], ["ce", "focal"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_sweep(folder, ENCODERS, LOSSES, folds=FOLDS, utterances=80)
    return folder


@pytest.fixture(scope="module")
def section(sweep: Path) -> Section:
    (found,), _ = make_sections(collect([sweep]).runs)
    return found


@pytest.fixture(scope="module")
def numbers(sweep: Path) -> pd.DataFrame:
    """Means over the folds, a row an encoder and loss."""
    rows = [
        {
            "encoder": encoder,
            "loss": loss,
            **json.loads((sweep / f"{encoder}-{loss}-0-{fold}/metrics.json").read_text()),
        }
        for encoder in ENCODERS
        for loss in LOSSES
        for fold in range(FOLDS)
    ]
    return pd.DataFrame(rows).groupby(["encoder", "loss"]).mean(numeric_only=True)


def check_order(cells: list[tuple[float, Heat]]) -> None:
    """The larger a number, the stronger its colour."""
    by_number = sorted((number, cell.strength or 0.0) for number, cell in cells)
    assert len({round(number, 6) for number, _ in by_number}) > 1
    for (number, strength), (larger, stronger) in itertools.pairwise(by_number):
        assert stronger > strength or larger - number < 2e-3 * (by_number[-1][0] - by_number[0][0])


def test_heat_maps_show_the_mean_of_each_cell(section: Section, numbers: pd.DataFrame) -> None:
    for figure, metric in zip(heat_maps(section), ("ua", "wa"), strict=True):
        assert figure.title == f"Test {metric.upper()}"
        means = numbers[f"test/{metric}"]
        cells = read_heat_map(figure.image, ENCODERS, LOSSES)
        for place, cell in cells.items():
            assert cell.lines[0] == f"{100 * means[place]:.2f}"
            assert cell.framed == (means[place] == means.max())
        check_order([(means[place], cell) for place, cell in cells.items()])
        assert cells[means.idxmax()].strength > 2 * cells[means.idxmin()].strength  # type: ignore[operator, index]


def test_effects_are_distances_from_the_mean(section: Section, numbers: pd.DataFrame) -> None:
    figures, _ = effects_figure(section)
    for figure, metric in zip(figures, ("ua", "wa"), strict=True):
        points = read_points(figure.image, [*ENCODERS, *LOSSES])
        means = 100 * numbers[f"test/{metric}"]
        for axis in ("encoder", "loss"):
            for value, effect in (means.groupby(axis).mean() - means.mean()).items():
                found, low, high = points[str(value)]
                assert found == pytest.approx(effect, abs=0.1)
                assert low <= found <= high


def test_recalls_are_those_of_each_cell_and_class(section: Section, numbers: pd.DataFrame) -> None:
    (figure,) = recall_map(section, "ua")
    order = numbers.sort_values("test/ua", ascending=False).index
    names = [row[0] for row in figure.rows]
    cells = read_heat_map(figure.image, names, EMOTIONS)
    expected = {
        (name, emotion): float(numbers.loc[place, f"test/recall/{emotion}"])
        for name, place in zip(names, order, strict=True)
        for emotion in EMOTIONS
    }
    assert {place: cell.lines[0] for place, cell in cells.items()} == {
        place: f"{100 * recall:.2f}" for place, recall in expected.items()
    }
    check_order([(recall, cells[place]) for place, recall in expected.items()])


def test_the_confusion_matrix_has_labels_as_rows(section: Section, sweep: Path, numbers: pd.DataFrame) -> None:
    best = section.best("ua")
    encoder, loss = max(numbers.index, key=numbers["test/ua"].__getitem__)
    (figure,) = confusion_map(section, best, read_predictions(section.cells[best].runs)[0])
    tables = [pd.read_csv(sweep / f"{encoder}-{loss}-0-{fold}/predictions.csv") for fold in range(FOLDS)]
    cells = read_heat_map(figure.image, EMOTIONS, EMOTIONS)
    shares = []
    for (label, predicted), cell in cells.items():
        of_label = [table[table["emotion"] == label] for table in tables]
        count = sum(int((table["predicted"] == predicted).sum()) for table in of_label)
        share = count / sum(map(len, of_label))
        assert cell.lines == [str(count), f"{100 * share:.0f}%"]
        shares.append((share, cell))
    check_order(shares)


def test_curves_are_those_of_the_runs(section: Section, sweep: Path, numbers: pd.DataFrame) -> None:
    figures, _ = training_curves(section, section.best("ua"), "ua")
    order = list(numbers.sort_values("test/ua", ascending=False).index)
    for figure, (encoder, loss) in zip(figures, [order[0], *order], strict=True):
        tables = [
            pd.read_csv(sweep / f"{encoder}-{loss}-0-{fold}/stages/0-transfer/metrics.csv") for fold in range(FOLDS)
        ]
        keys = {"training loss": "train/loss", "validation loss": "val/loss", "validation UA": "val/ua"}
        for name, lines in read_curves(figure.image).items():
            runs = [table[keys[name]].to_numpy() for table in tables]
            for points, values in zip(lines, [*runs, np.mean(runs, axis=0)], strict=True):
                assert points[:, 0] == pytest.approx([1, 2, 3])
                assert points[:, 1] == pytest.approx(values, abs=0.01)


def test_bars_of_time_are_the_cells_seconds(section: Section) -> None:
    table = section.table.copy()
    table["seconds/transfer"], table["seconds/finetune"] = 10.0 * (1 + table["cell"]), 15.0
    (figure,) = time_figure(replace(section, table=table))
    names = [cell.name for cell in section.cells]
    found = read_bars(figure.image, names)
    whole = sum(width for _, _, width in found[names[-1]])
    for number, name in enumerate(names):
        parts = {part: width for part, _, width in found[name]}
        first = 10.0 * (1 + number)
        assert parts == pytest.approx({"transfer": whole * first / 55, "finetune": whole * 15 / 55}, abs=0.2)
