"""Processes of their own that need no time to start: each is forked from one that has imported what runs import.

What they are given is a function of a module and what can be pickled. Variables of the environment are those that the
first of them found.
"""

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any

import torch.multiprocessing

METHOD = "forkserver"
PATIENCE = 600.0  # seconds, for a busy machine


def context() -> ForkServerContext:
    """What starts them, and what they speak through."""
    found = multiprocessing.get_context(METHOD)
    found.set_forkserver_preload(["fourm_ser.training.experiment"])
    return found


def side_by_side(work: Callable[..., None], *arguments: Any, count: int = 2) -> None:
    """Do `work(rank, *arguments)` in so many processes at once; an error in one is raised here."""
    context()
    torch.multiprocessing.start_processes(  # type: ignore[attr-defined]
        work, arguments, nprocs=count, start_method=METHOD
    )


def started(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A process that does `work(*arguments)`."""
    process = context().Process(target=work, args=arguments)
    process.start()
    return process


def ended(process: BaseProcess) -> int:
    """How a process ended: 0, or minus the number of the signal that killed it."""
    process.join(PATIENCE)
    assert process.exitcode is not None
    return process.exitcode
