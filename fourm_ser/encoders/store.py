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
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch import Tensor

from fourm_ser.encoders.base import Sequence, length_mask
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
    """Features of one encoder, by key.

    Args:
        root: the folder of all stores.
        name: the encoder's name.
        fingerprint: the encoder's fingerprint.
        made_by: what made the features, written into a new store's store.json.

    Raises:
        InputError: the folder holds a store of another format.
    """

    def __init__(self, root: Path, name: str, fingerprint: str, made_by: Mapping[str, Any]) -> None:
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
        return torch.from_numpy(self._stored(key).astype(np.float32))

    def read_batch(self, keys: Items[str]) -> Sequence:
        """The features of `keys` as one padded batch in float32: (batch, longest, dim) and its mask."""
        rows = [self._stored(key) for key in keys]
        lengths = torch.tensor([len(row) for row in rows])
        longest = int(lengths.max())
        features = np.zeros((len(rows), longest, rows[0].shape[1]), max(row.dtype for row in rows))
        for into, row in zip(features, rows, strict=True):
            into[: len(row)] = row
        return Sequence(torch.from_numpy(features).float(), length_mask(lengths, longest))

    def _stored(self, key: str) -> np.ndarray:
        """The features of `key` as they were written; read-only.

        A positioned read of just these bytes: as fast as a memory map, and resident memory does not grow with use.
        """
        place = self._index[key]
        if place.shard not in self._open:
            self._open[place.shard] = os.open(place.shard, os.O_RDONLY)
        size = place.shape[0] * place.shape[1] * place.dtype.itemsize
        data = os.pread(self._open[place.shard], size, place.offset)
        if len(data) != size:
            raise InputError(f"{place.shard}: the shard ends too early. Delete it: it will be encoded anew.")
        return np.frombuffer(data, dtype=place.dtype).reshape(place.shape)

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
