"""The embedding store: a frozen encoder reads each utterance once, ever.

A folder an encoder holds `store.json`, which says what made it, and shards in safetensors. A shard's own header is the
index: where each key's features lie in the file. Shards appear whole, so index and data cannot disagree.
"""

import errno
import json
import logging
import math
import os
import struct
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch import Tensor

from fourm_ser.encoders.base import Packed
from fourm_ser.errors import InputError
from fourm_ser.files import remove_temporary, whole, write_json

log = logging.getLogger(__name__)

FORMAT = 1
SUM = "sum/"  # before a key in a shard's metadata: the checksum of its features
AGAIN = " The same command, or resume=, encodes its utterances anew and goes on."
DTYPES: dict[str, np.dtype] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}


class Place(NamedTuple):
    """Where one utterance's features lie: file, first byte, shape and type; and what `checksum` gave of them.

    Shards of earlier versions have no checksums: None.
    """

    shard: Path
    offset: int
    shape: tuple[int, int]
    dtype: np.dtype
    checksum: str | None


class FeatureStore:
    """Features of one encoder, by key, in a folder of `root`; what they were made by is in the store.json.

    Raises:
        InputError: the folder holds a store of another format.
    """

    def __init__(self, *, root: Path, name: str, fingerprint: str, made_by: Mapping[str, Any]) -> None:
        self.folder = root / f"{name}-{fingerprint}"
        self.folder.mkdir(parents=True, exist_ok=True)
        about = self.folder / "store.json"
        found = _read_format(about)
        if found is None:  # not there, or damaged: it says what the folder's name says
            write_json(about, {"format": FORMAT, "encoder": name, "fingerprint": fingerprint, **made_by})
        elif found != FORMAT:
            raise InputError(
                f"{about}: the store has format {found}, this version reads format {FORMAT}. "
                "Delete the folder: its features will be encoded anew."
            )
        self._index: dict[str, Place] = {}
        self._known: set[Path] = set()
        self._open: dict[Path, int] = {}
        self._verified: set[str] = set()  # keys whose features this process has found to be what was written
        self.refresh()

    def refresh(self) -> None:
        """Read the headers of shards that appeared since."""
        # Where two shards hold a key, the first name wins: every process then reads the same one.
        for shard in sorted(set(self.folder.glob("shard-*.safetensors")) - self._known):
            try:
                places = _read_header(shard)
            except InputError as error:
                log.warning("%s Its utterances are encoded anew.", self._set_aside(shard, str(error)))
                continue
            for key, place in places.items():
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
        for number, (place, length) in enumerate(zip(places, lengths, strict=True)):
            begin, end = end, end + length
            own = values[begin:end] if place.dtype == values.dtype else np.empty(place.shape, place.dtype)
            self._read_into(place, own)
            if place.dtype != values.dtype:
                values[begin:end] = own
            self._verify(keys[number], place, own)
        return Packed(torch.from_numpy(values), torch.tensor(lengths), max(lengths))

    def _read_into(self, place: Place, array: np.ndarray) -> None:
        """Read what lies at a place into an array of its shape and type.

        A positioned read of just these bytes: as fast as a memory map, and resident memory does not grow with use.
        """
        if place.shard not in self._open:
            try:
                self._open[place.shard] = os.open(place.shard, os.O_RDONLY)
            except FileNotFoundError as error:  # set aside by another process
                raise InputError(f"{place.shard}: is not there any more.{AGAIN}") from error
        if _read(self._open[place.shard], array, place.offset) != array.nbytes:
            raise InputError(self._set_aside(place.shard, f"{place.shard}: the shard ends too early.") + AGAIN)

    def _verify(self, key: str, place: Place, features: np.ndarray) -> None:
        """Refuse features that are not what was written; each utterance is looked at once a process.

        Raises:
            InputError: they are others. The shard is set aside, so that its utterances are encoded anew.
        """
        if place.checksum is None or key in self._verified:
            return
        if checksum(features) != place.checksum:
            said = f"{place.shard}: is damaged: the features of an utterance are not those that were written."
            raise InputError(self._set_aside(place.shard, said) + AGAIN)
        self._verified.add(key)

    def _set_aside(self, shard: Path, said: str) -> str:
        """Give a damaged shard a name that no store reads; what was said of it, and where it is."""
        aside = shard.with_name(f"damaged-{shard.name}")
        try:
            os.replace(shard, aside)
        except FileNotFoundError:  # another process was faster
            pass
        except OSError as error:
            return f"{said} It cannot be set aside ({error.strerror}): delete it."
        self._index = {key: place for key, place in self._index.items() if place.shard != shard}
        return f"{said} It is set aside as {aside.name}."

    def write(self, features: Mapping[str, np.ndarray]) -> None:
        """Add a shard: a [time, dim] array of float32 or float16 for each key.

        Raises:
            InputError: the disk is full; shards written before stay as they are.
        """
        shard = self.folder / f"shard-{uuid.uuid4().hex}.safetensors"
        try:
            with whole(shard) as temporary:
                sums = {f"{SUM}{key}": checksum(array) for key, array in features.items()}
                save_file(dict(features), temporary, metadata=sums)
        except (OSError, SafetensorError) as error:
            if getattr(error, "errno", None) != errno.ENOSPC and "No space left" not in str(error):
                raise
            size = sum(array.nbytes for array in features.values())
            raise InputError(
                f"{self.folder}: the disk is full: a shard of {size / 1e6:.1f} MB was to be written. Make room, or "
                "choose another cache; what was encoded before is kept, and the same command goes on from there."
            ) from error
        self.refresh()

    def clear(self) -> None:
        """Remove what killed processes were writing: none that still writes takes an hour for a shard."""
        remove_temporary(self.folder, older=3600.0)

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


def checksum(features: np.ndarray) -> str:
    """The XXH3 hash of features [time, dim] as they lie in memory, which takes a hundredth of a CRC's time."""
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(features).data)


def _read_format(about: Path) -> int | None:
    """The format that a store.json states; None where there is none, or it is damaged."""
    try:
        found = json.loads(about.read_text(encoding="utf-8"))["format"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        log.warning("%s: is damaged, and written anew.", about)
        return None
    return found if isinstance(found, int) else None


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
            size = shard.stat().st_size
            if length > size:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        sums = header.pop("__metadata__", {})
        places = {}
        for key, entry in header.items():
            shape, dtype, (begin, end) = tuple(entry["shape"]), DTYPES[entry["dtype"]], entry["data_offsets"]
            if len(shape) != 2 or end - begin != math.prod(shape) * dtype.itemsize or 8 + length + end > size:
                raise ValueError(f"{key} does not lie within it")
            places[key] = Place(shard, 8 + length + begin, shape, dtype, sums.get(f"{SUM}{key}"))
        return places
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{shard}: not a readable shard ({error}).") from error
