"""Attention by matrix products against its formula."""

import math

import pytest
import torch
from torch import Tensor, nn

from fourm_ser.encoders import attention
from fourm_ser.encoders.attention import attend


class Layer(nn.Module):
    """An encoder's."""

    is_causal = False


def by_formula(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """(batch, time, heads, width) in float64."""
    query, key, value = query.double(), key.double(), value.double()
    rows = []
    for row in range(len(query)):
        heads = []
        for head in range(query.shape[1]):
            scores = scaling * query[row, head] @ key[row, head].T
            if mask is not None:
                scores[~mask[row, 0].expand_as(scores)] = -math.inf
            heads.append(scores.softmax(1) @ value[row, head])
        rows.append(torch.stack(heads, dim=1))
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scores", [100, 700, 4_000_000])  # one head at a time, two, all
def test_attention_is_its_formula(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, masked: bool, scores: int
) -> None:
    monkeypatch.setattr(attention, "SCORES", scores)
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, 4, 17, 8, dtype=dtype) for _ in range(3))
    own = torch.arange(17) < torch.tensor([17, 5, 9])[:, None]
    mask = own[:, None, None].expand(3, 1, 17, 17) if masked else None
    with torch.no_grad():
        found, weights = attend(Layer(), query, key, value, mask, scaling=0.5)
    assert weights is None
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), by_formula(query, key, value, mask, 0.5), rtol=0, atol=tolerance)


def test_gradients_flow_where_they_are_asked_for() -> None:
    torch.manual_seed(0)
    query = torch.randn(1, 2, 5, 8, dtype=torch.bfloat16, requires_grad=True)
    found, _ = attend(Layer(), query, query, query, None)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert query.grad is not None
    assert query.grad.abs().max() > 0
