"""In which batches items are predicted on: checked, cut into windows, sorted by length a few hundred at a time."""

import logging
import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from fourm_ser.checks import check_number
from fourm_ser.data.buckets import cut_by_length
from fourm_ser.errors import InputError, PlaceError
from fourm_ser.prediction.items import Cutting, Item, Window, checked, decoded, seconds

log = logging.getLogger(__name__)

AHEAD = 512  # items that are sorted by length together
HELD = 4096.0  # seconds of arrays among them: a quarter of a gigabyte
PADDING = 0.1  # of a batch, at most


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Makes batches of similar length out of any number of items, of which it holds a few hundred.

    Its numbers are those of a `Predictor`; with `transcribes` a recogniser gives the texts that are missing.

    Raises:
        InputError: numbers out of range.
    """

    modalities: Collection[str]
    transcribes: bool
    max_seconds: float | None
    batch_size: int
    batch_seconds: float

    def __post_init__(self) -> None:
        for name in ("batch_size", "batch_seconds"):
            check_number(name, getattr(self, name), "a number of at least 1", least=1)

    def batches(
        self,
        items: Iterable[Item],
        planned: dict[int, list[Window] | InputError],
        cutting: Cutting | None,
        scratch: Path,
    ) -> Iterator[list[Window]]:
        """Batches of similar length; MP3s, videos and their like are decoded into the folder `scratch`.

        `planned` gets the windows of each item as it is planned, by its number, or why there are none.
        """
        source = enumerate(items)
        cropped = 0
        for first in source:
            ready: list[Window] = []
            held = 0.0
            for number, item in chain([first], islice(source, AHEAD - 1)):
                try:
                    windows = planned[number] = self.windows(number, item, cutting, decoded_file(scratch, number))
                except PlaceError:
                    raise
                except InputError as error:
                    planned[number] = error
                    continue
                cropped += "audio" in self.modalities and windows[0].length > (self.max_seconds or math.inf)
                ready += windows
                held += sum(window.length for window in windows if isinstance(window.item.audio, np.ndarray))
                if held > HELD:
                    break
            yield from self._cut(ready)
        if cropped:
            what = "1 recording is" if cropped == 1 else f"{cropped} recordings are"
            log.warning("%s longer than %g s: only so much was heard, as in training", what, self.max_seconds)

    def windows(self, number: int, item: Item, cutting: Cutting | None, target: Path) -> list[Window]:
        """An item checked, decoded to `target` where that is needed, and cut.

        Raises:
            InputError: it does not fit the model, cannot be read, or its text cannot be divided over windows.
        """
        self.refuse_unfit(item)
        item = decoded(checked(item), target)
        if item.audio is None:
            return [Window(float(len(item.text or "")), (number, 0), item)]
        length = seconds(item)
        parts = [item] if cutting is None else cutting.parts(item, length)
        if len(parts) == 1:
            return [Window(length, (number, 0), item)]
        if item.text is not None:
            raise InputError(
                f"{item.name}: its text cannot be divided over {len(parts)} windows. Leave it out and let asr=... "
                "transcribe each of them, cut the recording into utterances, or predict on its beginning: window=null"
            )
        return [Window(part.end - part.start, (number, place), part) for place, part in enumerate(parts)]

    def _cut(self, ready: list[Window]) -> Iterator[list[Window]]:
        ready.sort(key=lambda window: (window.length, window.key))
        for is_sound in (True, False):  # seconds and characters do not compare
            windows = [window for window in ready if (window.item.audio is not None) == is_sound]
            lengths = [window.length for window in windows]
            total = self.batch_seconds if is_sound else math.inf
            for places in cut_by_length(lengths, total=total, padding=PADDING, count=self.batch_size):
                yield windows[places]

    def refuse_unfit(self, item: Item) -> None:
        """Refuse what the model does not read, and what it reads and is not given.

        Raises:
            InputError: what is too much or missing.
        """
        reads_text, reads_audio = "text" in self.modalities, "audio" in self.modalities
        if item.text is not None and not isinstance(item.text, str):
            raise InputError(f"text: a {type(item.text).__name__} is no text.")
        if not reads_text and item.text is not None:
            raise InputError("text: this model reads audio alone. Leave text= out.")
        if reads_audio and item.audio is None:
            raise InputError("audio: this model reads audio, and none is given. Add audio=FILE.")
        if not reads_audio and item.audio is not None and item.text is not None:
            raise InputError("audio: this model reads text alone, and a text is given. Leave audio= out.")
        if reads_text and item.text is None and item.audio is None:
            raise InputError("text: this model reads text, and none is given. Add text='what is said'.")
        if reads_text and item.text is None and not self.transcribes:
            raise InputError(
                f"{item.name}: this model reads text, and none is given. Add text='what is said' (text='' where it "
                "is known that there are no words), or asr=<hub id or folder of a speech recogniser> to transcribe it."
            )


def decoded_file(scratch: Path, number: int) -> Path:
    """Where the item of a number is decoded to, if it has to be."""
    return scratch / f"{number}.flac"
