"""Which numbers go into which figure of the report."""

import math
from itertools import product

import numpy as np
import pandas as pd

from fourm_ser.errors import InputError
from fourm_ser.report.cells import ACCURACIES, SHOWN, Cell, Section, in_words, label
from fourm_ser.report.effects import Effects, marginal_effects
from fourm_ser.report.svg import Chart, Grid, bars, curves, heat_map, interval_plot
from fourm_ser.report.tables import cell_seconds, percent
from fourm_ser.runs.directory import confusion_counts, read_epochs_table

FACETS = 6  # heat maps beside each other; with more settings of the other axes, their mean is shown
PANELS = 24  # training curves of so many cells


def heat_maps(section: Section) -> list[Chart]:
    """UA and WA by encoder and loss, a map for each setting of the other axes while these are few."""
    axes = _two_axes(section)
    others = [name for name in section.axes if name not in axes]
    settings = list(product(*(section.axes[name] for name in others)))
    figures = []
    for metric in ACCURACIES:
        summary = section.summary(metric)
        for setting in settings if len(settings) <= FACETS else [None]:
            chosen = [
                number
                for number, cell in enumerate(section.cells)
                if cell.runs and (setting is None or tuple(cell.values[other] for other in others) == setting)
            ]
            if not chosen:
                continue
            best = section.best(metric) if setting is not None else -1
            where = "".join(f", {in_words(*choice)}" for choice in zip(others, setting or (), strict=False))
            if setting is None:
                where = f", mean over {', '.join(others)}"
            title = f"Test {SHOWN[metric]}{where}"
            alt = (
                f"Heat map of test {SHOWN[metric]}{where}: rows {axes[0]}, columns {axes[1]}. "
                f"From {100 * summary['mean'].min():.2f} to {100 * summary['mean'].max():.2f} percent over all cells"
                + (f"; the best is {section.cells[best].name}." if best in chosen else ".")
            )
            grid = _means_grid(section, axes, chosen, summary, best)
            figures.append(_grid_chart(title, alt, grid, " \\ ".join(axes)))
    return figures


def _grid_chart(title: str, alt: str, grid: Grid, corner: str, between: str = " ") -> Chart:
    """A heat map and its table, whose cells have the map's lines in one."""
    table = [
        [name, *(between.join(lines) for lines in texts)] for name, texts in zip(grid.rows, grid.texts, strict=True)
    ]
    return Chart(title, heat_map(grid, alt), [corner, *grid.columns], table)


def _means_grid(section: Section, axes: tuple[str, str], chosen: list[int], summary: pd.DataFrame, best: int) -> Grid:
    """The means of some cells of a section by two axes."""
    rows, columns = (section.axes.get(axis, [section.constants.get(axis, "all")]) for axis in axes)
    low, high = summary["mean"].min(), summary["mean"].max()
    shade, marked = np.full((len(rows), len(columns)), math.nan), set()
    texts = [[["-"] for _ in columns] for _ in rows]
    for place in np.ndindex(shade.shape):
        here = {axes[0]: rows[place[0]], axes[1]: columns[place[1]]}
        numbers = [
            n for n in chosen if all(section.cells[n].values.get(axis, here[axis]) == here[axis] for axis in axes)
        ]
        if not numbers:
            continue
        mean = summary["mean"][numbers].mean()
        shade[place] = (mean - low) / (high - low) if high > low else 1.0
        lines = percent(mean, summary["std"][numbers[0]] if len(numbers) == 1 else math.nan).split(" ", 1)
        lines[0] += "†" if any(section.cells[number].random_weights for number in numbers) else ""
        lines[0] += "" if set(numbers) <= set(section.complete) else "*"
        texts[place[0]][place[1]] = lines
        if best in numbers:
            marked.add(place)
    names = [[label(axis, value) for value in values] for axis, values in zip(axes, (rows, columns), strict=True)]
    return Grid(names[0], names[1], shade, texts, marked)


def _two_axes(section: Section) -> tuple[str, str]:
    """The axes of the heat map: encoder and loss where they vary, else those with most values."""
    varied = [name for name, values in section.axes.items() if len(values) > 1]
    group = {name: name.replace(".", "/").split("/")[0] for name in varied}
    rows, columns = (next((name for name in varied if group[name] == wanted), "") for wanted in ("encoder", "loss"))
    left = [name for name in varied if name not in (rows, columns)]
    left.sort(key=lambda name: -len(section.axes[name]))
    rows = rows or (left.pop(0) if left else "encoder")
    return rows, columns or (left.pop(0) if left else "loss")


