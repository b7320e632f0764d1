"""From folders to runs: what finished, what failed, what is still under way, what has not begun."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import Any

from fourm_ser.config import upgrade
from fourm_ser.errors import InputError
from fourm_ser.files import is_spoilt
from fourm_ser.plain import read_yaml
from fourm_ser.runs.directory import SWEEP, RunDirectory

MOST = 100_000  # jobs of a sweep that are listed


@dataclass(frozen=True)
class Run:
    """One run directory.

    Attributes:
        path: the directory.
        state: `finished`, `failed` (failure.json), `unfinished` (running or ended), `damaged`.
        why: what is known of a run that did not finish.
        config: the resolved config; empty where it cannot be read.
        options: what each config group chose (`loss`: `ce_center`); empty for a run that no command line started.
        overrides: the command line's `key=value` words, without Hydra's own.
        folders: `--config-dir` and the like of the command line.
        module: what was run, `fourm_ser.train`.
        job: its number in its sweep.
        recorded: whether Hydra recorded the command line; a run from a notebook has none.
        metrics: what metrics.json holds; empty unless finished.
    """

    path: Path
    state: str
    why: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    module: str = "fourm_ser.train"
    job: int = 0
    recorded: bool = False
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def directory(self) -> RunDirectory:
        """The names of the files."""
        return RunDirectory(self.path)


@dataclass(frozen=True)
class Collection:
    """What was found.

    Attributes:
        runs: in the order of the folders, and of the jobs in a sweep.
        waiting: overrides of sweep jobs that have no run directory yet, by the sweep's folder.
        problems: what is wrong with the folders, in sentences.
    """

    runs: list[Run]
    waiting: dict[Path, list[list[str]]]
    problems: list[str]


def collect(folders: list[Path]) -> Collection:
    """Read all runs under the folders; InputError for a folder that is not there, or no run under any of them."""
    runs: dict[Path, Run] = {}
    waiting: dict[Path, list[list[str]]] = {}
    problems = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder. Expected a run or a folder of runs, such as a sweep.")
        found = [read_run(path) for path in find_runs(folder)]
        found.sort(key=lambda run: (str(run.path.parent), run.job, str(run.path)))
        if not found:
            problems.append(f"{folder}: holds no run (looked for folders with a config.yaml and a train.log).")
        runs |= {run.path.resolve(): run for run in found if run.path.resolve() not in runs}
        for sweep in sorted(path.parent for path in folder.rglob(SWEEP)):
            begun = {frozenset(run.overrides) for run in found if sweep in run.path.parents}
            jobs = [job for job in planned(sweep / SWEEP) if frozenset(job) not in begun]
            if jobs:
                waiting[sweep] = jobs
    if not runs:
        raise InputError(f"no run found. {' '.join(problems)} Give the folder of a sweep or of a run.")
    return Collection(list(runs.values()), waiting, problems)


def find_runs(folder: Path) -> Iterator[Path]:
    """The run directories at or under a folder; nothing inside a run is one."""
    for path, below, _ in os.walk(folder):
        below.sort()
        if RunDirectory(Path(path)).is_run:
            below.clear()
            yield Path(path)
        below[:] = [name for name in below if not name.startswith(".")]


def read_run(path: Path) -> Run:
    """Read one run directory; what is wrong with it becomes its state."""
    run = RunDirectory(path)
    command = _command(run)
    try:
        if is_spoilt(run.record):
            raise ValueError("is not what was written there")
        config = upgrade(read_yaml(run.record))
        json.dumps(config, sort_keys=True)  # as it is compared with other runs'
    except FileNotFoundError:
        config = {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return Run(path, "damaged", f"config.yaml cannot be read: {_line(error)}", **command)
    if config and not isinstance(config.get("data"), dict):
        return Run(path, "damaged", "config.yaml has no `data`: is this a run of fourm_ser?", **command)
    if run.metrics.is_file():
        try:
            metrics = run.read_metrics()
        except (OSError, ValueError) as error:
            return Run(path, "damaged", f"metrics.json: {_line(error)}", config, **command)
        if not config:
            return Run(path, "damaged", "config.yaml is missing or empty, so nobody knows what was run.", **command)
        return Run(path, "finished", "", config, metrics=metrics, **command)
    if run.failure.is_file():
        try:
            failure = run.read_failure()
            why = str(failure.get("error") or "failure.json gives no error")
        except (OSError, ValueError) as error:
            failure, why = {}, f"failure.json cannot be read: {_line(error)}"
        if not command["overrides"] and isinstance(failure.get("overrides"), list):
            command["overrides"] = _own([str(word) for word in failure["overrides"]])
        return Run(path, "failed", why, config, **command)
    return Run(path, "unfinished", "running, or ended before its results were written", config, **command)


def planned(path: Path) -> list[list[str]]:
    """The overrides of each job that a multirun.yaml announces; none where its sweeper chooses them as it goes."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        node = read_yaml(path)["hydra"]
        words, sweeper = node["overrides"]["task"], node["sweeper"]
        if not sweeper["_target_"].endswith(("BasicSweeper", "GridsSweeper")):
            return []
        said = {word.partition("=")[0] for word in words}
        jobs: dict[frozenset[str], tuple[str, ...]] = {}
        for grid in sweeper.get("grids") or [{}]:
            given = {**grid, **(sweeper["params"] or {})}
            beside = [f"{key}={value}" for key, value in given.items() if key not in said]
            choices = []
            for parsed in OverridesParser.create().parse_overrides(beside + words):
                is_swept = parsed.is_sweep_override()
                # In the sweeper's own words: true becomes True.
                values = parsed.sweep_string_iterator() if is_swept else [parsed.get_value_element_as_str()]
                choices.append([f"{parsed.get_key_element()}={value}" for value in islice(values, MOST)])
            for job in islice(product(*choices), MOST):
                jobs.setdefault(frozenset(job), job)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, HydraException):
        return []
    return [_own(list(job)) for job in islice(jobs.values(), MOST)]


def _command(run: RunDirectory) -> dict[str, Any]:
    """What Hydra recorded of the command line, as arguments of Run."""
    try:
        hydra = read_yaml(run.hydra)["hydra"]
        choices, sources = hydra["runtime"]["choices"].items(), hydra["runtime"]["config_sources"]
        return {
            "options": {key: str(name) for key, name in choices if name and not key.startswith("hydra/")},
            "overrides": _own([str(word) for word in hydra["overrides"]["task"]]),
            "folders": [source["path"] for source in sources if source["provider"] == "command-line"],
            "module": f"fourm_ser.{hydra['job']['name']}",
            "recorded": True,
            "job": int(hydra["job"].get("num") or 0),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {"options": {}, "overrides": []}


def _own(overrides: list[str]) -> list[str]:
    """Without Hydra's words, and those that make a sweep of a run."""
    return [word for word in overrides if not word.lstrip("+~").startswith(("hydra.", "hydra/", "sweep=", "sweep."))]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
