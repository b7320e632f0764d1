"""The embedding store: a frozen encoder reads each utterance once, ever.

A folder an encoder holds `store.json`, which says what made it, and shards in safetensors. A shard's own header is the
index: where each key's features lie in the file. Shards appear whole, so index and data cannot disagree.
"""

import errno
import json
import logging
import os
import struct
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch import Tensor

from fourm_ser.encoders.base import Packed
from fourm_ser.errors import InputError
from fourm_ser.files import whole, write_json

log = logging.getLogger(__name__)

FORMAT = 1
DTYPES: dict[str, np.dtype] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}


class Place(NamedTuple):
    """Where one utterance's features lie: file, first byte, shape and type."""

    shard: Path
    offset: int
    shape: tuple[int, int]
    dtype: np.dtype


class FeatureStore:
    """Features of one encoder, by key, in a folder of `root`; what they were made by is in the store.json.

    Raises:
        InputError: the folder holds a store of another format.
    """

    def __init__(self, *, root: Path, name: str, fingerprint: str, made_by: Mapping[str, Any]) -> None:
        self.folder = root / f"{name}-{fingerprint}"
        self.folder.mkdir(parents=True, exist_ok=True)
        about = self.folder / "store.json"
        if not about.is_file():
            write_json(about, {"format": FORMAT, "encoder": name, "fingerprint": fingerprint, **made_by})
        found = json.loads(about.read_text(encoding="utf-8")).get("format")
        if found != FORMAT:
            raise InputError(
                f"{about}: the store has format {found}, this version reads format {FORMAT}. "
                "Delete the folder: its features will be encoded anew."
            )
        self._index: dict[str, Place] = {}
        self._known: set[Path] = set()
        self._open: dict[Path, int] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the headers of shards that appeared since."""
        # Where two shards hold a key, the first name wins: every process then reads the same one.
        for shard in sorted(set(self.folder.glob("shard-*.safetensors")) - self._known):
            for key, place in _read_header(shard).items():
                self._index.setdefault(key, place)
            self._known.add(shard)

    def __contains__(self, key: str) -> bool:
        return key in self._index

    def __len__(self) -> int:
        return len(self._index)

    def read(self, key: str) -> Tensor:
        """The features of `key`: [time, dim] in float32."""
        return self.read_batch([key]).values[:-1].float()

    def read_batch(self, keys: Sequence[str]) -> Packed:
        """The features of `keys` in one piece, as they were written."""
        places = [self._index[key] for key in keys]
        lengths = [place.shape[0] for place in places]
        # Where one was too large for float16 all become float32.
        values = np.empty((sum(lengths) + 1, places[0].shape[1]), max(place.dtype for place in places))
        values[-1] = 0
        end = 0
        for place, length in zip(places, lengths, strict=True):
            begin, end = end, end + length
            if place.dtype == values.dtype:
                self._read_into(place, values[begin:end])
            else:
                own = np.empty(place.shape, place.dtype)
                self._read_into(place, own)
                values[begin:end] = own
        return Packed(torch.from_numpy(values), torch.tensor(lengths), max(lengths))

    def _read_into(self, place: Place, array: np.ndarray) -> None:
        """Read what lies at a place into an array of its shape and type.

        A positioned read of just these bytes: as fast as a memory map, and resident memory does not grow with use.
        """
        if place.shard not in self._open:
            self._open[place.shard] = os.open(place.shard, os.O_RDONLY)
        if _read(self._open[place.shard], array, place.offset) != array.nbytes:
            raise InputError(f"{place.shard}: the shard ends too early. Delete it: it will be encoded anew.")

    def write(self, features: Mapping[str, np.ndarray]) -> None:
        """Add a shard: a [time, dim] array of float32 or float16 for each key.

        Raises:
            InputError: the disk is full; shards written before stay as they are.
        """
        shard = self.folder / f"shard-{uuid.uuid4().hex}.safetensors"
        try:
            with whole(shard) as temporary:
                save_file(dict(features), temporary)
        except (OSError, SafetensorError) as error:
            if getattr(error, "errno", None) != errno.ENOSPC and "No space left" not in str(error):
                raise
            size = sum(array.nbytes for array in features.values())
            raise InputError(
                f"{self.folder}: the disk is full: a shard of {size / 1e6:.1f} MB was to be written. Make room, or "
                "choose another cache; what was encoded before is kept, and the same command goes on from there."
            ) from error
        self.refresh()

    def lock(self) -> FileLock:
        """A lock that saves several processes the same work; the store is right without it."""
        return FileLock(self.folder / "store.lock")

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The distinct `keys` that the store lacks, in their order."""
        return [key for key in dict.fromkeys(keys) if key not in self._index]

    def close(self) -> None:
        """Close the shards' files."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def __getstate__(self) -> dict[str, Any]:
        # A worker process that is spawned opens the files itself.
        return {**self.__dict__, "_open": {}}


def _read(descriptor: int, array: np.ndarray, offset: int) -> int:
    """Read bytes of a file into an array; how many there were."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [array], offset)  # type: ignore[list-item]
    data = os.pread(descriptor, array.nbytes, offset)  # Pythons for a macOS before 11 have no other
    if len(data) == array.nbytes:
        array[...] = np.frombuffer(data, array.dtype).reshape(array.shape)
    return len(data)


def _read_header(shard: Path) -> dict[str, Place]:
    """A safetensors file's header: 8 bytes of its length, then JSON of each tensor's type, shape and bytes."""
    try:
        with shard.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > shard.stat().st_size:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {
            key: Place(shard, 8 + length + entry["data_offsets"][0], tuple(entry["shape"]), DTYPES[entry["dtype"]])
            for key, entry in header.items()
        }
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{shard}: not a readable shard ({error}). Delete it: it will be encoded anew.") from error