def effects_figure(section: Section) -> tuple[list[Chart], str]:
    """Marginal effect of each axis on UA and WA, and what its intervals are."""
    varied = [name for name, values in section.axes.items() if len(values) > 1]
    figures = []
    words = ""
    for metric in ACCURACIES:
        shown = SHOWN[metric]
        found = [marginal_effects(section, axis, metric) for axis in varied]
        drawn = [effects for effects in found if effects.effects]
        words = _effects_words(drawn, [effects.axis for effects in found if not effects.effects])
        if not drawn:
            return [], words
        groups = {
            effects.axis: [
                (label(effects.axis, e.value), 100 * e.mean, 100 * e.low, 100 * e.high) for e in effects.effects
            ]
            for effects in drawn
        }
        strongest = max((row for rows in groups.values() for row in rows), key=lambda row: row[1])
        alt = (
            f"Points with intervals: effect of each value on test {shown}, in percentage points about the axis's mean. "
            f"The strongest gain is {strongest[0]} with {strongest[1]:+.2f}."
        )
        table = [
            [axis, value, f"{mean:+.2f}", "-" if math.isnan(low) else f"{low:+.2f} to {high:+.2f}"]
            for axis, rows in groups.items()
            for value, mean, low, high in rows
        ]
        header = ["axis", "value", "effect (points)", "95% interval"]
        image = interval_plot(groups, f"effect on {shown}, percentage points", alt)
        figures.append(Chart(f"Effect on {shown}", image, header, table))
    return figures, words


def _effects_words(drawn: list[Effects], left_out: list[str]) -> str:
    words = (
        "A value's effect is its distance from the mean over the axis's values, all else equal: only settings of the "
        "other axes that were run with every value count. "
    )
    for effects in drawn:
        interval = (
            f"95% t-interval over {effects.n} {effects.over}" if effects.n > 1 else "nothing repeated: no interval"
        )
        words += f"{effects.axis}: {effects.settings} such settings, {interval}. "
    if left_out:
        words += f"No setting was run with every value of {', '.join(left_out)}: no effect is given. "
    return words if drawn or left_out else "Nothing varies between the cells."


def recall_map(section: Section, metric: str) -> list[Chart]:
    """Recall of each class, a row a cell."""
    ranked = section.ranked(metric)
    by_class = [section.summary(f"recall/{emotion}") for emotion in section.classes]
    shade = np.array([[table["mean"][number] for table in by_class] for number in ranked])
    texts = [
        [percent(table["mean"][number], table["std"][number]).split(" ", 1) for table in by_class] for number in ranked
    ]
    grid = Grid([section.cells[number].name for number in ranked], section.classes, shade, texts)
    means = pd.DataFrame(shade, columns=section.classes).mean()  # NaN for a class that no side has
    weakest = means.idxmin() if means.notna().any() else "none"
    alt = f"Heat map of the recall of each class by cell, best cell first. On average {weakest} is recognised least."
    return [_grid_chart("Recall of each class, percent", alt, grid, "cell")]


def confusion_map(section: Section, best: int, predictions: pd.DataFrame) -> list[Chart]:
    """The confusion matrix of the best cell, summed over its runs."""
    if predictions.empty:
        return []
    classes, name = section.classes, section.cells[best].name
    counts = confusion_counts(predictions, classes)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    indices = range(len(classes))
    texts = [[[str(counts[r, c]), f"{100 * shares[r, c]:.0f}%"] for c in indices] for r in indices]
    wrong = [(shares[r, c], classes[r], classes[c]) for r, c in product(indices, repeat=2) if r != c]
    share, label, taken = max(wrong, default=(0.0, "nothing", "nothing"))
    runs = predictions.groupby(level=["seed", "fold", "drawn"]).ngroups
    alt = (
        f"Confusion matrix of {name}, summed over {runs} runs: rows are the labels, columns the predictions. "
        f"The most frequent mistake is {label} taken for {taken}, {100 * share:.0f} percent of {label}."
    )
    repeats = section.table.loc[section.table["cell"] == best, ["fold", "drawn", "seed"]].nunique()
    words = [f"{n} {what}" for n, what in zip(repeats, ("folds", "splits", "seeds"), strict=True) if n > 1]
    title = f"{name}, summed over {' and '.join(words) or 'one run'}"
    return [_grid_chart(title, alt, Grid(classes, classes, shares, texts), "label \\ predicted", " · ")]


