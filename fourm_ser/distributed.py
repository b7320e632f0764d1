"""What processes that train one network together have to tell each other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

# Rank zero may encode a corpus for hours; gloo and NCCL would give up on a neighbour after minutes.
PATIENCE = timedelta(days=7)

_waiting: Any = None


def launched() -> bool:
    """Whether torchrun started this process, as one of those that do a run."""
    return distributed.is_available() and distributed.is_torchelastic_launched()


def rank() -> int:
    """This process's number among those that do the run, from 0."""
    return int(os.environ["RANK"]) if launched() else 0


def world() -> int:
    """How many processes do the run."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


@contextmanager
def joined(accelerator: str) -> Iterator[None]:
    """Connect the processes that torchrun started, for as long as the block runs.

    Args:
        accelerator: `cpu` or `gpu`: what their tensors lie on.
    """
    global _waiting
    if accelerator == "gpu":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if accelerator == "gpu" else "gloo")
    # A group of its own for long waits, so that a hang in training is still found in minutes.
    _waiting = distributed.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield
        barrier()
    finally:
        distributed.destroy_process_group()
        _waiting = None


def barrier() -> None:
    """Wait until all processes are here."""
    if _waiting is not None:
        distributed.barrier(_waiting)


@contextmanager
def first() -> Iterator[None]:
    """Let rank zero run the block before the others do.

    Of the others the first of each machine goes before the rest, for what machines do not share.
    """
    turn = 0 if rank() == 0 else 1 if os.environ["LOCAL_RANK"] == "0" else 2
    for _ in range(turn):
        barrier()
    yield
    for _ in range(2 - turn):
        barrier()


class _Gather(torch.autograd.Function):
    """Equally many rows of every process, one after the other by rank; every process gets back its rows' gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # What one process computes from the whole batch depends on the rows of all: their gradients add up.
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        first = distributed.get_rank() * ctx.count
        return gradient[first : first + ctx.count]


def gather_rows(rows: Tensor) -> Tensor:
    """This process's rows -> those of all processes, (sum of their counts, ...), by rank; gradients flow back.

    Where each process computes the same scalar from all rows, the mean over the processes of the gradients that reach
    a parameter is the gradient that one process with all rows has: what DistributedDataParallel averages is exact for
    every loss, also for one that is no mean over utterances. With one process, the rows themselves.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    sizes = [int(count) for count in counts]
    longest = max(sizes)
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    gathered = _Gather.apply(padded)
    return torch.cat([gathered[rank * longest : rank * longest + size] for rank, size in enumerate(sizes)])
