"""In which batches items are predicted on: checked, cut into windows, sorted by length a few hundred at a time."""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from fourm_ser.errors import InputError
from fourm_ser.prediction.items import Cutting, Item, checked, decoded, seconds
from fourm_ser.prediction.loading import Planned

log = logging.getLogger(__name__)

AHEAD = 512  # items that are sorted by length together
HELD = 4096.0  # seconds of arrays among them: a quarter of a gigabyte
PADDING = 0.1  # of a batch, at most


class Job:
    """An item on its way.

    Args:
        parts: the item, or its windows.
        length: of the item: seconds, or characters where there is no recording.
        extracted: the file that it was decoded to; None for none.

    Attributes:
        lengths: those of the parts.
        found: what was found of each part so far, by its place.
    """

    def __init__(self, parts: list[Item], length: float, extracted: Path | None) -> None:
        self.parts, self.extracted = parts, extracted
        self.lengths = [length] if len(parts) == 1 else [part.end - part.start for part in parts]
        self.found: dict[int, Any] = {}

    @property
    def done(self) -> bool:
        """Whether all parts were found out about."""
        return len(self.found) == len(self.parts)


class Planner:
    """Makes batches of similar length out of any number of items, of which it holds a few hundred.

    Args:
        modalities: what the model reads.
        transcribes: whether a recogniser gives the texts that are missing.
        max_seconds: what longer recordings are cropped to; None for any length.
        batch_size: items in a batch, at most.
        batch_seconds: of audio in a batch, padding included; a longer item is a batch of its own.

    Raises:
        InputError: numbers out of range.
    """

    def __init__(
        self,
        modalities: Sequence[str],
        transcribes: bool,
        max_seconds: float | None,
        batch_size: int,
        batch_seconds: float,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("batch_seconds", batch_seconds)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < math.inf:
                raise InputError(f"{name}={value}: expected a number of at least 1.")
        self.modalities, self.transcribes, self.max_seconds = modalities, transcribes, max_seconds
        self.batch_size, self.batch_seconds = batch_size, batch_seconds

    def batches(
        self, items: Iterable[Item], jobs: dict[int, Job | InputError], cutting: Cutting, scratch: Path
    ) -> Iterator[list[Planned]]:
        """Batches of similar length.

        Args:
            items: what to predict on.
            jobs: gets the job of each item as it is planned, by its position, or why there is none.
            cutting: which recordings are cut into windows, and how.
            scratch: where MP3s, videos and their like are decoded to.
        """
        source = enumerate(items)
        cropped = 0
        for first in source:
            ready: list[Planned] = []
            held = 0.0
            for position, item in chain([first], islice(source, AHEAD - 1)):
                try:
                    job = jobs[position] = self.prepare(item, cutting, scratch / f"{position}.flac")
                except InputError as error:
                    jobs[position] = error
                    continue
                cropped += "audio" in self.modalities and job.lengths[0] > (self.max_seconds or math.inf)
                ready += [
                    (length, (position, place), part)
                    for place, (length, part) in enumerate(zip(job.lengths, job.parts, strict=True))
                ]
                held += sum(job.lengths) if isinstance(job.parts[0].audio, np.ndarray) else 0.0
                if held > HELD:
                    break
            yield from self._cut(ready)
        if cropped:
            what = "1 recording is" if cropped == 1 else f"{cropped} recordings are"
            log.warning("%s longer than %g s: only so much was heard, as in training", what, self.max_seconds)

    def prepare(self, item: Item, cutting: Cutting, target: Path) -> Job:
        """An item checked, decoded to `target` where that is needed, and cut.

        Raises:
            InputError: it does not fit the model, cannot be read, or its text cannot be divided over windows.
        """
        self.refuse_unfit(item)
        readable = decoded(checked(item), target)
        extracted = target if readable.audio is target else None
        if item.audio is None:
            return Job([readable], float(len(item.text or "")), extracted)
        length = seconds(readable)
        parts = cutting.parts(readable, length)
        if len(parts) > 1 and item.text is not None:
            raise InputError(
                f"{item.name}: its text cannot be divided over {len(parts)} windows. Leave the text out and let "
                "asr=... transcribe each of them, cut the recording into utterances, or predict on its first part "
                "alone (window=null)."
            )
        return Job(parts, length, extracted)

    def _cut(self, ready: list[Planned]) -> Iterator[list[Planned]]:
        ready.sort(key=lambda planned: planned[:2])
        batch: list[Planned] = []
        own = 0.0
        for planned in ready:
            length, _, item = planned
            size = (len(batch) + 1) * length  # the order is that of lengths: it is the longest
            full = len(batch) >= self.batch_size or (item.audio is not None and size > self.batch_seconds)
            if batch and (full or size - own - length > PADDING * size):
                yield batch
                batch, own = [], 0.0
            batch.append(planned)
            own += length
        if batch:
            yield batch

    def refuse_unfit(self, item: Item) -> None:
        """Refuse what the model does not read, and what it reads and is not given.

        Raises:
            InputError: what is too much or missing.
        """
        reads_text, reads_audio = "text" in self.modalities, "audio" in self.modalities
        if item.text is not None and not isinstance(item.text, str):
            raise InputError(f"text: a {type(item.text).__name__} is no text.")
        if not reads_text and item.text is not None:
            raise InputError("text: this model reads audio alone. Leave the text out.")
        if reads_audio and item.audio is None:
            raise InputError("audio: this model reads audio, and none is given. Give a recording.")
        if not reads_audio and item.audio is not None and item.text is not None:
            raise InputError("audio: this model reads text alone, and a text is given. Leave the audio out.")
        if reads_text and item.text is None and item.audio is None:
            raise InputError("text: this model reads text, and none is given. Give what is said.")
        if reads_text and item.text is None and not self.transcribes:
            raise InputError(
                f"{item.name}: this model reads text, and none is given. Give what is said (an empty text where it is "
                "known that there are no words), or asr=<hub id or folder of a speech recogniser> to transcribe it."
            )
