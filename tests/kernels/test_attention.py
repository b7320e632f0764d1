"""Attention by matrix products against its formula, in values and gradients."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fourm_ser.encoders.attention import attention as attention_of_encoders
from fourm_ser.kernels import attention
from fourm_ser.kernels.attention import attend

HEADS, WIDTH = 4, 8


def by_formula(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """(batch, time, heads, width) of each -> the queries' in float64."""
    rows = []
    for row in range(len(query)):
        heads = []
        for head in range(query.shape[2]):
            q, k, v = (tensor[row, :, head].double() for tensor in (query, key, value))
            scores = scale * q @ k.T
            if mask is not None:
                scores = scores.masked_fill(~mask[row, 0].expand_as(scores), -math.inf)
            heads.append(scores.softmax(1) @ v)
        rows.append(torch.stack(heads, dim=1))
    return torch.stack(rows)


def draw(dtype: torch.dtype, keys: int = 17) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries of three rows, keys, values, and a mask."""
    torch.manual_seed(0)
    query = torch.randn(3, 17, HEADS, WIDTH, dtype=dtype)
    key, value = (torch.randn(3, keys, HEADS, WIDTH, dtype=dtype) for _ in range(2))
    own = torch.arange(keys) < torch.tensor([keys, 5, 9])[:, None]
    return query, key, value, own[:, None, None]


@pytest.mark.parametrize(
    ("dtype", "masked", "keys", "scores"),  # one head at a time, two, a row, all rows
    [
        (torch.bfloat16, False, 11, 100),
        (torch.bfloat16, True, 17, 700),
        (torch.bfloat16, True, 80, 1_500),
        (torch.bfloat16, True, 11, 4_000_000),
        (torch.float32, False, 80, 4_000_000),
        (torch.float32, True, 17, 100),
    ],
)
@pytest.mark.parametrize(("gradients", "amx"), [(False, False), (False, True), (True, True)])
def test_attention_is_its_formula(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    masked: bool,
    keys: int,
    scores: int,
    gradients: bool,
    amx: bool,
) -> None:
    monkeypatch.setattr(attention, "SCORES", scores)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    query, key, value, mask = draw(dtype, keys)
    expected = by_formula(query, key, value, mask if masked else None, 0.5)
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    with torch.set_grad_enabled(gradients):
        found = attend([query, key, value], HEADS, mask if masked else None, scale=0.5)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("amx", [False, True])
def test_torch_s_kernel_serves_in_bf16_where_the_processor_has_amx_and_nothing_learns(
    monkeypatch: pytest.MonkeyPatch, amx: bool
) -> None:
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(attention, "scaled_dot_product_attention", lambda query, *_, **__: query)
    query, key, value, mask = draw(torch.bfloat16)
    assert torch.equal(attend([query, key, value], HEADS, mask), query) == amx
    assert not torch.equal(attend([query, key, value], HEADS, mask, 0.5), query)
    learned = key.clone().requires_grad_()
    assert not torch.equal(attend([query, learned, value], HEADS, mask), query)
    with torch.no_grad():
        assert torch.equal(attend([query, learned, value], HEADS, mask), query) == amx


def test_what_is_projected_together_is_taken_apart() -> None:
    query, key, value, mask = draw(torch.bfloat16)
    expected = attend([query, key, value], HEADS, mask)
    torch.testing.assert_close(attend([query, torch.cat([key, value], 2)], HEADS, mask), expected)
    torch.testing.assert_close(attend([torch.cat([query, key, value], 2)], HEADS, mask), expected)


@pytest.mark.slow(but=["[1, 2]"])
@pytest.mark.parametrize(
    ("together", "dropout", "scores"),
    [([1, 1, 1], 0.0, 100), ([1, 2], 0.3, 100), ([3], 0.3, 30), ([3], 0.0, 250), ([1, 1, 1], 0.3, 4_000_000)],
    ids=str,
)
def test_gradients_are_those_of_the_formula(
    monkeypatch: pytest.MonkeyPatch, together: list[int], dropout: float, scores: int
) -> None:
    monkeypatch.setattr(attention, "SCORES", scores)
    torch.manual_seed(0)
    mask = (torch.arange(5) < torch.tensor([5, 2])[:, None])[:, None, None]
    projected = [torch.randn(2, 5, 2 * count, 3, dtype=torch.float64, requires_grad=True) for count in together]

    def run(*projected: Tensor) -> Tensor:
        torch.manual_seed(1)  # the same weights are dropped every time
        return attention._Attend.apply(2, ~mask, dropout, 0.7, *projected)

    assert torch.autograd.gradcheck(run, projected)


def test_gradients_in_bf16() -> None:
    query, key, value, mask = draw(torch.float64)
    gradients = []
    for dtype in (torch.float64, torch.bfloat16):
        given = [tensor.to(dtype).requires_grad_() for tensor in (query, key, value)]
        q, k, v = given
        result = by_formula(q, k, v, mask, WIDTH**-0.5) if dtype == torch.float64 else attend(given, HEADS, mask)
        gradients.append(torch.autograd.grad(result.double().sin().sum(), given))
    for expected, found in zip(*gradients, strict=True):
        assert nn.functional.cosine_similarity(expected.flatten(), found.double().flatten(), dim=0) > 0.9995
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.03)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_under_checkpointing(dtype: torch.dtype) -> None:
    query, key, value, mask = draw(dtype)
    given = [tensor.requires_grad_() for tensor in (query, key, value)]

    def run(*given: Tensor) -> Tensor:
        return attend(given, HEADS, mask, 0.3).sin()

    gradients = []
    for compute in (run, lambda *given: checkpoint(run, *given, use_reentrant=False)):
        torch.manual_seed(1)
        gradients.append(torch.autograd.grad(compute(*given).sum(), given))
    for expected, found in zip(*gradients, strict=True):
        assert torch.equal(expected, found)


@pytest.mark.parametrize(("dtype", "dropout"), [(torch.bfloat16, 0.1), (torch.float32, 0.5)])
def test_dropped_weights_are_zero_and_the_others_grow(dtype: torch.dtype, dropout: float) -> None:
    torch.manual_seed(0)
    query, key = (torch.randn(8, 50, 2, 50, dtype=dtype) for _ in range(2))
    # Values of an identity matrix give the weights themselves.
    value = torch.eye(50, dtype=dtype)[None, :, None].expand(8, 50, 2, 50).contiguous()
    weights, dropped = (attend([query, key, value], 2, None, rate).float() for rate in (1e-9, dropout))
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], weights[kept] / (1 - dropout), rtol=0.02, atol=1e-4)
    share = kept.float().mean()
    assert abs(share - (1 - dropout)) < 4 * math.sqrt(dropout * (1 - dropout) / kept.numel())
    # No weight is dropped along with its neighbour.
    both = (kept[..., 1:] & kept[..., :-1]).float().mean()
    assert abs(both - (1 - dropout) ** 2) < 0.01
    again = attend([query, key, value], 2, None, dropout).float()
    assert not torch.equal(again, dropped)


@pytest.mark.parametrize(("dtype", "dropout"), [(torch.bfloat16, 0.0), (torch.float32, 0.0), (torch.float32, 0.2)])
def test_weights_are_held_for_a_backward_pass_alone(dtype: torch.dtype, dropout: float) -> None:
    query, key, value, mask = draw(dtype)
    for gradients in (False, True):
        given = [tensor.requires_grad_(gradients) for tensor in (query, key, value)]
        held: list[int] = []

        def hold(tensor: Tensor, held: list[int] = held) -> Tensor:
            held.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            attend(given, HEADS, mask, dropout)
        assert (3 * HEADS * 17 * 17 in held) == (gradients and (dropout > 0 or dtype == torch.bfloat16))


class Layer(nn.Module):
    """An encoder's."""

    def __init__(self, is_causal: bool, groups: int = 1) -> None:
        super().__init__()
        self.is_causal = is_causal
        self.num_key_value_groups = groups


