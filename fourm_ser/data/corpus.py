"""A corpus under a protocol: which utterances are used, what their classes are, and who is on which side."""

import copy
import hashlib
import json
import logging
import math
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from fourm_ser.checks import check_number, check_switch, check_text, check_word
from fourm_ser.data.content import content, digest_of, shared
from fourm_ser.data.labels import choose_classes, counted, fold_labels, read_classes, read_label_map
from fourm_ser.data.manifest import order_emotions, write_manifest
from fourm_ser.data.names import clean_cell, clean_columns, find_doubles, tell_doubles
from fourm_ser.data.published import check_published, published_sides
from fourm_ser.data.recordings import Recording, find_silent, scan_recordings
from fourm_ser.data.release import LeftOut, Release, by_reason
from fourm_ser.data.splits import SPLITS, Protocol, Split, check_protocol, gives_validation, read_split, split_manifest
from fourm_ser.data.summary import level_counts, summarise, summarise_cleaning, told_cleaning
from fourm_ser.data.transcripts import BEFORE, Cleaning
from fourm_ser.errors import InputError, listed
from fourm_ser.files import whole, write_json

log = logging.getLogger(__name__)

SHOWN = 5  # utterances in an error, which is one line
# Two spellings of one name would be two utterances, classes, or speakers on two sides.
DOUBLED = ("id", "speaker", "session", "emotion", "language")
BAD_RECORDING = "recording that cannot be used"
OUTSIDE = "segment outside its recording"
SHORTEST = 0.001  # seconds: less holds no sample


