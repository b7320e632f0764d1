"""Batches of like lengths: each utterance once, the same on any number of processes."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from fourm_ser.data.batch import Utterances
from fourm_ser.data.buckets import BucketBatchSampler, cut_by_length
from tests.data.test_batch import Numbers

GENERATOR = np.random.default_rng(0)
LENGTHS = GENERATOR.lognormal(1.0, 0.6, 1000)  # of a manifest of 1000, of which
ROWS = np.sort(GENERATOR.permutation(1000)[:737])  # these are used


def padding(batches: list[list[int]]) -> float:
    """The share of all batches that is padding."""
    used = sum(LENGTHS[row] for batch in batches for row in batch)
    return float(1 - used / sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in batches))


def order(seed: int = 0, epoch: int = 0, shuffle: bool = True, size: int = 8) -> list[list[int]]:
    sampler = BucketBatchSampler(ROWS, LENGTHS, size, shuffle=shuffle, seed=seed)
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_comes_exactly_once(shuffle: bool) -> None:
    for epoch, size in itertools.product(range(3), (1, 2, 8, 32, 737, 5000)):
        batches = order(epoch=epoch, shuffle=shuffle, size=size)
        assert sorted(row for batch in batches for row in batch) == ROWS.tolist()
        assert max(map(len, batches)) <= size
        assert sum(len(batch) < size for batch in batches) <= 1
        assert len(batches) == -(-len(ROWS) // size) == len(BucketBatchSampler(ROWS, LENGTHS, size, shuffle=shuffle))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    orders = {(seed, epoch): order(seed, epoch) for seed in range(3) for epoch in range(3)}
    np.random.seed(1)
    torch.manual_seed(1)
    assert all(order(seed, epoch) == expected for (seed, epoch), expected in orders.items())
    assert len({str(expected) for expected in orders.values()}) == len(orders)
    # Others batches, not the same in another order.
    assert len({str(sorted(map(sorted, expected))) for expected in orders.values()}) == len(orders)


def test_iterating_again_gives_the_same_order_until_the_epoch_changes() -> None:
    sampler = BucketBatchSampler(ROWS, LENGTHS, 8, shuffle=True)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_without_shuffling_every_epoch_is_sorted_by_length() -> None:
    flat = [row for batch in order(shuffle=False) for row in batch]
    assert flat == [row for batch in order(seed=1, epoch=5, shuffle=False) for row in batch]
    assert (np.diff(LENGTHS[flat]) >= 0).all()


@pytest.mark.parametrize("shuffle", [True, False])
def test_lengths_within_a_batch_are_similar(shuffle: bool) -> None:
    shuffled = np.random.default_rng(0).permutation(ROWS)
    at_random = padding([shuffled[start : start + 8].tolist() for start in range(0, len(ROWS), 8)])
    batches = order(shuffle=shuffle)
    assert at_random > 0.3
    assert padding(batches) < at_random / 4
    assert BucketBatchSampler(ROWS, LENGTHS, 8, shuffle=shuffle).padding() == pytest.approx(padding(batches))


def test_batches_of_a_small_corpus_mix_emotions_that_differ_in_length() -> None:
    rows = np.arange(500)
    classes = rows % 5
    lengths = 2.0 + classes  # by its length alone an utterance would be in a batch of one emotion
    batches = list(BucketBatchSampler(rows, lengths, 32, shuffle=True))
    assert len(batches) == 16
    alone = list(BucketBatchSampler(rows, lengths, 32))
    mixed, apart = (np.mean([len(set(classes[batch])) for batch in made]) for made in (batches, alone))
    assert mixed > 1.9
    assert apart < 1.4


def test_a_large_corpus_has_batches_of_like_length() -> None:
    lengths = np.random.default_rng(0).uniform(1, 10, 20_000)
    assert BucketBatchSampler(np.arange(20_000), lengths, 8, shuffle=True).padding() < 0.05


def test_the_more_batches_the_less_padding() -> None:
    lengths = np.random.default_rng(0).lognormal(1.28, 0.685, 20_000)
    counts = (320, 1_280, 5_120, 20_000)
    shares = [BucketBatchSampler(np.arange(count), lengths, 32, shuffle=True).padding() for count in counts]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.2  # of ten batches
    assert shares[2] < 0.05
    assert shares[3] < 0.02


@pytest.mark.parametrize("count", [320, 5_120])
def test_an_utterance_gets_other_company_in_each_epoch(count: int) -> None:
    lengths = np.random.default_rng(0).lognormal(1.28, 0.685, count)
    sampler = BucketBatchSampler(np.arange(count), lengths, 32, shuffle=True)
    pairs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        pairs.append({pair for batch in sampler for pair in itertools.combinations(sorted(batch), 2)})
    assert len(pairs[0] & pairs[1]) < 0.5 * len(pairs[0])


def test_training_does_not_go_from_short_to_long() -> None:
    longest = [max(LENGTHS[row] for row in batch) for batch in order()]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3


def test_lengths_are_those_of_the_manifests_rows() -> None:
    # Three rows at the end of a manifest: their lengths are looked up by row, not by place.
    lengths = np.array([9.0, 8.0, 7.0, 3.0, 1.0, 2.0])
    sampler = BucketBatchSampler(np.array([3, 4, 5]), lengths, 1)
    assert list(sampler) == [[4], [5], [3]]


@pytest.mark.parametrize(("world", "shuffle"), [(2, True), (3, False), (4, True)])
@pytest.mark.parametrize("count", [16, 17, 19, 33])  # none, one and three beside whole batches
def test_ranks_share_the_batches_of_a_single_process(count: int, world: int, shuffle: bool) -> None:
    rows, size = ROWS[:count], 8
    alone = BucketBatchSampler(rows, LENGTHS, size, shuffle=shuffle, seed=3)
    ranks = [
        BucketBatchSampler(rows, LENGTHS, size, shuffle=shuffle, seed=3, rank=rank, world=world)
        for rank in range(world)
    ]
    for epoch in range(2):
        for sampler in (alone, *ranks):
            sampler.set_epoch(epoch)
        shares = [list(sampler) for sampler in ranks]
        assert len({len(share) for share in shares}) == 1
        assert {len(sampler) for sampler in ranks} == {len(shares[0])}
        assert all(batch for share in shares for batch in share)
        assert sorted(row for share in shares for batch in share for row in batch) == rows.tolist()
        together = [sorted(row for part in parts for row in part) for parts in zip(*shares, strict=True)]
        if 0 < count % size < world:  # too few for every rank: they join a batch, which grows by them
            assert sorted(map(len, together)) == sorted([size] * (count // size - 1) + [size + count % size])
        else:
            assert together == [sorted(batch) for batch in alone]
        for parts in zip(*shares, strict=True):
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("count", "size", "world"), [(3, 8, 4), (16, 2, 4), (0, 8, 1)])
def test_too_few_rows_for_the_processes_are_refused(count: int, size: int, world: int) -> None:
    with pytest.raises(ValueError, match=rf"{world} processes"):
        BucketBatchSampler(ROWS[:count], LENGTHS, size, world=world)


class Watcher(LightningModule):
    """Writes down the rows it is trained on, epoch by epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[list[int]]] = []

    def on_train_epoch_start(self) -> None:
        self.seen.append([])

    def training_step(self, batch: Any, _: int) -> None:
        self.seen[-1].append(batch.rows.tolist())

    def configure_optimizers(self) -> None:
        return None


