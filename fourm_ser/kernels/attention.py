"""Scaled dot-product attention: torch's own, and on a processor matrix products where these are faster.

Where: attention with dropout (fusions and encoders that train), and all of it in bf16, but on processors with AMX only
what wants gradients; not WavLM's, whose scores have a bias. Gain, measured on a processor with avx512_bf16, forwards
and backwards with dropout, of 32 rows, 250 frames and 8 heads: in fp32 192 instead of 307 ms, in bf16 65 instead of
373 ms. There torch's fused kernel keeps the matrix units of a processor waiting in bf16, and with dropout torch uses
none: it then computes in fp32, and draws a number for each score alone. With AMX, in bf16 without dropout, the fused
kernel has 1.1 to 3 times the speed forwards (two rows of 1,500 frames: 54 instead of 83 ms), and 0.2 to 0.9 times
forwards and backwards.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

SCORES = 1_000_000  # computed at a time: 4 MB in fp32, near a processor's caches
WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # whole numbers, by the bytes of a weight that they mask


def attend(
    projected: Sequence[Tensor], heads: int, mask: Tensor | None, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """Attention of queries to keys, softmax(scale * q k') v by head, with dropout on its weights.

    Vaswani et al., 2017, https://arxiv.org/abs/1706.03762.

    Args:
        projected: queries, keys and values in this order, beside each other in one tensor (batch, time, 3 * heads,
            width) or in two or three; keys and values have the same times.
        heads: number of heads.
        mask: (batch or 1, heads or 1, queries or 1, keys) bool, True where a key counts, at least one for a query;
            None for all.
        dropout: share of the weights that is dropped; the others grow to make up for it. In bf16 it is rounded to a
            multiple of 1 / 65,536.
        scale: what scores are multiplied by; None for 1 / sqrt(width).

    Returns:
        (batch, queries, heads, width).
    """
    first = projected[0]
    # What a compiler makes of torch's own is its business.
    if torch.compiler.is_compiling() or first.device.type != "cpu" or (not dropout and _fused_is_faster(projected)):
        query, key, value = (tensor.transpose(1, 2) for tensor in _split(projected, heads))
        found = scaled_dot_product_attention(query, key, value, mask, dropout, scale=scale)
        return found.transpose(1, 2)
    scale = first.shape[-1] ** -0.5 if scale is None else scale
    with torch.autocast("cpu", enabled=False):
        return _Attend.apply(heads, None if mask is None else ~mask, dropout, scale, *projected)


def _fused_is_faster(projected: Sequence[Tensor]) -> bool:
    """Whether a processor is faster with torch's own kernel without dropout."""
    if projected[0].dtype != torch.bfloat16:
        return True
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in projected)
    return torch.cpu._is_amx_tile_supported() and not learns


class _Attend(Function):
    """Matrix products, which hold no more than a piece of the scores where no gradient is wanted."""

    @staticmethod
    def forward(
        ctx: Any, heads: int, hidden: Tensor | None, dropout: float, scale: float, *projected: Tensor
    ) -> Tensor:
        query, key, value = _split(projected, heads)
        result = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        saved: list[Tensor] = []
        for piece in _pieces(query, key):
            q, k, v = (_together(tensor, piece) for tensor in (query, key, value))
            scores = _scaled(q, k.transpose(1, 2), scale)
            if hidden is not None:
                rows, some = piece
                away = hidden.expand(len(query), -1, -1, -1)[rows, some if hidden.shape[1] > 1 else slice(None)]
                scores.view(-1, some.stop - some.start, *scores.shape[1:]).masked_fill_(away, float("-inf"))
            weights = scores.softmax(-1)
            kept = [_draw(weights, dropout)] if dropout else []
            if any(ctx.needs_input_grad):
                saved += [q, k, v, weights, *kept]
            _put(result, piece, _scaled(_keep(weights, *kept), v, 1 / (1 - dropout)))
        ctx.save_for_backward(result, *saved)
        ctx.heads, ctx.dropout, ctx.scale = heads, dropout, scale
        ctx.shapes = [tensor.shape for tensor in projected]
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        result, *saved = ctx.saved_tensors  # once: under gradient checkpointing it computes them
        gradients = [result.new_empty(shape) for shape in ctx.shapes]
        of_query, of_key, of_value = _split(gradients, ctx.heads)
        # (batch, queries, heads, 1): the sum over keys of each weight times its gradient (Dao et al., 2022)
        of_sum = (gradient * result).sum(-1, keepdim=True)
        held, larger = iter(saved), 1 / (1 - ctx.dropout)
        for piece in _pieces(of_query, of_key):
            q, k, v, weights = (next(held) for _ in range(4))
            kept = [next(held)] if ctx.dropout else []
            g, s = (_together(tensor, piece) for tensor in (gradient, of_sum))
            _put(of_value, piece, _scaled(_keep(weights, *kept).transpose(1, 2), g, larger))
            of_scores = (_keep(_scaled(g, v.transpose(1, 2), larger), *kept) - s).mul_(weights)
            _put(of_query, piece, _scaled(of_scores, k, ctx.scale))
            _put(of_key, piece, _scaled(of_scores.transpose(1, 2), q, ctx.scale))
        return None, None, None, None, *gradients


Piece = tuple[slice, slice]


def _pieces(query: Tensor, key: Tensor) -> Iterator[Piece]:
    """Slices of rows and of heads with about `SCORES` scores each."""
    batch, queries, heads, _ = query.shape
    together = max(1, SCORES // (queries * key.shape[1]))
    for row in range(0, batch, rows := max(1, together // heads)):
        for head in range(0, heads, together):
            yield slice(row, row + rows), slice(head, min(head + together, heads))


def _split(projected: Sequence[Tensor], heads: int) -> list[Tensor]:
    """Queries, keys and values, each (batch, time, heads, width), as views."""
    return [
        view for tensor in projected for view in tensor.view(*tensor.shape[:2], -1, heads, tensor.shape[-1]).unbind(2)
    ]


def _together(tensor: Tensor, piece: Piece) -> Tensor:
    """A piece of (batch, time, heads, width) -> (rows * heads, time, width)."""
    rows, some = piece
    return tensor[rows, :, some].transpose(1, 2).flatten(0, 1)


def _put(into: Tensor, piece: Piece, tensor: Tensor) -> None:
    """The way back from `_together`, into its place."""
    rows, some = piece
    into[rows, :, some] = tensor.view(-1, some.stop - some.start, *tensor.shape[1:]).transpose(1, 2)


def _scaled(first: Tensor, second: Tensor, scale: float) -> Tensor:
    """scale * first @ second, of batches of matrices."""
    return torch.baddbmm(first.new_empty(1, 1, 1), first, second, beta=0, alpha=scale)


def _draw(weights: Tensor, dropout: float) -> Tensor:
    """For each weight an integer of its size, of ones where it is kept and of zeros where it is dropped."""
    size = weights.element_size()
    # Drawn 64 bits at a time, as many as the generator makes at once.
    drawn = torch.empty(-(-weights.numel() * size // 8), dtype=torch.int64).random_(-(2**63), None)
    numbers = drawn.view(WHOLE[size])[: weights.numel()].view(weights.shape)
    return numbers.ge_(round((dropout - 0.5) * 256**size)).neg_()


def _keep(weights: Tensor, kept: Tensor | None = None) -> Tensor:
    """The weights with zeros where they are dropped."""
    return weights if kept is None else (weights.view(kept.dtype) & kept).view(weights.dtype)
