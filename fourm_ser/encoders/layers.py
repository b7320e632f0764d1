"""What the encoders of text and speech share: a transformer, and which of its hidden states are the features."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from fourm_ser.encoders import lora
from fourm_ser.encoders.base import Encoder, Features, Unfreeze
from fourm_ser.encoders.hub import describe_config, hidden_size
from fourm_ser.errors import InputError

Layer = str | int | Sequence[int]
"""Which hidden states are features: the `last`, one by its number, several by theirs, or all `weighted`."""


class TransformerStem(nn.Module):
    """A transformer of Hugging Face, up to the hidden states that are its features.

    They are the `last`, one by its number, several side by side, or for `weighted` all of them side by side.
    """

    def __init__(self, model: Any, layer: Layer) -> None:
        super().__init__()
        self.model, self.layer = model, layer

    def hidden_states(self, *inputs: Tensor, **others: Any) -> Tensor:
        """What the model takes -> (batch, time, stem_dim)."""
        output = self.model(*inputs, **others, output_hidden_states=self.layer != "last", return_dict=True)
        if self.layer == "last":
            last: Tensor = output.last_hidden_state
            return last
        return self.chosen(output.hidden_states)

    def chosen(self, states: Sequence[Tensor]) -> Tensor:
        """Of all hidden states, each (batch, time, width), those that are the features: (batch, time, stem_dim)."""
        if self.layer == "last":
            return states[-1]
        if self.layer == "weighted":
            return torch.cat(list(states), dim=-1)
        numbers = [self.layer] if isinstance(self.layer, int) else self.layer
        return torch.cat([states[int(number)] for number in numbers], dim=-1)


class WeightedSum(nn.Module):
    """A learned weighted sum over hidden states that lie side by side: one weight a state, through a softmax.

    It is that of SUPERB (Yang et al. 2021, https://arxiv.org/abs/2105.01051).
    """

    def __init__(self, states: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(states))

    def forward(self, features: Features) -> Features:
        """(batch, time, states * width) -> (batch, time, width)."""
        batch, time, _ = features.features.shape
        states = features.features.view(batch, time, len(self.weights), -1)  # (batch, time, states, width)
        return Features(torch.einsum("btlw,l->btw", states, self.weights.softmax(0).to(states.dtype)), features.mask)


class TransformerEncoder(Encoder):
    """An encoder whose stem is a transformer, and whose features are its last hidden state, others, or all weighted.

    Hidden state 0 is what enters the first transformer layer, hidden state k what leaves the k-th. Several lie side by
    side in the features. Layers behind the chosen ones are not kept, but for `spare` ones.

    Raises:
        InputError: there is no such layer.
    """

    stem: TransformerStem

    def __init__(
        self, *, name: str, weights: str, stem: TransformerStem, spare: int = 0, gradient_checkpointing: bool
    ) -> None:
        super().__init__()
        self.name, self.weights, self.stem = name, weights, stem
        layer, count = stem.layer, self.depth
        chosen = read_layers(layer, f"encoder.{self.modality}.layer", count)
        self.used = None if chosen is None else chosen[-1]  # layers; None for all
        width = int(stem.model.config.hidden_size)
        self.states = range(count + 1) if layer == "weighted" else chosen or (count,)
        self.top = WeightedSum(count + 1) if layer == "weighted" else nn.Identity()
        self.stem_dim = width * len(self.states)
        self.dim = width if layer == "weighted" else self.stem_dim
        if self.used is not None:
            self.cut(self.used, spare)
        if gradient_checkpointing:
            if not stem.model.supports_gradient_checkpointing:
                kind = stem.model.config.model_type
                raise InputError(
                    f"encoder.{self.modality}.gradient_checkpointing=true: {kind} cannot do that in transformers. Set "
                    "it to false."
                )
            stem.model.gradient_checkpointing_enable({"use_reentrant": False})

    @property
    @abstractmethod
    def layers(self) -> nn.ModuleList:
        """The transformer's layers."""

    @property
    def depth(self) -> int:
        """How many layers a hidden state may have passed."""
        return len(self.layers)

    def cut(self, used: int, spare: int) -> None:
        """Leave out the layers behind the first so many, but for `spare` ones."""
        del self.layers[max(1, used + spare) :]

    def unused(self) -> Iterable[nn.Parameter]:
        """The stem's parameters that its features do not hang on."""
        return [] if self.used is None else self.layers[self.used :].parameters()

    @classmethod
    def check(cls, arguments: Mapping[str, Any]) -> None:
        read_layers(arguments["layer"], f"encoder.{cls.modality}.layer")

    @classmethod
    def width(cls, arguments: Mapping[str, Any]) -> int | None:
        one, layer = hidden_size(arguments, cls.modality), arguments["layer"]
        return one * len(layer) if one is not None and isinstance(layer, list) else one

    def unfreeze(self, what: Unfreeze) -> None:
        adapters = lora.adapters(self.stem)
        if what == "lora" and adapters:
            self.stem.requires_grad_(False)
        else:
            super().unfreeze(what)
            if what != "none":
                lora.fold(self.stem)  # the weights that they change train themselves
        for parameter in adapters:
            parameter.requires_grad_(what == "lora")
        for parameter in self.unused():
            parameter.requires_grad_(False)

    def add_adapters(self, settings: lora.Lora, seed: int) -> None:
        ids = {id(parameter) for parameter in self.unused()}
        unused = [module for module in self.stem.modules() if id(getattr(module, "weight", None)) in ids]
        places = lora.find_targets(self.stem, settings.targets, self.name, unused)
        self.base_fingerprint = self.fingerprint()
        lora.add_adapters(self.stem, settings, places, f"{seed} {self.modality}")

    def remove_adapters(self) -> None:
        lora.remove(self.stem)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        training = [name for name, parameter in self.stem.named_parameters() if parameter.requires_grad]
        if training and all(map(lora.is_adapter, training)):
            lora.train_adapters(self.stem, mode)
        return self

    def describe(self) -> dict[str, Any]:
        chosen = {} if self.stem.layer == "last" else {"layer": self.stem.layer}
        return {**describe_config(self.stem.model.config), **chosen}

    def save(self, folder: Path) -> dict[str, Any]:
        return {"architecture": self.stem.model.config.to_dict()}


def read_layers(layer: Any, key: str, most: int | None = None) -> list[int] | None:
    """The numbers of the layers that a config's key asks for; None for `last` and `weighted`.

    Raises:
        InputError: it is no choice of layers, or there are no more than `most`.
    """
    if layer in ("last", "weighted"):
        return None
    numbers = list(layer) if isinstance(layer, list | tuple) else [layer]
    if (
        not numbers
        or any(isinstance(number, bool) or not isinstance(number, int) or number < 0 for number in numbers)
        or numbers != sorted(set(numbers))
        or (most is not None and numbers[-1] > most)
    ):
        given = f"[{','.join(map(str, numbers))}]" if isinstance(layer, list | tuple) else layer
        known = "" if most is None else f" to {most}"
        raise InputError(
            f"{key}={given}: expected last, weighted, a layer from 0{known}, or a list of some in their order."
        )
    return numbers