def test_lightning_tells_the_epoch(tmp_path: Path) -> None:
    sampler = BucketBatchSampler(ROWS[:20], LENGTHS, 4, shuffle=True, seed=5)
    dataset = Utterances(np.zeros(1000, dtype=np.int64), {"text": Numbers()})
    loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=dataset.collate)
    watcher = Watcher()
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(watcher, loader)
    expected = []
    for epoch in range(3):
        fresh = BucketBatchSampler(ROWS[:20], LENGTHS, 4, shuffle=True, seed=5)
        fresh.set_epoch(epoch)
        expected.append(list(fresh))
    assert watcher.seen == expected
    assert expected[0] != expected[1] != expected[2]


# Balanced classes

CLASSES = np.random.default_rng(1).choice(5, size=1000, p=[0.55, 0.3, 0.1, 0.04, 0.01])  # of the manifest's rows


def balanced(
    epoch: int, seed: int = 0, rows: np.ndarray = ROWS, classes: np.ndarray = CLASSES, size: int = 8
) -> BucketBatchSampler:
    sampler = BucketBatchSampler(rows, LENGTHS, size, shuffle=True, seed=seed, classes=classes)
    sampler.set_epoch(epoch)
    return sampler


def drawn(sampler: BucketBatchSampler) -> list[int]:
    return [row for batch in sampler for row in batch]


