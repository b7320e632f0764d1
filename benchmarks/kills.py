"""Whether runs that are ended at any moment go on as if undisturbed: python -m benchmarks.kills [--kills 30].

A small run of two stages is done once to its end. Then as many runs as are asked for begin on a cache without features,
each in a process of its own, and are ended by SIGKILL, or by SIGTERM, at a moment drawn at random; then they are
resumed to their end. Compared are all metrics and predictions with those of the undisturbed run, to the last digit; the
exit code of what was stopped (143; what is killed has no say: shells call it 137); how long a stop took; and what
temporary files are left in the run directory, the cache and the folder for temporary files after the resumed run.
Everything else than expected is printed. Exit code 1 where there is any.
"""

import argparse
import json
import logging
import multiprocessing
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from rich.console import Console

from benchmarks.fuzz import WORDS
from fourm_ser.config import CONF
from fourm_ser.files import TEMPORARY
from fourm_ser.training import experiment

SPAWN = multiprocessing.get_context("fork")  # what is imported is there already
JUST = 1.0  # seconds in which a run that was ending anyway ends well
ATTEMPTS = 20  # moments that are drawn until one comes before the run's end


class Ended(NamedTuple):
    """How a run ended.

    Attributes:
        moment: seconds from its beginning at which it was told to end.
        code: its exit code, as shells have it.
        seconds: how long it took to end.
    """

    moment: float
    code: int
    seconds: float


def begin(config: DictConfig, folder: Path) -> None:
    """A run as the command does it, or what is left of one."""
    quiet()
    if (folder / "config.yaml").is_file():
        experiment.resume(folder, own_process=True)
    else:
        experiment.run(config, folder, own_process=True)


def quiet() -> None:
    """Print nothing in this process."""
    for number in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    warnings.simplefilter("ignore")
    logging.getLogger().setLevel(logging.ERROR)


def ended(config: DictConfig, folder: Path, moment: float, number: signal.Signals) -> Ended | None:
    """Begin a run and end it at a moment; None where it had ended by itself."""
    process = SPAWN.Process(target=begin, args=(config, folder))
    process.start()
    process.join(moment)
    if process.exitcode is not None or process.pid is None:
        return None
    os.kill(process.pid, number)
    told = time.monotonic()
    process.join()
    code, seconds = process.exitcode or 0, time.monotonic() - told
    if code == 0 and seconds < JUST:
        return None
    return Ended(moment, 128 - code if code < 0 else code, seconds)


def finish(config: DictConfig, folder: Path) -> int:
    """Do a run, or what is left of it, to its end; the exit code."""
    process = SPAWN.Process(target=begin, args=(config, folder))
    process.start()
    process.join()
    return process.exitcode or 0


def results(folder: Path) -> dict[str, Any]:
    """What a run found, without what it took."""
    metrics = json.loads((folder / "metrics.json").read_text())
    found = {name: value for name, value in metrics.items() if not name.startswith(("seconds/", "encoded/"))}
    return {**found, "predictions": (folder / "predictions.csv").read_text()}


def left_over(*folders: Path) -> list[str]:
    """Temporary files."""
    return [str(path) for folder in folders for path in folder.rglob(".*") if TEMPORARY.fullmatch(path.name)]


def main() -> None:
    """End runs, resume them and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="runs that are ended by SIGKILL")
    parser.add_argument("--stops", type=int, default=10, help="runs that are ended by SIGTERM")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console = Console(width=160, highlight=False, markup=False)
    rng = np.random.default_rng(options.seed)
    problems = 0
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        cache, temporary = home / "cache", home / "tmp"
        temporary.mkdir()
        tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", [*WORDS, f"cache={cache}", "stage.transfer.epochs=3", "stage.finetune.epochs=3"])
        for name in ("first", "undisturbed"):
            shutil.rmtree(cache / "embeddings", ignore_errors=True)
            started = time.monotonic()
            if finish(config, home / name):
                sys.exit("the undisturbed run failed")
        whole, expected = time.monotonic() - started, results(home / "undisturbed")
        console.print(f"the undisturbed run took {whole:.1f} s")
        told = [*[signal.SIGKILL] * options.kills, *[signal.SIGTERM] * options.stops]
        found: dict[signal.Signals, list[Ended]] = {signal.SIGKILL: [], signal.SIGTERM: []}
        for number, told_by in enumerate(told):
            folder = home / str(number)
            for _ in range(ATTEMPTS):
                shutil.rmtree(folder, ignore_errors=True)
                shutil.rmtree(cache / "embeddings", ignore_errors=True)
                end = ended(config, folder, rng.uniform(0, whole), told_by)
                if end is not None:
                    break
            if end is None:
                sys.exit("every run had ended before its moment came")
            found[told_by].append(end)
            left = len(left_over(folder, cache, temporary))
            wrong = []
            if end.code != 128 + told_by:
                wrong.append(f"exit code {end.code}")
            if finish(config, folder):
                wrong.append("was not resumed")
            elif results(folder) != expected:
                wrong.append("ends otherwise")
            wrong += left_over(folder, cache, temporary)
            wrong += [str(path) for path in temporary.iterdir() if not path.name.startswith("pymp-")]
            problems += len(wrong)
            said = f"{end.moment:.2f} s, code {end.code}, {end.seconds:.2f} s to end, {left} temporary files meanwhile"
            console.print(f"{number + 1} {told_by.name} at {said}: {'; '.join(wrong) or 'as if undisturbed'}")
            shutil.rmtree(folder)
    for told_by, ends in found.items():
        if ends:
            seconds = [end.seconds for end in ends]
            took = f"{statistics.median(seconds):.2f} s to end in the median, {max(seconds):.2f} s at most"
            console.print(f"{told_by.name}: {len(ends)} runs, exit codes {sorted({end.code for end in ends})}, {took}")
    console.print(f"{problems} problems")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
