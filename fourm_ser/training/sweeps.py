"""Sweeps: many runs of one command. What is finished is skipped, what died goes on, what failed stops no other.

A sweep lives in one folder, a run directory for each of its jobs. Nothing heavy is imported here: a job that is
finished costs no more than reading its record.
"""

import contextlib
import csv
import hashlib
import multiprocessing
import os
import re
import shlex
import sys
import time
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from fourm_ser.commandline import explain, loading
from fourm_ser.config import drop_unread, settle, take_hashes, upgrade
from fourm_ser.errors import BusyError, InputError
from fourm_ser.files import whole
from fourm_ser.keys import check_config
from fourm_ser.runs.collect import Run, read_run
from fourm_ser.runs.directory import RunDirectory
from fourm_ser.training import grids
from fourm_ser.training.parent import end_with_parent

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
SWEEPERS = ("BasicSweeper", "GridsSweeper")  # whose jobs are known beforehand
LONGEST = 120  # bytes of a job's name before the hash: file systems take 255 in all
UNSAFE = re.compile(r"[^\w.,=+-]")  # signs that shells, globs or file systems have another use for
NEXT_WORD = re.compile(r",(?=[+~]{0,2}[\w./@]+=)")
NO_PART = ("sweep", "sweep.skip_finished", "sweep.dry_run")  # of what a job is
SHOWN = ("val/ua", "test/ua", "test/wa", "test/f1_macro")


def _cell(words: str, sweep: str = "", varied: str = "") -> str:
    """A job's folder: what varies in the sweep, to be read, and a hash of all that was chosen, to be found by.

    The hash does not hang on the job's number, nor on what else varies, so that a sweep started again finds its jobs,
    whatever the beginning of their names; those of earlier versions are the hash alone.

    Args:
        words: all that was chosen, `key=value`, sorted and parted by commas.
        sweep: the sweep's folder.
        varied: the keys that vary, parted by blanks; without any the name is the hash.
    """
    mark = hashlib.blake2b(words.encode(), digest_size=6).hexdigest()
    there = sorted(path.name for path in Path(sweep).glob(f"*{mark}") if path.is_dir()) if sweep else []
    if there:
        return there[0]
    keys = varied.split()
    chosen = [word.lstrip("+") for word in NEXT_WORD.split(words) if _key(word) in keys]
    shown = UNSAFE.sub("_", ",".join(sorted(chosen, key=lambda word: keys.index(_key(word)))))
    shown = shown.encode()[:LONGEST].decode(errors="ignore")
    return f"{shown}-{mark}" if shown else mark


def _group(mode: Any, folder: str) -> str | None:
    """A sweep's name for loggers, which is its folder's; None for a single run."""
    if str(mode).rpartition(".")[2] != RunMode.MULTIRUN.name:
        return None
    return "/".join(part for part in Path(folder).parts[-2:] if part not in ("/", "multirun"))


# The launchers' options bear the names of their plugins' on purpose, here and in the launchers' processes.
warnings.filterwarnings("ignore", r"(?s).*is validated against ConfigStore schema")
OmegaConf.register_new_resolver("cell", _cell, replace=True)
OmegaConf.register_new_resolver("sweep_group", _group, replace=True)


class Job(NamedTuple):
    """A job of a sweep: what was chosen for it, as `key=value` words, and its run directory."""

    words: list[str]
    folder: Path

    def chosen(self, keys: list[str]) -> dict[str, str]:
        """What it has for some keys."""
        values = {_key(word): word.partition("=")[2] for word in self.words}
        return {key: values.get(key, "") for key in keys}


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
            _need_plugins(config)
            grids.register()
            self.folder, self.started = Path(config.hydra.sweep.dir), time.time()
            self.varied, self.jobs = _plan(config)
        except InputError as error:
            sys.exit(f"error: {error}")
        states = [read_job(job.folder).state for job in self.jobs]
        counts = [f"{states.count(name)} {name}" for name in dict.fromkeys(states) if name != "not begun"]
        count = f"{len(self.jobs) or config.hydra.sweeper.get('n_trials')} jobs"
        print(f"sweep in {self.folder}: {', '.join([count, *counts])}", flush=True)
        if config.sweep.dry_run:
            for job in self.jobs:
                words = [word for word in job.words if _key(word) not in NO_PART]
                print(f"{_mark(job.folder)}  {read_job(job.folder).state}: {shlex.join(words)}")
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
        words = [word for word in config.hydra.overrides.task if _key(word) in self.varied]
        count = f"/{len(self.jobs)}" if self.jobs else ""
        return f"job {config.hydra.job.num + 1}{count} ({_mark(config.hydra.runtime.output_dir)}) {' '.join(words)}"

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


def _need_plugins(config: DictConfig) -> None:
    for group in ("launcher", "sweeper"):
        package, _, rest = config.hydra[group]._target_.partition(".")
        plugin = rest.partition(".")[0]
        if plugin == "fourm_ser":  # no package: it comes with this one
            continue
        if package == "hydra_plugins" and (find_spec(package) is None or find_spec(f"{package}.{plugin}") is None):
            extra = plugin.removeprefix("hydra_").partition("_")[0]
            raise InputError(f'hydra.{group}: {plugin} is not installed. pip install "fourm_ser[{extra}]"')