@pytest.mark.parametrize(("count", "size"), [(737, 8), (736, 8), (100, 1), (11, 5000)])
def test_balanced_epochs_have_every_class_equally_often(count: int, size: int) -> None:
    rows = ROWS[:count]
    for epoch in range(4):
        sampler = balanced(epoch, rows=rows, size=size)
        seen = drawn(sampler)
        assert len(seen) == count
        assert set(seen) <= set(rows.tolist())
        times = np.bincount(CLASSES[seen])[np.unique(CLASSES[rows])]
        assert max(times) - min(times) <= 1
        assert len(list(sampler)) == len(sampler) == -(-count // size)
        assert max(map(len, sampler)) <= size


def test_a_small_class_is_used_as_a_whole_and_each_of_it_about_equally_often() -> None:
    share = len(ROWS) // 5
    for epoch in range(4):
        seen = np.bincount(drawn(balanced(epoch)), minlength=1000)
        for label in range(5):
            members = ROWS[CLASSES[ROWS] == label]
            times = seen[members]
            assert max(times) - min(times) <= 1
            assert (min(times) > 0) == (len(members) <= share)


def test_a_large_class_takes_turns_over_the_epochs() -> None:
    members = set(ROWS[CLASSES[ROWS] == 0].tolist())
    epochs = [members & set(drawn(balanced(epoch))) for epoch in range(40)]
    assert all(len(seen) < len(members) / 2 for seen in epochs)
    assert len({frozenset(seen) for seen in epochs}) == 40
    assert set().union(*epochs) == members
    times = np.bincount([row for seen in epochs for row in seen])[sorted(members)]
    expected = sum(map(len, epochs)) / len(members)
    assert 0.4 * expected < min(times)
    assert max(times) < 1.6 * expected


def test_a_balanced_order_depends_on_seed_and_epoch_alone() -> None:
    orders = {(seed, epoch): list(balanced(epoch, seed)) for seed in range(3) for epoch in range(3)}
    np.random.seed(1)
    torch.manual_seed(1)
    assert all(list(balanced(epoch, seed)) == expected for (seed, epoch), expected in orders.items())
    assert len({str(expected) for expected in orders.values()}) == len(orders)
    sampler = balanced(2)
    assert list(sampler) == list(sampler) == orders[0, 2]


def test_classes_of_equal_size_are_each_used_once() -> None:
    rows = np.arange(60)
    seen = drawn(balanced(1, rows=rows, classes=np.arange(1000) % 4))
    assert sorted(seen) == rows.tolist()


def test_balanced_batches_are_of_like_length_and_know_their_padding() -> None:
    shuffled = np.random.default_rng(0).permutation(ROWS)
    at_random = padding([shuffled[start : start + 8].tolist() for start in range(0, len(ROWS), 8)])
    for epoch in range(2):
        sampler = balanced(epoch)
        batches = list(sampler)
        assert sampler.padding() == pytest.approx(padding(batches))
        assert sampler.padding() < at_random / 2


def test_padding_is_the_share_of_a_batch_that_no_utterance_fills() -> None:
    lengths = np.array([1.0, 3.0, 4.0, 8.0, 6.0])
    # Sorted: 1 and 3, 4 and 6, 8 alone: 2 + 2 + 0 of 6 + 12 + 8.
    assert BucketBatchSampler(np.arange(5), lengths, 2).padding() == pytest.approx(4 / 26)
    assert BucketBatchSampler(np.arange(5), lengths, 1).padding() == pytest.approx(0.0)
    assert BucketBatchSampler(np.arange(5), lengths, 5).padding() == pytest.approx(1 - 22 / 40)


@pytest.mark.parametrize(("count", "world"), [(737, 2), (33, 3), (18, 3)])
def test_ranks_share_balanced_batches(count: int, world: int) -> None:
    rows = ROWS[:count]
    ranks = [
        BucketBatchSampler(rows, LENGTHS, 8, shuffle=True, seed=3, rank=rank, world=world, classes=CLASSES)
        for rank in range(world)
    ]
    alone = BucketBatchSampler(rows, LENGTHS, 8, shuffle=True, seed=3, classes=CLASSES)
    for epoch in range(2):
        for sampler in (alone, *ranks):
            sampler.set_epoch(epoch)
        shares = [list(sampler) for sampler in ranks]
        assert {len(share) for share in shares} == {len(sampler) for sampler in ranks} == {len(shares[0])}
        assert all(batch for share in shares for batch in share)
        assert sorted(row for share in shares for batch in share for row in batch) == sorted(drawn(alone))
        if not 0 < count % 8 < world:  # else those left over join the batch before
            together = [sorted(row for part in parts for row in part) for parts in zip(*shares, strict=True)]
            assert together == [sorted(batch) for batch in alone]


def test_a_batch_ends_before_it_is_too_long_too_padded_or_of_too_many() -> None:
    def cut(lengths: list[int], **limits: float) -> list[list[int]]:
        limits = {"total": 100, "padding": 1.0, **limits}
        return [lengths[places] for places in cut_by_length(lengths, **limits)]

    assert cut([1, 2, 2, 3, 9], total=6) == [[1, 2, 2], [3], [9]]  # 3 x 2 fit, 4 x 3 do not; 9 never does
    assert cut([2, 3, 3, 4], padding=0.15) == [[2], [3, 3], [4]]  # 1 of 6 would be padding, then 2 of 12
    assert cut([2, 3, 3, 4], padding=0.17) == [[2, 3, 3], [4]]  # 1 of 9 is; 4 of 16 would be
    assert cut([1, 1, 1], count=2) == [[1, 1], [1]]
    assert cut([]) == []


@pytest.mark.parametrize("size", [1, 8])
def test_a_fixed_order_is_drawn_once_and_holds_in_all_epochs(size: int) -> None:
    def epochs(seed: int, fixed: bool) -> list[list[list[int]]]:
        sampler = BucketBatchSampler(ROWS, LENGTHS, size, shuffle=True, seed=seed, fixed=fixed)
        found = []
        for epoch in range(3):
            sampler.set_epoch(epoch)
            found.append(list(sampler))
        return found

    first, second, third = epochs(0, True)
    assert first == second == third == epochs(0, False)[0]
    assert first != epochs(1, True)[0]
    assert sorted(row for batch in first for row in batch) == sorted(ROWS)