def ask(layer: Layer, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """As an encoder's layer asks, which has heads before time."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    found, weights = attention_of_encoders(layer, query, key, value, mask, scaling=0.5)
    assert weights is None
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [1, 3])
def test_encoders_ask_in_their_own_way(dtype: torch.dtype, rows: int) -> None:
    query, key, value, mask = draw(dtype)
    mask = mask[-rows:].expand(rows, 1, 17, 17)  # one of a single row serves all
    found = ask(Layer(False), query, key, value, mask)
    expected = by_formula(query, key, value, mask.expand(3, 1, 17, 17), 0.5)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.02 if dtype == torch.bfloat16 else 1e-5)


def test_a_decoder_keeps_torch_s_attention() -> None:
    query, key, value, _ = draw(torch.bfloat16)
    before = torch.ones(17, 17, dtype=torch.bool).tril().expand(3, 1, 17, 17)
    expected = by_formula(query, key, value, before, 0.5)
    torch.testing.assert_close(ask(Layer(True), query, key, value, None).double(), expected, rtol=0, atol=0.02)


def test_what_is_added_to_the_scores_counts() -> None:
    query, key, value, mask = draw(torch.bfloat16)
    added = torch.zeros(3, 1, 17, 17, dtype=torch.bfloat16).masked_fill(~mask, -1e9)
    expected = by_formula(query, key, value, mask, 0.5)
    torch.testing.assert_close(ask(Layer(False), query, key, value, added).double(), expected, rtol=0, atol=0.02)


def test_keys_of_fewer_heads_serve_several_queries() -> None:
    query, key, value, mask = draw(torch.bfloat16)
    twice = [0, 0, 1, 1]
    expected = by_formula(query, key[:, :, twice], value[:, :, twice], mask, 0.5)
    found = ask(Layer(False, groups=2), query, key[:, :, :2], value[:, :, :2], mask.expand(3, 1, 17, 17))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.02)
