"""analysis.html: all analyses of a run on one page that needs nothing beside it."""

import base64
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from fourm_ser import __version__
from fourm_ser.analysis.findings import Finding, Part
from fourm_ser.files import write_text
from fourm_ser.pages import render
from fourm_ser.runs.directory import RunDirectory
from fourm_ser.runs.finished import OpenRun
from fourm_ser.runs.results import told_protocol

ROWS = 40  # of a table on the page; the file beside it has all
METRICS = ("ua", "wa", "f1_macro", "ece", "intra_inter")


def write_page(parts: Sequence[Part], runs: Sequence[OpenRun], side: str, folder: Path) -> None:
    """Write analysis.html, whole, into the folder that holds each part's; the first run is the one looked into.

    What the parts found is written by then (`findings.write_finding`): the page shows the very figures of the files.
    """
    first = runs[0]
    page = render(
        "analysis/analysis.html.j2",
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        name=first.name,
        headline=_headline(first, side),
        facts=_facts(first, side),
        others=[(run.name, str(run.run_dir)) for run in runs[1:]],
        parts=[
            {
                "name": part.name,
                "question": part.question,
                "findings": [_view(folder / part.name, f) for f in part.findings],
            }
            for part in parts
            if part.findings
        ],
        left_out=[(part.name, part.left_out) for part in parts if part.left_out],
    )
    write_text(folder / "analysis.html", page)


def _headline(run: OpenRun, side: str) -> str:
    """What the run was tested on, how, and how well."""
    metrics = RunDirectory(run.run_dir).read_metrics()
    return f"{run.corpus.name}, {told_protocol(metrics)}, side {side}: test UA {metrics['test/ua']:.1%}"


def _facts(run: OpenRun, side: str) -> dict[str, str]:
    """What the page says of the run."""
    metrics = RunDirectory(run.run_dir).read_metrics()
    encoders = ", ".join(f"{encoder.name} ({encoder.weights})" for encoder in run.network.by_modality.values())
    named = [(name, metrics.get(f"test/{name}")) for name in METRICS]
    return {
        "run": str(run.run_dir),
        "corpus": f"{run.corpus.name}, {len(run.corpus.rows(side))} utterances of the side {side}",
        "encoders": encoders,
        "fusion": type(run.network.fusion).__name__,
        "stages": ", ".join(str(name) for name in run.config.stage),
        "test": ", ".join(f"{name} {value:.3f}" for name, value in named if value is not None),
    }


def _view(folder: Path, finding: Finding) -> dict[str, Any]:
    """What the template shows of a finding that was written into the folder of its part."""
    table = finding.table if finding.shown is None else finding.shown
    cut = table.head(ROWS)
    more = f"The first {ROWS} of {len(table)} rows." if len(table) > ROWS else ""
    return {
        "title": finding.title,
        "caption": finding.caption,
        "method": finding.method,
        "alt": finding.alt,
        "image": None if finding.figure is None else _embedded(folder / f"{finding.name}.png"),
        "header": [str(name) for name in cut.columns],
        "rows": [[_cell(value) for value in row] for row in cut.itertuples(index=False)],
        "more": more,
        "file": f"{folder.name}/{finding.name}.csv",
    }


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.4g}"
    return "" if value is None else str(value)


def _embedded(figure: Path) -> str:
    """A figure, a PNG, as a data address."""
    return "data:image/png;base64," + base64.b64encode(figure.read_bytes()).decode()
