"""The header of a GGUF file: metadata and the table of its tensors, without walking through the vocabulary in Python.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinkscope.errors import InputError

_VERSIONS = (2, 3)
_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_AXES = 8


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: `shape` as torch has it (rows first), `begin` counted from the start of the file."""

    name: str
    kind: int
    shape: tuple[int, ...]
    begin: int
    nbytes: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says about itself.

    Attributes
    ----------
    metadata : dict
        Values by key. Arrays of the tokenizer are replaced by their length.
    fields : list of (str, bytes)
        Every key with its bytes in the file, without the tokenizer's arrays.
    tensors : dict of str to GgufTensor
        By name.
    table : bytes
        The table of tensors as it is in the file.
    size : int
        Of the file, in bytes.
    """

    metadata: dict[str, Any]
    fields: list[tuple[str, bytes]]
    tensors: dict[str, GgufTensor]
    table: bytes
    size: int

    @property
    def architecture(self) -> str:
        """The architecture as llama.cpp calls it."""
        return str(self.metadata["general.architecture"])

    def write_stub(self, path: Path) -> None:
        """Write a file with the same header and no data, and without the tokenizer's arrays.

        The readers at hand take many seconds for a large vocabulary, of which a config needs only the size.
        """
        fields = [data for _, data in self.fields]
        size_key = f"{self.architecture}.vocab_size"
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        if size_key not in self.metadata and isinstance(tokens, int):
            fields.append(_text(size_key) + struct.pack("<II", 4, tokens))
        with path.open("wb") as file:
            file.write(b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(fields)))
            file.write(b"".join(fields) + self.table)
            # Readers map the data of every tensor; a hole in the file gives them something to map.
            file.truncate(self.size)


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file.

    Raises
    ------
    InputError
        If the file is truncated or damaged, of an unknown version, or one part of several.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _Cursor(data, path).header()
    except InputError:
        raise
    except (struct.error, UnicodeDecodeError, IndexError, ValueError, OverflowError, OSError, MemoryError) as error:
        raise InputError(f"{path} is truncated or damaged: its GGUF header cannot be read; get it again") from error
    parts = header.metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise InputError(f"{path} is one of {parts} parts; join them with llama-gguf-split --merge first")
    for tensor in header.tensors.values():
        if tensor.begin + tensor.nbytes > header.size:
            raise InputError(
                f"{path} is truncated: {tensor.name} should end at byte {tensor.begin + tensor.nbytes}, the file has "
                f"{header.size}; get it again"
            )
    return header


class _Cursor:
    """Walks through the header."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.place = 0

    def take(self, code: str) -> Any:
        value = struct.unpack_from(code, self.data, self.place)[0]
        self.place += struct.calcsize(code)
        return value

    def text(self) -> str:
        length = self.take("<Q")
        if length > len(self.data) - self.place:
            raise ValueError("a string ends behind the file")
        self.place += length
        return self.data[self.place - length : self.place].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind in _FORMATS:
            return self.take(_FORMATS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise InputError(f"{self.path} holds metadata of the unknown type {kind}")
        kind, count = self.take("<I"), self.take("<Q")
        if kind in _FORMATS:
            values = struct.unpack_from(f"<{count}{_FORMATS[kind][1]}", self.data, self.place)
            self.place += count * struct.calcsize(_FORMATS[kind])
            return list(values)
        return [self.value(kind) for _ in range(min(count, len(self.data)))]

    def skip_strings(self, count: int) -> None:
        data, place = self.data, self.place
        length = struct.Struct("<Q").unpack_from
        for _ in range(count):
            place += 8 + length(data, place)[0]
        self.place = place

    def header(self) -> GgufHeader:
        if self.data[:4] != b"GGUF":
            raise InputError(f"{self.path} is not a GGUF file (its first bytes are not GGUF); download it again")
        self.place = 4
        version = self.take("<I")
        if version not in _VERSIONS:
            raise InputError(f"{self.path} is of GGUF version {version}; versions 2 and 3 are read, little-endian")
        tensor_count, field_count = self.take("<Q"), self.take("<Q")
        metadata: dict[str, Any] = {}
        fields: list[tuple[str, bytes]] = []
        for _ in range(field_count):
            begin = self.place
            key, kind = self.text(), self.take("<I")
            if key.startswith("tokenizer.") and kind == _ARRAY:
                metadata[key] = self._skip_array()
                continue
            metadata[key] = self.value(kind)
            fields.append((key, self.data[begin : self.place]))
        if "general.architecture" not in metadata:
            raise InputError(f"{self.path} does not say its architecture")
        begin = self.place
        entries = [self._tensor() for _ in range(tensor_count)]
        table = self.data[begin : self.place]
        alignment = int(metadata.get("general.alignment", 32))
        start = math.ceil(self.place / alignment) * alignment
        tensors = {
            name: GgufTensor(name, kind, shape, start + offset, self._nbytes(name, kind, shape))
            for name, shape, kind, offset in entries
        }
        return GgufHeader(metadata, fields, tensors, table, len(self.data))

    def _skip_array(self) -> int:
        kind, count = self.take("<I"), self.take("<Q")
        if kind == _STRING:
            self.skip_strings(count)
        else:
            self.place += count * struct.calcsize(_FORMATS[kind])
        return int(count)

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, axes = self.text(), self.take("<I")
        if axes > _MAX_AXES:
            raise ValueError("too many axes")
        shape = tuple(reversed([self.take("<Q") for _ in range(axes)]))
        return name, shape, self.take("<I"), self.take("<Q")

    def _nbytes(self, name: str, kind: int, shape: tuple[int, ...]) -> int:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            entries, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{self.path}: {name} is quantised in a way (type {kind}) that this version of gguf does not know"
            ) from error
        return math.prod(shape) // entries * size


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data
