"""The seal of a run file: a checksum over its structure, checked before HDF5 parses a byte of it.

HDF5 trusts its own metadata: a flipped bit there can crash the process instead of raising. The structure of a run file
never changes, so its bytes can be checked first, as plain bytes. The seal stands in the dataset `/progress/seal`, which
is made last and so lies near the end of the file, where it is found by its first words.
"""

import json
import os
import secrets
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

WORDS = b"sinkscope run file seal "
SEAL_BYTES = 4096
SEARCHED_BYTES = 2**17
BLOCK = 2**20
"""Bytes that are in memory at a time."""

# Where HDF5's superblock says whether a writer has the file open.
CONSISTENCY_FLAGS = [20, 4]


class UnsealedError(ValueError):
    """A file without a seal: it may be of anybody."""


@dataclass(frozen=True)
class Seal:
    """CRC-32 over all bytes of a file but its mutable ranges.

    Attributes
    ----------
    size : int
        Bytes of the file.
    mutable : list of [offset, length]
        What a run overwrites: ascending, without overlaps.
    attributes : dict of str to [offset, length]
        Where the two attributes that change are, to be overwritten in place.
    structure_checksum : int
    """

    size: int
    mutable: list[list[int]]
    attributes: dict[str, list[int]]
    structure_checksum: int

    def encode(self) -> bytes:
        """`SEAL_BYTES` bytes: words, CRC-32 of the rest, JSON, zeros."""
        text = json.dumps(asdict(self), separators=(",", ":")).encode("ascii")
        data = WORDS + f"{zlib.crc32(text):08x}".encode("ascii") + text
        if len(data) > SEAL_BYTES:
            raise ValueError(f"a seal of {len(data)} bytes does not fit into {SEAL_BYTES}")
        return data.ljust(SEAL_BYTES, b"\0")


def placeholder(length: int) -> str:
    """A value for an attribute that will be found again in the file: random letters."""
    return secrets.token_hex(length)[:length]


def apply_seal(path: Path, mutable: Iterable[tuple[int, int]], seal_offset: int, attributes: dict[str, str]) -> None:
    """Seal a new file whose changing attributes hold placeholders.

    Parameters
    ----------
    path : Path
        The closed file.
    mutable : iterable of (offset, length)
        Ranges of the datasets that are overwritten later.
    seal_offset : int
        Where the seal goes.
    attributes : dict of str to str
        The placeholders, by attribute.
    """
    size = path.stat().st_size
    with path.open("r+b") as file:
        ranges = sorted([CONSISTENCY_FLAGS, *map(list, mutable), [seal_offset, SEAL_BYTES]])
        places: dict[str, list[int]] = {}
        overlap = max(map(len, attributes.values()), default=0)
        for start, stop in _gaps(ranges, size):
            for begin in range(start, stop, BLOCK):
                content = _read(file, begin, min(stop, begin + BLOCK + overlap))
                for name, value in attributes.items():
                    if (found := content.find(value.encode("ascii"))) >= 0:
                        places[name] = [begin + found, len(value)]
        ranges = sorted([*ranges, *places.values()])
        if len(places) != len(attributes):
            raise ValueError("the attributes were not found in the new file")
        seal = Seal(size, ranges, places, _checksum(file, ranges, size))
        file.seek(seal_offset)
        file.write(seal.encode())


def check_seal(path: Path) -> Seal:
    """The seal of a file, after checking the file's structure against it.

    Raises
    ------
    ValueError
        If there is none, or it does not match.
    """
    with path.open("rb") as file:
        return read_seal(file)


def read_seal(file: BinaryIO) -> Seal:
    """As `check_seal`, of an open file."""
    size = os.fstat(file.fileno()).st_size
    tail = _read(file, max(0, size - SEARCHED_BYTES), size)
    place = tail.rfind(WORDS)
    if place < 0:
        raise UnsealedError("truncated, or not written by sinkscope")
    data = tail[place + len(WORDS) : place + SEAL_BYTES].rstrip(b"\0")
    if data[:8] != f"{zlib.crc32(data[8:]):08x}".encode("ascii"):
        raise ValueError("its seal is damaged")
    seal = Seal(**json.loads(data[8:]))
    if seal.size != size:
        raise ValueError(f"truncated: {size} bytes of {seal.size}")
    if _checksum(file, seal.mutable, size) != seal.structure_checksum:
        raise ValueError("the checksum of its structure does not match")
    return seal


def overwrite_attribute(file: BinaryIO, seal: Seal, name: str, value: str) -> None:
    """Overwrite a changing attribute in place, without HDF5, whose metadata thus stay as they are."""
    offset, length = seal.attributes[name]
    file.seek(offset)
    file.write(value.encode("ascii")[:length].ljust(length, b"\0"))


def _gaps(ranges: list[list[int]], size: int) -> list[tuple[int, int]]:
    """Start and stop of what lies between the ranges."""
    edges = [0] + [edge for offset, length in ranges for edge in (offset, offset + length)] + [size]
    return [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop]


def _read(file: BinaryIO, start: int, stop: int) -> bytes:
    file.seek(start)
    return file.read(stop - start)


def _checksum(file: BinaryIO, ranges: list[list[int]], size: int) -> int:
    value = 0
    for start, stop in _gaps(ranges, size):
        for begin in range(start, stop, BLOCK):
            value = zlib.crc32(_read(file, begin, min(stop, begin + BLOCK)), value)
    return value
