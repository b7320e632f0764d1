"""report.html: one file that opens from disk, with everything in it."""

import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain, product
from pathlib import Path
from typing import Any

from pandas import DataFrame

from fourm_ser import __version__
from fourm_ser.files import write_text
from fourm_ser.pages import render
from fourm_ser.report import significance as tests
from fourm_ser.report.baselines import hold_against
from fourm_ser.report.cells import ACCURACIES, SHOWN, Section, repeat_of
from fourm_ser.report.commands import cell_commands, resume_command, waiting_command
from fourm_ser.report.drawings import confusion_map, effects_figure, heat_maps, recall_map, time_figure, training_curves
from fourm_ser.report.significance import Comparison
from fourm_ser.report.tables import percent, rows_of, title
from fourm_ser.runs.collect import Collection
from fourm_ser.runs.resampling import FEWEST


def write_page(
    sections: list[Section], collection: Collection, problems: list[str], folder: Path, metric: str
) -> list[str]:
    """Write report.html; returns the problems, in sentences, with those that came up while predictions were read."""
    problems = list(problems)
    views = [_view(section, metric, problems) for section in sections]
    page = render(
        "report/report.html.j2",
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        metric=SHOWN[metric],
        states=Counter(run.state for run in collection.runs),
        waiting={sweep: [waiting_command(job) for job in jobs] for sweep, jobs in collection.waiting.items()},
        lost=[run for run in collection.runs if not run.config],
        problems=problems,
        sections=views,
    )
    write_text(folder / "report.html", page)
    return problems


def _view(section: Section, metric: str, problems: list[str]) -> dict[str, Any]:
    """All that the template shows of a section."""
    predictions, wrong = zip(*(tests.read_predictions(cell.runs) for cell in section.cells), strict=True)
    problems += chain(*wrong)
    view: dict[str, Any] = {
        "title": title(section),
        "protocol": {name.removeprefix("data."): value for name, value in section.protocol.items()},
        "constants": section.constants,
        "notes": section.notes,
        "axes": list(section.axes),
        "repeat": section.repeat,
        "rows": [],
        "groups": [],
        "missing": _missing(section),
        "commands": [
            (cell.name, cell.random_weights, cell_commands([*cell.runs, *cell.others])) for cell in section.cells
        ],
        "headline": "",
        "contents": [("protocol", "Protocol"), ("missing", "Missing or failed"), ("commands", "Commands")],
        "tests": None,
        "baselines": _baselines(section, predictions) if section.held_against else [],
    }
    if not section.complete:
        return view
    best = section.best(metric)
    view["best"] = section.cells[best].name
    summary = section.summary(metric)
    view["headline"] = f"{SHOWN[metric]} {percent(summary['mean'][best], summary['std'][best])}"
    view["rows"] = rows_of(section, metric)
    spread = "± its standard deviation" if section.table["repeat"].nunique() > 1 else "of one run"
    heat_words = (
        f"Mean over {section.repeat}s {spread}, in percent. The stronger the colour, the higher; the best is framed."
    )
    effects, effects_words = effects_figure(section)
    training, training_words = training_curves(section, best, metric)
    view["groups"] = [
        ("Every cell", heat_words, heat_maps(section)),
        ("What each axis does", effects_words, effects),
        (
            "Recall of each class",
            "Mean over the repeats, of the cells in the table's order.",
            recall_map(section, metric),
        ),
        (
            "What the best cell mistakes for what",
            "Counts of test utterances; a row's shares add up to 100%.",
            confusion_map(section, best, predictions[best]),
        ),
        ("Training", training_words, training),
        ("Time", "Seconds of training, mean over a cell's runs. Encoding is not counted.", time_figure(section)),
    ]
    view["tests"] = _tests(section, tests.compare(section, predictions, metric), best)
    contents = [("results", "Results")]
    contents += [(name.lower().replace(" ", "-"), name) for name, words, figures in view["groups"] if figures or words]
    contents += [("baselines", "Networks and their baselines")] if view["baselines"] else []
    contents += [("chance", "Is it more than chance?")] if view["tests"] else []
    view["contents"] = [*contents, *view["contents"]]
    return view


