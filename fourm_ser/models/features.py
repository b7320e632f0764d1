"""Filling the store: one pass of a frozen encoder over what the store lacks."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from omegaconf import DictConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from fourm_ser.data.batch import AHEAD, Raw, Utterances, loader
from fourm_ser.data.buckets import cut_by_length
from fourm_ser.devices import HALVES, HostCopy, copies_ahead, find_device, free_memory, ran_out_of_memory
from fourm_ser.devices import tf32 as allow_tf32
from fourm_ser.distributed import agreed, barrier, rank, world
from fourm_ser.encoders.base import Encoder, Features, Inputs, moved
from fourm_ser.encoders.lora import merged
from fourm_ser.encoders.store import FeatureStore
from fourm_ser.errors import InputError
from fourm_ser.kernels.bf16 import in_half_precision
from fourm_ser.models.forecast import Forecast

log = logging.getLogger(__name__)

SHARD = 256  # utterances, about: what a pass that is killed encodes again
PADDING = 0.05  # of a batch, at most


class Speed(ProgressColumn):
    """Utterances a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0.0:.0f}/s")


Shard = list[list[int]]  # what is encoded and written together: batches of positions in the manifest


class Encoding(NamedTuple):
    """How frozen stems are run, and where their features are kept.

    Attributes:
        cache: The folder whose `embeddings` are the stores.
        precision: `32`; or `bf16` or `16`: the stem runs in it and features are stored as float16.
        max_seconds: Seconds of audio in a batch, padding included.
        max_tokens: Tokens of text in a batch, padding included.
        device: Where stems run.
        tf32: Whether an NVIDIA GPU may round what float32 layers multiply to TF32.
        store: Whether features are kept there; else they are computed for every batch that needs them.
    """

    cache: Path
    precision: str
    max_seconds: float
    max_tokens: float
    device: torch.device
    tf32: bool = False
    store: bool = True

    @classmethod
    def of(cls, config: DictConfig) -> Self:
        """That of a run, by its resolved config."""
        encode = config.encode
        return cls(
            Path(config.cache).expanduser(),
            encode.precision,
            encode.max_seconds,
            encode.max_tokens,
            find_device(config.trainer.accelerator, "trainer.accelerator"),
            encode.get("tf32", False),  # records of before have none
            encode.get("store", True),
        )

    @property
    def changes(self) -> str:
        """What stands behind the fingerprint of a store whose features are rounded in another way than fp32's."""
        rounded = self.tf32 and self.precision == "32" and self.device.type == "cuda"
        return f"-{'tf32' if rounded else self.precision}" if rounded or self.precision != "32" else ""

    def budget(self, modality: str) -> float:
        """The length of a modality's batch, padding included."""
        return self.max_tokens if modality == "text" else self.max_seconds


def plan_shards(keys: Sequence[str], lengths: np.ndarray, batch_length: float) -> list[Shard]:
    """Cut a manifest into batches of similar length and these into shards of about 256 utterances.

    The plan is a function of all the keys and lengths, whatever is encoded already: the same utterances share a batch
    in every pass over the same manifest, so that an interrupted pass goes on with the bits it would have made.

    Args:
        keys: The key of each utterance. Of those that share one, the first is encoded.
        lengths: The length of each utterance.
        batch_length: The length of a batch, padding included. A longer utterance is a batch of its own, and a batch in
            which more than 5% would be padding is closed before it is full.
    """
    first: dict[str, int] = {}
    for position, key in enumerate(keys):
        first.setdefault(key, position)
    order = sorted(first.values(), key=lambda position: (lengths[position], keys[position]))
    shards: list[Shard] = []
    shard: Shard = []
    for places in cut_by_length(lengths[order], total=batch_length, padding=PADDING):
        if sum(map(len, shard)) >= SHARD:
            shards.append(shard)
            shard = []
        shard.append(order[places])
    return [*shards, shard]


