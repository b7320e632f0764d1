"""From recordings and texts to a network's inputs, as far as that needs no network."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from fourm_ser.data.audio import SAMPLE_RATE
from fourm_ser.data.levels import refuse_silence
from fourm_ser.data.transcripts import Cleaning
from fourm_ser.encoders.base import Encoder, Frontend, Inputs
from fourm_ser.encoders.tokens import Tokens, refuse_unknown, told_encoder
from fourm_ser.errors import InputError
from fourm_ser.prediction.items import Item, read

Key = tuple[int, int]
"""Which item, and which window of it."""

Planned = tuple[float, Key, Item]
"""An item of a batch, behind its length: seconds, or characters where there is no recording."""

SHOWN = 40


class Row(NamedTuple):
    """An item as the front ends left it.

    Attributes:
        key: which one it is.
        inputs: by modality; empty once the batch is collated.
        text: what was given, cleaned.
        samples: [samples] at 16 kHz where they are still to be transcribed, else None.
    """

    key: Key
    inputs: dict[str, Inputs]
    text: str | None
    samples: np.ndarray | None


class Loaded(NamedTuple):
    """A batch as it was read.

    Attributes:
        rows: what could be read.
        inputs: their collated inputs by modality; None while a text is missing.
        failed: why the others could not be.
    """

    rows: list[Row]
    inputs: dict[str, Inputs] | None
    failed: dict[Key, InputError]


class Reading(Dataset[Loaded]):
    """Reads batches of items; picklable and without weights, for it runs in loader workers.

    Args:
        encoders: the model's encoders by modality, whose front ends are used.
        max_seconds: what longer recordings are cropped to; None for any length.
        clean: what is taken out of texts, see `Cleaning`.
    """

    def __init__(self, encoders: Mapping[str, Encoder], max_seconds: float | None, clean: Sequence[str]) -> None:
        self.frontends: dict[str, Frontend] = {name: encoder.frontend for name, encoder in encoders.items()}
        self.samples = None if max_seconds is None else round(max_seconds * SAMPLE_RATE)
        self.cleaning = Cleaning(clean)
        self.about = told_encoder(encoders["text"]) if "text" in encoders else ""

    def __getitems__(self, batch: list[Planned]) -> Loaded:
        rows: list[Row] = []
        failed: dict[Key, InputError] = {}
        for length, key, item in batch:
            try:
                rows.append(self.row(key, item, length))
            except InputError as error:
                failed[key] = error
        if not rows or any(row.samples is not None for row in rows):
            return Loaded(rows, None, failed)
        return Loaded([row._replace(inputs={}) for row in rows], self.collate(rows), failed)

    def row(self, key: Key, item: Item, length: float) -> Row:
        """One item through the front ends.

        Raises:
            InputError: its recording cannot be read, nothing is heard, or its text is not known to the tokenizer.
        """
        inputs: dict[str, Inputs] = {}
        samples = None
        if item.audio is not None:
            samples = read(item, length)
            if "audio" in self.frontends:
                samples = samples[: self.samples]
            refuse_silence(samples, item.name, item.start, item.end)
            if "audio" in self.frontends:
                inputs["audio"] = self.frontends["audio"](samples)
        if "text" not in self.frontends:
            return Row(key, inputs, None, None)
        if item.text is None:
            return Row(key, inputs, None, samples)
        text = self.cleaning(item.text)
        return Row(key, {**inputs, "text": self.tokens(text)}, text, None)

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

    def collate(self, rows: Sequence[Row]) -> dict[str, Inputs]:
        """Rows with all their inputs as one padded batch."""
        return {
            modality: frontend.collate([row.inputs[modality] for row in rows])
            for modality, frontend in self.frontends.items()
        }


def packed(loaded: Any) -> Any:
    """A batch as it goes from a worker to the process that asked for it: a tensor would take a socket of its own."""
    inputs = loaded.inputs or {}
    return loaded._replace(inputs=loaded.inputs and {name: _as_arrays(part) for name, part in inputs.items()})


def unpacked(loaded: Any) -> Loaded:
    """What `packed` was given."""
    inputs = loaded.inputs or {}
    return loaded._replace(inputs=loaded.inputs and {name: _as_tensors(part) for name, part in inputs.items()})


def _as_arrays(inputs: Inputs) -> dict[str, Any]:
    """Tensors as arrays, but for those of the type that NumPy does not have."""
    return {name: tensor if tensor.dtype == torch.bfloat16 else tensor.numpy() for name, tensor in inputs.items()}


def _as_tensors(arrays: Mapping[str, Any]) -> Inputs:
    return {name: torch.from_numpy(a) if isinstance(a, np.ndarray) else a for name, a in arrays.items()}
