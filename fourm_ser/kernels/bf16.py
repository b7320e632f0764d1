"""Frozen stems in half precision: autocast, over matrices that are cast, and in bf16 laid out for a processor, once."""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

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


LAYOUTS: tuple[type[LaidOut], ...] = (LaidOutLinear, LaidOutConvolution)


def runs(kind: type[LaidOut]) -> bool:
    """Whether this machine's kernels do for a laid-out layer what the layer does: tried on a small one.

    Which processors they run on hangs on the build of torch, and is not the same for all of them.
    """
    layer: Any = nn.Linear(16, 16, device="meta") if kind is LaidOutLinear else nn.Conv1d(16, 16, 3, device="meta")
    layer = layer.to_empty(device="cpu")
    given = torch.linspace(-1, 1, 64).view((4, 16) if kind is LaidOutLinear else (1, 16, 4))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.linspace(-0.2, 0.3, parameter.numel()).view_as(parameter))
        expected = layer(given)
        try:
            for then, wanted in ((kind.then, expected), (GELU, nn.functional.gelu(expected))):
                laid_out = kind(layer.bfloat16())
                laid_out.then = then
                if not torch.allclose(laid_out(given).float(), wanted, rtol=0.05, atol=0.05):
                    return False
        except (RuntimeError, AttributeError, NotImplementedError) as refusal:
            log.debug("%s: plain layers serve instead: %s", kind.__name__, refusal)
            return False
    return True


def lay_out(layer: nn.Module, kinds: Collection[type[LaidOut]]) -> LaidOut | None:
    """The same layer, laid out; None where it is none that can be.

    Args:
        layer: the layer.
        kinds: those that run here.
    """
    if type(layer) is nn.Linear and LaidOutLinear in kinds:
        return LaidOutLinear(layer)
    if type(layer) is not nn.Conv1d or LaidOutConvolution not in kinds or isinstance(layer.padding, str):
        return None
    return LaidOutConvolution(layer) if layer.in_channels > 1 and layer.padding_mode == "zeros" else None


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
def in_half(encoder: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Run a frozen stem in half precision meanwhile, without gradients; afterwards it is what it was.

    Args:
        encoder: the encoder whose stem runs.
        device: where it runs.
        dtype: bfloat16 or float16.
    """
    with ExitStack() as stack:
        for module in encoder.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                for parameter in module.parameters(recurse=False):
                    stack.callback(setattr, parameter, "data", parameter.data)
                    parameter.data = parameter.data.to(dtype)
        fits = device.type == "cpu" and dtype == torch.bfloat16
        kinds = [kind for kind in LAYOUTS if fits and runs(kind)]
        for parent in list(encoder.modules()) if kinds else []:
            siblings = dict(parent.named_children())
            for name, child in siblings.items():
                laid_out = lay_out(child, kinds)
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
        stack.enter_context(torch.autocast(device.type, dtype))
        stack.enter_context(nn.utils.parametrize.cached())
        yield