def _plan(config: DictConfig) -> tuple[list[str], list[Job]]:
    """The keys that vary and the jobs; none where a sweeper chooses them as it goes.

    Composing takes a good part of a second, so that not every job is composed but every value once.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    loader = GlobalHydra.instance().config_loader()
    sweeper = config.hydra.sweeper
    given = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    varied, trials = dict[str, None](), list[dict[str, str]]()
    try:
        parsed = OverridesParser.create(loader).parse_overrides([*given, *config.hydra.overrides.task])
        spanned = grids.each_grid(sweeper.get("grids") or [], parsed, loader)
        jobs = grids.jobs_of(spanned) if sweeper._target_.endswith(SWEEPERS) else []
        for choices in spanned:
            values = {override.get_key_element(): _values(override) for override in choices}
            swept = [override.get_key_element() for override in choices if override.is_sweep_override()]
            usual = {key: options[0] for key, options in values.items()}
            trials += [usual, *({**usual, key: option} for key in swept for option in values[key][1:])]
            varied.update(dict.fromkeys(swept))
    except HydraException as error:
        raise InputError(f"sweep: {explain(error)}") from error
    keys = dict.fromkeys(key for trial in trials for key in trial)
    varied.update(dict.fromkeys(key for key in keys if any(key not in trial for trial in trials)))
    shown, sweep = [key.lstrip("+~") for key in varied], config.hydra.sweep.dir
    _name_jobs(config, shown)
    for number, trial in enumerate(trials):
        if trial not in trials[:number]:
            _check_composes(config, loader, trial, shown)
    return shown, [Job(words, Path(sweep) / _folder(words, sweep, shown)) for words in jobs]


def _check_composes(config: DictConfig, loader: Any, trial: dict[str, str], varied: list[str]) -> None:
    words = [f"{key}={value}" for key, value in trial.items()]
    try:
        composed = loader.load_sweep_config(config, words)
        check_config("train", composed, words, classes=False)
    except HydraException as error:
        which = " ".join(word for word in words if _key(word) in varied)
        raise InputError(f"sweep: the job {which}: {explain(error)}") from error
    found = composed.hydra.sweep.subdir
    if found != _folder(words, config.hydra.sweep.dir, varied):
        raise InputError(f"hydra.sweep.subdir: {found}: a sweep does not find its jobs there.")


def _name_jobs(config: DictConfig, varied: list[str]) -> None:
    """Let the folders of a sweep's jobs bear what varies: in an override that every job is composed with.

    Raises:
        InputError: the command line says other folders.
    """
    usual = "${cell:${hydra.job.override_dirname},${hydra.sweep.dir}}"
    found = OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"]  # type: ignore[call-overload, index]
    if found != usual:
        raise InputError(f"hydra.sweep.subdir: leave it as it is: a sweep finds its jobs by it (found {found}).")
    name = usual.removesuffix("}") + ',"' + " ".join(varied) + '"}'
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.overrides.hydra.append(f"hydra.sweep.subdir='{name}'")


def _folder(words: list[str], sweep: str, varied: list[str]) -> str:
    """A job's folder below its sweep, as Hydra's `override_dirname` makes it."""
    return _cell(",".join(sorted(word for word in words if _key(word) not in NO_PART)), sweep, " ".join(varied))


def _values(override: Any) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.get_value_element_as_str())]
    if override.is_interval_sweep():
        return [str(override.value().start)]
    return [str(value) for value in override.sweep_string_iterator()]


def _mark(folder: str | Path) -> str:
    """The hash at the end of a job's folder, by which it is short to be named."""
    return Path(folder).name.rpartition("-")[2]


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


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
            shown.add_row(_mark(job.folder), *row, *("" if value is None else f"{value:.4f}" for value in metrics))
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200  # a file is not cut to 80 columns
    Console(width=width).print(shown)
    states = [run.state for run in runs]
    print(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no job began")
    for job, run in zip(jobs, runs, strict=True):
        if run.state not in ("finished", "not begun"):
            words = [f"{key}={value}" for key, value in job.chosen(varied).items()]
            print(f"{run.state}: {_mark(job.folder)} {' '.join(words)}: {run.why}")


def slurm_script(config: DictConfig, jobs: int) -> str:
    """The batch script, for an array of so many jobs, that hydra/launcher=submitit_slurm hands to sbatch."""
    from submitit import SlurmExecutor

    class Executor(SlurmExecutor):
        """Writes scripts on a machine without Slurm, too."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    given: Any = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    executor = Executor(folder=given["submitit_folder"])
    beside = ("submitit_folder", "_target_", "max_num_timeout")
    values = {key: value for key, value in given.items() if key not in beside}
    executor.update_parameters(**executor._convert_parameters(values))
    executor.parameters["map_count"] = jobs
    return str(executor._make_submission_file_text(executor._submitit_command_str, "job"))
