"""Convolutions a piece at a time beside the same over the whole signal; narrow ones in float32."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fourm_ser.kernels import convolutions
from fourm_ser.kernels.convolutions import in_pieces, mend_narrow


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


@pytest.mark.parametrize(("channels", "groups", "narrow"), [(32, 4, True), (8, 1, True), (64, 4, False), (4, 4, False)])
def test_narrow_convolutions_are_computed_in_float32(
    monkeypatch: pytest.MonkeyPatch, channels: int, groups: int, narrow: bool
) -> None:
    """Some processors' kernels make something else of them in bfloat16; this test passes on all processors."""
    torch.manual_seed(0)
    layer = nn.Conv1d(channels, channels, 16, padding=8, groups=groups)
    mend_narrow(layer)
    layer, types = copy.deepcopy(layer), list[tuple[torch.dtype, bool]]()
    convolve, given = nn.functional.conv1d, torch.randn(2, channels, 50)

    def seen(features: Tensor, *others: Any) -> Tensor:
        types.append((features.dtype, torch.is_autocast_enabled("cpu")))
        return convolve(features, *others)

    monkeypatch.setattr(nn.functional, "conv1d", seen)
    expected = layer(given)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(given)
    assert expected.dtype == torch.float32
    assert found.dtype == torch.bfloat16
    assert types == [(torch.float32, False), (torch.float32, not narrow)]
    if narrow:
        assert torch.equal(found, expected.bfloat16())
    found.float().sum().backward()
    assert layer.weight.grad is not None
