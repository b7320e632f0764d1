"""What a pass over a corpus will take of disk and of time, told by its first batches."""

import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fourm_ser.encoders.base import Encoder
from fourm_ser.errors import InputError

log = logging.getLogger(__name__)

ENOUGH = 0.05  # of the pass behind its first batch, by length, that tells how long the rest takes,
LONGEST = 30.0  # or so many seconds of it


class Forecast:
    """A pass's disk, by the bytes of its first batch, and its time, by the batches behind that.

    The first batch's time is no measure: kernels are chosen in it and memory is fetched. Batches come from short to
    long, and a corpus's first ones hold few utterances: what comes in the first seconds, or the first twentieth of
    the pass, has to add up.

    Args:
        folder: The store.
        encoder: What encodes.
        batches: Positions in the manifest, batch by batch, as far as this process encodes them.
        lengths: The length of each utterance of the manifest.
        count: How many utterances are wanted, of all processes.
        processes: How many processes share the pass.
    """

    def __init__(
        self,
        *,
        folder: Path,
        encoder: Encoder,
        batches: Sequence[Sequence[int]],
        lengths: np.ndarray,
        count: int,
        processes: int,
    ) -> None:
        self.folder, self.encoder, self.lengths = folder, encoder, lengths
        self.count, self.processes = count, processes
        self.utterances = sum(map(len, batches))
        self.length = sum(self._length_of(batch) for batch in batches)
        self.needed: float | None = None  # bytes
        self.free = 0
        self.done, self.told = 0, False
        self.behind_first, self.since = 0.0, 0.0

    def _length_of(self, batch: Sequence[int]) -> float:
        return float(self.lengths[list(batch)].sum()) + len(batch)

    def measure(self, part: Sequence[int], size: int) -> None:
        """Take the bytes of the first features that came home, and refuse a pass that the disk has no room for.

        Raises:
            InputError: how much is needed, how much is free, and what to do.
        """
        if self.needed is not None:
            return
        frames = self.encoder.pooling == "none"  # pooled, all utterances are of one size
        share = self._length_of(part) / self.length if frames else len(part) / self.utterances
        self.needed, self.free = self.processes * size / share, shutil.disk_usage(self.folder).free
        if self.needed > self.free:
            pool = "encode.pool=mean_std to store them pooled over time, " if frames else ""
            raise InputError(
                f"{self.folder}: encoding needs about {self.needed / 1e9:.2f} GB, {self.free / 1e9:.2f} GB are free. "
                f"Make room, choose another cache, or set {pool}encode.store=false to compute features in every epoch."
            )

    def add(self, batch: Sequence[int]) -> bool:
        """Count a batch that was computed; whether it is time to `tell`, once all of it is written."""
        now, self.done = time.monotonic(), self.done + len(batch)
        if not self.since:
            self.since = now
        else:
            self.behind_first += self._length_of(batch)
        enough = self.behind_first >= ENOUGH * self.length or (self.behind_first and now - self.since >= LONGEST)
        return not self.told and bool(enough or self.done == self.utterances)

    def tell(self) -> None:
        """Say in the log what the whole pass takes."""
        self.told = True
        seconds = (time.monotonic() - self.since) * self.length / self.behind_first if self.behind_first else None
        found = f"{self.count:,}", self.encoder.name, told_size(self.needed or 0.0), told_size(self.free)
        when = "" if seconds is None else f", about {told_time(seconds)}"
        log.info("store: %s utterances to encode with %s: about %s of disk (%s are free)%s", *found, when)


def told_size(size: float) -> str:
    """Bytes in MB or GB."""
    return f"{size / 1e6:,.1f} MB" if size < 1e8 else f"{size / 1e9:,.1f} GB"


def told_time(seconds: float) -> str:
    """Seconds, in minutes or hours where there are many."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"
