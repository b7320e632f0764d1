"""The data of a run: a corpus's manifest, split, and served in batches."""

import hashlib
import logging
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader

from fourm_ser.data.audio import SAMPLE_RATE, read_audio
from fourm_ser.data.batch import Batch, BucketBatchSampler, Raw, Source, Utterances
from fourm_ser.data.manifest import order_emotions, read_manifest
from fourm_ser.data.recordings import scan_recordings
from fourm_ser.data.splits import Protocol, split_manifest
from fourm_ser.data.transcripts import clean_transcript
from fourm_ser.errors import InputError

log = logging.getLogger(__name__)


class TextReader:
    """Reads transcripts by position in the manifest."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.texts = frame["text"].tolist()

    def __call__(self, index: int) -> str:
        return self.texts[index]


class AudioReader:
    """Reads waveforms [samples] at 16 kHz by position in the manifest, cropped to `max_seconds`."""

    def __init__(self, frame: pd.DataFrame, max_seconds: float | None) -> None:
        self.segments = list(frame[["audio", "start", "end"]].itertuples(index=False, name=None))
        self.samples = None if max_seconds is None else round(max_seconds * SAMPLE_RATE)

    def __call__(self, index: int) -> np.ndarray:
        return read_audio(*self.segments[index])[: self.samples]


class EmotionDataModule(LightningDataModule, ABC):
    """A corpus under a protocol. Each corpus is a subclass that makes its manifest.

    After `setup`, `frame` is the manifest of the utterances that are used, `label` their class index in it, and `split`
    says which of them train, validate and test. A stage then says by `serve` where each modality comes from.

    Args:
        cache: the folder for what is made once.
        emotions: the classes in the order of their indices; None for all that the corpus has.
        label_map: emotions of the manifest to fold into others, before `emotions` chooses.
        drop_other: leave out utterances of other emotions than `emotions`, instead of refusing them.
        split, fold, fractions, stratify, validation, validation_fraction, split_seed: see `fourm_ser.data.splits`.
        min_seconds: leave out shorter utterances; None keeps all.
        max_seconds: what to do with longer utterances says `too_long`; None allows any length.
        too_long: `crop` to the first `max_seconds`, or `refuse`.
        workers: processes that read recordings ahead; stored features are read in the training process.
        pin_memory: page-locked batches, for a GPU.
        seed: seed of the order of training.
    """

    def __init__(
        self,
        cache: Path,
        emotions: list[str] | None,
        label_map: Mapping[str, str] | None,
        drop_other: bool,
        split: str,
        fold: int,
        fractions: tuple[float, float, float],
        stratify: bool,
        validation: str,
        validation_fraction: float,
        split_seed: int,
        min_seconds: float | None,
        max_seconds: float | None,
        too_long: str,
        workers: int,
        pin_memory: bool,
        seed: int,
    ) -> None:
        super().__init__()
        if emotions is not None and (len(set(emotions)) != len(emotions) or len(emotions) < 2):
            raise InputError(f"data.emotions={emotions}: expected two or more different emotions.")
        if too_long not in ("crop", "refuse"):
            raise InputError(f"data.too_long={too_long}: expected crop or refuse.")
        if len(fractions) != 3:
            raise InputError(f"data.fractions={fractions}: expected three shares (train, val, test) that sum to 1.")
        self.cache = cache
        self.wanted, self.label_map, self.drop_other = emotions, dict(label_map or {}), drop_other
        self.protocol = Protocol(
            split,
            fold,
            (fractions[0], fractions[1], fractions[2]),
            stratify,
            validation,
            validation_fraction,
            split_seed,
        )
        self.min_seconds, self.max_seconds, self.too_long = min_seconds, max_seconds, too_long
        self.workers, self.pin_memory, self.seed = workers, pin_memory, seed
        self.sources: dict[str, Source] = {}
        self.batch_size = 1
        self._ready = False

    @abstractmethod
    def make_manifest(self) -> tuple[Path, Path | None]:
        """Make the corpus's manifest unless it is there: its path, and the folder that `audio` is relative to."""

    def prepare_data(self) -> None:
        """Make what is made once, in one process."""
        self.make_manifest()

    def setup(self, stage: str | None = None) -> None:
        """Read, choose, check and split the manifest; the second call does nothing.

        Raises:
            InputError: see `read_manifest`, `scan_recordings` and `split_manifest`; and emotions that were not chosen,
                chosen ones that the corpus lacks, utterances that are too long.
        """
        if self._ready:
            return
        path, audio_root = self.make_manifest()
        frame = read_manifest(path, audio_root)
        frame["text"] = [clean_transcript(text) for text in frame["text"]]
        self.emotions, frame = self._choose(frame, path)
        frame = scan_recordings(frame, path, self.cache)
        self.frame = self._measure(frame, path).reset_index(drop=True)
        self.label = self.frame["emotion"].map(self.emotions.index).to_numpy(dtype=np.int64)
        self.split = split_manifest(self.frame, self.protocol)
        self._ready = True
        self._report()

    @property
    def counts(self) -> list[int]:
        """Training utterances of each class."""
        return np.bincount(self.label[self.split.train], minlength=len(self.emotions)).tolist()

    def readers(self) -> dict[str, TextReader | AudioReader]:
        """What reads each modality's raw content, by position in the manifest."""
        return {"text": TextReader(self.frame), "audio": AudioReader(self.frame, self.max_seconds)}

    def keys(self) -> dict[str, list[str]]:
        """A hash of what each modality's encoder reads, by position in the manifest: the store's keys."""
        crop = self.max_seconds
        columns = self.frame[["digest", "start", "end"]]
        return {
            "text": [_hash(text) for text in self.frame["text"]],
            "audio": [
                _hash(f"{digest} {start} {end} {crop}") for digest, start, end in columns.itertuples(index=False)
            ],
        }

    def lengths(self) -> dict[str, np.ndarray]:
        """Each modality's length by position in the manifest: characters, and seconds."""
        return {
            "text": self.frame["text"].str.len().to_numpy(dtype=float) + 2.0,
            "audio": self.frame["seconds"].to_numpy(dtype=float),
        }

    def serve(self, sources: Mapping[str, Source], batch_size: int) -> None:
        """Say where each modality comes from and how large batches are, for the loaders that are made next."""
        self.sources, self.batch_size = dict(sources), batch_size

    def train_dataloader(self) -> DataLoader[Batch]:
        sampler = self.sampler(self.split.train, shuffle=True)
        if self.trainer:  # workers read ahead before Lightning tells the first epoch, which a resumed run counts from
            sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        share = 100 * sampler.padding()
        log.info("batches: %d of up to %d utterances, %.1f%% padding", len(sampler), self.batch_size, share)
        return self._loader(sampler)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.sampler(self.split.val))

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.sampler(self.split.test))

    def sampler(self, rows: np.ndarray, shuffle: bool = False) -> BucketBatchSampler:
        """The batches of a side, for this process."""
        lengths = self.lengths()["audio" if "audio" in self.sources else "text"]
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return BucketBatchSampler(rows, lengths, self.batch_size, shuffle, self.seed, rank, world)

    def _loader(self, sampler: BucketBatchSampler) -> DataLoader[Batch]:
        workers = self.workers if any(isinstance(source, Raw) for source in self.sources.values()) else 0
        return loader(Utterances(self.label, self.sources), sampler, workers, self.pin_memory)

    def _choose(self, frame: pd.DataFrame, path: Path) -> tuple[list[str], pd.DataFrame]:
        """Map the labels and keep the wanted emotions."""
        frame["emotion"] = frame["emotion"].replace(self.label_map)
        found = Counter(frame["emotion"])
        emotions = self.wanted or order_emotions(list(found))
        absent = [emotion for emotion in emotions if emotion not in found]
        if absent:
            raise InputError(
                f"data.emotions: {path} has no utterance of {', '.join(absent)}. It has {_counted(found)}."
            )
        other = Counter({emotion: n for emotion, n in found.items() if emotion not in emotions})
        if other and not self.drop_other:
            raise InputError(
                f"data.emotions: {other.total()} of {len(frame)} utterances in {path} have an emotion that is not "
                f"among {', '.join(emotions)}: {_counted(other)}. Add it to data.emotions, fold it into another by "
                "data.label_map, or leave these utterances out with data.drop_other=true."
            )
        if other:
            log.info("data: left out %d utterances of other emotions: %s", other.total(), _counted(other))
        return emotions, frame[frame["emotion"].isin(emotions)].copy()

    def _measure(self, frame: pd.DataFrame, path: Path) -> pd.DataFrame:
        """Turn the recordings' lengths into the utterances', and hold them against the limits."""
        outside = frame[frame["start"].fillna(0.0) >= frame["seconds"]]
        if len(outside):
            row = outside.iloc[0]
            raise InputError(
                f"{path}: row {row['row']} (id {row['id']}) starts at {row['start']} s, its recording "
                f"{row['audio']} ends at {row['seconds']:.3f} s ({len(outside)} such rows)."
            )
        end = np.minimum(frame["end"].fillna(math.inf), frame["seconds"])
        frame["seconds"] = end - frame["start"].fillna(0.0)
        tiny = frame[frame["seconds"] < 0.001]
        if len(tiny):
            row = tiny.iloc[0]
            raise InputError(
                f"{path}: row {row['row']} (id {row['id']}) lasts less than a millisecond: mend start and end."
            )
        if self.min_seconds is not None:
            short = frame["seconds"] < self.min_seconds
            log.info("data: left out %d utterances shorter than %s s", short.sum(), self.min_seconds)
            frame = frame[~short]
        if self.max_seconds is not None:
            long = frame[frame["seconds"] > self.max_seconds]
            if len(long) and self.too_long == "refuse":
                row = long.iloc[0]
                raise InputError(
                    f"{path}: {len(long)} utterances are longer than data.max_seconds={self.max_seconds}; the first is "
                    f"row {row['row']} (id {row['id']}, {row['seconds']:.2f} s). Raise it, or use data.too_long=crop."
                )
            if len(long):
                log.info("data: cropped %d utterances to %s s", len(long), self.max_seconds)
            frame["seconds"] = frame["seconds"].clip(upper=self.max_seconds)
        return frame

    def _report(self) -> None:
        independent = self.split.speaker_independent(self.frame)
        hours = self.frame["seconds"].sum() / 3600
        log.info("data: %d utterances, %.2f h, %d speakers", len(self.frame), hours, self.frame["speaker"].nunique())
        for side, rows in self.split._asdict().items():
            log.info("data: %-5s %5d: %s", side, len(rows), _counted(Counter(self.frame["emotion"].iloc[rows])))
        if not independent:
            log.warning("data: speakers of the test side are also trained on: the result is not speaker-independent")


def loader(
    dataset: Utterances, sampler: BucketBatchSampler | list[list[int]], workers: int, pin_memory: bool
) -> DataLoader[Batch]:
    """A DataLoader over a dataset of utterances whose workers stay alive between epochs."""
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        collate_fn=dataset.collate,
        # A generator of its own: each pass draws a seed for the workers, which would move the global one along.
        generator=torch.Generator(),
    )


def _hash(content: str) -> str:
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[emotion]} {emotion}" for emotion in order_emotions(list(counts)))
