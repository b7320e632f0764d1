"""What processes that train one network together have to tell each other."""

from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable


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
