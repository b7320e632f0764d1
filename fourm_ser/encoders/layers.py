"""What the encoders of text and speech share: a transformer, and which of its hidden states are the features."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from fourm_ser.checks import check_number
from fourm_ser.encoders import lora
from fourm_ser.encoders.base import Encoder, Features, Unfreeze
from fourm_ser.encoders.hub import describe_config, hidden_size
from fourm_ser.errors import InputError


class TransformerStem(nn.Module):
    """A transformer of Hugging Face, up to the hidden states that are its features.

    They are the `last`, one by its number, or for `weighted` all of them side by side.
    """

    def __init__(self, model: Any, layer: str | int) -> None:
        super().__init__()
        self.model, self.layer = model, layer

    def hidden_states(self, *inputs: Tensor, **others: Any) -> Tensor:
        """What the model takes -> (batch, time, stem_dim)."""
        output = self.model(*inputs, **others, output_hidden_states=self.layer != "last", return_dict=True)
        if self.layer == "last":
            last: Tensor = output.last_hidden_state
            return last
        states: tuple[Tensor, ...] = output.hidden_states
        return torch.cat(states, dim=-1) if self.layer == "weighted" else states[int(self.layer)]


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
    """An encoder whose stem is a transformer, and whose features are its last hidden state, another, or all weighted.

    Hidden state 0 is what enters the first transformer layer, hidden state k what leaves the k-th. Layers behind the
    chosen one are not kept, but for `spare` ones.

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
        self.used = layer if isinstance(layer, int) and not isinstance(layer, bool) else None  # layers; None for all
        if layer not in ("last", "weighted") and not (self.used is not None and 0 <= self.used <= count):
            raise InputError(
                f"encoder.{self.modality}.layer={layer}: expected last, weighted or a layer from 0 to {count}."
            )
        self.dim = int(stem.model.config.hidden_size)
        self.top = WeightedSum(count + 1) if layer == "weighted" else nn.Identity()
        self.states = count + 1 if layer == "weighted" else 1
        self.stem_dim = self.dim * self.states
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
        layer = arguments["layer"]
        if layer not in ("last", "weighted"):
            expected = "last, weighted or a layer from 0"
            check_number(f"encoder.{cls.modality}.layer", layer, expected, whole=True)

    @classmethod
    def width(cls, arguments: Mapping[str, Any]) -> int | None:
        return hidden_size(arguments, cls.modality)

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
