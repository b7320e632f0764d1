"""From utterances to padded batches."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fourm_ser.devices import sent
from fourm_ser.encoders.base import Features, Frontend, Inputs, Packed, moved
from fourm_ser.encoders.store import FeatureStore

KEPT = 2**29  # bytes of a modality's summaries that a process keeps
AHEAD = 2  # batches that are got ready while another is computed on


class Batch(NamedTuple):
    """A batch of utterances.

    Attributes:
        rows: (batch,) Positions in the manifest.
        labels: (batch,) Class indices.
        text: The text encoder's raw inputs, or the features of its stem from the store, which are packed until the
            batch is on its device; None where nothing reads text.
        audio: The audio encoder's raw inputs, or the features of its stem, like those of the text; None where nothing
            reads audio.
    """

    rows: Tensor
    labels: Tensor
    text: Inputs | Features | Packed | None
    audio: Inputs | Features | Packed | None

    def to(self, device: torch.device) -> Self:
        """The batch on a device, stored features padded; from page-locked memory nothing is waited for."""
        parts = (moved(self.text, device), moved(self.audio, device))
        return type(self)(sent(self.rows, device), sent(self.labels, device), *parts)


class Source(Protocol):
    """Where a modality's part of a batch comes from."""

    def load(self, index: int, turn: int = 0) -> Any:
        """What makes up an utterance, by its position in the manifest, and at which turn of training; 0 outside it."""
        ...

    def collate(self, items: Sequence[Any]) -> Inputs | Features | Packed:
        """What was loaded, as one padded batch."""
        ...


class Raw(NamedTuple):
    """Raw utterances, read by their positions in the manifest, through an encoder's front end."""

    read: Callable[[int], Any]  # picklable
    frontend: Frontend

    def load(self, index: int, turn: int = 0) -> Inputs:
        return self.frontend(self.read(index))

    def collate(self, items: Sequence[Inputs]) -> Inputs:
        return self.frontend.collate(items)


class Stored(NamedTuple):
    """Features from an encoder's store."""

    store: FeatureStore
    keys: Sequence[str]  # by the utterance's position in the manifest

    def load(self, index: int, turn: int = 0) -> str:
        return self.keys[index]  # a batch is read at once

    def collate(self, items: Sequence[str]) -> Packed:
        return self.store.read_batch(items)


class Summarised:
    """What a fusion reads of features from an encoder's store, as one frame an utterance, kept in memory.

    Each utterance is summarised by itself, once: its numbers hang on no batch.

    Args:
        stored: The features.
        summary: From features (batch, time, dim) to numbers (batch, numbers); picklable.
    """

    def __init__(self, stored: Stored, summary: Callable[[Features], Tensor]) -> None:
        self.stored, self.summary = stored, summary
        self.kept: dict[str, Tensor] = {}

    def load(self, index: int, turn: int = 0) -> str:
        return self.stored.load(index)

    def collate(self, items: Sequence[str]) -> Features:
        rows = torch.stack([self._numbers(key) for key in items])
        return Features(rows[:, None], torch.ones(len(rows), 1, dtype=torch.bool))

    def _numbers(self, key: str) -> Tensor:
        """The numbers (numbers,) of one utterance."""
        found = self.kept.get(key)
        if found is None:
            with torch.no_grad():
                (found,) = self.summary(self.stored.collate([key]).padded(torch.device("cpu")))
            if len(self.kept) * found.nbytes < KEPT:
                self.kept[key] = found
        return found


class Utterances(Dataset[tuple[int, dict[str, Any]]]):
    """Utterances of a manifest with the class indices `labels`, each modality from its source."""

    def __init__(self, labels: np.ndarray, sources: Mapping[str, Source]) -> None:
        self.labels = labels
        self.sources = dict(sources)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[int, dict[str, Any]]:
        row, turn = index if isinstance(index, tuple) else (index, 0)
        return row, {modality: source.load(row, turn) for modality, source in self.sources.items()}

    def collate(self, items: Sequence[tuple[int, dict[str, Any]]]) -> Batch:
        """Loaded utterances as one padded batch."""
        rows = [index for index, _ in items]
        parts = {
            modality: source.collate([loaded[modality] for _, loaded in items])
            for modality, source in self.sources.items()
        }
        return Batch(torch.tensor(rows), torch.from_numpy(self.labels[rows]), parts.get("text"), parts.get("audio"))


Item = TypeVar("Item")


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The items, the next two of which a thread gets ready while one is used."""
    end: Any = object()
    with ThreadPoolExecutor(1, "ahead") as thread:
        pending: deque[Future[Item]] = deque(thread.submit(next, items, end) for _ in range(AHEAD))
        try:
            while (item := pending.popleft().result()) is not end:
                pending.append(thread.submit(next, items, end))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)


class AheadLoader(DataLoader[Batch]):
    """A DataLoader without worker processes, which a thread reads ahead of."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        return ahead(super().__iter__())


def loader(dataset: Utterances, sampler: Iterable[list[Any]], workers: int, pin_memory: bool) -> DataLoader[Batch]:
    """A DataLoader whose workers stay alive between epochs; without any a thread reads ahead where memory is pinned."""
    kind = AheadLoader if pin_memory and not workers else DataLoader
    return kind(
        dataset,  # type: ignore[arg-type]
        batch_sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        collate_fn=dataset.collate,
        # A generator of its own: each pass draws a seed for the workers, which would move the global one along.
        generator=torch.Generator(),
    )
