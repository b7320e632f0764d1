"""From runs to tables: which settings differ, which runs repeat each other, means and deviations over the repeats."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import pandas as pd

from fourm_ser.report.axes import (
    ABSENT,
    NETWORK,
    REPEATS,
    describe,
    drop_unread_options,
    find_axes,
    flatten,
    is_baseline,
    is_place,
    name_options,
    protocol_of,
    rank,
    reads_like,
)
from fourm_ser.report.corpora import Corpora
from fourm_ser.runs.collect import Run

SHOWN = {"ua": "UA", "wa": "WA", "f1_macro": "macro F1", "f1_weighted": "weighted F1", "ece": "ECE"}
ACCURACIES = ("ua", "wa")  # what is drawn and tested


@dataclass
class Cell:
    """One choice on every axis; its runs differ in `seed`, `data.fold` and `data.split_seed` alone.

    Attributes:
        values: the cell's choice on each axis.
        runs: the finished runs, one for each seed and fold.
        others: the runs that did not finish.
    """

    values: dict[str, str]
    runs: list[Run] = field(default_factory=list)
    others: list[Run] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The choice in a few words: of a baseline what it reads, of the others all but that they are none."""
        hidden = self.values if self.is_baseline else ["baseline"]
        chosen = {axis: value for axis, value in self.values.items() if value != ABSENT or axis not in hidden}
        return " · ".join(in_words(axis, value) for axis, value in chosen.items()) or NETWORK

    @property
    def is_baseline(self) -> bool:
        """Whether no network was trained: what the others are held against. Its seed changes nothing."""
        return any(map(is_baseline, [*self.runs, *self.others]))

    @property
    def random_weights(self) -> bool:
        """Whether an encoder's weights are random, untrained by anyone before."""
        configured = [flatten(run.config).get("encoder.weights", "") for run in self.others]
        recorded = [str(run.metrics.get("weights")) for run in self.runs]
        return any("random" in weights for weights in recorded or configured)


@dataclass
class Section:
    """The runs of one protocol: the same corpus, split, validation and classes.

    Where there are several folds (or drawn splits), each is a repeat, and seeds are averaged within it first: a fold's
    seeds are tested on the same utterances and are no further evidence about others. Otherwise each seed is a repeat.

    Attributes:
        protocol: `corpus`, `split`, `validation`, `classes`; then what tells the section from others alike.
        axes: the settings in which the runs differ, and the values of each in their order.
        constants: options in which the runs agree.
        cells: the cells in the order of their values.
        repeat: what a repeat is: `fold`, `split` (drawn anew by data.split_seed), or `seed`.
        table: one row a finished run: `cell` (number), `seed`, `fold`, `repeat`, and the numbers of metrics.json.
        notes: what a reader must know, in sentences.
    """

    protocol: dict[str, str]
    axes: dict[str, list[str]]
    constants: dict[str, str]
    cells: list[Cell]
    repeat: str
    table: pd.DataFrame
    notes: list[str]

    @property
    def classes(self) -> list[str]:
        """The emotions in the order of their indices."""
        return self.protocol["classes"].split(", ")

    def values(self, metric: str) -> pd.DataFrame:
        """A test metric by cell (rows) and repeat (columns), seeds averaged within a fold; NaN without a run."""
        known = self.table.reindex(columns=["cell", "repeat", f"test/{metric}"])
        by_repeat = known.pivot_table(index="cell", columns="repeat", values=f"test/{metric}")
        return by_repeat.reindex(range(len(self.cells)))

    def summary(self, metric: str) -> pd.DataFrame:
        """Mean, standard deviation (of a sample, n - 1) and number of repeats of a metric, a row a cell."""
        values = self.values(metric)
        return pd.DataFrame({"mean": values.mean(axis=1), "std": values.std(axis=1), "n": values.count(axis=1)})

    def ranked(self, metric: str) -> list[int]:
        """The cells that have a metric by its mean, the highest first."""
        return self.summary(metric)["mean"].dropna().sort_values(ascending=False, kind="stable").index.tolist()

    @property
    def complete(self) -> list[int]:
        """The cells that have as many runs as any other: only those compete for the best.

        Of a baseline, which is the same for each seed, those with one run for each fold.
        """
        most, repeats = max(len(cell.runs) for cell in self.cells), len({repeat_of(run)[1:] for run in self.finished})

        def has_all(cell: Cell) -> bool:
            return cell.is_baseline and len({repeat_of(run)[1:] for run in cell.runs}) == repeats

        return [
            number for number, cell in enumerate(self.cells) if cell.runs and (len(cell.runs) == most or has_all(cell))
        ]

    @property
    def held_against(self) -> list[tuple[int, int]]:
        """Pairs of a network's cell and a baseline's that reads what it reads, of cells with finished runs."""
        known = [number for number, cell in enumerate(self.cells) if cell.runs]
        return [
            (number, other)
            for number in known
            for other in known
            if self.cells[other].is_baseline
            and not self.cells[number].is_baseline
            and reads_like(self.cells[number].runs[0], self.cells[other].runs[0])
        ]

    @property
    def finished(self) -> list[Run]:
        """The finished runs of all cells."""
        return [run for cell in self.cells for run in cell.runs]

    def best(self, metric: str) -> int:
        """The complete cell with the highest mean, the first of equals."""
        return next(number for number in self.ranked(metric) if number in self.complete)

    @property
    def baseline(self) -> int:
        """The first complete cell that has a network: the first value of every axis, where that was run."""
        return next((number for number in self.complete if not self.cells[number].is_baseline), self.complete[0])


