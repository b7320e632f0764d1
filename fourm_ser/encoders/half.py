"""Frozen stems in bf16: autocast, over matrices that are cast, and on a processor laid out, once for many batches."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fourm_ser.encoders.base import Encoder

ROWS = 1024  # that the layout of a matrix is chosen for: frames of a batch
# Hugging Face's names of layers, and of what their result goes through at once
ACTIVATIONS = {"intermediate_dense": "intermediate_act_fn", "dense": "intermediate_act_fn", "lin1": "activation"}
GELU: tuple[str, list[float], str] = ("gelu", [], "none")  # exact, by the error function


class LaidOut(nn.Module):
    """A layer in bf16 whose weight lies as the processor's kernel wants it.

    Torch's own layers lay the weight out anew at every call, which is a fifth of their time. The operators are those
    that torch's compiler calls on a processor.

    Args:
        layer: the layer, its weights in bf16.

    Attributes:
        then: what the kernel does to each number at last, and how: nothing, or `GELU`.
    """

    then: tuple[str, list[float], str] = ("none", [], "")

    def __init__(self, layer: nn.Linear | nn.Conv1d) -> None:
        super().__init__()
        # Not registered, for this is the same layer, and not another one.
        self.__dict__["layer"] = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)


class LaidOutLinear(LaidOut):
    """A linear layer; see `LaidOut`."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        self.__dict__["laid_out"] = torch.ops.mkldnn._reorder_linear_weight(layer.weight.data, ROWS)

    def forward(self, features: Tensor) -> Tensor:
        """(..., width) -> (..., width of the output), in bf16."""
        flat = features.bfloat16().reshape(-1, features.shape[-1])
        done = torch.ops.mkldnn._linear_pointwise(flat, self.laid_out, self.bias, *self.then)
        return done.view(*features.shape[:-1], -1)


class LaidOutConvolution(LaidOut):
    """A convolution over time; see `LaidOut`."""

    def __init__(self, layer: nn.Conv1d) -> None:
        super().__init__(layer)
        padding, stride, dilation = int(layer.padding[0]), layer.stride[0], layer.dilation[0]
        self.__dict__["about"] = [0, padding], [1, stride], [1, dilation], layer.groups
        image = [1, layer.in_channels, 1, ROWS]
        flat = layer.weight.data[:, :, None].contiguous().to_mkldnn()
        self.__dict__["laid_out"] = torch._C._nn.mkldnn_reorder_conv2d_weight(flat, *self.about, image)  # type: ignore

    def forward(self, features: Tensor) -> Tensor:
        """(batch, channels, time) -> (batch, channels of the output, time), in bf16, channels last in memory."""
        image = features.bfloat16()[:, :, None].contiguous(memory_format=torch.channels_last)
        done = torch.ops.mkldnn._convolution_pointwise(image, self.laid_out, self.bias, *self.about, *self.then)
        return done[:, :, 0]


def has_layouts() -> bool:
    """Whether this build of torch can lay weights out."""
    operators = ("_reorder_linear_weight", "_linear_pointwise", "_convolution_pointwise")
    return bool(torch.backends.mkldnn.is_available()) and all(  # type: ignore[no-untyped-call]
        hasattr(torch.ops.mkldnn, name) for name in operators
    )


def lay_out(layer: nn.Module) -> LaidOut | None:
    """The same layer, laid out; None where it is none that can be."""
    if type(layer) is nn.Linear:
        return LaidOutLinear(layer)
    if type(layer) is nn.Conv1d and layer.in_channels > 1 and layer.padding_mode == "zeros":
        return LaidOutConvolution(layer) if not isinstance(layer.padding, str) else None
    return None


def gelu_after(name: str, siblings: Mapping[str, nn.Module]) -> str | None:
    """The name of the GELU that a layer's result goes through at once; None where there is none.

    Args:
        name: the layer's name, among
        siblings: the modules of the same parent by name.
    """
    after = "activation" if set(siblings) == {"conv", "activation"} else ACTIVATIONS.get(name)
    found = siblings.get(after or "")
    exact = isinstance(found, nn.GELU) and found.approximate == "none"
    return after if exact or getattr(found, "act", None) is nn.functional.gelu else None


@contextmanager
def in_bf16(encoder: Encoder, device: torch.device) -> Iterator[None]:
    """Run a frozen stem in bf16 meanwhile, without gradients; afterwards it is what it was.

    Args:
        encoder: its encoder.
        device: where it runs.
    """
    with ExitStack() as stack:
        for module in encoder.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                for parameter in module.parameters(recurse=False):
                    stack.callback(setattr, parameter, "data", parameter.data)
                    parameter.data = parameter.data.bfloat16()
        if device.type == "cpu" and has_layouts():
            for parent in list(encoder.modules()):
                siblings = dict(parent.named_children())
                for name, child in siblings.items():
                    laid_out = lay_out(child)
                    if laid_out is None:
                        continue
                    instead: dict[str, nn.Module] = {name: laid_out}
                    after = gelu_after(name, siblings)
                    if after is not None:
                        laid_out.then = GELU
                        instead[after] = nn.Identity()
                    for place, module in instead.items():
                        stack.callback(setattr, parent, place, siblings[place])
                        setattr(parent, place, module)
        stack.enter_context(torch.autocast(device.type, torch.bfloat16))
        stack.enter_context(nn.utils.parametrize.cached())
        yield
