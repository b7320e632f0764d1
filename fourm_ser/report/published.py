"""Cells beside what was published of the same model: the figures, and whether they were found under one protocol."""

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from fourm_ser.config import CONF
from fourm_ser.files import write_table
from fourm_ser.report.cells import Section
from fourm_ser.runs.collect import Run

CLASSES = "anger, happiness, sadness, neutral"


class Figure(NamedTuple):
    """What was published of a model on a corpus, in this package's words: UA is the mean recall, WA plain accuracy.

    Attributes:
        model: the preset.
        corpus: the corpus.
        ua: in percent.
        wa: in percent.
        splits: the values of `data.split` by which the corpus is divided as there.
        fractions: the shares of train, validation and test, where that is `random`.
        data: other keys of `data`, as they were there.
    """

    model: str
    corpus: str
    ua: float
    wa: float
    splits: tuple[str, ...]
    fractions: list[float]
    data: dict[str, Any]


EARLY = {"min_seconds": 1.935, "max_seconds": None, "clean": "server", "empty_text": None}
LATE = {"min_seconds": None, "max_seconds": None, "clean": "4m_ser", "empty_text": "NULL"}
EITHER = ("random", "published")
# SERVER and 3M-SER print the two under each other's names: the notebook of the one and the code of the other compute
# "UA" as plain accuracy. 4M-SER's are those of its notebook, MemoCMT's of its abstract.
FIGURES = (
    Figure("server", "iemocap", 63.00, 63.10, ("random",), [0.72, 0.08, 0.2], EARLY),
    Figure("3m_ser", "iemocap", 80.66, 79.96, ("random",), [0.72, 0.08, 0.2], EARLY),
    Figure("4m_ser", "iemocap", 77.65, 77.08, EITHER, [0.81, 0.09, 0.1], LATE),
    Figure("memocmt", "iemocap", 81.33, 81.85, EITHER, [0.81, 0.09, 0.1], LATE),
    Figure("memocmt", "esd", 91.93, 91.84, EITHER, [0.72, 0.08, 0.2], LATE),
)


def figure_of(run: Run) -> Figure | None:
    """What was published of a run's preset on its corpus; None where nothing was."""
    told = run.options.get("experiment"), run.metrics.get("corpus")
    return next((figure for figure in FIGURES if (figure.model, figure.corpus) == told), None)


def differences(run: Run, figure: Figure) -> list[str]:
    """In what a finished run differs from what was published, in words: none where the figures compare."""
    found = _choices_changed(run, figure.model)
    if "random" in str(run.metrics.get("weights")):
        found.append("random weights")
    classes = ", ".join(name.removeprefix("test/recall/") for name in run.metrics if name.startswith("test/recall/"))
    if classes != CLASSES:
        found.append(f"classes {classes}, not {CLASSES}")
    data, split = run.config["data"], str(run.metrics.get("split"))
    if split not in figure.splits:
        found.append(f"data.split={split}, not {' or '.join(figure.splits)}")
    expected = dict(figure.data)
    if split == "random":
        expected |= {"fractions": figure.fractions, "stratify": False}
    for key, value in expected.items():
        own = data.get(key)
        if own != value:
            found.append(f"data.{key}={_shown(own)}, not {_shown(value)}")
    return found


def _choices_changed(run: Run, model: str) -> list[str]:
    """The groups, and keys in them, that a command line chose beside a preset."""
    choices = _choices(model)
    changed = [
        f"{group}={run.options.get(group)}, not {option}"
        for group, option in choices.items()
        if run.options.get(group) != option
    ]
    words = [word.lstrip("+~") for word in run.overrides]
    parts = tuple(sign for group in choices for sign in (f"{group}.", f"{group}/", f"{group}@"))
    return changed + [word for word in words if word.startswith((*parts, "refit=true"))]


@cache
def _choices(model: str) -> Mapping[str, str]:
    """The options that a preset chooses, by group; the protocol's keys are compared one by one."""
    preset = yaml.safe_load((CONF / "experiment" / f"{model}.yaml").read_text(encoding="utf-8"))
    chosen = {key.removeprefix("override /"): option for entry in preset["defaults"] for key, option in entry.items()}
    return {group: option for group, option in chosen.items() if group != "protocol"}


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def note_published(sections: Iterable[Section], folder: Path) -> list[str]:
    """Write published.csv, a row a finished cell; add a sentence for each that has a figure to the sections' notes.

    Returns:
        These sentences.
    """
    rows, lines = [], []
    for section in sections:
        means = {metric: section.summary(metric)["mean"] for metric in ("ua", "wa")}
        for number, cell in enumerate(section.cells):
            if not cell.runs:
                continue
            ua, wa = (100 * float(means[metric][number]) for metric in ("ua", "wa"))
            figure = None if cell.is_baseline else figure_of(cell.runs[0])
            why = "nothing was published of it" if figure is None else "; ".join(differences(cell.runs[0], figure))
            rows.append(
                {
                    "corpus": section.protocol["corpus"],
                    "cell": cell.name,
                    "ua": ua,
                    "wa": wa,
                    "model": figure and figure.model,
                    "published_ua": figure and figure.ua,
                    "published_wa": figure and figure.wa,
                    "comparable": figure is not None and not why,
                    "why_not": why,
                }
            )
            if figure is not None:
                theirs = f"{figure.model} as published: {figure.ua:.2f}, {figure.wa:.2f}"
                how = f": not comparable: {why}." if why else ", under one protocol."
                line = f"{cell.name}: UA {ua:.2f}, WA {wa:.2f}; {theirs}{how}"
                section.notes.append(line)
                lines.append(line)
    write_table(folder / "published.csv", pd.DataFrame(rows))
    return lines
