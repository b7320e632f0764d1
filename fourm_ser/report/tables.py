"""results.csv for programs, results.md and results.tex for people."""

from pathlib import Path

import pandas as pd

from fourm_ser.files import whole, write_text
from fourm_ser.report.cells import SHOWN, Section

# What a paper's table has; everything else is in results.csv.
COLUMNS = {"ua": "UA", "wa": "WA", "f1_macro": "macro F1", "f1_weighted": "weighted F1"}
TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "†": r"\dag{}",
    "·": r"\textperiodcentered{}",
} | {sign: "\\" + sign for sign in "&%$#_{}"}


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


def percent(mean: float, std: float, plus_minus: str = " ± ") -> str:
    """`80.66 ± 1.20` from shares; the mean alone where nothing was repeated."""
    if pd.isna(mean):
        return "-"
    return f"{100 * mean:.2f}" if pd.isna(std) else f"{100 * mean:.2f}{plus_minus}{100 * std:.2f}"


def best_of(section: Section, metric: str) -> set[int]:
    """The complete cells whose mean reads like the highest: what is printed in bold."""
    means = section.summary(metric)["mean"].loc[section.complete].round(4)
    return set(means.index[means == means.max()])


def write_tables(sections: list[Section], folder: Path) -> None:
    """Write results.csv, results.md and results.tex."""
    with whole(folder / "results.csv") as temporary:
        results_frame(sections).to_csv(temporary, index=False)
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


def rows_of(section: Section, bold: str, plus_minus: str) -> list[list[str]]:
    """The table's rows in the order of UA, the best of each column set in bold.

    Args:
        section: the section.
        bold: the pattern for the best, such as `**{}**`.
        plus_minus: the text between mean and deviation.
    """
    summaries = {metric: section.summary(metric) for metric in COLUMNS}
    best = {metric: best_of(section, metric) for metric in COLUMNS}
    rows = []
    for number in section.ranked("ua"):
        cell = section.cells[number]
        marks = ("†" if cell.random_weights else "") + ("" if number in section.complete else " (incomplete)")
        choice = list(cell.values.values())
        choice[-1] += marks
        numbers = [
            (bold if number in best[metric] else "{}").replace(
                "{}", percent(summary["mean"][number], summary["std"][number], plus_minus)
            )
            for metric, summary in summaries.items()
        ]
        rows.append([*choice, *numbers, str(int(summaries["ua"]["n"][number]))])
    return rows


def _markdown(section: Section) -> str:
    header = [*section.axes, *(f"{name} (%)" for name in COLUMNS.values()), f"{section.repeat}s"]
    rows = [header, ["---"] * len(section.axes) + ["---:"] * (len(COLUMNS) + 1)]
    rows += [[text.replace("|", "\\|") for text in row] for row in rows_of(section, "**{}**", " ± ")]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    notes = "\n".join(f"- {note}" for note in section.notes)
    return f"## {title(section)}\n\n{statement(section)}\n\n{notes}\n\n{table}\n"


def _tex(section: Section) -> str:
    # Numbers are marked for TeX after the words are escaped.
    rows = []
    for row in rows_of(section, "<b>{}</b>", " ± "):
        escaped = [_escape(text) for text in row[: len(section.axes)]]
        numbers = [text.replace("<b>", r"\textbf{").replace("</b>", "}") for text in row[len(section.axes) :]]
        rows.append([*escaped, *(text.replace(" ± ", r"\,$\pm$\,") for text in numbers)])
    header = [_escape(name) for name in (*section.axes, *COLUMNS.values(), f"{section.repeat}s")]
    notes = "".join(f"% {note}\n" for note in [statement(section), *section.notes])
    lines = "\n".join(f"{' & '.join(row)} \\\\" for row in rows)
    shape = "l" * len(section.axes) + "r" * (len(COLUMNS) + 1)
    return (
        f"{notes}\\begin{{tabular}}{{{shape}}}\n\\toprule\n{' & '.join(header)} \\\\\n\\midrule\n{lines}\n"
        "\\bottomrule\n\\end{tabular}\n"
    )


def _escape(text: str) -> str:
    return "".join(TEX.get(sign, sign) for sign in text)
