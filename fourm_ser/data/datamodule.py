"""A corpus, served to Lightning in batches."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader

from fourm_ser.data.batch import Batch, Raw, Source, Utterances, loader
from fourm_ser.data.buckets import BucketBatchSampler, VersionSampler
from fourm_ser.data.corpus import Corpus
from fourm_ser.data.readers import AudioReader
from fourm_ser.data.waveforms import RawVersions
from fourm_ser.devices import resolve_workers
from fourm_ser.distributed import rank, world
from fourm_ser.errors import InputError
from fourm_ser.files import READ_ONLY

log = logging.getLogger(__name__)


class EmotionDataModule(LightningDataModule):
    """A corpus, served in batches, trained on in an order of `seed`; `serve` says where each modality comes from."""

    def __init__(self, corpus: Corpus, pin_memory: bool, seed: int) -> None:
        super().__init__()
        self.corpus, self.pin_memory, self.seed = corpus, pin_memory, seed
        self.workers = resolve_workers(corpus.workers)
        self.sources: dict[str, Source] = {}
        self.batch_size = 1
        self.versions = False

    def prepare_data(self) -> None:
        """Make what is made once, in one process: the corpus's manifest, decoded sound, remembered recordings."""
        try:
            self.corpus.prepare()
        except OSError as error:  # a cache that may only be read; nothing reads the manifest again
            if error.errno not in READ_ONLY:
                raise
            log.info("data: the manifest is not written: %s", error)

    def setup(self, stage: str | None = None) -> None:
        """Load and split the corpus; the second call does nothing. Raises: see `Corpus.setup`."""
        self.corpus.setup()

    def readers(self) -> dict[str, Callable[[int], Any]]:
        """What reads each modality's raw content, by position in the manifest."""
        frame = self.corpus.frame
        return {"text": frame["text"].tolist().__getitem__, "audio": AudioReader(frame, self.corpus.max_seconds)}

    def keys(self) -> dict[str, list[str]]:
        """A hash of what each modality's encoder reads, by position in the manifest: the store's keys."""
        crop = self.corpus.max_seconds
        columns = self.corpus.frame[["digest", "start", "end"]]
        return {
            "text": [_hash(text) for text in self.corpus.frame["text"]],
            "audio": [
                _hash(f"{digest} {start} {end} {crop}") for digest, start, end in columns.itertuples(index=False)
            ],
        }

    def lengths(self) -> dict[str, np.ndarray]:
        """Each modality's length by position in the manifest: characters, and seconds."""
        return {
            "text": self.corpus.frame["text"].str.len().to_numpy(dtype=float) + 2.0,
            "audio": self.corpus.frame["seconds"].to_numpy(dtype=float),
        }

    def serve(self, sources: Mapping[str, Source], batch_size: int, versions: bool = False) -> None:
        """Say where each modality comes from and how large batches are, for the loaders that are made next.

        `versions`: whether a source has several versions of a training utterance, one of which is drawn at each turn.
        """
        self.sources, self.batch_size, self.versions = dict(sources), batch_size, versions

    def train_dataloader(self) -> DataLoader[Batch]:
        sampler = self.sampler(self.corpus.split.train, shuffle=True)
        if self.trainer:  # workers read ahead before Lightning tells the first epoch, which a resumed run counts from
            loop: Any = self.trainer.fit_loop
            epochs = loop.epoch_progress.current
            sampler.set_epoch(epochs.processed)
            sampler.taken = loop.epoch_loop.batch_progress.current.ready if epochs.started > epochs.processed else 0
        share = 100 * sampler.padding()
        log.info("batches: %d of up to %d utterances, %.1f%% padding", len(sampler), self.batch_size, share)
        return self._loader(sampler)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.dataloader(self.corpus.split.val)

    def test_dataloader(self) -> DataLoader[Batch]:
        return self.dataloader(self.corpus.split.test)

    def dataloader(self, rows: np.ndarray) -> DataLoader[Batch]:
        """Any utterances, by their positions in the manifest, in batches of similar length."""
        return self._loader(self.sampler(rows))

    def sampler(self, rows: np.ndarray, shuffle: bool = False) -> BucketBatchSampler:
        """The batches of a side, for this process.

        Raises:
            InputError: there are more processes than utterances in a batch.
        """
        lengths = self.lengths()["audio" if "audio" in self.sources else "text"]
        classes = self.corpus.label if shuffle and self.corpus.sampler == "balanced" else None
        kind = VersionSampler if shuffle and self.versions else BucketBatchSampler
        try:
            return kind(
                rows,
                lengths,
                self.batch_size,
                shuffle=shuffle,
                seed=self.seed,
                rank=rank(),
                world=world(),
                classes=classes,
                fixed=not self.corpus.shuffle,
            )
        except ValueError as error:
            raise InputError(f"trainer.devices: {error}. Use fewer, or a larger batch_size of the stage.") from error

    def _loader(self, sampler: BucketBatchSampler) -> DataLoader[Batch]:
        workers = self.workers if any(isinstance(source, Raw | RawVersions) for source in self.sources.values()) else 0
        return loader(Utterances(self.corpus.label, self.sources), sampler, workers, self.pin_memory)


def _hash(content: str) -> str:
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
