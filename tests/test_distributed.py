"""Rows and gradients across two processes."""

import os
import socket
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from fourm_ser.distributed import gather_rows, joined
from fourm_ser.fusion.statistics import RunningScale
from fourm_ser.models import features as encoding
from tests.models.test_features import Tally, Work, store
from tests.processes import side_by_side

COUNTS = [3, 2]


def rows() -> tuple[Tensor, Tensor]:
    """All rows (5, 4), and labels (5,)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(sum(COUNTS), 4, generator=generator), torch.arange(sum(COUNTS))


def scalar(values: Tensor) -> Tensor:
    """No mean over rows: every row's gradient depends on all rows."""
    return values.norm() * values.sin().sum()


def work(rank: int, rendezvous: str, folder: str) -> None:
    distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=2)
    values, labels = (torch.split(part, COUNTS)[rank] for part in rows())
    values = values.clone().requires_grad_()
    gathered = gather_rows(values)
    torch.autograd.backward(scalar(gathered))
    standardised = RunningScale(4)(values.detach())
    torch.save([gathered.detach(), gather_rows(labels), values.grad, standardised], Path(folder) / str(rank))
    distributed.destroy_process_group()


def test_each_process_has_the_rows_of_all_and_their_gradients(tmp_path: Path) -> None:
    side_by_side(work, str(tmp_path / "rendezvous"), str(tmp_path))
    values, labels = rows()
    values.requires_grad_()
    torch.autograd.backward(scalar(values))
    assert values.grad is not None
    standardised = torch.split(RunningScale(4)(values.detach()), COUNTS)
    for rank, gradient in enumerate(torch.split(values.grad, COUNTS)):
        found: list[Any] = torch.load(tmp_path / str(rank), weights_only=True)
        torch.testing.assert_close(found[0], values.detach(), atol=0, rtol=0)
        torch.testing.assert_close(found[1], labels)
        # Both processes computed the scalar: its gradient comes twice, which the mean over processes takes back.
        torch.testing.assert_close(found[2], 2 * gradient)
        torch.testing.assert_close(found[3], standardised[rank])  # by what all processes saw


def encode(rank: int, port: int, folder: str) -> None:
    """One of two processes that torchrun would have started, which share an encoding pass."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    encoding.SHARD = 6
    encoder, filled = Tally(), store(Path(folder))
    with joined("cpu"):
        work = Work(encoder, list(range(1, 41)), 60.0)
        counts = [work.fill(filled), work.fill(filled)]
        found = {key: filled.read(key).sum().item() for key in work.keys}
    seen: dict[int, int] = {**encoder.seen}
    torch.save([seen, counts, found], Path(folder) / f"seen-{rank}")


def test_processes_of_one_run_share_an_encoding_pass(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    side_by_side(encode, port, str(tmp_path))
    (first, counts, found), (second, *others) = (
        torch.load(tmp_path / f"seen-{rank}", weights_only=True) for rank in range(2)
    )
    assert min(len(first), len(second)) > 10
    assert not set(first) & set(second)
    assert {**first, **second} == dict.fromkeys(range(1, 41), 1)
    assert [counts, found] == others == [[40, 0], {f"key-{row - 1:03d}": 4.0 * row * row for row in range(1, 41)}]


def test_alone_rows_are_themselves() -> None:
    values, _ = rows()
    assert gather_rows(values) is values
