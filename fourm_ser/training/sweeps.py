"""Sweeps: many runs of one command. What is finished is skipped, what died goes on, what failed stops no other.

A sweep lives in one folder, a run directory for each of its jobs. Nothing heavy is imported here: a job that is
finished costs no more than reading its record.
"""

import contextlib
import csv
import multiprocessing
import os
import shlex
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from fourm_ser.commandline import loading
from fourm_ser.config import drop_unread, settle, take_hashes, upgrade
from fourm_ser.errors import BusyError, InputError
from fourm_ser.files import whole
from fourm_ser.keys import check_config
from fourm_ser.runs.collect import Run, read_run
from fourm_ser.runs.directory import RunDirectory
from fourm_ser.training import grids
from fourm_ser.training.parent import end_with_parent
from fourm_ser.training.sweep_jobs import NO_PART, Job, key_of, mark_of, need_plugins, plan_jobs, slurm_script

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
SHOWN = ("val/ua", "test/ua", "test/wa", "test/f1_macro")


# The launchers' options bear the names of their plugins' on purpose, here and in the launchers' processes.
warnings.filterwarnings("ignore", r"(?s).*is validated against ConfigStore schema")


def job(config: DictConfig) -> float:
    """Do one job of a sweep, by its composed config; it never raises, which would end the other jobs.

    Returns:
        The best validation UA, for sweepers that optimise it; NaN where the job failed, as its failure.json tells.
    """
    directory = RunDirectory(Path(HydraConfig.get().runtime.output_dir))
    try:
        if not config.sweep.skip_finished:
            directory.forget()
        _discard_damaged(directory)
        if not has_finished(config, directory):
            if HydraConfig.get().launcher._target_ == BASIC and "torch" not in sys.modules:
                with loading():  # for the first job that is done
                    import fourm_ser.training.experiment  # noqa: F401
            check_config("train", config, HydraConfig.get().overrides.task)
            try:
                _do(config, directory)
            except BusyError as error:  # a process that outlived an earlier sweep, or a job chosen twice
                print(f"{directory.path.name}: waiting. {error}", flush=True)
                with directory.locked(wait=True):
                    pass
                _do(config, directory)
        return float(directory.read_metrics()["val/ua"])
    except Exception as error:
        directory.write_failure(error, HydraConfig.get().overrides.task)
        return float("nan")


