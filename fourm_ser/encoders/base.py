"""What every encoder is, whichever modality it reads."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fourm_ser.devices import sent
from fourm_ser.errors import InputError

Inputs = dict[str, Tensor]
"""One utterance as its front end left it, or a batch of them: named tensors."""

Unfreeze = str | int
"""Which blocks of a stem train: `none`, `all`, or how many of the last ones."""


class Features(NamedTuple):
    """Features over time, of whichever modality.

    Attributes:
        features: (batch, time, dim). What stands where `mask` is False is padding and means nothing.
        mask: (batch, time) bool, True where a frame or token is the utterance's own; each row's True stand first, and
            there is at least one.
    """

    features: Tensor
    mask: Tensor


class Packed(NamedTuple):
    """Features of a batch as the store holds them, one utterance after the other: nothing is wider than it lies there.

    Attributes:
        values: (frames of all + 1, dim), float32 or float16; the last row is zeros.
        lengths: (batch,) how many frames are whose.
        longest: the largest of them: a device that had to be asked for it would be waited for.
    """

    values: Tensor
    lengths: Tensor
    longest: int

    def padded(self, device: torch.device) -> Features:
        """The batch on a device, in float32, with zeros where padding stands."""
        values, lengths = sent(self.values, device), sent(self.lengths, device)
        mask = length_mask(lengths, self.longest)
        first = (lengths.cumsum(0) - lengths)[:, None]
        places = torch.where(mask, first + torch.arange(self.longest, device=device), len(values) - 1)
        features = values.index_select(0, places.flatten()).view(*mask.shape, -1)
        return Features(features.float(), mask)


class Resources:
    """What an encoder may use beyond its own arguments.

    Args:
        cache: the folder for what is made once.
        texts: the corpus's transcripts, for a tokenizer that is trained on them; it knows neither labels nor folds.
    """

    # No dataclass: Hydra would take one for a config and hand its fields on as a dict.
    def __init__(self, cache: Path, texts: Sequence[str] = ()) -> None:
        self.cache = cache
        self.texts = texts


class Frontend(Protocol):
    """From a raw utterance to an encoder's inputs; picklable and without weights, for it runs in loader workers.

    Analyses ask a front end of audio for two more methods. Where one is missing they say so, and what needs it is left
    out:

    - `span(raw) -> (begin, end)`: from where to where in the recording the frames reach, in seconds. The encoder's
      frames share this stretch evenly. It begins behind what is cut off, and may end behind the recording.
    - `spectrogram(inputs) -> (values, hertz, hop)`: the spectrogram in an utterance's inputs, a tensor [time, bands];
      the middle of each band in Hz [bands], from low to high; and the seconds from a frame to the next. The first
      frame's stretch of that length begins with the span.
    """

    def __call__(self, raw: Any) -> Inputs:
        """One utterance (a transcript; a waveform [samples] at 16 kHz, float32) as tensors without a batch axis."""
        ...

    def collate(self, items: Sequence[Inputs]) -> Inputs:
        """Utterances as one padded batch."""
        ...

    def describe(self) -> dict[str, Any]:
        """All that changes what the front end returns, as JSON values."""
        ...


class Encoder(nn.Module, ABC):
    """A stem, whose output the embedding store can hold, and optionally a top that always trains.

    Attributes:
        modality: `text` or `audio`.
        name: the encoder's name in the store and in the log.
        weights: where the weights come from: `pretrained`, `random` or a path.
        frontend: from raw utterances to the stem's inputs.
        stem_dim: width of the stem's features.
        dim: width of the encoder's features, behind the top.
        languages: codes of the languages it is made for (`en`); None where it does not matter.
        skips_parts: whether a step may leave parameters out while the stem trains, such as the layers that are
            skipped at random: several processes then have to look for them.
    """

    modality: ClassVar[str]
    name: str
    weights: str
    frontend: Frontend
    stem_dim: int
    dim: int
    languages: list[str] | None = None
    skips_parts: bool = False

    @classmethod
    def width(cls, arguments: Mapping[str, Any]) -> int | None:
        """The `dim` that an encoder of these arguments has, as far as they tell without building it; else None."""
        return None

    @abstractmethod
    def stem(self, inputs: Inputs) -> Features:
        """A batch of the front end's inputs -> features (batch, time, stem_dim)."""

    def top(self, features: Features) -> Features:
        """The stem's features -> (batch, time, dim); the identity unless the encoder has a top."""
        return features

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The stem's parts from input to output: what "the last n blocks" counts."""

    def top_parameters(self) -> list[nn.Parameter]:
        """The parameters that train while the stem is frozen."""
        return []

    def save(self, folder: Path) -> dict[str, Any]:
        """Write what this encoder needs beside its weights into `folder`, which does not exist yet.

        Returns:
            The constructor's arguments that have to change for it to be built from there; `${folder}` stands for the
            folder above.
        """
        return {}

    def forward(self, inputs: Inputs | Features) -> Features:
        """Encode raw inputs, or go on from the stem's features where they come from the store."""
        return self.top(inputs if isinstance(inputs, Features) else self.stem(inputs))

    def collate(self, items: Sequence[Inputs]) -> Inputs:
        """Utterances as one padded batch."""
        return self.frontend.collate(items)

    def lengths(self, read: Callable[[int], Any], known: np.ndarray) -> np.ndarray:
        """How long utterances are to this encoder, for batches of similar length.

        Args:
            read: position -> the raw utterance.
            known: what the corpus says of each position: seconds, or characters.
        """
        return known

    def stem_parameters(self) -> dict[str, nn.Parameter]:
        """The stem's parameters by their names in this module."""
        top = {id(parameter) for parameter in self.top_parameters()}
        return {name: parameter for name, parameter in self.named_parameters() if id(parameter) not in top}

    def unfreeze(self, what: Unfreeze) -> None:
        """Let the named part of the stem train and freeze the rest; the top trains always.

        Args:
            what: `none`, `all`, or the number of last blocks.

        Raises:
            InputError: `what` is none of these, or there are fewer blocks.
        """
        stem = self.stem_parameters().values()
        for parameter in stem:
            parameter.requires_grad_(what == "all")
        if what in ("none", "all"):
            return
        blocks = self.blocks()
        if isinstance(what, bool) or not isinstance(what, int) or not 0 < what <= len(blocks):
            raise InputError(
                f"stage: unfreeze.{self.modality}={what}: expected none, all, or how many of the last blocks "
                f"(1 to {len(blocks)} for {self.name})."
            )
        for block in blocks[-what:]:
            block.requires_grad_(True)

    @property
    def frozen(self) -> bool:
        """Whether no parameter of the stem trains."""
        return not any(parameter.requires_grad for parameter in self.stem_parameters().values())

    def train(self, mode: bool = True) -> "Encoder":
        """A frozen stem stays in evaluation mode: its dropout and augmentation would change stored features."""
        super().train(mode)
        if mode and self.frozen:
            for child in self.stem_modules():
                child.eval()
        return self

    @abstractmethod
    def stem_modules(self) -> list[nn.Module]:
        """The direct children that the stem runs through."""

    @contextmanager
    def without_stem(self) -> Iterator[None]:
        """Keep the stem out of this module meanwhile, where it is: it is not moved, copied or saved with the rest.

        What reads its features from the store needs no memory of the device for it.
        """
        order = list(self._modules)
        names = [name for name, child in self.named_children() if any(child is part for part in self.stem_modules())]
        for name in names:
            self.__dict__[name] = self._modules.pop(name)
        try:
            yield
        finally:
            found = {**self._modules, **{name: self.__dict__.pop(name) for name in names}}
            self._modules.clear()
            self._modules.update((name, found[name]) for name in order)

    def fingerprint(self) -> str:
        """The store's key: a hash over the architecture, the stem's weights as they are now, and the front end."""
        digest = hashlib.blake2b(digest_size=12)
        about = {"class": type(self).__qualname__, "about": self.describe(), "frontend": self.frontend.describe()}
        digest.update(json.dumps(about, sort_keys=True).encode())
        for prefix, module in ((str(place), module) for place, module in enumerate(self.stem_modules())):
            for name, tensor in sorted(module.state_dict().items()):
                if name.endswith("masked_spec_embed"):
                    continue  # of training alone, and made anew where a checkpoint lacks it
                digest.update(f"{prefix}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What the stem computes beyond its weights, as JSON values."""
        return {}


def pad(rows: Sequence[Tensor], value: float = 0.0) -> Tensor:
    """Stack [time, ...] tensors of different lengths into (batch, longest, ...), `value` behind each row's end."""
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def length_mask(lengths: Tensor, longest: int) -> Tensor:
    """Lengths (batch,) -> mask (batch, longest), True before each row's length."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def moved(inputs: Inputs | Features | Packed | None, device: torch.device) -> Inputs | Features | None:
    """A modality's part of a batch on a device; stored features are padded there."""
    if inputs is None:
        return None
    if isinstance(inputs, Packed):
        return inputs.padded(device)
    if isinstance(inputs, Features):
        return Features(sent(inputs.features, device), sent(inputs.mask, device))
    return {name: sent(tensor, device) for name, tensor in inputs.items()}