def training_curves(section: Section, best: int, metric: str) -> tuple[list[Chart], str]:
    """Losses of the best cell, and validation UA of the best cells, over the epochs; and what is drawn."""
    ranked = section.ranked(metric)
    losses = {"train/loss": "training loss", "val/loss": "validation loss"}
    wanted = [(best, losses), *((number, {"val/ua": "validation UA"}) for number in ranked[:PANELS])]
    figures = []
    for number, keys in wanted:
        cell = section.cells[number]
        histories, stages = _histories(cell)
        lines = []
        for key, shown in keys.items():
            several = [(table["at"].tolist(), table[key].tolist()) for table in histories.values() if key in table]
            if several:
                lines.append((shown, several))
        if not lines:
            continue
        what = " and ".join(shown for shown, _ in lines)
        alt = f"Curves of {what} over the epochs, {cell.name}, {len(histories)} runs; last values in the table."
        image = curves(lines, stages, alt, None if keys is losses else (0.0, 1.0))
        header = ["run", "stage", "epochs", "last training loss", "last validation loss", "best validation UA (%)"]
        figures.append(Chart(f"{cell.name}: {what}", image, header, _ends(histories)))
    words = "Each run is a thin line, their mean, as far as all of them went, a thick one. "
    if len(ranked) > PANELS:
        words += f"Drawn are the best {PANELS} of {len(ranked)} cells; the others' are in their stages/*/metrics.csv."
    return figures, words if figures else "No run has a metrics.csv of a stage that can be read."


def _histories(cell: Cell) -> tuple[dict[str, pd.DataFrame], list[tuple[str, float]]]:
    """The epochs of each run of a cell, and where each stage begins.

    Epochs are numbered from 1 through all stages, in `at`. A stage begins where the longest run ended the one before,
    so that runs that stopped early are still compared stage by stage. What cannot be read is left out.
    """
    tables: dict[str, dict[str, pd.DataFrame]] = {}
    for run in cell.runs:
        for stage, path in run.directory.tables.items():
            try:
                table = read_epochs_table(path)
            except InputError:
                continue
            if len(table):
                tables.setdefault(stage, {})[run.path.name] = table
    parts: dict[str, list[pd.DataFrame]] = {}
    stages, begun = [], 0
    for stage, by_run in tables.items():
        stages.append((stage, begun + 1.0))
        for name, table in by_run.items():
            numbered = table.assign(stage=stage, at=range(begun + 1, begun + len(table) + 1))
            parts.setdefault(name, []).append(numbered)
        begun += max(len(table) for table in by_run.values())
    return {name: pd.concat(several, ignore_index=True) for name, several in parts.items()}, stages


def _ends(histories: dict[str, pd.DataFrame]) -> list[list[str]]:
    """The table of the curves: a row a run and stage."""
    rows = []
    for name, history in histories.items():
        for stage, part in history.groupby("stage", sort=False):
            ends = [f"{part[key].iloc[-1]:.4f}" if key in part else "-" for key in ("train/loss", "val/loss")]
            peak = f"{100 * part['val/ua'].max():.2f}" if "val/ua" in part else "-"
            rows.append([name, str(stage), str(len(part)), *ends, peak])
    return rows


def time_figure(section: Section) -> list[Chart]:
    """Seconds of training by cell and stage."""
    rows = []
    for number, cell in enumerate(section.cells):
        shares = {str(stage): float(value) for stage, value in cell_seconds(section, number).items()}
        if shares:
            rows.append((cell.name, shares))
    if not rows:
        return []
    rows.sort(key=lambda row: -sum(row[1].values()))
    stages = list(dict.fromkeys(stage for _, shares in rows for stage in shares))
    alt = (
        f"Bars of training seconds by cell, longest first: from {sum(rows[-1][1].values()):.1f} s ({rows[-1][0]}) "
        f"to {sum(rows[0][1].values()):.1f} s ({rows[0][0]})."
    )
    table = [
        [name, *(f"{shares[stage]:.1f}" if stage in shares else "-" for stage in stages), f"{sum(shares.values()):.1f}"]
        for name, shares in rows
    ]
    return [Chart("Seconds of training", bars(rows, alt), ["cell", *stages, "together"], table)]
