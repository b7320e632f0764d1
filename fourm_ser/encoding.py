"""Filling the store, one pass of a frozen encoder over what the store lacks, and reading from it."""

import logging
import shutil
import time
from collections.abc import Sequence as Items
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from omegaconf import DictConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from fourm_ser.data.batch import Raw, Source, Stored, Utterances
from fourm_ser.data.corpus import Corpus
from fourm_ser.data.datamodule import EmotionDataModule, loader
from fourm_ser.encoders.base import Encoder
from fourm_ser.encoders.half import in_bf16
from fourm_ser.encoders.store import FeatureStore
from fourm_ser.errors import InputError
from fourm_ser.network import EmotionNetwork

log = logging.getLogger(__name__)

SHARD = 256
PADDING = 0.05


class Speed(ProgressColumn):
    """Utterances a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0.0:.0f}/s")


class Encoding(NamedTuple):
    """How frozen stems are run, and where their features are kept.

    Attributes:
        cache: the folder whose `embeddings` are the stores.
        precision: see `fill_store`.
        max_seconds: of audio in a batch, padding included.
        max_tokens: of text in a batch, likewise.
        device: where stems run.
    """

    cache: Path
    precision: str
    max_seconds: float
    max_tokens: float
    device: torch.device

    @classmethod
    def of(cls, config: DictConfig) -> Self:
        """That of a run, by its resolved config."""
        accelerator = config.trainer.accelerator
        device = torch.device("cuda" if accelerator == "gpu" else accelerator)
        encode = config.encode
        return cls(Path(config.cache).expanduser(), encode.precision, encode.max_seconds, encode.max_tokens, device)


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


def compare_languages(network: EmotionNetwork, corpus: Corpus) -> None:
    """Warn of encoders that are made for other languages than the corpus speaks."""
    spoken = sorted(set(corpus.frame["language"]) - {""})
    for encoder in network.by_modality.values():
        if encoder.languages is not None and not set(spoken) <= set(encoder.languages):
            key = f"encoder.{encoder.modality}"
            log.warning(
                "%s=[%s]: the corpus speaks %s. Is %s.checkpoint the right one?",
                f"{key}.languages",
                ",".join(encoder.languages),
                ", ".join(spoken),
                key,
            )


def make_sources(
    network: EmotionNetwork, data: EmotionDataModule, encoding: Encoding
) -> tuple[dict[str, Source], dict[str, int]]:
    """Where each modality of a network comes from: the store where its stem is frozen, else raw through its front end.

    Args:
        network: the network.
        data: the corpus, split.
        encoding: how the store is filled, for all utterances of the corpus, with what it lacks.

    Returns:
        A source by modality, and how many distinct utterances were encoded for it.
    """
    sources: dict[str, Source] = {}
    encoded = dict.fromkeys(network.by_modality, 0)
    readers, keys, lengths = data.readers(), data.keys(), data.lengths()
    budget = {"text": encoding.max_tokens, "audio": encoding.max_seconds}
    for modality, encoder in network.by_modality.items():
        raw = Raw(readers[modality], encoder.frontend)
        if not encoder.frozen:
            sources[modality] = raw
            continue
        about = {"weights": encoder.weights, "frontend": encoder.frontend.describe(), **encoder.describe()}
        # Features of another precision are other features.
        fingerprint = encoder.fingerprint() + ("-bf16" if encoding.precision == "bf16" else "")
        store = FeatureStore(encoding.cache / "embeddings", encoder.name, fingerprint, about)
        length = lengths[modality]
        if store.missing(keys[modality]):
            length = encoder.lengths(readers[modality], length)
        for part in data.corpus.parts:
            encoded[modality] += fill_store(
                store,
                encoder,
                raw,
                keys[modality],
                length,
                budget[modality],
                data.corpus.workers,
                encoding.device,
                encoding.precision,
                part,
            )
        sources[modality] = Stored(store, keys[modality])
    return sources, encoded


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
        with (
            Progress(TextColumn("{task.description}"), *columns) as progress,
            in_bf16(encoder, device) if precision == "bf16" else nullcontext(),
        ):
            task = progress.add_task(f"encoding {encoder.modality} with {encoder.name}", total=sum(map(len, plan)))
            for shard in shards:
                features: dict[str, np.ndarray] = {}
                for batch in shard.batches:
                    inputs = getattr(next(batches), encoder.modality)
                    encoded = encoder.stem({name: tensor.to(device) for name, tensor in inputs.items()})
                    counts = encoded.mask.sum(1).tolist()
                    padded = encoded.features.float().cpu().numpy()
                    if precision == "bf16":
                        padded = halved(padded)
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


def halved(features: np.ndarray) -> np.ndarray:
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