def fill_store(
    store: FeatureStore,
    encoder: Encoder,
    source: Raw,
    *,
    keys: Sequence[str],
    lengths: np.ndarray,
    encoding: Encoding,
    workers: int,
    rows: np.ndarray | None = None,
) -> int:
    """Encode what the store lacks of a manifest; processes that do a run together share the pass.

    Args:
        store: The encoder's store.
        encoder: A frozen encoder. Its stem is run in evaluation mode; afterwards it is on the device where it was.
        source: Raw utterances through the encoder's front end.
        keys: The key of each utterance of the manifest, see `plan_shards`.
        lengths: The length of each utterance of the manifest.
        encoding: How and where the stem is run, in batches of what length.
        workers: Processes that read and prepare ahead.
        rows: Positions of the utterances to encode, which are planned by themselves; None for all.

    Returns:
        How many distinct utterances were encoded, by all processes.

    Raises:
        InputError: there is not enough room on the disk, or memory for a single utterance; features that are not
            finite. What was encoded is kept.
    """
    positions = list(range(len(keys))) if rows is None else rows.tolist()
    wanted = [keys[position] for position in positions]

    def fill(turn: int, turns: int) -> int:
        """Encode every so manyth shard of those that lack something; how many utterances lacked in all."""
        store.refresh()  # another process may have encoded them while this one waited
        missing = set(agreed(store.missing(wanted)) if turns > 1 else store.missing(wanted))
        planned = plan_shards(wanted, lengths[positions], encoding.budget(encoder.modality)) if missing else []
        shards = [
            [[positions[place] for place in batch] for batch in shard]
            for shard in planned
            if any(wanted[place] in missing for batch in shard for place in batch)
        ]
        if shards[turn::turns]:
            own = shards[turn::turns]
            forecast = Forecast(
                folder=store.folder,
                encoder=encoder,
                batches=[batch for shard in own for batch in shard],
                lengths=lengths,
                count=len(missing),
                processes=turns,
            )
            work = _Pass(store, encoder, source, keys, lengths, encoding, workers, forecast)
            with merged(encoder.stem), _moved_there(encoder, encoding.device), allow_tf32(encoding.tf32):
                work.run(own, missing)
        return len(missing)

    count = 0
    if agreed(bool(store.missing(wanted))):
        with store.lock() if rank() == 0 else nullcontext():
            if rank() == 0:
                store.clear()
            count = fill(rank(), world())
            barrier()
        store.refresh()
    if store.missing(wanted):  # on a disk that this machine does not share with rank zero's
        with store.lock():
            fill(0, 1)
    return count


@contextmanager
def _moved_there(encoder: Encoder, device: torch.device) -> Iterator[None]:
    """The encoder on a device and in evaluation mode meanwhile."""
    home = next((tensor.device for tensor in encoder.state_dict().values()), device)
    was_training = encoder.training
    encoder.eval().to(device)
    try:
        yield
    finally:
        encoder.to(home).train(was_training)


