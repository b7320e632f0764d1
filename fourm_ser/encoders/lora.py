"""Low-rank adapters (LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685): what trains in place of a transformer.

Beside the weight W of a linear layer, a product of two narrow matrices trains: W + alpha / r * B A. peft puts them in.
Merging them into the weights takes torch alone: who uses a trained model needs no peft.
"""

import copy
import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fourm_ser.errors import InputError

# What transformers calls the projections of an attention that queries and values come from, also all in one.
QUERIES_AND_VALUES = (
    *("q_proj", "v_proj", "query", "value", "query_proj", "value_proj", "q_lin", "v_lin", "linear_q", "linear_v"),
    *("q", "v", "Wqkv", "qkv", "qkv_proj", "query_key_value", "c_attn", "in_proj"),
)
MATRIX = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])\.default\.weight")


class Lora(NamedTuple):
    """The config's `lora`.

    Attributes:
        r: The rank: how many columns B has, and rows A.
        alpha: The adapters' product is multiplied by alpha / r.
        dropout: Dropout on what an adapter reads.
        targets: The linear layers that get one: `auto` for the queries' and values' projections of every attention, or
            how their names end.
    """

    r: int
    alpha: float
    dropout: float
    targets: str | list[str]

    @property
    def scale(self) -> float:
        """What the adapters' product is multiplied by."""
        return self.alpha / self.r

    def check(self) -> None:
        """Refuse what is no list of names; numbers are checked as those of all configs are.

        Raises:
            InputError: `targets` is none.
        """
        given = self.targets
        if given != "auto" and not (isinstance(given, list) and given and all(isinstance(name, str) for name in given)):
            raise InputError(f"lora.targets={given}: expected auto, or a list of names such as [q_proj, v_proj].")


def require_peft(key: str) -> None:
    """Refuse adapters where peft is not installed, which a config's `key` asks for."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise InputError(f'{key}=lora: peft is not installed ({error}): pip install "fourm_ser[lora]"') from error


def find_targets(
    model: nn.Module, targets: str | list[str], name: str, unused: Collection[nn.Module] = ()
) -> list[str]:
    """The names of the linear layers that get adapters, but for those within `unused`.

    Raises:
        InputError: none is called so in the encoder `name`.
    """
    from transformers.pytorch_utils import Conv1D

    left_out = {part for module in unused for part in module.modules()}
    linear = [
        place
        for place, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module not in left_out
    ]
    ends = QUERIES_AND_VALUES if targets == "auto" else targets
    found = [place for place in linear if any(f".{place}".endswith(f".{end}") for end in ends)]
    if not found:
        last = ", ".join(dict.fromkeys(place.rpartition(".")[2] for place in linear))
        raise InputError(
            f"lora.targets={targets if targets == 'auto' else ','.join(targets)}: no linear layer of {name} is called "
            f"{' or '.join(ends)}. Name some that it has: lora.targets=[...] out of {last}."
        )
    return found


def add_adapters(model: nn.Module, lora: Lora, places: list[str], key: str) -> None:
    """Put adapters, which change nothing yet, beside the linear layers of these names; all other weights freeze.

    The first weights hang on `key` alone, and torch's generator goes on as if none had been drawn.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.modeling_layers import GradientCheckpointingLayer

    settings: dict[str, Any] = {
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": "|".join(map(re.escape, places)),  # all of a name, where a list would mean its end
        "fan_in_fan_out": not isinstance(model.get_submodule(places[0]), nn.Linear),  # or it is set so with a warning
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big"))
        inject_adapter_in_model(LoraConfig(**settings), model)
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing:
            layer._gradient_checkpointing_func = partial(_checkpoint, layer)


def _checkpoint(layer: nn.Module, function: Any, *inputs: Any) -> Any:
    """Gradient checkpointing of a layer that runs in its parts' mode.

    transformers checkpoints layers in training mode alone, and dropout of the layer's own goes by the same switch.
    """

    def run(*inputs: Any) -> Any:
        before, layer.training = layer.training, next(layer.children()).training
        try:
            return function(*inputs)
        finally:
            layer.training = before

    return checkpoint(run, *inputs, use_reentrant=False)


def train_adapters(model: nn.Module, mode: bool) -> None:
    """Put adapters into training mode or out of it, and the rest of the model into evaluation mode."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.eval()
    module: Any
    for module in model.modules():
        if _is_adapted(module):
            module.lora_dropout.train(mode)
        elif isinstance(module, GradientCheckpointingLayer):
            module.training = mode and module.gradient_checkpointing


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is part of an adapter."""
    return MATRIX.fullmatch(name) is not None


def weight_beside(name: str) -> str:
    """The name of the weight that an adapter's matrix of this name stands beside; any other name is its own."""
    found = MATRIX.fullmatch(name)
    return name if found is None else f"{found['layer']}.base_layer.weight"


def adapters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a model's adapters; none where it has none."""
    return [parameter for name, parameter in model.named_parameters() if is_adapter(name)]


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Plain linear layers in place of those with adapters meanwhile, the adapters merged into their weights.

    Names in the state dict are then those of a model that never had adapters.
    """
    found = _adapted(model)
    for parent, name, child in found:
        plain: Any = copy.copy(child.base_layer)
        plain._parameters = dict(plain._parameters)
        plain.weight = nn.Parameter(_merged_weight(child), requires_grad=False)
        setattr(parent, name, plain)
    try:
        yield
    finally:
        for parent, name, child in found:
            setattr(parent, name, child)


def remove(model: nn.Module) -> None:
    """Take adapters that changed nothing yet out of a model for good."""
    for parent, name, child in _adapted(model):
        setattr(parent, name, child.base_layer)


def fold(model: nn.Module) -> None:
    """Merge adapters into the weights for good; they begin anew, and change nothing."""
    for module in model.modules():
        if _is_adapted(module):
            layer: Any = module
            layer.base_layer.weight.data = _merged_weight(layer)
            nn.init.zeros_(layer.lora_B["default"].weight)


def without_adapters(model: nn.Module, state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The state dict of a model without adapters, from one of the same model with them.

    Args:
        model: The model without adapters; its own weights serve where the state lacks those beside an adapter.
        state: A state dict with the adapters and whichever other weights.
        scale: What the adapters' product is multiplied by.
    """
    plain = {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if not is_adapter(name)}
    for name, first in state.items():
        found = MATRIX.fullmatch(name)
        if found is None or found["side"] == "B":
            continue
        layer: Any = model.get_submodule(found["layer"])
        second = state[f"{found['layer']}.lora_B.default.weight"]
        weight = plain.get(f"{found['layer']}.weight", layer.weight.data)
        plain[f"{found['layer']}.weight"] = _merge(layer, weight, first, second, scale)
    return plain


def _adapted(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """The layers with adapters, each behind the module that it is in and its name there."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if _is_adapted(child)
    ]


def _is_adapted(module: nn.Module) -> bool:
    return hasattr(module, "lora_A") and hasattr(module, "base_layer")


@torch.no_grad()
def _merged_weight(layer: Any) -> Tensor:
    first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return _merge(layer.base_layer, layer.base_layer.weight.data, first, second, layer.scaling["default"])


@torch.no_grad()
def _merge(layer: nn.Module, weight: Tensor, first: Tensor, second: Tensor, scale: float) -> Tensor:
    """W + scale * B A for the matrices A and B; the weight of a Conv1D, the linear layer of GPT-2, lies transposed."""
    if not second.any():
        return weight  # to the bit: a sum would lose the sign of zeros
    change = (second @ first) * scale
    return weight + (change if isinstance(layer, nn.Linear) else change.T).to(weight.dtype)
