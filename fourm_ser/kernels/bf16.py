"""Frozen stems in half precision: autocast over matrices that are cast once, in bf16 laid out for a processor.

Where: encoding passes in `encode.precision` bf16 and 16; layouts on a processor alone. Gain, measured on a processor
with avx512_bf16 and on no other: torch's own layers lay their weights out anew at every call, a fifth of their time;
with attention by matrix products and convolutions in pieces, a pass of BERT and wav2vec2-base in bf16 became 3.6 times
as fast as a plain loop in fp32, from 1.9 times. Of that, kernels that are gone since gave 4% and an estimated 6 to 10%.
"""

import logging
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fourm_ser.kernels.convolutions import is_narrow

log = logging.getLogger(__name__)

ROWS = 1024  # that the layout of a matrix is chosen for: frames of a batch
PLAIN: tuple[str, list[float], str] = ("none", [], "")  # nothing that a kernel does to its result at last


class LaidOutLinear(nn.Module):
    """A linear layer in bf16 whose weight lies as the processor's kernel wants it.

    The operators, here and in `LaidOutConvolution`, are those that torch's compiler calls on a processor.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.laid_out = torch.ops.mkldnn._reorder_linear_weight(layer.weight.data, ROWS)

    def forward(self, features: Tensor) -> Tensor:
        """(..., width) -> (..., width of the output), in bf16."""
        flat = features.bfloat16().reshape(-1, features.shape[-1])
        done = torch.ops.mkldnn._linear_pointwise(flat, self.laid_out, self.bias, *PLAIN)
        return done.view(*features.shape[:-1], -1)


class LaidOutConvolution(nn.Module):
    """A convolution over time in bf16 whose weight lies as the processor's kernel wants it."""

    def __init__(self, layer: nn.Conv1d) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        padding, stride, dilation = int(layer.padding[0]), layer.stride[0], layer.dilation[0]
        self.about = [0, padding], [1, stride], [1, dilation], layer.groups
        image = [1, layer.in_channels, 1, ROWS]
        flat = layer.weight.data[:, :, None].contiguous().to_mkldnn()
        self.laid_out = torch._C._nn.mkldnn_reorder_conv2d_weight(flat, *self.about, image)  # type: ignore

    def forward(self, features: Tensor) -> Tensor:
        """(batch, channels, time) -> (batch, channels of the output, time), in bf16, channels last in memory."""
        image = features.bfloat16()[:, :, None].contiguous(memory_format=torch.channels_last)
        done = torch.ops.mkldnn._convolution_pointwise(image, self.laid_out, self.bias, *self.about, *PLAIN)
        return done[:, :, 0]


LAYOUTS: tuple[type[nn.Module], ...] = (LaidOutLinear, LaidOutConvolution)


def runs(kind: type[nn.Module]) -> bool:
    """Whether this machine's kernels do for a laid-out layer what the layer does: tried on a small one.

    Which processors they run on hangs on the build of torch, and is not the same for all of them.
    """
    layer: Any = nn.Linear(16, 16, device="meta") if kind is LaidOutLinear else nn.Conv1d(16, 16, 3, device="meta")
    layer = layer.to_empty(device="cpu")  # a layer that draws no random numbers
    given = torch.linspace(-1, 1, 64).view((4, 16) if kind is LaidOutLinear else (1, 16, 4))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.linspace(-0.2, 0.3, parameter.numel()).view_as(parameter))
        expected = layer(given)
        try:
            found: Tensor = kind(layer.bfloat16())(given)
        except (RuntimeError, AttributeError, NotImplementedError) as refusal:
            log.debug("%s: plain layers serve instead: %s", kind.__name__, refusal)
            return False
    return torch.allclose(found.float(), expected, rtol=0.05, atol=0.05)


def lay_out(layer: nn.Module, kinds: Collection[type[nn.Module]]) -> nn.Module | None:
    """The same layer, laid out by one of the `kinds` that run here; None where it is none that can be."""
    if type(layer) is nn.Linear and LaidOutLinear in kinds:
        return LaidOutLinear(layer)
    if type(layer) is not nn.Conv1d or LaidOutConvolution not in kinds or isinstance(layer.padding, str):
        return None
    if is_narrow(layer):
        return None
    return LaidOutConvolution(layer) if layer.in_channels > 1 and layer.padding_mode == "zeros" else None


@contextmanager
def in_half_precision(encoder: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Run an encoder's frozen stem in bfloat16 or float16 meanwhile, without gradients; then it is what it was."""
    with ExitStack() as stack:
        for module in encoder.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                for parameter in module.parameters(recurse=False):
                    stack.callback(setattr, parameter, "data", parameter.data)
                    parameter.data = parameter.data.to(dtype)
        fits = device.type == "cpu" and dtype == torch.bfloat16
        kinds = [kind for kind in LAYOUTS if fits and runs(kind)]
        for parent in list(encoder.modules()) if kinds else []:
            for name, child in list(parent.named_children()):
                laid_out = lay_out(child, kinds)
                if laid_out is not None:
                    stack.callback(setattr, parent, name, child)
                    setattr(parent, name, laid_out)
        stack.enter_context(torch.autocast(device.type, dtype))
        stack.enter_context(nn.utils.parametrize.cached())
        yield