class Corpus(ABC):
    """A corpus under a protocol. Each corpus is a subclass that reads its release.

    Nothing here needs torch, so that a corpus is prepared and looked at in seconds; `EmotionDataModule` serves it.

    After `load`, `frame` is the manifest of the utterances that are used (a manifest's columns with `audio` an absolute
    path, and `file`: what to read; `digest`: hash of its bytes, `source`: of the recording's; `seconds`: the length
    that is used; `peak`, `clipped`: how loud the recording is), `left_out` what is not, `doubles` the names that are
    probably one, `cleaned` what was taken out of transcripts, by id, and `emotions` are the classes in the order of
    their indices. After `setup`, `label` is the class index of each utterance, `split` says which of them train,
    validate and test, `content` is the record of what is used (see `fourm_ser.data.content`), and `shared` are
    recordings on two sides.

    Args:
        source: the release's folder, the table, or another name for what is read.
        cache: the folder for what is made once.
        emotions: the classes in the order of their indices, by names or numbers; None for all that the corpus has.
        label_map: emotions of the corpus to fold into others, by names or numbers, before `emotions` chooses.
        drop_other: leave out utterances of other emotions than `emotions`, instead of refusing them.
        language: leave out utterances of other languages than this code, and take those that name none to be of it;
            None or `all` keeps every one.
        split: `random`, `speaker`, `session` or `official`; of IEMOCAP and ESD also `published`.
        split_file: a CSV (`id,split`) that says who is where, instead of `split`; None for none.
        fold: the speaker or session that is tested, counted from 0.
        fractions: the shares of train, validation and test in a random split.
        stratify: keep the emotions' shares equal on all sides of what is drawn at random.
        validation: what the validation side is made of where the split gives none: `speakers`, `session`, `random`.
        validation_fraction: the share of what is not tested that validates.
        split_seed: the seed of what is drawn at random.
        min_seconds: leave out shorter utterances; None keeps all.
        max_seconds: the longest that an utterance may be, beyond which `too_long` says what to do; None for any length.
        too_long: `crop` to the first `max_seconds`, or `refuse`.
        strict: make every fault of the corpus an error, instead of leaving out what it concerns and counting it.
        sampler: the order of training: `shuffle`, or `balanced`, where each epoch has every class equally often.
        shuffle: whether each epoch has an order of its own; else one is drawn, and all epochs have it.
        workers: processes that read recordings ahead, or `auto`; stored features are read in the training process.
        clean: what is taken out of transcripts: a rule of `fourm_ser.data.transcripts`, or regular expressions.
        empty_text: what a transcript without words becomes; None leaves it empty.
        published: the published model whose split it is, where that is `published`.
        verify: how recordings that are remembered are held against what is there: `quick` (size, time and ends) or
            `full` (all bytes).

    Raises:
        InputError: a value that none of these can have, by its key.
    """

    name: str
    splits: tuple[str, ...] = SPLITS

    def __init__(
        self,
        *,
        source: str,
        cache: Path,
        emotions: list[str] | None,
        label_map: Mapping[str, str] | None,
        drop_other: bool,
        language: str | None,
        split: str,
        split_file: str | None,
        fold: int,
        fractions: tuple[float, float, float],
        stratify: bool,
        validation: str,
        validation_fraction: float,
        split_seed: int,
        min_seconds: float | None,
        max_seconds: float | None,
        too_long: str,
        strict: bool,
        sampler: str,
        workers: int | str,
        # Records of earlier versions have none of these.
        clean: str | Sequence[str] = BEFORE,
        verify: str = "quick",
        shuffle: bool = True,
        empty_text: str | None = None,
        published: str | None = None,
    ) -> None:
        self.wanted, self.label_map = read_classes(emotions), read_label_map(label_map)
        for key, switch in (("drop_other", drop_other), ("strict", strict), ("shuffle", shuffle)):
            check_switch(f"data.{key}", switch)
        check_text("data.language", language, "a code such as en, all", null=True)
        check_text("data.split_file", split_file, "a path", null=True)
        self.protocol = Protocol(split, fold, fractions, stratify, validation, validation_fraction, split_seed)
        if split == "published" and split not in self.splits:
            raise InputError(
                "data.split=published: no published model's split of this corpus is known, only of iemocap and esd. "
                f"Expected one of {', '.join(self.splits)}."
            )
        check_protocol(self.protocol, self.splits)
        if split == "published" and split_file is None:
            check_published(published)
        check_number("data.min_seconds", min_seconds, "seconds from 0", null=True)
        check_number("data.max_seconds", max_seconds, "seconds above 0", least=SHORTEST, null=True)
        check_word("data.too_long", too_long, ("crop", "refuse"))
        check_word("data.sampler", sampler, ("shuffle", "balanced"))
        check_word("data.verify", verify, ("quick", "full"))
        check_text("data.empty_text", empty_text, "a word such as NULL", null=True)
        if sampler == "balanced" and not shuffle:
            raise InputError(
                "data.shuffle=false: one order for all epochs would never show what data.sampler=balanced leaves out "
                "of the first. Use data.sampler=shuffle, or data.shuffle=true."
            )
        if workers != "auto":
            check_number("data.workers", workers, "auto, or a number of processes from 0", whole=True)
        self.source, self.cache, self.drop_other = source, cache, drop_other
        self.language = None if language in (None, "all") else clean_cell(language)
        self.split_file = None if split_file is None else Path(split_file).expanduser()
        self.min_seconds, self.max_seconds, self.too_long = min_seconds, max_seconds, too_long
        self.strict, self.sampler, self.workers, self.verify = strict, sampler, workers, verify
        self.shuffle, self.published = shuffle, published
        self.clean, self.empty_text, self.cleaning = clean, empty_text, Cleaning(clean, empty_text)
        self._loaded = self._ready = False
        self._prepared: Path | None = None

    @abstractmethod
    def read(self) -> Release:
        """Read the release as it lies on disk.

        Raises:
            InputError: it is not the release, or it holds what would change a result without anybody knowing.
        """

    def load(self) -> None:
        """Read the corpus, choose the utterances and check their recordings; the second call does nothing.

        Recordings are decoded once and remembered, so that a second process has this done in seconds.

        Raises:
            InputError: what `read` refuses; emotions that were not chosen, chosen ones that the corpus lacks,
                utterances that are too long; with `strict`, any fault, and one name in several spellings.
        """
        if self._loaded:
            return
        release = self.read()
        self.audio_root, self.origin = release.root, os.path.abspath(release.source)
        self.left_out = list(release.left_out)
        self._refuse_faults(release.source)
        frame = release.frame
        if not len(frame):
            raise InputError(f"{release.source}: no utterance can be used: {_told(self.left_out)}.")
        frame = self._clean(frame, release.source)
        self._released = frame.reindex(columns=["id", "emotion", "where"])
        frame["emotion"] = fold_labels(frame["emotion"], self.label_map, release.source)
        self.doubles = find_doubles(frame, DOUBLED)
        tell_doubles(self.doubles, release.source, self.strict)
        frame = self._choose_language(frame)
        frame = self._choose_emotions(frame, release.source)
        frame = self._check(frame, release.source)
        self.frame = self._measure(frame, release.source).reset_index(drop=True)
        self._refuse_faults(release.source)
        absent = [emotion for emotion in self.emotions if not (self.frame["emotion"] == emotion).any()]
        if absent or not len(self.frame):
            named = f" of {', '.join(absent)}" if absent else ""
            raise InputError(f"{release.source}: no utterance{named} is left. Left out: {_told(self.left_out)}.")
        cleaned = summarise_cleaning(self.cleaned, self.frame["id"])
        if cleaned["transcripts"]:
            log.info("data: %s", told_cleaning(cleaned))
        self._whole = self.frame, list(self.left_out)  # as it is before a split file takes its part
        self._loaded = True

    def prepare(self) -> Path:
        """Load the corpus and write manifest.csv, left_out.csv and summary.json, each whole; once for each object.

        Returns:
            Their folder in the cache: one for each corpus, folder of a release, and choice of utterances.
        """
        if self._prepared is not None:
            return self._prepared
        self.load()
        identity = json.dumps([self.origin, str(self.audio_root), self._choices()], sort_keys=True)
        key = hashlib.blake2b(identity.encode(), digest_size=4).hexdigest()
        folder = self.cache / "manifests" / f"{self.name}-{key}"
        root = f"{self.audio_root}{os.sep}"
        frame, left_out = self._whole
        relative = [audio.removeprefix(root).replace(os.sep, "/") for audio in frame["audio"]]
        write_manifest(frame.assign(audio=relative), folder / "manifest.csv")
        with whole(folder / "left_out.csv") as temporary:
            rows = pd.DataFrame(left_out, columns=LeftOut._fields, dtype=object)
            rows.to_csv(temporary, index=False, errors="backslashreplace")
        about = {"corpus": self.name, "source": self.origin, **self._choices()}
        found = {
            "doubles": [double._asdict() for double in self.doubles],
            "cleaned": summarise_cleaning(self.cleaned, frame["id"]),
        }
        write_json(folder / "summary.json", {**about, **summarise(frame, self.emotions, left_out), **found})
        log.info("data: the manifest and what was left out are in %s", folder)
        self._prepared = folder
        return folder

    def setup(self) -> None:
        """Load and split the corpus; the second call does nothing.

        Raises:
            InputError: what `load`, `read_split` and `split_manifest` refuse; with `strict`, a recording on two sides.
        """
        if self._ready:
            return
        self.load()
        self.split = self._divide()
        self.label = self.frame["emotion"].map(self.emotions.index).to_numpy(dtype=np.int64)
        self.content = content(self.frame, self.split, self.homes)
        self._look_for_shared()
        self._ready = True
        self._report()

    def joined(self) -> Self:
        """The same corpus, set up, with its validation side on the training side: nobody validates."""
        other = copy.copy(self)
        other.split = self.split.joined()
        return other

    def rows(self, side: str) -> np.ndarray:
        """Positions of the utterances of a side: `train`, `val`, `test`, or `all`.

        Raises:
            InputError: it is none of these, or nobody is there.
        """
        sides = {**self.split._asdict(), "all": np.arange(len(self.frame))}
        if side not in sides:
            raise InputError(f"side={side}: expected {', '.join(sides)}.")
        if not len(sides[side]):
            raise InputError(f"side={side}: this split of {self.name} has no utterance there.")
        return np.sort(sides[side])

    @property
    def counts(self) -> list[int]:
        """Training utterances of each class."""
        return self.counts_on("train")

    def counts_on(self, side: str) -> list[int]:
        """Utterances of each class on a side of the split."""
        return np.bincount(self.label[getattr(self.split, side)], minlength=len(self.emotions)).tolist()

    @property
    def parts(self) -> list[np.ndarray]:
        """Positions of the utterances by the corpus they come from: each is encoded by itself."""
        return [np.arange(len(self.frame))]

    @property
    def homes(self) -> list[str]:
        """The corpus that each utterance is of, by its name."""
        return [self.name] * len(self.frame)

    @property
    def training_texts(self) -> list[str]:
        """The transcripts that a tokenizer may be trained on, whatever the fold."""
        return self.frame["text"].tolist()

    def protocol_record(self) -> dict[str, Any]:
        """What metrics.json says of the corpus and its split."""
        split = self.protocol.split if self.split_file is None else "file"
        return {
            "corpus": self.name,
            "corpus_hash": digest_of(self.content),
            "shared_recordings": len(self.shared),
            "double_names": len(self.doubles),
            "speaker_independent": self.split.speaker_independent(self.frame),
            "split": split,
            "fold": self.protocol.fold,
            "validation": split if self._validation_given else self.protocol.validation,
        }

    def _divide(self) -> Split:
        """Split what was loaded."""
        protocol = self.protocol
        if self.split_file is not None or protocol.split == "published":
            if protocol.fold != 0:
                what = "the split of a published model" if self.split_file is None else "a split file"
                raise InputError(f"data.fold={protocol.fold}: {what} has no folds: leave data.fold at 0.")
            if self.split_file is None:
                assert self.published is not None
                sides, name = (
                    published_sides(self.name, self.published, self._released),
                    f"the split of {self.published}",
                )
            else:
                sides, name = read_split(self.split_file), self.split_file.name
                self._hold_against(sides)
            named = self.frame["id"].isin(sides.index)
            self._leave_out(self.frame[~named], f"not in {name}")
            self.frame = self.frame[named].reset_index(drop=True)
            self.frame["split"] = self.frame["id"].map(sides)
            protocol = protocol._replace(split="official")
        self._validation_given = gives_validation(self.frame, protocol)
        return split_manifest(self.frame, protocol)

    def _look_for_shared(self) -> None:
        """Find recordings that are on two sides under two ids: a test on what was trained on."""
        self.shared = shared(self.content)
        if not self.shared:
            return
        named = listed([f"{one} and {other}" for one, other in self.shared], SHOWN)
        count = "1 recording is" if len(self.shared) == 1 else f"{len(self.shared)} recordings are"
        said = f"{count} on two sides of the split under two ids each: {named}"
        if self.strict:
            raise InputError(
                f"{self.origin}: {said}. Take one of each out of the corpus, or go on with them by data.strict=false."
            )
        log.warning("data: %s", said)

    def _hold_against(self, sides: pd.Series) -> None:
        """Refuse a split file that names utterances which are not used."""
        used = set(self.frame["id"])
        unknown = [key for key in sides.index if key not in used]
        if not unknown:
            return
        why = {item.id: item.reason for item in self.left_out}
        shown = listed([f"{key} ({why.get(key, 'not in the corpus')})" for key in unknown], SHOWN)
        raise InputError(
            f"data.split_file={self.split_file}: {len(unknown)} of its {len(sides)} utterances are not used: "
            f"{shown}. Choose them (data.emotions, data.language, ...), or take them out of the file."
        )

    def _choices(self) -> dict[str, Any]:
        """The config's keys that choose utterances."""
        return {
            "emotions": self.wanted,
            "label_map": self.label_map,
            "drop_other": self.drop_other,
            "language": self.language,
            "min_seconds": self.min_seconds,
            "clean": self.clean,
            **({} if self.empty_text is None else {"empty_text": self.empty_text}),
        }

    def _leave_out(self, frame: pd.DataFrame, reason: str) -> None:
        """Note rows that were not asked for."""
        rows = zip(frame["id"], frame["where"], strict=True)
        self.left_out += [LeftOut(key, reason, where, False) for key, where in rows]

    def _refuse_faults(self, source: Path) -> None:
        faults = [item for item in self.left_out if item.fault]
        if faults and self.strict:
            raise InputError(
                f"{source}: {len(faults)} {'fault' if len(faults) == 1 else 'faults'}: {_told(faults)}. "
                "Mend them, or leave out what they concern by data.strict=false."
            )

    def _clean(self, frame: pd.DataFrame, source: Path) -> pd.DataFrame:
        """Clean names, and take out of transcripts what is no word."""
        frame = clean_columns(frame)
        repeated = frame[frame["id"].duplicated(keep=False)]
        if len(repeated):
            where = ", ".join(repeated["where"][repeated["id"] == repeated["id"].iloc[0]])
            raise InputError(f"{source}: the id {repeated['id'].iloc[0]} stands for several utterances ({where}).")
        apart = [self.cleaning.apart(text) for text in frame["text"].to_numpy().tolist()]
        self.cleaned = {key: taken for key, (_, taken) in zip(frame["id"], apart, strict=True) if taken}
        return frame.assign(text=[text for text, _ in apart])

    def _choose_language(self, frame: pd.DataFrame) -> pd.DataFrame:
        if self.language is None:
            return frame
        frame["language"] = frame["language"].replace("", self.language)
        other = frame["language"] != self.language
        for language in sorted(set(frame["language"][other])):
            self._leave_out(frame[frame["language"] == language], f"language {language} is not data.language")
        return frame[~other]

    def _choose_emotions(self, frame: pd.DataFrame, source: Path) -> pd.DataFrame:
        """Keep the wanted emotions."""
        self.emotions = choose_classes(Counter(frame["emotion"]), self.wanted, self.drop_other, source)
        for emotion in order_emotions(set(frame["emotion"]) - set(self.emotions)):
            self._leave_out(frame[frame["emotion"] == emotion], f"emotion {emotion} is not in data.emotions")
        return frame[frame["emotion"].isin(self.emotions)].copy()

    def _check(self, frame: pd.DataFrame, source: Path) -> pd.DataFrame:
        """Decode the recordings, and leave out those that are missing, empty or damaged."""
        scanned = scan_recordings(frame["audio"].tolist(), source, self.cache, self.verify)
        results = [scanned[audio] for audio in frame["audio"]]
        for key, where, result in zip(frame["id"], frame["where"], results, strict=True):
            if isinstance(result, InputError):
                self.left_out.append(LeftOut(key, BAD_RECORDING, f"{where}: {result}", True))
        sound = [result for result in results if isinstance(result, Recording)]
        frame = frame[np.array([isinstance(result, Recording) for result in results], dtype=bool)].copy()
        for column in ("file", "digest", "source", "seconds", "peak", "clipped", "quiet"):
            frame[column] = [getattr(recording, column) for recording in sound]
        return frame

    def _measure(self, frame: pd.DataFrame, source: Path) -> pd.DataFrame:
        """Turn the recordings' lengths into the utterances', and hold them against the limits."""
        start = frame["start"].fillna(0.0)
        whole_seconds = frame["seconds"]
        frame["seconds"] = np.minimum(frame["end"].fillna(math.inf), whole_seconds) - start
        outside = frame["seconds"] < SHORTEST
        for cut, length in zip(frame[outside].to_dict("records"), whole_seconds[outside], strict=True):
            end = "" if math.isnan(cut["end"]) else f"to {cut['end']} s, "
            detail = f"{end}from {cut['start']} s of a recording of {length:.3f} s"
            self.left_out.append(LeftOut(cut["id"], OUTSIDE, f"{cut['where']}: {detail}", True))
        frame = frame[~outside]
        if self.min_seconds is not None:
            short = frame["seconds"] < self.min_seconds
            self._leave_out(frame[short], f"shorter than data.min_seconds={self.min_seconds}")
            frame = frame[~short]
        if self.max_seconds is not None:
            long = frame[frame["seconds"] > self.max_seconds]
            if len(long) and self.too_long == "refuse":
                row = long.iloc[0]
                raise InputError(
                    f"{source}: {len(long)} utterances are longer than data.max_seconds={self.max_seconds}; the first "
                    f"is {row['id']} ({row['where']}, {row['seconds']:.2f} s). Raise it, or use data.too_long=crop."
                )
            if len(long):
                log.info("data: cropped %d utterances to %s s", len(long), self.max_seconds)
        frame = frame.assign(duration=frame["seconds"], seconds=frame["seconds"].clip(upper=self.max_seconds))
        silent = find_silent(frame)
        self.left_out += silent
        return frame[~frame["id"].isin([item.id for item in silent])].drop(columns="quiet")

    def _report(self) -> None:
        hours, speakers = self.frame["seconds"].sum() / 3600, self.frame["speaker"].nunique()
        log.info("data: %s, %d utterances, %.2f h, %d speakers", self.name, len(self.frame), hours, speakers)
        for what, utterances in level_counts(self.frame).items():
            if utterances["count"]:
                log.warning("data: %d %s, such as %s", utterances["count"], what, ", ".join(utterances["first"]))
        for reason, items in by_reason(self.left_out).items():
            level = logging.WARNING if any(item.fault for item in items) else logging.INFO
            log.log(level, "data: left out %d: %s", len(items), reason)
        untrained = [emotion for emotion, count in zip(self.emotions, self.counts, strict=True) if not count]
        if untrained:
            log.warning("data: the train side has no utterance of %s", ", ".join(untrained))
        for side, rows in self.split._asdict().items():
            name = {"val": "validation"}.get(side, side)
            log.info("data: %-10s %5d: %s", name, len(rows), counted(Counter(self.frame["emotion"].iloc[rows])))
        if not self.split.speaker_independent(self.frame):
            log.warning("data: speakers of the test side are on other sides, too: not speaker-independent")


def _told(items: list[LeftOut]) -> str:
    """What was left out, by reason, in words."""
    return "; ".join(
        f"{len(alike)} x {reason}, the first is {alike[0].id} ({alike[0].where})"
        for reason, alike in by_reason(items).items()
    )