def _do(config: DictConfig, directory: RunDirectory) -> None:
    """Do the job, with its log on the terminal where it is the only one, else in its output.log."""
    with contextlib.ExitStack() as stack:
        if HydraConfig.get().launcher._target_.endswith(".JoblibLauncher"):
            if config.trainer.devices == 1:
                _take_gpu(directory.path.parent, HydraConfig.get().job.num)
            if multiprocessing.current_process().name != "MainProcess" and os.name == "posix":
                end_with_parent()
        if HydraConfig.get().launcher._target_ != BASIC:
            output = stack.enter_context(directory.output.open("a", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(output))
            stack.enter_context(contextlib.redirect_stderr(output))
            # joblib's processes start others in their own way, by which loader workers cannot be started.
            multiprocessing.set_start_method(None, force=True)
        from fourm_ser.training.experiment import run

        run(config, directory.path, own_process=True)


_gpu: FileLock | None = None  # what this process holds as long as it lives


def _take_gpu(sweep: Path, number: int) -> None:
    """Show this process, one of several that do a sweep's jobs side by side, one GPU alone.

    Each takes one that no other has; those for whom none is left share, by the number of their job.
    """
    global _gpu
    if _gpu is not None:
        return
    import torch  # the job needs it anyway

    count = torch.cuda.device_count()  # asks the driver: CUDA itself, which looks at what is visible once, sleeps yet
    if count < 2:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",")[:count] if visible else [str(place) for place in range(count)]
    chosen = names[number % count]
    for name in names:
        lock = FileLock(sweep / f".gpu-{name.strip()}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        _gpu, chosen = lock, name
        break
    os.environ["CUDA_VISIBLE_DEVICES"] = chosen.strip()


SETTLED = ("trainer", "encode")  # nodes of which a record says what `auto` became on its machine
_corpora: dict[str, Any] = {}  # what this process read for a sweep's finished jobs: most have the same corpus


def has_finished(config: DictConfig, directory: RunDirectory) -> bool:
    """Whether a run directory holds the results of a config, whatever its `auto` became on the machine of that run.

    Its corpus must be what it was, too.
    """
    if not directory.metrics.is_file() or directory.failure.is_file():
        return False
    from fourm_ser.encoders.checkpoints import take_pins

    record = directory.peek_record()  # what it agrees with is the command's own
    asked: Any = OmegaConf.to_container(config, resolve=True)
    found: Any = OmegaConf.to_container(record)
    upgrade(asked)
    drop_unread(asked)
    settle(asked)
    settle(found)
    take_hashes(found, asked)
    take_pins(found, asked)
    if not _agrees({key: value for key, value in asked.items() if key not in ("resume", "sweep")}, found):
        return False
    from fourm_ser.runs.claims import changes_since

    return not changes_since(record.data, record.cache, directory, _corpora)


def _agrees(asked: Any, found: Any, settled: bool = False) -> bool:
    """Whether a record's value is what was asked for; `settled`: it may stand for an `auto`."""
    if isinstance(asked, dict) and isinstance(found, dict):
        return asked.keys() == found.keys() and all(
            _agrees(asked[key], found[key], settled or key in SETTLED) for key in asked
        )
    return (settled and asked == "auto") or str(asked) == str(found)  # a precision of 32 is recorded as a word


def _discard_damaged(directory: RunDirectory) -> None:
    """Remove results that cannot be read, so that the job goes on from its checkpoints and writes them again."""
    try:
        directory.read_metrics()
    except FileNotFoundError:
        return
    except ValueError as error:
        print(f"{directory.metrics}: is damaged, and written again. {' '.join(str(error).split())}", flush=True)
        directory.metrics.unlink()


def read_job(folder: Path) -> Run:
    """What became of the job in a run directory, which need not be there: its `state` is then `not begun`."""
    if not folder.is_dir():
        return Run(folder, "not begun")
    directory = RunDirectory(folder)
    if directory.failure.is_file():  # also where an earlier run of another config left its results
        return Run(folder, "failed", directory.read_failure()["error"])
    run = read_run(folder)
    return replace(run, state="failed") if run.state == "damaged" else run


class Sweep(Callback):
    """A multirun from the check of all its jobs to the table of what became of them.

    Its copies in the launcher's processes tell of the jobs that they do.
    """

    current: "Sweep | None" = None

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.varied: list[str] = []
        self.folder = Path()
        self.started = 0.0

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Find out what the jobs are, and that each of them can be composed, before the first begins."""
        HydraConfig.instance().set_config(config)
        _corpora.clear()
        try:
            need_plugins(config)
            grids.register()
            self.folder, self.started = Path(config.hydra.sweep.dir), time.time()
            self.varied, self.jobs = plan_jobs(config)
        except InputError as error:
            sys.exit(f"error: {error}")
        states = [read_job(job.folder).state for job in self.jobs]
        counts = [f"{states.count(name)} {name}" for name in dict.fromkeys(states) if name != "not begun"]
        count = f"{len(self.jobs) or config.hydra.sweeper.get('n_trials')} jobs"
        print(f"sweep in {self.folder}: {', '.join([count, *counts])}", flush=True)
        if config.sweep.dry_run:
            for job in self.jobs:
                words = [word for word in job.words if key_of(word) not in NO_PART]
                print(f"{mark_of(job.folder)}  {read_job(job.folder).state}: {shlex.join(words)}")
            if config.hydra.launcher._target_.endswith(".SlurmLauncher"):
                print(slurm_script(config, len(self.jobs)))
            sys.exit(0)
        Sweep.current = self

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """One line, where there is something to do."""
        if self.started and not RunDirectory(Path(config.hydra.runtime.output_dir)).metrics.is_file():
            print(f"{self._label(config)}: begins", flush=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """One line of what became of the job."""
        if not self.started:
            return
        run = read_job(Path(config.hydra.runtime.output_dir))
        said = run.why or f"validation UA {run.metrics['val/ua']:.4f}, test UA {run.metrics['test/ua']:.4f}"
        print(f"{self._label(config)}: {run.state}: {said}", flush=True)

    def _label(self, config: DictConfig) -> str:
        words = [word for word in config.hydra.overrides.task if key_of(word) in self.varied]
        count = f"/{len(self.jobs)}" if self.jobs else ""
        return f"job {config.hydra.job.num + 1}{count} ({mark_of(config.hydra.runtime.output_dir)}) {' '.join(words)}"

    def close(self) -> int:
        """Print the table of the jobs and write it as jobs.csv; how many did not finish."""
        jobs = self.jobs or _begun_since(self.folder, self.started)
        runs = [read_job(job.folder) for job in jobs]
        _report(self.folder, self.varied, jobs, runs)
        best = self.folder / "optimization_results.yaml"
        if best.is_file() and best.stat().st_mtime >= self.started:
            found = yaml.safe_load(best.read_text(encoding="utf-8"))
            words = [f"{key}={value}" for key, value in found.get("best_params", {}).items()]
            print(f"best validation UA {found.get('best_value', float('nan')):.4f}: {' '.join(words)}")
        if any(next(job.folder.glob("wandb/offline-run-*"), None) for job in jobs):
            folder = shlex.quote(str(self.folder))
            print(f"logged offline; upload the sweep with: wandb sync {folder}/*/wandb/offline-run-*")
        return sum(run.state != "finished" for run in runs)


def close() -> None:
    """End the command's sweep, if it was one and began: its table, and exit code 1 if a job did not finish.

    However it ended: a launcher whose process was killed raises, and Hydra's own end of a multirun never comes. A sweep
    that a signal ended keeps the exit code of that.
    """
    stopped = sys.exception()
    sweep, Sweep.current = Sweep.current, None
    if sweep is not None and sweep.close():
        print("the same command goes on: what is finished is skipped", file=sys.stderr)
        if not isinstance(stopped, SystemExit) or stopped.code in (None, 0):
            sys.exit(1)


def _begun_since(folder: Path, started: float) -> list[Job]:
    """The jobs that Hydra started in a folder since a time, in their order."""
    records = [path for path in folder.glob("*/.hydra/hydra.yaml") if path.stat().st_mtime >= started - 1.0]
    runs = [read_run(path.parent.parent) for path in records]
    return [Job(run.overrides, run.path) for run in sorted(runs, key=lambda run: run.job)]


def _report(folder: Path, varied: list[str], jobs: list[Job], runs: list[Run]) -> None:
    """Write the table of the jobs as jobs.csv and print it, and why those ended that did not finish."""
    from rich.console import Console

    from fourm_ser.terminal import make_table

    print(f"sweep in {folder}")
    shown = make_table(None, ["job", *varied, "state", *SHOWN], SHOWN, overflow="fold")
    with whole(folder / "jobs.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        written = csv.writer(file)
        written.writerow(["cell", *varied, "state", *SHOWN, "why"])
        for job, run in zip(jobs, runs, strict=True):
            row = [*job.chosen(varied).values(), run.state]
            metrics = [run.metrics.get(name) for name in SHOWN]
            written.writerow([job.folder.name, *row, *metrics, run.why])
            shown.add_row(mark_of(job.folder), *row, *("" if value is None else f"{value:.4f}" for value in metrics))
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200  # a file is not cut to 80 columns
    Console(width=width).print(shown)
    states = [run.state for run in runs]
    print(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no job began")
    for job, run in zip(jobs, runs, strict=True):
        if run.state not in ("finished", "not begun"):
            words = [f"{key}={value}" for key, value in job.chosen(varied).items()]
            print(f"{run.state}: {mark_of(job.folder)} {' '.join(words)}: {run.why}")