def make_sections(runs: Iterable[Run]) -> tuple[list[Section], list[str]]:
    """Part runs by protocol, and the runs of each into cells; those without a config are left out.

    Returns:
        The sections, those with finished runs first, and what was set aside, in sentences.
    """
    known = [run for run in runs if run.config]
    name_options(known)
    drop_unread_options(known)
    corpora = Corpora(known)
    parts: dict[str, list[Run]] = {}
    of_config: dict[str, str] = {}
    for run in sorted(known, key=lambda run: run.state != "finished"):
        asked = json.dumps([protocol_of(run), corpora.labels(run)], sort_keys=True, default=str)
        if run.state == "finished":
            key = asked + json.dumps(_recorded(run))
            of_config.setdefault(asked, key)
        else:
            key = of_config.get(asked, asked)
        parts.setdefault(key, []).append(run)
    order = {run.path: index for index, run in enumerate(known)}
    problems: list[str] = []
    sections = []
    for part in parts.values():
        part.sort(key=lambda run: order[run.path])
        sections.append(_make_section(part, corpora, problems))
    _tell_apart(sections, list(parts.values()), corpora, problems)
    return sections, problems


def in_words(axis: str, value: str) -> str:
    """A value of an axis that can stand alone: an option's name does, a number needs its key."""
    return f"{axis.rpartition('.')[2]}={value}" if "." in axis else label(axis, value)


def label(axis: str, value: str) -> str:
    """What a value is called beside its axis."""
    return NETWORK if (axis, value) == ("baseline", ABSENT) else value


def _make_section(runs: list[Run], corpora: Corpora, problems: list[str]) -> Section:
    options = {group for run in runs for group in run.options} - {"logger", "trainer", "data"}
    settings = [
        {name: text for name, text in flatten(run.config).items() if not is_place(name)}
        | {group: option for group, option in run.options.items() if group in options}
        | heard
        for run, heard in zip(runs, corpora.settings(runs), strict=True)
    ]
    given = {word.lstrip("+~").partition("=")[0] for run in runs for word in run.overrides}
    names = find_axes(settings, given, options)
    networks = [setting for run, setting in zip(runs, settings, strict=True) if not is_baseline(run)] or settings
    constants = {
        group: networks[0][group]
        for group in sorted(options, key=lambda name: rank(name, options))
        if len({setting.get(group) for setting in networks}) == 1 and group in networks[0]
    }
    if len({is_baseline(run) for run in runs}) == 2 and "baseline" not in names:
        names = sorted([*names, "baseline"], key=lambda name: rank(name, options))
    if "baseline" in names:  # what a baseline has not tells networks apart only where they differ themselves
        kinds = len({setting.get("baseline") for setting in settings})
        beside = {name: {(setting.get("baseline"), setting.get(name)) for setting in settings} for name in names}
        names = [name for name in names if name == "baseline" or len(beside[name]) > kinds]
    if not names:
        names = [group for group in ("encoder", "loss") if group in constants] or sorted(constants)[:1]
    axes = {name: _in_order(setting.get(name, ABSENT) for setting in settings) for name in names}
    cells: dict[tuple[str, ...], Cell] = {}
    for run, setting in zip(runs, settings, strict=True):
        values = {name: setting.get(name, ABSENT) for name in names}
        cell = cells.setdefault(tuple(values.values()), Cell(values))
        (cell.runs if run.state == "finished" else cell.others).append(run)
    for cell in cells.values():
        cell.runs = _without_doubles(cell, problems)
    ordered = sorted(cells.values(), key=lambda cell: [axes[name].index(value) for name, value in cell.values.items()])
    repeat, table = _tabulate(ordered)
    section = Section(_state(runs), axes, constants, ordered, repeat, table, corpora.differences(runs))
    _note(section)
    return section


def _without_doubles(cell: Cell, problems: list[str]) -> list[Run]:
    """One finished run for each seed and fold: the newest."""
    newest: dict[tuple[str, ...], Run] = {}
    for run in sorted(cell.runs, key=lambda run: run.directory.metrics.stat().st_mtime_ns):
        key = repeat_of(run)
        if key in newest and not cell.is_baseline:  # of which a sweep makes one for each loss and stage
            problems.append(f"{newest[key].path}: the same run as {run.path}, which is newer and is used instead.")
        newest[key] = run
    return [run for run in cell.runs if newest[repeat_of(run)] is run]


