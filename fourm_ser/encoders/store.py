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
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from rich.progress import track
from safetensors.numpy import save_file
from torch import Tensor

from fourm_ser.encoders.base import Packed
from fourm_ser.errors import InputError
from fourm_ser.files import YOUNG, made_once, regular, remove_temporary, whole, write_json

log = logging.getLogger(__name__)

FORMAT = 1
SUM = "sum/"  # before a key in a shard's metadata: the checksum of its features
LONG = 1 << 30  # bytes: verifying more takes so long that progress is shown
DTYPES: dict[str, np.dtype] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}


class Place(NamedTuple):
    """Where one utterance's features lie: file, first byte, shape and type; and what `checksum` gave of them.

    The checksum is None in shards of earlier versions, which have none, and once what was read has been found to be it.
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
        about = self.folder / "store.json"
        found = _read_format(about)
        if found is None:  # not there, or damaged: it says what the folder's name says
            with suppress(OSError):  # of a cache that may only be read, what is there serves
                write_json(about, {"format": FORMAT, "encoder": name, "fingerprint": fingerprint, **made_by})
        elif found != FORMAT:
            raise InputError(
                f"{about}: the store has format {found}, this version reads format {FORMAT}. "
                "Delete the folder: its features will be encoded anew."
            )
        self._index: dict[str, Place] = {}
        self._known: set[Path] = set()
        self._unread: set[Path] = set()  # damaged shards that cannot be set aside
        self._open: dict[Path, int] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the headers of shards that appeared since, and forget those that were set aside."""
        found = set(self.folder.glob("shard-*.safetensors"))
        for shard in self._known - self._unread - found:
            self._forget(shard)
        # Where two shards hold a key, the first name wins: every process then reads the same one.
        for shard in sorted(found - self._known):
            self._known.add(shard)
            try:
                places = _read_header(shard)
            except InputError as error:
                log.warning("%s Its utterances are encoded anew.", self._set_aside(shard, str(error)))
                continue
            for key, place in places.items():
                self._index.setdefault(key, place)

    def verify(self, keys: Iterable[str]) -> None:
        """Set aside the shards in which features of `keys` are not what was written: then the store lacks them.

        Each utterance is looked at once a process.
        """
        found = [(self._index[key], key) for key in dict.fromkeys(keys) if key in self._index]
        found = sorted((place, key) for place, key in found if place.checksum is not None)
        held = np.empty(0, np.uint8)
        sizes = [math.prod(place.shape) * place.dtype.itemsize for place, _ in found]
        for place, key, size in track(
            [(place, key, size) for (place, key), size in zip(found, sizes, strict=True)],
            "verifying stored features",
            transient=True,
            disable=sum(sizes) < LONG,
        ):
            if key not in self._index:  # of a shard that has just been set aside
                continue
            if size > len(held):
                held = np.empty(2 * size, np.uint8)  # once and again: memory that is new costs more than to read
            said = self._read_into(key, place, held[:size])
            if said:
                log.warning("%s Its utterances are encoded anew.", said)

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
            said = self._read_into(keys[number], place, own)
            if said:
                raise InputError(f"{said} The same command, or resume=, encodes its utterances anew and goes on.")
            if place.dtype != values.dtype:
                values[begin:end] = own
        return Packed(torch.from_numpy(values), torch.tensor(lengths), max(lengths))

    def _read_into(self, key: str, place: Place, array: np.ndarray) -> str:
        """Read what lies at a place into an array of as many bytes; what is wrong with its shard, or nothing.

        A positioned read of just these bytes: as fast as a memory map, and resident memory does not grow with use. A
        shard with which something is wrong is set aside.
        """
        try:
            descriptor = self._open.get(place.shard)
            if descriptor is None:
                descriptor = self._open[place.shard] = os.open(place.shard, os.O_RDONLY)
            count = _read(descriptor, array, place.offset)
        except FileNotFoundError:  # set aside by another process
            return self._set_aside(place.shard, f"{place.shard}: is not there any more.")
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return self._set_aside(place.shard, f"{place.shard}: the disk cannot read it.")
        if count != array.nbytes:
            return self._set_aside(place.shard, f"{place.shard}: the shard ends too early.")
        if place.checksum is not None:
            if checksum(array) != place.checksum:
                said = f"{place.shard}: is damaged: the features of an utterance are not those that were written."
                return self._set_aside(place.shard, said)
            self._index[key] = place._replace(checksum=None)  # once a process
        return ""

    def _set_aside(self, shard: Path, said: str) -> str:
        """Give a damaged shard a name that no store reads; what was said of it, and where it is."""
        self._forget(shard)
        aside = shard.with_name(f"damaged-{shard.name}")
        try:
            os.replace(shard, aside)
        except FileNotFoundError:  # another process was faster
            return said
        except OSError as error:  # a folder that is only read: other processes meet it again
            self._known.add(shard)
            self._unread.add(shard)
            return f"{said} It cannot be set aside ({error.strerror}): delete it."
        return f"{said} It is set aside as {aside.name}."

    def _forget(self, shard: Path) -> None:
        self._known.discard(shard)
        self._index = {key: place for key, place in self._index.items() if place.shard != shard}
        if shard in self._open:
            os.close(self._open.pop(shard))

    def write(self, features: Mapping[str, np.ndarray]) -> None:
        """Add a shard: a [time, dim] array of float32 or float16 for each key.

        Raises:
            InputError: the disk is full; shards written before stay as they are.
        """
        shard = self.folder / f"shard-{uuid.uuid4().hex}.safetensors"
        sums = {f"{SUM}{key}": checksum(array) for key, array in features.items()}
        with whole(shard) as temporary:
            save_file(dict(features), temporary, metadata=sums)
        self.refresh()

    def clear(self) -> None:
        """Remove what killed processes were writing: none that still writes takes an hour for a shard."""
        remove_temporary(self.folder, older=YOUNG)

    def lock(self) -> AbstractContextManager[None]:
        """A lock that saves several processes the same work; the store is right without it."""
        return made_once(self.folder / "store.lock", "a part of the features")

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
        found = json.loads(regular(about).read_text(encoding="utf-8"))["format"]
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
        with regular(shard).open("rb") as file:
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
