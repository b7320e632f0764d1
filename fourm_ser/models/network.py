"""The network: encoders, fusion, head."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from fourm_ser.config import build
from fourm_ser.encoders.base import Encoder, Features, Inputs, Resources
from fourm_ser.encoders.lora import is_adapter, merged
from fourm_ser.encoders.pooling import FACTORS
from fourm_ser.errors import InputError
from fourm_ser.fusion.base import Fusion, check_dropout, check_width, pool
from fourm_ser.losses.base import Loss

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "none": nn.Identity,
}


class NetworkOutput(NamedTuple):
    """What the network returns, and losses act on.

    Attributes:
        logits: (batch, classes).
        embedding: (batch, dim), the fused vector.
        text: text features as the fusion normalises them; None where it reads no text.
        audio: audio features as the fusion normalises them; None where it reads no audio.
        attention: maps by name, (batch, heads, queries, keys), when they were asked for; else empty.
        encoded: what the fusion was given: features of the encoders by modality.
        views: (views, batch, classes), each head's own logits where the embedding has several views; else None.
    """

    logits: Tensor
    embedding: Tensor
    text: Features | None
    audio: Features | None
    attention: Mapping[str, Tensor]
    encoded: Mapping[str, Features]
    views: Tensor | None = None

    def features(self, names: Sequence[str]) -> dict[str, Tensor]:
        """What feature losses act on, of these names: `embedding`, and the mean over time of `text` and `audio`."""
        given = self._asdict()
        return {name: self.embedding if name == "embedding" else pool(given[name], "mean") for name in names}


class Head(nn.Module):
    """From the embedding to the classes: dropout, hidden layers with an activation each, a linear classifier.

    Args:
        dim: width of the embedding.
        classes: number of classes.
        layers: widths of the hidden layers.
        dropout: dropout on the embedding.
        activation: one of `ACTIVATIONS`.
        last_dropout: dropout before the linear classifier.

    Raises:
        InputError: an unknown activation, a dropout or a width out of range.
    """

    def __init__(
        self, *, dim: int, classes: int, layers: Sequence[int], dropout: float, activation: str, last_dropout: float
    ) -> None:
        super().__init__()
        if isinstance(layers, str | int | float) or layers is None:
            raise InputError(f"head.layers={layers}: expected a list of widths, such as [64].")
        for place, width in enumerate(layers):
            check_width(width, f"head.layers[{place}]")
        check_dropout(dropout, "head.dropout")
        check_dropout(last_dropout, "head.last_dropout")
        if activation not in ACTIVATIONS:
            raise InputError(f"head.activation={activation}: expected one of {', '.join(ACTIVATIONS)}.")
        widths = [dim, *layers]
        modules: list[nn.Module] = [nn.Dropout(dropout)]
        for before, after in pairwise(widths):
            modules += [nn.Linear(before, after), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*modules, nn.Dropout(last_dropout), nn.Linear(widths[-1], classes))

    def forward(self, embedding: Tensor) -> Tensor:
        """(batch, dim) -> logits (batch, classes)."""
        return self.layers(embedding)


class ViewHeads(nn.Module):
    """A head for each view of an embedding, whose probabilities are averaged: an ensemble over hidden states.

    Each trains for itself, by the mean of their losses (see `EmotionModule`): together they are wrong less often than
    any of them, as they are wrong about different utterances.

    Args:
        heads: a head for each view, for its part of the embedding.
    """

    def __init__(self, heads: Iterable[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def views(self, embedding: Tensor) -> Tensor:
        """(batch, dim) -> each head's logits (views, batch, classes)."""
        parts = embedding.chunk(len(self.heads), dim=-1)
        return torch.stack([head(part) for head, part in zip(self.heads, parts, strict=True)])

    def forward(self, embedding: Tensor) -> Tensor:
        """(batch, dim) -> logits (batch, classes): the logarithms of the mean probabilities."""
        return together(self.views(embedding))


def together(views: Tensor) -> Tensor:
    """Logits (views, batch, classes) -> the logarithms of their mean probabilities (batch, classes)."""
    wide = torch.promote_types(views.dtype, torch.float32)
    return views.log_softmax(-1, dtype=wide).logsumexp(0) - math.log(len(views))