def _missing(section: Section) -> list[tuple[str, ...]]:
    """What did not finish, and the seeds and folds that a cell lacks of those that any cell of the section has.

    In the order of the template's columns: cell, run, state, why, where, and the command that goes on with it.
    """
    rows: list[tuple[str, ...]] = []
    everything = list(dict.fromkeys(repeat_of(run) for cell in section.cells for run in [*cell.runs, *cell.others]))
    for cell in section.cells:
        for run in cell.others:
            seed, fold, _ = repeat_of(run)
            again = run.state in ("unfinished", "failed") and run.directory.record.is_file()
            command = resume_command(run) if again else ""
            rows.append((cell.name, f"seed {seed}, fold {fold}", run.state, run.why, str(run.path), command))
        begun = {repeat_of(run) for run in [*cell.runs, *cell.others]}
        if cell.is_baseline:  # which is the same for each seed
            begun |= {(seed, *others) for seed, *_ in everything for _, *others in begun}
        for seed, fold, drawn in everything:
            if (seed, fold, drawn) not in begun:
                what = f"seed {seed}, fold {fold}" + (f", split {drawn}" if section.repeat == "split" else "")
                rows.append((cell.name, what, "not run", "other cells have this seed and fold", "", ""))
    return rows


def _tests(section: Section, comparisons: list[Comparison], best: int) -> dict[str, Any] | None:
    """What the template shows of the comparisons."""
    if not comparisons:
        return None
    tables = []
    for metric, against in product(ACCURACIES, ("best", "baseline")):
        shown = [
            comparison
            for comparison in comparisons
            if comparison.metric == metric and (comparison.first == best) == (against == "best")
        ]
        if shown:
            reference = section.cells[best if against == "best" else section.baseline].name
            rows = [_test_row(section, comparison, against) for comparison in shown]
            tables.append({"metric": SHOWN[metric], "against": against, "reference": reference, "rows": rows})
    of_ua = [comparison for comparison in comparisons if comparison.metric == "ua"]
    repeats = max(comparison.repeats for comparison in of_ua)
    with_wilcoxon = sum(not math.isnan(comparison.wilcoxon) for comparison in of_ua)
    resampled = [comparison.resampled for comparison in of_ua if comparison.bootstrap is not None]
    least = tests.least_p(repeats)
    corrected = min(1.0, least * with_wilcoxon)
    return {
        "tables": tables,
        "resampled": " or ".join(sorted(set(resampled))),
        "fewest": FEWEST,
        "baseline": section.cells[section.baseline].name,
        "bootstrap_count": len(resampled),
        "wilcoxon_count": with_wilcoxon,
        "repeats": repeats,
        "least": _p(least),
        "least_corrected": _p(corrected),
        "hopeless": corrected > 0.05,
        "resamples": tests.RESAMPLES,
    }


def _test_row(section: Section, comparison: Comparison, against: str) -> list[str]:
    other = section.cells[comparison.second if against == "best" else comparison.first].name
    found = comparison.bootstrap
    resampled = ["-", "-", "-", "-"]
    if found is not None:
        interval = f"{100 * found.low:+.2f} to {100 * found.high:+.2f}"
        resampled = [f"{100 * found.difference:+.2f}", interval, _p(found.p), _p(comparison.bootstrap_holm)]
    ranked = [_p(comparison.wilcoxon), _p(comparison.wilcoxon_holm), str(comparison.repeats)]
    return [other, *resampled, comparison.resampled if found else "-", str(comparison.utterances), *ranked]


def _baselines(section: Section, predictions: Sequence[DataFrame]) -> list[list[str]]:
    """The rows of the table of networks and their baselines."""
    rows = []
    for each in hold_against(section, predictions):
        tested = _test_row(section, each.comparison, "baseline")[1:]
        own, other = f"{100 * each.own:.2f}", f"{100 * each.other:.2f}"
        rows.append([section.cells[each.network].name, section.cells[each.baseline].name, own, other, *tested])
    return rows


def _p(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.4f}" if value < 0.1 else f"{value:.3f}"
