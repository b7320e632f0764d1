"""Which utterances make a batch: those of similar length."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import Sampler

TURNS = 2**20  # of which an utterance's first one in an epoch is drawn
SPREAD = 8.0  # of what is added to the logarithm of a length, times the number of batches


def cut_by_length(
    lengths: Sequence[float] | np.ndarray, *, total: float, padding: float, count: float = math.inf
) -> Iterator[slice]:
    """Cut what is sorted by length, the shortest first, into batches; yields which places are one.

    A batch is as large as it may be: `total` is its length, padding included (what is longer by itself is a batch of
    its own), `padding` the share of it that may be padding, and `count` how many may be in it.
    """
    start, own = 0, 0.0  # of the batch: its first place, and its length without padding
    for place, length in enumerate(lengths):
        size = (place - start + 1) * length  # this one is the longest so far
        if place > start and (place - start >= count or size > total or size - own - length > padding * size):
            yield slice(start, place)
            start, own = place, 0.0
        own += length
    if len(lengths):
        yield slice(start, len(lengths))


class BucketBatchSampler(Sampler[list[int]]):
    """Batches of utterances of similar length.

    With `shuffle`, utterances are shuffled, sorted by the logarithm of their length plus what grows with their place in
    the shuffled order, from 0 to 8 / number of batches, cut into batches, and the batches shuffled. That order depends
    on seed and epoch alone, and gives an utterance other company in each epoch. The fewer the batches, the more they
    mix lengths: in a small corpus whose emotions differ in length they would else be of one emotion. Without, they are
    sorted by length.

    With `fixed`, every epoch has the order that `shuffle` gives the first one.

    With `classes`, an epoch has as many utterances as without, and every class equally often: of a large class some are
    drawn anew for each epoch, those of a small one come several times.

    With several processes all make the same batches and each takes its share of every batch: what is averaged over a
    batch means the same whatever the number of processes, and no utterance is read twice.

    Args:
        rows: positions in the manifest.
        lengths: length of each utterance of the manifest, in any unit, more than 0.
        batch_size: utterances in a batch, over all processes.
        shuffle: whether each epoch has an order of its own.
        seed: seed of the order.
        rank: number of this process, from 0.
        world: number of processes.
        classes: class index of each utterance of the manifest, to balance; None for every utterance once.
        fixed: whether all epochs have the order of the first.
    """

    def __init__(
        self,
        rows: np.ndarray,
        lengths: np.ndarray,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        classes: np.ndarray | None = None,
        fixed: bool = False,
    ) -> None:
        if batch_size < world or len(rows) < world:
            raise ValueError(f"batches of {batch_size} out of {len(rows)} utterances cannot feed {world} processes")
        self.rows, self.lengths = np.asarray(rows), np.asarray(lengths, dtype=float)
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.rank, self.world, self.classes, self.fixed = rank, world, classes, fixed
        self.epoch, self.taken = 0, 0  # and how many of its batches were taken before: the next turn begins with others
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
        generator = np.random.default_rng([self.seed, 0 if self.fixed else self.epoch])
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
        taken, self.taken = self.taken, 0
        return islice(self._shares(), taken, None)

    def _shares(self) -> Iterator[list[Any]]:
        """This process's share of each of the epoch's batches."""
        for batch in self.batches():
            yield batch[self.rank :: self.world].tolist()

    def __len__(self) -> int:
        return len(self._cut(self.rows))


class VersionSampler(BucketBatchSampler):
    """The same batches, of pairs of a position and a turn: which version of an utterance is heard hangs on its turn.

    An utterance's turn is drawn from 1 on by seed, epoch and its position alone, whatever batch it is in; where it
    comes several times in an epoch, each time it is the next turn.
    """

    def _shares(self) -> Iterator[list[Any]]:
        turns = np.random.default_rng([self.seed, self.epoch, 1]).integers(1, TURNS, size=len(self.lengths))
        for batch in self.batches():
            drawn = []
            for row in batch:
                drawn.append((int(row), int(turns[row])))
                turns[row] += 1
            yield drawn[self.rank :: self.world]
