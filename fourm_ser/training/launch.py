"""Start the processes of a run that has several."""

import os
import subprocess
import sys

import torch
from omegaconf import DictConfig

from fourm_ser.config import PACKAGE
from fourm_ser.errors import InputError
from fourm_ser.runs.directory import RunDirectory
from fourm_ser.trust import named_packages


def processes(config: DictConfig) -> int:
    """How many processes do a run, over all machines; a baseline's, in which nothing trains, is done by one."""
    if config.get("baseline"):
        return 1
    return int(config.trainer.devices) * int(config.trainer.get("num_nodes", 1))


def launch(config: DictConfig, directory: RunDirectory) -> None:
    """Do a recorded run with as many processes as it has devices, under torchrun.

    Lightning would start them by repeating this process's command line: a whole sweep, where this is a job of one.

    Raises:
        InputError: what one of the processes ended with; or the run is on several machines.
    """
    count, nodes = int(config.trainer.devices), int(config.trainer.get("num_nodes", 1))
    module = ["-m", "fourm_ser.training.experiment", str(directory.path), *named_packages(config)]
    if nodes > 1:
        line = f"torchrun --nnodes={nodes} --nproc-per-node={count} --rdzv-backend=c10d --rdzv-endpoint=HOST:29500"
        raise InputError(
            f"trainer.num_nodes={nodes}: one command starts processes on one machine alone. The run is recorded in "
            f"{directory.path}; do it by the same line on every machine, HOST being one of them: "
            f"{line} {' '.join(module)}"
        )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", *module]
    path = [str(PACKAGE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),  # the same code, wherever this process found it
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),  # advice about unused parameters
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count)),
    }
    with subprocess.Popen(command, env=environment, stdout=_file(1), stderr=_file(2)) as process:
        try:
            code = process.wait()
        except BaseException:
            process.terminate()  # torchrun ends its processes before itself
            raise
    if code != 0:
        if directory.failure.is_file():
            raise InputError(directory.read_failure()["error"])
        said = f"its {count} processes ended with exit code {code} and left no word. The same command goes on."
        raise InputError(f"{directory.path}: {said}")


def _file(descriptor: int) -> int:
    """Where this process prints, which may have been redirected to a file."""
    stream = sys.stdout if descriptor == 1 else sys.stderr
    try:
        stream.flush()
        return stream.fileno()
    except (OSError, ValueError):
        return descriptor