@dataclass
class _Pass:
    """A pass: this process computes, while batches are read ahead and a thread brings features home and writes them.

    Nothing waits for the device but that thread.

    Attributes:
        largest: The length of a batch, padding included, that the device had memory for.
        shard: Features of the shard that is not yet whole, by their keys.
        failed: Whether a task of the writing thread failed, or one is under way.
    """

    store: FeatureStore
    encoder: Encoder
    source: Raw
    keys: Sequence[str]
    lengths: np.ndarray
    encoding: Encoding
    workers: int
    forecast: Forecast
    largest: float = math.inf
    shard: dict[str, np.ndarray] = field(default_factory=dict)
    failed: bool = False

    def __post_init__(self) -> None:
        self.device, self.half = self.encoding.device, HALVES.get(self.encoding.precision)

    @torch.no_grad()  # not in inference mode: what is moved to a device in it could never train
    def run(self, shards: list[Shard], missing: set[str]) -> None:
        """Encode shards and write what is missing of each."""
        encoder, started = self.encoder, time.monotonic()
        plan = [batch for shard in shards for batch in shard]
        dataset = Utterances(np.zeros(len(self.keys), dtype=np.int64), {encoder.modality: self.source})
        batches = iter(loader(dataset, plan, self.workers, pin_memory=copies_ahead(self.device)))
        columns = (BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn())
        with (
            Progress(TextColumn("{task.description}"), *columns, disable=rank() != 0) as progress,
            in_half_precision(encoder, self.device, self.half) if self.half else nullcontext(),
            ThreadPoolExecutor(1, "writing") as writer,
        ):
            task = progress.add_task(f"encoding {encoder.modality} with {encoder.name}", total=sum(map(len, plan)))
            pending: deque[Future[None]] = deque()
            try:
                for shard in shards:
                    for batch in shard:
                        inputs = getattr(next(batches), encoder.modality)
                        for part, encoded in self._encode(batch, inputs, pending):
                            pending.append(writer.submit(self._next, self._keep, part, encoded, missing))
                            _wait(pending, 0 if part[0] == plan[0][0] else AHEAD)  # whether there is room
                            progress.advance(task, len(part))
                        if self.forecast.add(batch):
                            _wait(pending, 0)
                            self.forecast.tell()
                    pending.append(writer.submit(self._next, self._write))
                _wait(pending, 0)
            finally:
                writer.shutdown(cancel_futures=True)
        seconds, count = time.monotonic() - started, len({self.keys[row] for batch in plan for row in batch} & missing)
        found = count, encoder.modality, encoder.name, seconds, count / seconds, self.store.folder
        log.info("store: encoded %d utterances of %s with %s in %.1f s (%.0f/s): %s", *found)

    def _encode(
        self, batch: list[int], inputs: Inputs, pending: "deque[Future[None]]"
    ) -> Iterator[tuple[list[int], "_Encoded"]]:
        """A batch's features, in as many parts as the device has memory for."""
        parts: list[tuple[list[int], Inputs | None]] = [(batch, inputs)]
        while parts:
            part, own = parts.pop(0)
            length = len(part) * float(self.lengths[part].max())
            if length <= self.largest or len(part) == 1:
                try:
                    found = own if own is not None else self.source.collate(list(map(self.source.load, part)))
                    given: Any = moved(found, self.device)
                    yield part, _Encoded.of(self.encoder.stem_features(given), self.half)
                    continue
                except RuntimeError as error:
                    if not ran_out_of_memory(error):
                        raise
                    if len(part) == 1:
                        raise InputError(self._out_of_memory(part, length)) from error
                log.warning("%s: going on in halves", self._out_of_memory(part, length).partition(". ")[0])
                self.largest = length / 2
                _wait(pending, 0)
                free_memory(self.device)
            middle = len(part) // 2
            parts = [(part[:middle], None), (part[middle:], None), *parts]

    def _out_of_memory(self, part: list[int], length: float) -> str:
        text = self.encoder.modality == "text"
        amount = f"{length:.0f} {'tokens' if text else 's'} with padding"
        keys = "encode.max_tokens" if text else "encode.max_seconds or data.max_seconds"
        return (
            f"encoding {self.encoder.modality} with {self.encoder.name}: {self.device.type} ran out of memory over a "
            f"batch of {len(part)} utterances ({amount}). Lower {keys}, or encode on another device."
        )

    def _next(self, task: Callable[..., None], *arguments: Any) -> None:
        """A task of the writing thread; nothing behind one that failed, for a shard is written whole or not at all."""
        if self.failed:
            return
        self.failed = True
        task(*arguments)
        self.failed = False

    def _keep(self, part: list[int], encoded: "_Encoded", missing: set[str]) -> None:
        """Bring a batch's features home; the first one's tell whether there is room."""
        rows, counts = encoded.features.get().numpy(), encoded.counts.get().tolist()
        self.forecast.measure(part, sum(counts) * rows[0, 0].nbytes)
        for place, (position, count) in enumerate(zip(part, counts, strict=True)):
            if self.keys[position] not in missing:
                continue
            row = rows[place, :count]
            if not np.isfinite(row).all():  # beyond the range of float16: as it is
                row = encoded.exact[place, :count].cpu().numpy()
                if not np.isfinite(row).all():
                    raise InputError(
                        f"encoding {self.encoder.modality} with {self.encoder.name}: features of an utterance (number "
                        f"{position + 1} of the manifest) are not finite in precision {self.encoding.precision}. "
                        + ("Are the weights damaged?" if self.half is None else "Use encode.precision=32.")
                    )
            self.shard[self.keys[position]] = row

    def _write(self) -> None:
        features, self.shard = self.shard, {}
        self.store.write(features)


class _Encoded(NamedTuple):
    """A batch's features on their way from the device.

    Attributes:
        features: (batch, frames, dim), float32, or float16 of a stem in half precision.
        counts: (batch,) frames of each utterance.
        exact: the features in float32, on the device.
    """

    features: HostCopy
    counts: HostCopy
    exact: Tensor

    @classmethod
    def of(cls, encoded: Features, half: torch.dtype | None) -> Self:
        exact = encoded.features.float().contiguous()
        return cls(HostCopy(exact.half() if half else exact), HostCopy(encoded.mask.sum(1)), exact)


def _wait(pending: "deque[Future[None]]", left: int) -> None:
    """Wait until so many are left at most, and raise what one of the others raised."""
    while len(pending) > left:
        pending.popleft().result()
