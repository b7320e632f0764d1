"""From utterances to padded batches of similar length."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fourm_ser.devices import sent
from fourm_ser.encoders.base import Features, Frontend, Inputs, Packed, moved
from fourm_ser.encoders.store import FeatureStore

AHEAD = 2  # batches that are got ready while another is computed on
SPREAD = 8.0  # of what is added to the logarithm of a length, times the number of batches


class Batch(NamedTuple):
    """A batch of utterances.

    Attributes:
        rows: (batch,) positions in the manifest.
        labels: (batch,) class indices.
        text: the text encoder's raw inputs, or the features of its stem from the store, which are packed until the
            batch is on its device; None where nothing reads text.
        audio: the same of the audio encoder.
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

    def load(self, index: int) -> Any:
        """What makes up an utterance, by its position in the manifest."""
        ...

    def collate(self, items: Sequence[Any]) -> Inputs | Packed:
        """What was loaded, as one padded batch."""
        ...


class Raw:
    """Raw utterances through an encoder's front end.

    Args:
        read: position in the manifest -> what the front end reads.
        frontend: the encoder's front end.
    """

    def __init__(self, read: "Reader", frontend: Frontend) -> None:
        self.read = read
        self.frontend = frontend

    def load(self, index: int) -> Inputs:
        return self.frontend(self.read(index))

    def collate(self, items: Sequence[Inputs]) -> Inputs:
        return self.frontend.collate(items)


class Reader(Protocol):
    """Reads an utterance's raw content by its position in the manifest; picklable."""

    def __call__(self, index: int) -> Any: ...


class Stored:
    """Features from the store.

    Args:
        store: the store.
        keys: the key of each utterance, by its position in the manifest.
    """

    def __init__(self, store: FeatureStore, keys: Sequence[str]) -> None:
        self.store = store
        self.keys = keys

    def load(self, index: int) -> str:
        return self.keys[index]  # a batch is read at once

    def collate(self, items: Sequence[str]) -> Packed:
        return self.store.read_batch(items)


class Utterances(Dataset[tuple[int, dict[str, Any]]]):
    """Utterances of a manifest, each modality from its source.

    Args:
        labels: class index of each utterance.
        sources: a source by modality.
    """

    def __init__(self, labels: np.ndarray, sources: Mapping[str, Source]) -> None:
        self.labels = labels
        self.sources = dict(sources)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[int, dict[str, Any]]:
        return index, {modality: source.load(index) for modality, source in self.sources.items()}

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


class BucketBatchSampler(Sampler[list[int]]):
    """Batches of utterances of similar length.

    With `shuffle`, utterances are shuffled, sorted by the logarithm of their length plus what grows with their place in
    the shuffled order, from 0 to 8 / number of batches, cut into batches, and the batches shuffled. That order depends
    on seed and epoch alone, and gives an utterance other company in each epoch. The fewer the batches, the more they
    mix lengths: in a small corpus whose emotions differ in length they would else be of one emotion. Without, they are
    sorted by length.

    With `classes`, an epoch has as many utterances as without, and every class equally often: of a large class some are
    drawn anew for each epoch, those of a small one come several times.

    With several processes all make the same batches and each takes its share of every batch: what is averaged over a
    batch means the same whatever the number of processes, and no utterance is read twice.

    Args:
        rows: positions in the manifest.
        lengths: length of each utterance of the manifest, in any unit, more than 0.
        batch_size: utterances in a batch, over all processes.
        shuffle: see above.
        seed: seed of the order.
        rank: this process, of
        world: so many processes.
        classes: class index of each utterance of the manifest, to balance; None for every utterance once.
    """

    def __init__(
        self,
        rows: np.ndarray,
        lengths: np.ndarray,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        classes: np.ndarray | None = None,
    ) -> None:
        if batch_size < world or len(rows) < world:
            raise ValueError(f"batches of {batch_size} out of {len(rows)} utterances cannot feed {world} processes")
        self.rows, self.lengths = np.asarray(rows), np.asarray(lengths, dtype=float)
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.rank, self.world, self.classes = rank, world, classes
        self.epoch = 0
        # Lightning tells the epoch to a batch sampler's `sampler` alone; without it every epoch has the same order.
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def batches(self) -> list[np.ndarray]:
        """The epoch's batches, over all processes."""
        if not self.shuffle:
            order = self.rows[np.argsort(self.lengths[self.rows], kind="stable")]
            return self._cut(order)
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(self.rows if self.classes is None else self._balanced(generator))
        added = np.linspace(0.0, SPREAD / len(self), len(order))
        order = order[np.argsort(np.log(self.lengths[order]) + added, kind="stable")]
        batches = self._cut(order)
        return [batches[place] for place in generator.permutation(len(batches))]

    def _balanced(self, generator: np.random.Generator) -> np.ndarray:
        """As many rows as there are, of each class the same number (give or take one), drawn in whole rounds."""
        assert self.classes is not None
        members = [self.rows[self.classes[self.rows] == label] for label in np.unique(self.classes[self.rows])]
        share, more = divmod(len(self.rows), len(members))
        extra = set(generator.permutation(len(members))[:more].tolist())
        drawn = []
        for place, rows in enumerate(members):
            count = share + (place in extra)
            rounds = [generator.permutation(rows) for _ in range(-(-count // len(rows)))]
            drawn.append(np.concatenate(rounds)[:count])
        return np.concatenate(drawn)

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        starts = list(range(0, len(order), self.batch_size))
        if len(order) - starts[-1] < self.world:
            starts.pop()  # too few for a row on every process: they join the batch before
        return [order[start:end] for start, end in zip(starts, [*starts[1:], len(order)], strict=True)]

    def padding(self) -> float:
        """The share of a batch's length that is padding, over the epoch."""
        batches = self.batches()
        longest = sum(len(batch) * self.lengths[batch].max() for batch in batches)
        return 1.0 - float(sum(self.lengths[batch].sum() for batch in batches) / longest)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches():
            yield batch[self.rank :: self.world].tolist()

    def __len__(self) -> int:
        return len(self._cut(self.rows))
