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

from fourm_ser.checks import check_word
from fourm_ser.devices import sent
from fourm_ser.encoders.activity import frame_activity
from fourm_ser.encoders.lora import Lora, merged, weight_beside
from fourm_ser.encoders.pooling import FACTORS, pooled
from fourm_ser.errors import InputError

Inputs = dict[str, Tensor]
"""One utterance as its front end left it, or a batch of them: named tensors."""

Unfreeze = str | int
"""What of a stem trains: `none`, `all`, how many of its last blocks, or `lora`: adapters alone."""


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

    Analyses ask a front end of audio for two more methods. Where one is missing, an analysis that needs it is left out
    and says so:

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
    """A stem, whose output the embedding store can hold, and a top that always trains.

    Attributes:
        modality: `text` or `audio`.
        name: the encoder's name in the store and in the log.
        weights: where the weights come from: `pretrained`, `random` or a path.
        frontend: from raw utterances to the stem's inputs.
        stem: a module from a batch of the front end's inputs to features (batch, time, stem_dim).
        top: a module from the stem's features to (batch, time, dim); `nn.Identity()` where there is none.
        stem_dim: width of the stem's features, as the store holds them, but for activity.
        states: the numbers of the hidden states that lie side by side in the stem's features, where it has some.
        dim: width of the encoder's features, behind the top.
        pooling: how the stem's features are pooled over time before they are stored, one of `FACTORS`; see `pool`.
        tells_activity: whether `stem_features`, and the store, have one more, the last: how far the frame is speech,
            from 0 to 1, see `fourm_ser.encoders.activity`. The front end is then a `WithActivity`; the top does not see
            it, and keeps the frames.
        hands_on_activity: whether the encoder's features have it, too; see `hand_on_activity`.
        languages: codes of the languages it is made for (`en`); None where it does not matter.
        base_fingerprint: the fingerprint it had before adapters were added; None where none were.
        skips_parts: whether a step may leave parameters out while the stem trains, such as the layers that are
            skipped at random: several processes then have to look for them.
    """

    modality: ClassVar[str]
    name: str
    weights: str
    frontend: Frontend
    stem: nn.Module
    top: nn.Module
    stem_dim: int
    states: Sequence[int] = (0,)
    dim: int
    pooling: str = "none"
    tells_activity: bool = False
    hands_on_activity: bool = False
    languages: list[str] | None = None
    base_fingerprint: str | None = None
    skips_parts: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_rename_parts)  # type: ignore[no-untyped-call]

    @classmethod
    def width(cls, arguments: Mapping[str, Any]) -> int | None:
        """The `dim` that an encoder of these arguments has before it pools; None where only building it can tell."""
        return None

    @classmethod
    def check(cls, arguments: Mapping[str, Any]) -> None:
        """Refuse arguments that no weights could mend: nothing is fetched or built for it.

        Raises:
            InputError: one of them, by its key.
        """

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The stem's parts from input to output: what "the last n blocks" counts."""

    def behind(self) -> nn.Module | None:
        """What stands in the stem behind its last block; None where nothing does that trains."""
        return None

    def save(self, folder: Path) -> dict[str, Any]:
        """Write what this encoder needs beside its weights into `folder`, which does not exist yet.

        Returns:
            The constructor's arguments that have to change for it to be built from there; `${folder}` stands for the
            folder above.
        """
        return {}

    def forward(self, inputs: Inputs | Features) -> Features:
        """Encode raw inputs, or go on from the stem's features where they come from the store."""
        given = inputs if isinstance(inputs, Features) else self.stem_features(inputs)
        activity = given.features[..., -1:]
        if self.tells_activity:
            given = Features(given.features[..., :-1], given.mask)
        behind: list[Features] = [self.top(part) for part in self._statistics(given)]
        beside = [activity.to(behind[0].features.dtype)] if self.hands_on_activity else []
        if len(behind) + len(beside) == 1:
            return behind[0]
        return Features(torch.cat([*(part.features for part in behind), *beside], dim=-1), behind[0].mask)

    def stem_features(self, inputs: Inputs) -> Features:
        """The stem's features of a batch's raw inputs, pooled where this encoder pools: what the store holds."""
        found: Features = self.stem(inputs)
        if self.tells_activity:
            activity = frame_activity(inputs["activity"], inputs["activity_span"], found.mask)
            beside = activity.to(found.features.dtype)[..., None]
            return Features(torch.cat([found.features, beside], dim=-1), found.mask)
        if self.pooling == "none":
            return found
        return Features(pooled(found.features, found.mask, self.pooling), found.mask[:, :1])

    def pool(self, how: str) -> None:
        """Let the stem's features be those of whole utterances, one frame each: said once, before the first use.

        A top is given the frames' mean and their deviation each by itself: the learned sum over hidden states is one of
        their means and, under the same weights, one of their deviations.

        Args:
            how: `none`; `mean`; or `mean_std`, mean and deviation side by side, which doubles `stem_dim` and `dim`.

        Raises:
            InputError: it is none of these.
        """
        check_word("encode.pool", how, FACTORS)
        self.pooling, self.tells_activity = how, self.tells_activity and how == "none"
        self.stem_dim, self.dim = FACTORS[how] * self.stem_dim, FACTORS[how] * self.dim

    def leave_out_top(self) -> None:
        """Let the features be those of the stem, as the store holds them: for what reads more than the top tells."""
        self.top, self.dim = nn.Identity(), self.stem_dim

    def state_places(self) -> list[list[int]]:
        """Where each of several hidden states lies in the encoder's features; one list of all where a top sums them."""
        count = len(self.states) if self.dim == self.stem_dim else 1
        places = np.arange(self.dim).reshape(FACTORS[self.pooling], count, -1)
        return [places[:, number].ravel().tolist() for number in range(count)]

    def hand_on_activity(self) -> bool:
        """Let the encoder's features have the frames' activity as their last one, where the stem's have it.

        Said once, before the first use; whether they have it. It counts in `dim`.
        """
        self.hands_on_activity = self.tells_activity
        self.dim += self.tells_activity
        return self.tells_activity

    def _statistics(self, given: Features) -> list[Features]:
        """The stem's features, taken apart where they are several statistics side by side."""
        parts = given.features.chunk(FACTORS[self.pooling], dim=-1)
        return [Features(part, given.mask) for part in parts]

    def collate(self, items: Sequence[Inputs]) -> Inputs:
        """Utterances as one padded batch."""
        return self.frontend.collate(items)

    def lengths(self, read: Callable[[int], Any], known: np.ndarray) -> np.ndarray:
        """How long utterances are to this encoder, for batches of similar length.

        To `read` one by its position costs; `known` is what the corpus says of all: seconds, or characters.
        """
        return known

    def unfreeze(self, what: Unfreeze) -> None:
        """Let a part of the stem train and freeze the rest, see `Unfreeze`; the top trains always.

        Raises:
            InputError: `what` is no part, or there are fewer blocks.
        """
        self.stem.requires_grad_(what == "all")
        if what in ("none", "all"):
            return
        if what == "lora":
            raise InputError(self._without_adapters())
        blocks = self.blocks()
        if isinstance(what, bool) or not isinstance(what, int) or not 0 < what <= len(blocks):
            raise InputError(
                f"stage: unfreeze.{self.modality}={what}: expected none, all, lora (adapters, of transformers), or how "
                f"many of the last blocks (1 to {len(blocks)} for {self.name})."
            )
        for block in blocks[-what:]:
            block.requires_grad_(True)

    def depths(self) -> dict[nn.Parameter, int]:
        """How many blocks each of the stem's parameters stands below the last block.

        What stands in front of the blocks is of the first, what stands behind them of the last, and an adapter of the
        one that the weight beside it is in.

        Raises:
            InputError: it has no blocks.
        """
        blocks = self.blocks()
        if not blocks:
            raise InputError(
                f"stage: layer_decay: {self.name} has no blocks that stand above each other. Expected null."
            )
        found = {own: len(blocks) - place for place, block in enumerate(blocks, 1) for own in block.parameters()}
        behind = self.behind()
        if behind is not None:
            found |= dict.fromkeys(behind.parameters(), 0)
        named = dict(self.stem.named_parameters(remove_duplicate=False))
        return {own: found.get(named[weight_beside(name)], len(blocks) - 1) for name, own in named.items()}

    def add_adapters(self, settings: Lora, seed: int) -> None:
        """Put adapters, which change nothing yet, into the stem: what `unfreeze("lora")` lets train.

        Args:
            settings: their size, and where they are.
            seed: what their first weights are drawn by, the same for the same seed.

        Raises:
            InputError: the stem is no transformer, peft is not installed, or no layer is called as they say.
        """
        raise InputError(self._without_adapters())

    def remove_adapters(self) -> None:
        """Take adapters out again that never trained; nothing where there are none."""

    def _without_adapters(self) -> str:
        return (
            f"stage: unfreeze.{self.modality}=lora: {self.name} has no adapters, which are for transformers. "
            "Expected none, all, or how many of the last blocks."
        )

    @property
    def frozen(self) -> bool:
        """Whether no parameter of the stem trains."""
        return not any(parameter.requires_grad for parameter in self.stem.parameters())

    def train(self, mode: bool = True) -> "Encoder":
        """A frozen stem stays in evaluation mode: its dropout and augmentation would change stored features."""
        super().train(mode)
        if self.frozen:
            self.stem.eval()
        return self

    @contextmanager
    def without_stem(self) -> Iterator[None]:
        """Keep the stem out of this module meanwhile, where it is: it is not moved, copied or saved with the rest.

        What reads its features from the store needs no memory of the device for it.
        """
        before = dict(self._modules)
        self.__dict__["stem"] = self._modules.pop("stem")
        try:
            yield
        finally:
            after = {**before, **self._modules}  # in the order of before
            del self.__dict__["stem"]
            self._modules.clear()
            self._modules.update(after)

    def fingerprint(self) -> str:
        """A hash over the architecture, the stem's weights as they are now, front end and pooling.

        Adapters count by what they make of the weights; the activity beside the features changes none of them.
        """
        digest = hashlib.blake2b(digest_size=12)
        frontend = {name: value for name, value in self.frontend.describe().items() if name != "activity"}
        about = {"class": type(self).__qualname__, "about": self.describe(), "frontend": frontend}
        if self.pooling != "none":
            about["pool"] = self.pooling
        digest.update(json.dumps(about, sort_keys=True).encode())
        own = {name: tensor for name, tensor in sorted(self.stem.state_dict().items()) if "." not in name}
        with merged(self.stem):
            for place, child in enumerate(self.stem.children()):
                own |= {f"{place}.{name}": tensor for name, tensor in sorted(child.state_dict().items())}
        for name, tensor in own.items():
            if name.endswith("masked_spec_embed"):
                continue  # of training alone, and made anew where a checkpoint lacks it
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What the stem computes beyond its weights, as JSON values."""
        return {}


def _rename_parts(encoder: Encoder, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
    """Let an encoder load what earlier versions saved, whose names had no `stem` and no `top` in them.

    They began with a part of the stem, or with the one part of the top, in whose place the top itself is now.
    """
    own = encoder.state_dict()
    known = {"stem", *(name.partition(".")[0] for name in own)}
    parts = {name for name, _ in encoder.stem.named_children()}
    for name in [name for name in state_dict if name.startswith(prefix)]:
        first, _, rest = name.removeprefix(prefix).partition(".")
        now = f"stem.{first}.{rest}" if first in parts else f"top.{rest}"
        if first not in known and now in own:
            # Where a tensor has both names, this one is the checkpoint's, and the other what it was laid over.
            state_dict[prefix + now] = state_dict.pop(name)


def pad(rows: Sequence[Tensor], value: float = 0.0) -> Tensor:
    """Stack [time, ...] tensors of different lengths into (batch, longest, ...), `value` behind each row's end."""
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def length_mask(lengths: Tensor, longest: int) -> Tensor:
    """Lengths (batch,) -> mask (batch, longest), True before each row's length."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def zero_padding(hidden: Tensor, lengths: Tensor) -> Tensor:
    """(batch, channels, time) or (batch, channels, time, bands), with zeros behind each row's length.

    Alone, an utterance's end meets a convolution's zeros: in a batch it has to meet the same.
    """
    mask = length_mask(lengths, hidden.shape[2])[:, None]
    return hidden * (mask if hidden.ndim == 3 else mask[..., None])


def require_random(weights: str, name: str) -> None:
    """Refuse other weights than `random` for an audio encoder that is trained from nothing."""
    if weights != "random":
        raise InputError(f"encoder.audio.weights={weights}: {name} has random weights only. Use weights=random.")


def moved(inputs: Inputs | Features | Packed | None, device: torch.device) -> Inputs | Features | None:
    """A modality's part of a batch on a device; stored features are padded there."""
    if inputs is None:
        return None
    if isinstance(inputs, Packed):
        return inputs.padded(device)
    if isinstance(inputs, Features):
        return Features(sent(inputs.features, device), sent(inputs.mask, device))
    return {name: sent(tensor, device) for name, tensor in inputs.items()}
