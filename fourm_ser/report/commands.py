"""The command lines that repeat what was run."""

import shlex
from itertools import product

from fourm_ser.data.names import natural
from fourm_ser.report.axes import REPEATS
from fourm_ser.report.cells import repeat_of
from fourm_ser.runs.collect import Run


def resume_command(run: Run) -> str:
    """What goes on with an unfinished run."""
    return f"fourm_ser train resume={shlex.quote(str(run.path))}"


def waiting_command(overrides: list[str]) -> str:
    """What starts a job of a sweep that has not begun."""
    return shlex.join(["fourm_ser", "train", *overrides])


def cell_commands(runs: list[Run]) -> list[str]:
    """What repeats all runs of a cell: one multirun where their seeds and folds are a full grid, else a line each."""
    if len(runs) > 1 and all(run.recorded for run in runs):
        common = {tuple(word for word in run.overrides if _key(word) not in REPEATS) for run in runs}
        combinations = [repeat_of(run) for run in runs]
        values = [sorted(set(column), key=natural) for column in zip(*combinations, strict=True)]
        same_call = len({(run.module, *run.folders) for run in runs}) == 1
        if len(common) == 1 and same_call and set(product(*values)) == set(combinations):
            named = {_key(word) for run in runs for word in run.overrides}
            repeats = [
                f"{name}={','.join(column)}"
                for name, column in zip(REPEATS, values, strict=True)
                if len(column) > 1 or name in named
            ]
            return [_line(runs[0], [*common.pop(), *repeats], several=True)]
    return [_repeat(run) for run in runs]


def _repeat(run: Run) -> str:
    """What repeats a run in a new directory."""
    if run.recorded or run.overrides:
        return _line(run, run.overrides)
    record = shlex.quote(str(run.directory.record))
    return f"mkdir -p again && cp {record} again/ && fourm_ser train resume=again"


def _line(run: Run, words: list[str], several: bool = False) -> str:
    package, _, command = run.module.partition(".")
    call = [package, command] if package == "fourm_ser" else ["python", "-m", run.module]
    start = [*call, *(["-m"] if several else [])]
    folders = [word for folder in run.folders for word in ("--config-dir", folder)]
    return shlex.join([*start, *folders, *words])


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]
