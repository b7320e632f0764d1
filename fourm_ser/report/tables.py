"""results.csv for programs, results.md and results.tex for people."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fourm_ser.files import write_table, write_text
from fourm_ser.report.cells import SHOWN, Section, label

MARKDOWN = re.compile(r"[\\|`<>*]|\](?=\()")  # what is more than a sign in Markdown
# What a paper's table has; everything else is in results.csv.
COLUMNS = [name for name in SHOWN if name != "ece"]
TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "†": r"\dag{}",
        "·": r"\textperiodcentered{}",
        **{sign: "\\" + sign for sign in "&%$#_{}"},
    }
)


def one_line(text: str) -> str:
    """A text from data within one line: a break would end its cell, or the comment that it stands in."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def markdown(text: str) -> str:
    """A text from data as Markdown that shows it, and nothing else."""
    return MARKDOWN.sub(lambda sign: {"<": "&lt;", ">": "&gt;"}.get(sign[0], "\\" + sign[0]), one_line(text))


def tex(text: str) -> str:
    """A text from data as LaTeX that shows it, and nothing else."""
    return one_line(text).translate(TEX)


class Row(NamedTuple):
    """A cell in a table of results.

    Attributes:
        choices: the cell's choice on each axis.
        numbers: mean and deviation in percent of each metric, and whether it is the best.
        n: the number of repeats.
        random: whether an encoder began with random weights.
        complete: whether the cell has as many runs as any other.
    """

    choices: list[str]
    numbers: dict[str, tuple[str, bool]]
    n: int
    random: bool
    complete: bool


def results_frame(sections: list[Section]) -> pd.DataFrame:
    """One row a cell with finished runs: protocol, choices, then mean and standard deviation of every test metric.

    Metrics are shares from 0 to 1 as in metrics.json, seconds are the mean of a run's stages together. What is not
    known is empty, such as the deviation of a single repeat.
    """
    axes = list(dict.fromkeys(name for section in sections for name in section.axes))
    recalls = list(dict.fromkeys(f"recall/{emotion}" for section in sections for emotion in section.classes))
    rows = []
    for section in sections:
        summaries = {metric: section.summary(metric) for metric in [*SHOWN, *recalls]}
        for number, cell in enumerate(section.cells):
            if not cell.runs:
                continue
            row: dict[str, object] = dict(section.protocol)
            row |= {name: cell.values.get(name, section.constants.get(name)) for name in axes}
            row |= {
                "weights": "+".join(dict.fromkeys(str(run.metrics.get("weights")) for run in cell.runs)),
                "speaker_independent": all(run.metrics.get("speaker_independent") is True for run in cell.runs),
                "runs": len(cell.runs),
                "repeat": section.repeat,
                "n": int(summaries["ua"]["n"][number]),
                "complete": number in section.complete,
            }
            for metric, summary in summaries.items():
                row |= {f"{metric}_mean": summary["mean"][number], f"{metric}_std": summary["std"][number]}
            row["seconds"] = cell_seconds(section, number).sum()
            rows.append(row)
    return pd.DataFrame(rows)


def cell_seconds(section: Section, number: int) -> pd.Series:
    """Mean seconds of each stage of a cell's runs."""
    times = section.table.loc[section.table["cell"] == number].filter(regex="^seconds/").dropna(axis=1, how="all")
    return times.mean().rename(lambda name: name.removeprefix("seconds/"))


def percent(mean: float, std: float) -> str:
    """`80.66 ± 1.20` from shares; the mean alone where nothing was repeated."""
    if pd.isna(mean):
        return "-"
    return f"{100 * mean:.2f}" if pd.isna(std) else f"{100 * mean:.2f} ± {100 * std:.2f}"


def write_tables(sections: list[Section], folder: Path) -> None:
    """Write results.csv, results.md and results.tex."""
    write_table(folder / "results.csv", results_frame(sections), inert=True)
    write_text(folder / "results.md", "\n".join(_markdown(section) for section in sections))
    head = "% \\usepackage{booktabs}. Mean and standard deviation in percent, the best in bold.\n"
    write_text(folder / "results.tex", head + "\n".join(_tex(section) for section in sections))


def title(section: Section) -> str:
    """What a section is about, in a line."""
    protocol = section.protocol
    return f"{protocol['corpus']}, split by {protocol['split']}"


def statement(section: Section) -> str:
    """The protocol in a sentence."""
    return "; ".join(f"{name.removeprefix('data.')}: {value}" for name, value in section.protocol.items())


def rows_of(section: Section, metric: str) -> list[Row]:
    """A row a cell with finished runs, the highest mean of a metric first. The best accuracies and F1 are marked."""
    summaries = {name: section.summary(name) for name in SHOWN}
    best = {}
    for name in COLUMNS:
        means = summaries[name]["mean"].loc[section.complete].round(4)
        best[name] = set(means.index[means == means.max()])
    rows = []
    for number in section.ranked(metric):
        cell = section.cells[number]
        numbers = {
            name: (percent(table["mean"][number], table["std"][number]), number in best.get(name, ()))
            for name, table in summaries.items()
        }
        n = int(summaries[metric]["n"][number])
        choices = [label(axis, value) for axis, value in cell.values.items()]
        rows.append(Row(choices, numbers, n, cell.random_weights, number in section.complete))
    return rows


def _lines(section: Section, bold: str) -> Iterator[tuple[list[str], list[str]]]:
    """The choices and the numbers of each row of a paper's table, the best in `bold`, a pattern such as `**{}**`."""
    for row in rows_of(section, "ua"):
        marks = ("†" if row.random else "") + ("" if row.complete else " (incomplete)")
        shown = [row.numbers[name] for name in COLUMNS]
        numbers = [bold.format(text) if best else text for text, best in shown]
        choices = [*row.choices[:-1], *(last + marks for last in row.choices[-1:])]
        yield choices, [*numbers, str(row.n)]


def _markdown(section: Section) -> str:
    header = [*section.axes, *(f"{SHOWN[name]} (%)" for name in COLUMNS), f"{section.repeat}s"]
    rows = [[markdown(name) for name in header], ["---"] * len(section.axes) + ["---:"] * (len(COLUMNS) + 1)]
    rows += [[*map(markdown, words), *numbers] for words, numbers in _lines(section, "**{}**")]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    notes = "\n".join(f"- {markdown(note)}" for note in section.notes)
    return f"## {markdown(title(section))}\n\n{markdown(statement(section))}\n\n{notes}\n\n{table}\n"


def _tex(section: Section) -> str:
    header = [*section.axes, *(SHOWN[name] for name in COLUMNS), f"{section.repeat}s"]
    rows = [[tex(name) for name in header]]
    for words, numbers in _lines(section, r"\textbf{{{}}}"):
        rows.append([*map(tex, words), *(x.replace(" ± ", r"\,$\pm$\,") for x in numbers)])
    head, *lines = [f"{' & '.join(row)} \\\\" for row in rows]
    notes = "".join(f"% {one_line(note)}\n" for note in [statement(section), *section.notes])
    shape = "l" * len(section.axes) + "r" * (len(COLUMNS) + 1)
    return (
        f"{notes}\\begin{{tabular}}{{{shape}}}\n\\toprule\n{head}\n\\midrule\n" + "\n".join(lines) + "\n"
        "\\bottomrule\n\\end{tabular}\n"
    )
