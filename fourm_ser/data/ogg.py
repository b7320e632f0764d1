"""The links of an OGG: streams of sound one behind the other in a file, as recorders and radio stations write them.

libsndfile reads one of them, to the sample, and stops; FFmpeg reads on, but does not cut a stream's end where it is.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from fourm_ser.errors import InputError

HEADER = 27  # bytes of a page's header before its table of lengths (RFC 3533, section 6)
FIRST = 2  # the flag of a stream's first page
PADDING = b"\0 \t\r\n"  # what programs fill files up with behind the sound


def ogg_links(path: Path) -> list[tuple[int, int]]:
    """Where each link of an OGG begins and ends, in bytes.

    There is none where a file is no OGG, or one whose links hold several streams, such as a picture and sound.

    Raises:
        InputError: an OGG that is cut off or damaged.
    """
    begins: list[int] = []
    last, follows_first = 0, False
    for begin, end, first in _pages(path):
        if first and follows_first:
            return []
        if first:
            begins.append(begin)
        last, follows_first = end, first
    return list(zip(begins, [*begins[1:], last], strict=True)) if begins else []


def _pages(path: Path) -> Iterator[tuple[int, int, bool]]:
    """Where each page begins and ends, and whether it is a stream's first."""
    size, begin = os.path.getsize(path), 0
    with path.open("rb") as file:
        while begin < size:
            file.seek(begin)
            header = file.read(HEADER)
            if header[:4] != b"OggS":
                if begin and (header + file.read(HEADER)).strip(PADDING):
                    raise InputError(f"{path}: damaged: no page of the OGG begins at byte {begin}.")
                return
            lengths = file.read(header[26]) if len(header) == HEADER else b""
            end = begin + HEADER + len(lengths) + sum(lengths)
            if len(header) < HEADER or len(lengths) < header[26] or end > size:
                raise InputError(f"{path}: truncated: it ends within a page of the OGG.")
            yield begin, end, bool(header[5] & FIRST)
            begin = end
