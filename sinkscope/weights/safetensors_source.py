"""Tensors of safetensors files, one at a time: the header is read, then the bytes of what is wanted.

Format: 8 bytes (little-endian length of the header), a JSON object {name: {dtype, shape, data_offsets}}, the data.
https://github.com/huggingface/safetensors#format
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sinkscope.errors import InputError
from sinkscope.weights.files import ByteRanges, Memory, first_line
from sinkscope.weights.places import Place

MAX_HEADER_BYTES = 100 * 10**6
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# Bits of one entry. Formats below a byte have no entry in DTYPES: torch cannot hold them as such.
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
    "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
DTYPES: dict[str, torch.dtype] = {
    key: getattr(torch, name) for key, name in _TORCH_NAMES.items() if hasattr(torch, name)
}


@dataclass(frozen=True)
class Entry:
    """Where one tensor is: `begin` counts from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


def read_header(file: ByteRanges) -> dict[str, Entry]:
    """The tensors of one file.

    Raises
    ------
    InputError
        If the file is truncated, or its header is not that of a safetensors file.
    """
    damaged = f"{file.label} is truncated or no safetensors file"
    if file.size < 8:
        raise InputError(damaged)
    length = int.from_bytes(file.read(0, 8).tobytes(), "little")
    if length > MAX_HEADER_BYTES:
        raise InputError(f"{damaged}: its header would take {length} bytes, more than {MAX_HEADER_BYTES}")
    if 8 + length > file.size:
        raise InputError(f"{damaged}: it ends inside its header")
    try:
        header = json.loads(file.read(8, length).tobytes())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{damaged}: its header is not valid JSON ({first_line(error)})") from error
    if not isinstance(header, dict):
        raise InputError(f"{damaged}: its header is not a JSON object")
    return {name: _entry(name, value, 8 + length, file) for name, value in header.items() if name != "__metadata__"}


def _entry(name: str, value: Any, start: int, file: ByteRanges) -> Entry:
    place = f"{file.label}: the header's entry for {name!r}"
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"{place} lacks dtype, shape or offsets; the file is damaged") from error
    if dtype not in BITS:
        raise InputError(f"{place} has the unknown dtype {dtype!r}; a newer version of the format may hold it")
    if not isinstance(shape, list) or not all(_is_size(number) for number in (*shape, begin, end)):
        raise InputError(f"{place} has a shape or offsets that are no sizes; the file is damaged")
    if 8 * (end - begin) != math.prod(shape) * BITS[dtype]:
        raise InputError(f"{place} has {end - begin} bytes for {dtype} {shape}; the file is damaged")
    if start + end > file.size:
        raise InputError(
            f"{file.label} is truncated: {name} should end at byte {start + end}, not {file.size}; get it again"
        )
    return Entry(dtype, tuple(shape), start + begin, end - begin)


def _is_size(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


class SafetensorsFiles:
    """The tensors of a checkpoint: one safetensors file, or shards with an index.

    Parameters
    ----------
    place : Place
        The folder that holds them.

    Raises
    ------
    InputError
        If it holds no safetensors, or if the index names files that are not there.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._files: dict[str, ByteRanges] = {}
        self._headers: dict[str, dict[str, Entry]] = {}
        self.memory: Memory | None = None
        present = place.names()
        if SINGLE_FILE in present:
            self._where = dict.fromkeys(self._header(SINGLE_FILE), SINGLE_FILE)
        elif INDEX_FILE in present:
            self._where = read_index(place, present)
        else:
            raise InputError(_no_safetensors(place.label, present))

    @property
    def names(self) -> Iterable[str]:
        """The names of all tensors."""
        return self._where.keys()

    @property
    def bytes_read(self) -> int:
        """Bytes read so far, headers included."""
        return sum(file.bytes_read for file in self._files.values())

    def file_of(self, name: str) -> str:
        """What messages call the file that holds the tensor `name`."""
        return f"{self._where[name]} of {self.place.label}"

    def entry(self, name: str) -> Entry:
        """Dtype, shape and place of a tensor.

        Raises
        ------
        InputError
            If its file is missing or damaged, or if the index names it and the file does not hold it.
        """
        file = self._where[name]
        entry = self._header(file).get(name)
        if entry is None:
            raise InputError(f"{INDEX_FILE} of {self.place.label} says that {file} holds {name}, which it does not")
        return entry

    def read(self, name: str, index: int | None = None) -> Tensor:
        """A tensor as it is stored, or its slice at `index` along the first axis.

        Raises
        ------
        InputError
            If it cannot be read, or if torch has no dtype for it.
        """
        entry = self.entry(name)
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            raise InputError(f"{self.file_of(name)}: this version of torch has no dtype for {entry.dtype} ({name})")
        begin, count, shape = _span(entry, index)
        data = self._open(self._where[name]).read(begin, count, self.memory)
        return torch.from_numpy(data).view(dtype).reshape(shape)

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()

    def _open(self, name: str) -> ByteRanges:
        if name not in self._files:
            self._files[name] = self.place.open(name)
        return self._files[name]

    def _header(self, name: str) -> dict[str, Entry]:
        if name not in self._headers:
            self._headers[name] = read_header(self._open(name))
        return self._headers[name]


def _span(entry: Entry, index: int | None) -> tuple[int, int, tuple[int, ...]]:
    if index is None:
        return entry.begin, entry.nbytes, entry.shape
    count = entry.nbytes // entry.shape[0]
    return entry.begin + index * count, count, entry.shape[1:]


def read_index(place: Place, present: Iterable[str]) -> dict[str, str]:
    """The file that holds each tensor, by the index of a sharded checkpoint.

    Raises
    ------
    InputError
        If the index is damaged, or names files that are not there.
    """
    index = place.read_json(INDEX_FILE)
    where = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
        raise InputError(f"{INDEX_FILE} of {place.label} holds no weight_map; get it again")
    # A shard may lie in a folder below, or on a server that lists nothing; then it has to be asked for.
    missing = [file for file in sorted(set(where.values()) - set(present)) if not place.holds(file)]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{place.label} lacks {missing[0]}{others}, named by its index; download the missing shards")
    return where


def _no_safetensors(label: str, present: list[str]) -> str:
    if any(name.lower().endswith(PICKLES) for name in present):
        return (
            f"{label} holds its weights as pickles only, which are never opened here; convert it to safetensors "
            "(load it where you trust it, then save_pretrained)"
        )
    if any(name.endswith(".safetensors") for name in present):
        return f"{label} holds shards but neither {SINGLE_FILE} nor {INDEX_FILE}; download the index too"
    if any(name.lower().endswith(".gguf") for name in present):
        return f"{label} holds GGUF files and no {SINGLE_FILE}; give the path of one .gguf file"
    return f"{label} holds no weights: neither {SINGLE_FILE} nor {INDEX_FILE}"