class EmotionNetwork(nn.Module):
    """Encoders, fusion and head as one network.

    Args:
        encoders: an encoder for each modality that the fusion reads.
        fusion: from the encoders' sequences to the embedding.
        head: from the embedding to the logits.
    """

    def __init__(self, encoders: Mapping[str, Encoder], fusion: Fusion, head: nn.Module) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.fusion = fusion
        self.head = head

    def forward(
        self, text: Inputs | Features | None, audio: Inputs | Features | None, return_attention: bool = False
    ) -> NetworkOutput:
        """A batch of raw inputs, or of stored features, of each modality -> `NetworkOutput`."""
        return self.fuse(self.encode({"text": text, "audio": audio}), return_attention)

    def fuse(
        self,
        encoded: Mapping[str, Features],
        return_attention: bool = False,
        mix: Callable[[Tensor], Tensor] | None = None,
    ) -> NetworkOutput:
        """What `encode` gives -> `NetworkOutput`; of an embedding that `mix` changes, where it is given."""
        fused = self.fusion(encoded.get("text"), encoded.get("audio"), return_attention)
        embedding = fused.embedding if mix is None else mix(fused.embedding)
        views = self.head.views(embedding) if isinstance(self.head, ViewHeads) else None
        logits = self.head(embedding) if views is None else together(views)
        return NetworkOutput(logits, embedding, fused.text, fused.audio, fused.attention, encoded, views)

    def encode(self, given: Mapping[str, Any]) -> dict[str, Features]:
        """The encoders' features, behind their tops, of a batch's raw inputs or stored features by modality."""
        return {modality: encoder(given[modality]) for modality, encoder in self.by_modality.items()}

    def replace_head(self, loss: Loss) -> None:
        """Let the classifier of a loss that trains no head take the head's place: its logits without the margin."""
        classifier = loss.classifier()
        if classifier is not None and not loss.uses_head:
            self.head = classifier

    @property
    def by_modality(self) -> dict[str, Encoder]:
        """The encoders by the modality they read."""
        return dict(self.encoders.items())  # type: ignore[arg-type]

    @property
    def widths(self) -> dict[str, int]:
        """The width of each of `NetworkOutput.features`."""
        return {"embedding": self.fusion.dim, **self.fusion.widths}

    @contextmanager
    def without_stems(self, modalities: Sequence[str]) -> Iterator[None]:
        """Keep the stems of `modalities` out of the network meanwhile; see `Encoder.without_stem`."""
        with ExitStack() as stack:
            for modality in modalities:
                stack.enter_context(self.by_modality[modality].without_stem())
            yield

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Adapters merged into the weights of the stems meanwhile; see `fourm_ser.encoders.lora`."""
        with ExitStack() as stack:
            for encoder in self.by_modality.values():
                stack.enter_context(merged(encoder.stem))
            yield

    def stem_state(self, modalities: Iterable[str], adapters: bool = True) -> set[str]:
        """The names in this module's state dict that belong to the stems of `modalities`, with adapters or without."""
        stems = tuple(f"encoders.{modality}.stem." for modality in modalities)
        return {name for name in self.state_dict() if name.startswith(stems) and (adapters or not is_adapter(name))}


def build_network(config: DictConfig, classes: int, resources: Resources) -> EmotionNetwork:
    """The network that a config describes.

    Args:
        config: The nodes `encoder`, `fusion` and `head`, and `encode.pool`; without it nothing is pooled.
        classes: How many classes there are.
        resources: What encoders may use.

    Raises:
        InputError: weights that cannot be had, or numbers that do not fit each other.
    """
    encoders: dict[str, Encoder] = {}
    kind = get_object(config.fusion._target_)
    over_stems, reads_activity, reads_states = (
        getattr(kind, name, False) for name in ("over_stems", "reads_activity", "reads_states")
    )
    for modality in config.fusion.modalities:
        if modality not in ("text", "audio"):
            raise InputError(f"fusion.modalities={list(config.fusion.modalities)}: expected text, audio or both.")
        encoders[modality] = build(config.encoder[modality], resources=resources)
        if Path(encoders[modality].name).name != encoders[modality].name:  # it names a folder of the store
            raise InputError(f"encoder.{modality}.name={encoders[modality].name}: expected a name without slashes.")
        encoders[modality].pool(pooling_of(config, modality))
        if over_stems:
            encoders[modality].leave_out_top()
    given: dict[str, Any] = {}
    if reads_states:
        given["states"] = {modality: encoder.state_places() for modality, encoder in encoders.items()}
    if reads_activity:
        given["activity"] = [modality for modality, encoder in encoders.items() if encoder.hand_on_activity()]
    dims = {modality: encoder.dim for modality, encoder in encoders.items()}
    fusion = build(config.fusion, dims=dims, **given)
    heads = [build(config.head, dim=fusion.dim // fusion.views, classes=classes) for _ in range(fusion.views)]
    return EmotionNetwork(encoders, fusion, heads[0] if len(heads) == 1 else ViewHeads(heads))


def check_encoders(config: DictConfig) -> None:
    """Refuse arguments of any encoder that the fusion reads which no weights could mend, before any are fetched.

    Raises:
        InputError: the first one, by its key.
    """
    for modality in config.fusion.modalities:
        # Building the encoder says what else is wrong.
        with suppress(AttributeError, KeyError, TypeError, ValueError, ImportError, InstantiationException):
            node: Any = OmegaConf.to_container(config.encoder[modality], resolve=True)
            encoder = get_object(node.pop("_target_"))
            encoder.check(build(node))


def known_widths(config: DictConfig) -> dict[str, int | None]:
    """The width of the features of each modality that the fusion reads; None where only the built encoder can tell."""
    widths: dict[str, int | None] = dict.fromkeys(config.fusion.modalities)
    for modality in widths:
        with suppress(AttributeError, KeyError, TypeError, ValueError):  # building it says what is wrong
            node = config.encoder[modality]
            width = get_object(node._target_).width(OmegaConf.to_container(node, resolve=True))
            widths[modality] = None if width is None else width * FACTORS[pooling_of(config, modality)]
    return widths


def pooling_of(config: DictConfig, modality: str) -> str:
    """How a config's `encode.pool` pools a modality: one word for both, or one each; `none` where it says nothing."""
    said = OmegaConf.select(config, "encode.pool", default="none")
    return said.get(modality, "none") if isinstance(said, DictConfig) else said
