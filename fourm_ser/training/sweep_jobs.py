"""The jobs of a sweep before any begins: what they are, that each can be composed, what their folders are called.

A job is found by its folder's name, whatever its number and whatever else the sweep holds.
"""

import hashlib
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from fourm_ser.commandline import explain
from fourm_ser.errors import InputError
from fourm_ser.keys import check_config
from fourm_ser.training import grids

SWEEPERS = ("BasicSweeper", "GridsSweeper")  # whose jobs are known beforehand
LONGEST = 120  # bytes of a job's name before the hash: file systems take 255 in all
UNSAFE = re.compile(r"[^\w.,=+-]")  # signs that shells, globs or file systems have another use for
NEXT_WORD = re.compile(r",(?=[+~]{0,2}[\w./@]+=)")
NO_PART = ("sweep", "sweep.skip_finished", "sweep.dry_run")  # of what a job is


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
    chosen = [word.lstrip("+") for word in NEXT_WORD.split(words) if key_of(word) in keys]
    shown = UNSAFE.sub("_", ",".join(sorted(chosen, key=lambda word: keys.index(key_of(word)))))
    shown = shown.encode()[:LONGEST].decode(errors="ignore")
    return f"{shown}-{mark}" if shown else mark


def _group(mode: Any, folder: str) -> str | None:
    """A sweep's name for loggers, which is its folder's; None for a single run."""
    if str(mode).rpartition(".")[2] != RunMode.MULTIRUN.name:
        return None
    return "/".join(part for part in Path(folder).parts[-2:] if part not in ("/", "multirun"))


OmegaConf.register_new_resolver("cell", _cell, replace=True)
OmegaConf.register_new_resolver("sweep_group", _group, replace=True)


class Job(NamedTuple):
    """A job of a sweep: what was chosen for it, as `key=value` words, and its run directory."""

    words: list[str]
    folder: Path

    def chosen(self, keys: list[str]) -> dict[str, str]:
        """What it has for some keys."""
        values = {key_of(word): word.partition("=")[2] for word in self.words}
        return {key: values.get(key, "") for key in keys}


def need_plugins(config: DictConfig) -> None:
    """Refuse a launcher or sweeper whose plugin is not installed.

    Raises:
        InputError: it is not, with what to install.
    """
    for group in ("launcher", "sweeper"):
        package, _, rest = config.hydra[group]._target_.partition(".")
        plugin = rest.partition(".")[0]
        if plugin == "fourm_ser":  # no package: it comes with this one
            continue
        if package == "hydra_plugins" and (find_spec(package) is None or find_spec(f"{package}.{plugin}") is None):
            extra = plugin.removeprefix("hydra_").partition("_")[0]
            raise InputError(f'hydra.{group}: {plugin} is not installed. pip install "fourm_ser[{extra}]"')


def plan_jobs(config: DictConfig) -> tuple[list[str], list[Job]]:
    """The keys that vary and the jobs; none where a sweeper chooses them as it goes.

    Composing takes a good part of a second, so that not every job is composed but every value once.

    Raises:
        InputError: what Hydra cannot read or compose, a wrong key or value, or folders that are named by other words.
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
        which = " ".join(word for word in words if key_of(word) in varied)
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
    return _cell(",".join(sorted(word for word in words if key_of(word) not in NO_PART)), sweep, " ".join(varied))


def _values(override: Any) -> list[str]:
    if not override.is_sweep_override():
        return [str(override.get_value_element_as_str())]
    if override.is_interval_sweep():
        return [str(override.value().start)]
    return [str(value) for value in override.sweep_string_iterator()]


def mark_of(folder: str | Path) -> str:
    """The hash at the end of a job's folder, by which it is short to be named."""
    return Path(folder).name.rpartition("-")[2]


def key_of(word: str) -> str:
    """The key of a word of the command line, `key=value`."""
    return word.lstrip("+~").partition("=")[0]


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
