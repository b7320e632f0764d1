"""What processes that train one network together have to tell each other."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from fourm_ser.devices import find_device

# Rank zero may encode a corpus for hours; gloo and NCCL would give up on a neighbour after minutes.
PATIENCE = timedelta(days=7)

Value = TypeVar("Value")

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


def share(values: Sequence[Value]) -> Sequence[Value]:
    """What of some work falls to this process among those of its machine."""
    if not launched():
        return values
    return values[int(os.environ["LOCAL_RANK"]) :: int(os.environ["LOCAL_WORLD_SIZE"])]


@contextmanager
def joined(accelerator: str) -> Iterator[None]:
    """Connect the processes that torchrun started, whose tensors lie on `trainer.accelerator`, while the block runs."""
    global _waiting
    device = find_device(accelerator, "trainer.accelerator")
    if device.type != "cpu":
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group(distributed.get_default_backend_for_device(device.type))
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


def agreed(value: Value) -> Value:
    """Rank zero's value, for all processes."""
    if _waiting is None:
        return value
    shared = [value]
    distributed.broadcast_object_list(shared, src=0, group=_waiting)
    return shared[0]


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


def row_counts(rows: Tensor) -> list[int]:
    """How many rows each process has, by rank: told from host to host, so that no device is waited for."""
    own = torch.tensor([len(rows)])
    if _waiting is None and distributed.get_backend() != "gloo":
        own = own.to(rows.device)  # there is no other way
    counts = [torch.zeros_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, own, group=_waiting)
    return [int(count) for count in counts]


def first_row(rows: Tensor) -> int:
    """Where this process's rows begin among those that `gather_rows` gives."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return 0
    return sum(row_counts(rows)[: distributed.get_rank()])


def gather_rows(rows: Tensor) -> Tensor:
    """This process's rows -> those of all processes, (sum of their counts, ...), by rank; gradients flow back.

    Where each process computes the same scalar from all rows, the mean over the processes of the gradients that reach
    a parameter is the gradient that one process with all rows has: what DistributedDataParallel averages is exact for
    every loss, also for one that is no mean over utterances. With one process, the rows themselves.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return rows
    sizes = row_counts(rows)
    longest = max(sizes)
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    gathered = _Gather.apply(padded)
    return torch.cat([gathered[rank * longest : rank * longest + size] for rank, size in enumerate(sizes)])