def repeat_of(run: Run) -> tuple[str, ...]:
    """What tells a run from the others of its cell: seed, fold, seed of the split."""
    leaves = flatten({"seed": run.config.get("seed"), "data": run.config.get("data", {})})
    return tuple(leaves.get(name, ABSENT) for name in REPEATS)


def _tabulate(cells: list[Cell]) -> tuple[str, pd.DataFrame]:
    rows = []
    for number, cell in enumerate(cells):
        for run in cell.runs:
            seed, fold, drawn = repeat_of(run)
            kept = {name: value for name, value in run.metrics.items() if name.startswith(("test/", "seconds/"))}
            numbers = {name: math.nan if value is None else float(value) for name, value in kept.items()}
            rows.append({"cell": number, "seed": seed, "fold": fold, "drawn": drawn, **numbers})
    table = pd.DataFrame(rows, columns=None if rows else ["cell", "seed", "fold", "drawn"])
    folds, draws = table["fold"].nunique(), table["drawn"].nunique()
    repeat = "fold" if folds > 1 else "split" if draws > 1 else "seed"
    table["repeat"] = table[{"fold": "fold", "split": "drawn", "seed": "seed"}[repeat]]
    if folds > 1 and draws > 1:
        table["repeat"] += "/" + table["drawn"]
    return repeat, table


def _note(section: Section) -> None:
    finished = section.finished
    if not finished:
        section.notes.append("No run has finished yet.")
        return
    if any(cell.random_weights for cell in section.cells):
        section.notes.append(
            "Random weights: cells marked † began with an encoder of random weights. They do not tell how well "
            "pretrained encoders do."
        )
    if any(run.metrics.get("speaker_independent") is False for run in finished):
        section.notes.append("Not speaker-independent: speakers of the test side were also trained on.")
    seeds = section.table["seed"].nunique()
    repeats = section.table["repeat"].nunique()
    over = f"Mean and standard deviation are over {repeats} {section.repeat}s"
    if repeats == 1:
        section.notes.append("Each cell ran once: there is no deviation over repeats.")
    elif section.repeat == "seed":
        section.notes.append(
            f"{over}, tested on the same utterances: the deviation tells how much training varies, not how much other "
            "speakers would."
        )
    elif seeds > 1:
        section.notes.append(f"{over}; the {seeds} seeds are averaged within each {section.repeat} first.")
    else:
        section.notes.append(f"{over}.")
    behind = [cell for number, cell in enumerate(section.cells) if number not in section.complete]
    if behind:
        section.notes.append(
            f"{len(behind)} of {len(section.cells)} cells have fewer finished runs than the others. They are marked "
            "incomplete and are no candidates for the best: their means are over other repeats than those beside them."
        )


def _recorded(run: Run) -> list[str]:
    metrics = run.metrics
    classes = [name.removeprefix("test/recall/") for name in metrics if name.startswith("test/recall/")]
    return [*(str(metrics.get(name, "unknown")) for name in ("corpus", "split", "validation")), ", ".join(classes)]


def _state(runs: list[Run]) -> dict[str, str]:
    """A section's protocol, from what runs recorded, or before any finished from what was asked for."""
    words = next((_recorded(run) for run in runs if run.state == "finished"), None)
    if words is None:
        data = runs[0].config.get("data", {})
        asked = [str(data.get(name, "unknown")) for name in ("split", "validation")]
        corpus = runs[0].options.get("data") or describe("data", data)
        words = [corpus, *asked, ", ".join(map(str, data.get("emotions") or ["all"]))]
    return dict(zip(("corpus", "split", "validation", "classes"), words, strict=True))


def _tell_apart(sections: list[Section], parts: list[list[Run]], corpora: Corpora, problems: list[str]) -> None:
    """Add to the protocols of sections that read alike the keys in which they differ: of the protocol, or of places."""
    for asked in (protocol_of, corpora.places):
        alike: dict[str, list[int]] = {}
        for number, section in enumerate(sections):
            alike.setdefault(json.dumps(section.protocol), []).append(number)
        for numbers in alike.values():
            keys = [asked(parts[number][0]) for number in numbers]
            for name in sorted({name for some in keys for name in some}):
                if len({some.get(name, ABSENT) for some in keys}) > 1:
                    for number, some in zip(numbers, keys, strict=True):
                        sections[number].protocol[name] = some.get(name, ABSENT)
            if asked == corpora.places and len(numbers) > 1:
                problems += corpora.differences([parts[number][0] for number in numbers])


def _in_order(texts: Iterable[str]) -> list[str]:
    """Distinct values in the order they come, numbers by size."""
    values = list(dict.fromkeys(texts))
    try:
        return sorted(values, key=float)
    except ValueError:
        return values
