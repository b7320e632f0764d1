"""What an analysis found: numbers, a figure, and how to read them."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from fourm_ser.figures import save_figure
from fourm_ser.files import write_table

FORMATS = (".png", ".svg")


class UnsuitedError(Exception):
    """An analysis that a model cannot have; the message says why, in a sentence."""


class Finding(NamedTuple):
    """One figure's worth.

    Attributes:
        name: the name of the files, without an ending.
        title: what was found, in a few words.
        caption: what the figure says here, in a sentence or two.
        table: all numbers of the figure.
        figure: the figure; None where the table says it all.
        alt: what one sees in the figure, in a sentence or two.
        shown: a shorter table for the page, where `table` is long; None for `table` itself.
        method: how it was computed and how to read it, where the caption does not say; the page folds it away.
    """

    name: str
    title: str
    caption: str
    table: pd.DataFrame
    figure: Figure | None
    alt: str
    shown: pd.DataFrame | None = None
    method: str = ""


class Part(NamedTuple):
    """One analysis, done or not.

    Attributes:
        name: the key in `parts`.
        question: what it answers.
        findings: what it found.
        left_out: why there is nothing, in a sentence; "" where there is something.
    """

    name: str
    question: str
    findings: list[Finding]
    left_out: str


def write_finding(finding: Finding, folder: Path) -> None:
    """Write <name>.csv and, where there is a figure, <name>.png and <name>.svg, each whole."""
    write_table(folder / f"{finding.name}.csv", finding.table)
    if finding.figure is not None:
        for ending in FORMATS:
            save_figure(finding.figure, folder / f"{finding.name}{ending}")
