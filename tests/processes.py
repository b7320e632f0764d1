"""Processes of their own that need no time to start: each is forked from one that has imported what runs import.

What they are given is a function of a module and what can be pickled. But where it is said otherwise, variables of the
environment are those that the first of them found.
"""

import importlib
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, Final

import torch.multiprocessing

METHOD: Final = "forkserver"
PATIENCE = 600.0  # seconds, for a busy machine


def context() -> ForkServerContext:
    """What starts them, and what they speak through."""
    found = multiprocessing.get_context(METHOD)
    found.set_forkserver_preload(["fourm_ser.training.experiment"])
    return found


def side_by_side(work: Callable[..., None], *arguments: Any, count: int = 2) -> None:
    """Do `work(rank, *arguments)` in so many processes at once; an error in one is raised here."""
    context()
    torch.multiprocessing.start_processes(  # type: ignore[attr-defined, no-untyped-call]
        work, arguments, nprocs=count, start_method=METHOD
    )


def started(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A process that does `work(*arguments)`."""
    process = context().Process(target=as_usual, args=(work, *arguments))
    process.start()
    return process


def as_usual(work: Callable[..., None], *arguments: Any) -> None:
    """Do it in a process whose own processes are started in the system's usual way, not in that by which it was."""
    multiprocessing.set_start_method(None, force=True)
    work(*arguments)


def ended(process: BaseProcess) -> int:
    """How a process ended: its exit code, or minus the number of the signal that killed it."""
    process.join(PATIENCE)
    assert process.exitcode is not None
    return process.exitcode


def command(module: str, *words: str, cwd: Path, env: Mapping[str, str] | None = None) -> CompletedProcess[str]:
    """A command of the package as a shell runs it: in a folder, with an environment (this process's by default)."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        code = ended(started(act, module, words, cwd, dict(os.environ if env is None else env), out, err))
        texts = [path.read_text(encoding="utf-8") for path in (out, err)]
    return CompletedProcess([module, *words], code, *texts)


def act(module: str, words: tuple[str, ...], cwd: Path, environment: dict[str, str], out: Path, err: Path) -> None:
    """What the process of a command does; it leads a group of its own."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = [module, *words]
    importlib.import_module(f"fourm_ser.{module}").main()
