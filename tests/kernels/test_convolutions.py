"""Convolutions a piece at a time beside the same over the whole signal."""

import pytest
import torch
from torch import Tensor, nn

from fourm_ser.kernels import convolutions
from fourm_ser.kernels.convolutions import in_pieces


@pytest.mark.parametrize("count", [13, 37, 38, 400])  # one frame, the last of a piece and one more sample, many pieces
def test_pieces_are_the_whole(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(convolutions, "PIECE", 30)
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv1d(1, 4, 7, stride=3), nn.GELU(), nn.Conv1d(4, 6, 3, stride=2)).double()
    samples, seen = torch.randn(1, 1, count, dtype=torch.float64), list[int]()

    def run(part: Tensor) -> Tensor:
        seen.append(part.shape[2])
        return torch.as_tensor(layers(part))

    with torch.no_grad():
        torch.testing.assert_close(in_pieces(run, samples, hop=6, field=13), layers(samples))
    assert max(seen) <= 4 * 6 + 13  # five frames
