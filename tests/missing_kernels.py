"""Processors without the optional kernels: their operators raise what they raise there."""

from typing import Any, NoReturn

import pytest
import torch

REFUSAL = (
    "mkldnn_reorder_conv2d_weight: bf16 path needs the cpu support avx_ne_convert or avx512bw, avx512vl and avx512dq"
)


def refuse_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every operator that a processor may not have raise."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(REFUSAL)

    for name in ("_reorder_linear_weight", "_linear_pointwise", "_convolution_pointwise"):
        monkeypatch.setattr(torch.ops.mkldnn, name, refuse)
    monkeypatch.setattr(torch._C._nn, "mkldnn_reorder_conv2d_weight", refuse)
