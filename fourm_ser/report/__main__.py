"""Collect sweeps into tables and one page: fourm_ser report multirun/2026-01-31/12-00-00."""

import argparse
import sys
from pathlib import Path

from fourm_ser import __version__
from fourm_ser.errors import InputError

METRICS = ("ua", "wa", "f1_macro", "f1_weighted")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="fourm_ser report",
        description="Collect runs into results.csv, results.md, results.tex and report.html, also while a sweep runs.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a sweep, a run, or a folder of them")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (report/ in the first DIR)")
    parser.add_argument("--metric", choices=METRICS, default="ua", help="which test metric makes the best cell (ua)")
    parser.add_argument("--published", action="store_true", help="set cells beside what was published of their models")
    parser.add_argument("--version", action="version", version=f"fourm_ser {__version__}")
    arguments = parser.parse_args()
    output = arguments.output or arguments.folders[0] / "report"
    try:
        for line in report(arguments.folders, output, arguments.metric, arguments.published):
            print(line)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


def report(folders: list[Path], output: Path, metric: str = "ua", published: bool = False) -> list[str]:
    """Write the report of all runs under the folders to `output`; returns what there is to say about it, a line each.

    `published` sets cells beside what was published of their models, in the notes and in published.csv.

    Raises:
        InputError: a folder that does not exist, or no run at all.
    """
    from fourm_ser.report.baselines import note_baselines
    from fourm_ser.report.cells import make_sections
    from fourm_ser.report.page import write_page
    from fourm_ser.report.published import note_published
    from fourm_ser.report.tables import write_tables
    from fourm_ser.runs.collect import collect

    collection = collect(folders)
    sections, doubles = make_sections(collection.runs)
    beaten_by = note_baselines(sections)
    beside = note_published(sections, output) if published else []
    write_tables(sections, output)
    problems = write_page(sections, collection, [*collection.problems, *doubles], output, metric)
    finished = sum(run.state == "finished" for run in collection.runs)
    lines = [f"{finished} of {len(collection.runs)} runs have finished, in {len(sections)} section(s)"]
    lines += [f"{run.path}: {run.state}: {run.why}" for run in collection.runs if run.state in ("failed", "damaged")]
    lines += [f"{sweep}: {len(jobs)} jobs have not begun" for sweep, jobs in collection.waiting.items()]
    return [*lines, *beaten_by, *beside, *problems, f"report: {output / 'report.html'}"]


if __name__ == "__main__":
    main()
