"""From recordings and texts to a network's inputs, as far as that needs no network."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from fourm_ser.data.levels import refuse_silence
from fourm_ser.data.transcripts import Cleaning
from fourm_ser.encoders.base import Encoder, Frontend, Inputs
from fourm_ser.encoders.tokens import Tokens, refuse_unknown, told_encoder
from fourm_ser.errors import InputError
from fourm_ser.prediction.items import Window, read

SHOWN = 40  # characters of a text in an error


class Prepared(NamedTuple):
    """A window as the front ends left it.

    Attributes:
        key: Which window it is.
        inputs: What its encoders read, by modality; empty once the batch is collated.
        text: The text that was given, cleaned.
        samples: [samples] at 16 kHz where they are still to be transcribed, else None.
    """

    key: tuple[int, int]
    inputs: dict[str, Inputs]
    text: str | None
    samples: np.ndarray | None


class Loaded(NamedTuple):
    """A batch as it was read.

    Attributes:
        windows: What could be read.
        inputs: Their collated inputs by modality; None while a text is missing.
        failed: By the key of what could not be read, why.
    """

    windows: list[Prepared]
    inputs: dict[str, Inputs] | None
    failed: dict[tuple[int, int], InputError]


class WindowDataset(Dataset[Loaded]):
    """Reads batches of windows; picklable and without weights, for it runs in loader workers.

    Args:
        encoders: The model's encoders by modality, whose front ends are used.
        max_seconds: The seconds that longer recordings are cropped to; None for any length.
        clean: Patterns of what is taken out of texts, see `Cleaning`.
        empty_text: What a text without words becomes; None for nothing.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        max_seconds: float | None,
        clean: Sequence[str],
        empty_text: str | None = None,
    ) -> None:
        self.frontends: dict[str, Frontend] = {name: encoder.frontend for name, encoder in encoders.items()}
        self.max_seconds = max_seconds
        self.cleaning = Cleaning(clean, empty_text)
        self.about = told_encoder(encoders["text"]) if "text" in encoders else ""

    def __getitems__(self, batch: list[Window]) -> Loaded:
        windows: list[Prepared] = []
        failed: dict[tuple[int, int], InputError] = {}
        for window in batch:
            try:
                windows.append(self.prepare(window))
            except InputError as error:
                failed[window.key] = error
        if not windows or any(window.samples is not None for window in windows):
            return Loaded(windows, None, failed)
        return Loaded([window._replace(inputs={}) for window in windows], self.collate(windows), failed)

    def prepare(self, window: Window) -> Prepared:
        """One window through the front ends.

        Raises:
            InputError: its recording cannot be read, nothing is heard, or its text is not known to the tokenizer.
        """
        item = window.item
        inputs: dict[str, Inputs] = {}
        samples = None
        if item.audio is not None:
            samples = read(item, window.length, self.max_seconds if "audio" in self.frontends else None)
            refuse_silence(samples, item.name, item.start, item.end)
            if "audio" in self.frontends:
                inputs["audio"] = self.frontends["audio"](samples)
        if "text" not in self.frontends:
            return Prepared(window.key, inputs, None, None)
        if item.text is None:
            return Prepared(window.key, inputs, None, samples)
        text = self.cleaning(item.text)
        return Prepared(window.key, {**inputs, "text": self.tokens(text)}, text, None)

    def tokens(self, text: str) -> Inputs:
        """A cleaned transcript through the front end.

        Raises:
            InputError: the tokenizer does not know most of it.
        """
        frontend = self.frontends["text"]
        inputs = frontend(text)
        if isinstance(frontend, Tokens):
            shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
            refuse_unknown(f"text {shown!r}", frontend.known(inputs["ids"].tolist()), self.about)
        return inputs

    def collate(self, windows: Sequence[Prepared]) -> dict[str, Inputs]:
        """Windows with all their inputs as one padded batch."""
        return {
            modality: frontend.collate([window.inputs[modality] for window in windows])
            for modality, frontend in self.frontends.items()
        }


def with_arrays(loaded: Any) -> Any:
    """A batch as it goes from a worker to the process that asked for it: a tensor would take a socket of its own."""
    return _converted(loaded, lambda tensor: tensor if tensor.dtype == torch.bfloat16 else tensor.numpy())


def with_tensors(loaded: Any) -> Loaded:
    """What `with_arrays` was given."""
    return _converted(loaded, torch.as_tensor)


def _converted(loaded: Loaded, convert: Callable[[Any], Any]) -> Loaded:
    if loaded.inputs is None:
        return loaded
    parts = loaded.inputs.items()
    return loaded._replace(
        inputs={modality: {name: convert(value) for name, value in part.items()} for modality, part in parts}
    )
