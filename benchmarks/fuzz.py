"""What this package makes of files that are mutated at random: python -m benchmarks.fuzz [--count 50000] [--seed 0].

Recordings in twenty formats, tables, releases of corpora, and the files of runs and models are mutated, in one to four
ways each, and read in this machine's processes by what the commands read them with. Allowed is to be read, or to be
refused by the package's own error in one line; no case may take longer than 5 seconds of a processor, or 1 GB of memory
more than there was. Everything else is printed with the number of the case, which `--only NUMBER` does again. Exit code
1 where there is any. A small run is trained first.
"""

import argparse
import logging
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

from hydra import compose, initialize_config_dir
from rich.console import Console

from fourm_ser.config import CONF
from fourm_ser.training.experiment import run
from tests.hostile import fuzzing

SECONDS = 5.0
MEMORY = 1 << 30  # bytes
STUCK = 60.0  # seconds after which a process that nothing interrupts is killed
WORDS = (
    *("data.utterances=60", "data.workers=0", "trainer=cpu", "trainer.precision=32-true", "encode.precision=32"),
    *("encoder.text.architecture.hidden_size=32", "encoder.audio.hidden=16", "fusion=self_attention", "fusion.heads=4"),
    *("loss=ce_center", "stage=two_stage", "stage.transfer.epochs=1", "stage.finetune.epochs=1"),
    *("stage.finetune.keep=always", "stage.finetune.unfreeze={text: none, audio: all}"),
)


class LateError(BaseException):
    """A case took too long."""


def late(number: int, frame: FrameType | None) -> None:
    """Interrupt a case, and say where it was."""
    raise LateError("".join(traceback.format_stack(frame)[-3:]).replace("\n", " "))


def peak() -> int:
    """The most memory that this process held so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def work(kinds: list[fuzzing.Kind], seed: int, numbers: range, scratch: Path, pipe: Connection) -> None:
    """Try cases and send what is wrong with each, before it the number, so that a kill is known."""
    signal.signal(signal.SIGPROF, late)  # of the time that this process has the processor for
    logging.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries in C remark on what they are given
    warnings.simplefilter("ignore")
    for number in numbers:
        pipe.send(number)
        before, started = peak(), time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            fault = fuzzing.try_case(kinds, seed, number, scratch)
        except LateError as error:
            fault = fuzzing.Fault(number, "", f"took more than {SECONDS:g} s: {error}")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        seconds, grown = time.process_time() - started, peak() - before
        if fault is None and seconds > SECONDS:
            fault = fuzzing.Fault(number, "", f"took {seconds:.1f} s")
        if fault is None and grown > MEMORY:
            fault = fuzzing.Fault(number, "", f"took {grown / 1e9:.1f} GB")
        pipe.send((fault, seconds, grown))


def main() -> None:
    """Fuzz and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="do this case alone, with its traceback")
    options = parser.parse_args()
    console = Console(width=200, highlight=False, markup=False)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", [*WORDS, f"cache={home / 'cache'}"])
        with fuzzing.silent():
            run(config, home / "run")
        kinds = fuzzing.make_kinds(home, home / "run")
        if options.only is not None:
            console.print(fuzzing.try_case(kinds, options.seed, options.only, home))
            return
        numbers = range(options.first, options.first + options.count)
        console.print(f"{len(numbers):,} cases from {numbers.start}, seed {options.seed}, {len(kinds)} kinds of files")
        faults = watch(kinds, options.seed, numbers, home, console)
    console.print(
        f"{len(faults)} faults of {len(numbers):,} cases, by kind: {dict(Counter(fault.name for fault in faults))}"
    )
    sys.exit(1 if faults else 0)


def watch(kinds: list[fuzzing.Kind], seed: int, numbers: range, home: Path, console: Console) -> list[fuzzing.Fault]:
    """Do the cases in a process that is replaced where one ends it; what was wrong, printed as it comes."""
    faults: list[fuzzing.Fault] = []
    longest, most = 0.0, 0
    started = time.monotonic()
    number = numbers.start
    while number < numbers.stop:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        worker = multiprocessing.get_context("fork").Process(
            target=work, args=(kinds, seed, range(number, numbers.stop), home, theirs), daemon=True
        )
        worker.start()
        theirs.close()
        try:
            while True:
                number = ours.recv()
                if not ours.poll(STUCK):
                    raise EOFError
                fault, seconds, grown = ours.recv()
                longest, most = max(longest, seconds), max(most, grown)
                number += 1
                if fault is not None:
                    faults.append(fault)
                    console.print(*fault)
                if number % 1_000 == 0:
                    rate = (number - numbers.start) / (time.monotonic() - started)
                    console.print(f"{number:,}: {rate:.0f}/s, longest {longest:.1f} s, most {most / 1e6:.0f} MB more")
        except EOFError:
            worker.kill()
            worker.join()
            if number < numbers.stop:
                faults.append(fuzzing.Fault(number, "", f"ended its process: {worker.exitcode}"))
                console.print(*faults[-1])
                number += 1
    return faults


if __name__ == "__main__":
    main()
