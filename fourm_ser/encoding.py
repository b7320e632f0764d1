"""Filling the store: one pass of a frozen encoder over what the store lacks."""

import logging
import shutil
import time
from collections.abc import Sequence as Items
from typing import NamedTuple

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from fourm_ser.data.batch import Raw, Utterances
from fourm_ser.data.datamodule import loader
from fourm_ser.encoders.base import Encoder
from fourm_ser.encoders.store import FeatureStore
from fourm_ser.errors import InputError

log = logging.getLogger(__name__)

SHARD = 256
PADDING = 0.05


class Speed(ProgressColumn):
    """Utterances a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0.0:.0f}/s")


class Shard(NamedTuple):
    """What is encoded and written together: batches of positions in the manifest."""

    batches: list[list[int]]


def plan_shards(keys: Items[str], lengths: np.ndarray, batch_length: float) -> list[Shard]:
    """Cut a manifest into batches of similar length and these into shards of about 256 utterances.

    The plan is a function of all the keys and lengths, whatever is encoded already: the same utterances share a batch
    in every pass over the same manifest, so that an interrupted pass goes on with the bits it would have made.

    Args:
        keys: key of each utterance; of those that share one, the first is encoded.
        lengths: length of each utterance.
        batch_length: total length of a batch, padding included; a longer utterance is a batch of its own. A batch in
            which more than 5% would be padding is closed before it is full.
    """
    first: dict[str, int] = {}
    for position, key in enumerate(keys):
        first.setdefault(key, position)
    order = sorted(first.values(), key=lambda position: (lengths[position], keys[position]))
    shards, batches, batch = [], [], list[int]()
    own = 0.0  # length of the batch's utterances without padding
    for position in order:
        size = (len(batch) + 1) * lengths[position]  # the order is that of lengths: it is the longest
        if batch and (size > batch_length or size - own - lengths[position] > PADDING * size):
            batches.append(batch)
            batch, own = [], 0.0
            if sum(map(len, batches)) >= SHARD:
                shards.append(Shard(batches))
                batches = []
        batch.append(position)
        own += lengths[position]
    return [*shards, Shard([*batches, batch])]


@torch.inference_mode()
def fill_store(
    store: FeatureStore,
    encoder: Encoder,
    source: Raw,
    keys: Items[str],
    lengths: np.ndarray,
    batch_length: float,
    workers: int,
    device: torch.device,
    precision: str = "32",
    rows: np.ndarray | None = None,
) -> int:
    """Encode what the store lacks of a manifest.

    Args:
        store: the encoder's store.
        encoder: a frozen encoder; its stem is run in evaluation mode.
        source: raw utterances through the encoder's front end.
        keys, lengths, batch_length: see `plan_shards`.
        workers: processes that read and prepare ahead.
        device: where the stem runs.
        precision: `32`, or `bf16`: the stem runs in bf16 and features are stored as float16.
        rows: positions of the utterances to encode, which are planned by themselves; None for all.

    Returns:
        How many distinct utterances were encoded.

    Raises:
        InputError: there is not enough room on the disk. What was encoded is kept.
    """
    positions = list(range(len(keys))) if rows is None else rows.tolist()
    wanted = [keys[position] for position in positions]
    if not store.missing(wanted):
        return 0
    with store.lock():
        store.refresh()  # another process may have encoded them while this one waited
        missing = set(store.missing(wanted))
        if not missing:
            return 0
        shards = [
            Shard([[positions[place] for place in batch] for batch in shard.batches])
            for shard in plan_shards(wanted, lengths[positions], batch_length)
            if any(wanted[place] in missing for batch in shard.batches for place in batch)
        ]
        started = time.monotonic()
        was_training = encoder.training
        encoder.eval().to(device)
        dataset = Utterances(np.zeros(len(keys), dtype=np.int64), {encoder.modality: source})
        plan = [batch for shard in shards for batch in shard.batches]
        batches = iter(loader(dataset, plan, workers, pin_memory=device.type == "cuda"))
        length = float(sum(lengths[batch].sum() + len(batch) for batch in plan))
        columns = (BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn())
        with Progress(TextColumn("{task.description}"), *columns) as progress:
            task = progress.add_task(f"encoding {encoder.modality} with {encoder.name}", total=sum(map(len, plan)))
            for shard in shards:
                features: dict[str, np.ndarray] = {}
                for batch in shard.batches:
                    inputs = getattr(next(batches), encoder.modality)
                    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                        encoded = encoder.stem({name: tensor.to(device) for name, tensor in inputs.items()})
                    counts = encoded.mask.sum(1).tolist()
                    padded = encoded.features.float().cpu().numpy()
                    if precision == "bf16":
                        padded = _halved(padded)
                    if batch is plan[0]:
                        share = (lengths[batch].sum() + len(batch)) / length
                        _check_room(store, sum(counts) * padded[0, 0].nbytes / share)
                    for position, row, count in zip(batch, padded, counts, strict=True):
                        if keys[position] in missing:
                            features[keys[position]] = np.ascontiguousarray(row[:count])
                    progress.advance(task, len(batch))
                store.write(features)
        encoder.train(was_training)
        seconds = time.monotonic() - started
        log.info(
            "store: encoded %d utterances of %s with %s in %.1f s (%.0f/s): %s",
            len(missing),
            encoder.modality,
            encoder.name,
            seconds,
            len(missing) / seconds,
            store.folder,
        )
        return len(missing)


def _halved(features: np.ndarray) -> np.ndarray:
    """Features as float16; as they are where one is beyond its range."""
    return features.astype(np.float16) if np.abs(features).max() < np.finfo(np.float16).max else features


def _check_room(store: FeatureStore, needed: float) -> None:
    """Say how much room a pass takes, by its first batch, and refuse one that the disk has no room for."""
    free = shutil.disk_usage(store.folder).free
    log.info("store: the pass needs about %.2f GB of disk, %.1f GB are free", needed / 1e9, free / 1e9)
    if needed > free:
        raise InputError(
            f"{store.folder}: encoding needs about {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free. "
            "Make room, or choose another cache."
        )
