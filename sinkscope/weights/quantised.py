"""The tensors of a checkpoint as numbers: what is stored quantised is found by its companions and dequantised.

    mlp.down_proj.weight  +  mlp.down_proj.weight_scale_inv   ──>  mlp.down_proj.weight  float32

One tensor at a time; everything else passes through as it is stored.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sinkscope.errors import InputError, UnsupportedModelError
from sinkscope.weights import unpack
from sinkscope.weights.files import Memory
from sinkscope.weights.safetensors_source import BITS, DTYPES, Entry, SafetensorsFiles

# The methods whose tensors are known to mean what their names say.
METHODS = ("fp8", "fbgemm_fp8", "compressed-tensors", "bitsandbytes", "gptq", "awq", "mxfp4", "modelopt")
_BITSANDBYTES = re.compile(r"^(.+)\.quant_state\.bitsandbytes__(nf4|fp4)$")
_BITSANDBYTES_ROLES = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_GPTQ_ROLES = ("qweight", "qzeros", "scales", "g_idx")
_PACKED_ROLES = (
    "weight_packed",
    "weight_scale",
    "weight_shape",
    "weight_zero_point",
    "weight_g_idx",
    "weight_global_scale",
)
# What quantised modules keep beside their weight, of no use for it.
_BESIDE = re.compile(r"\.(weight_format|input_scale|output_scale|activation_scale|input_global_scale|k_scale|v_scale)$")


@dataclass(frozen=True)
class Packed:
    """A quantised tensor: in which way, and the names of the stored tensors that make it, by their role."""

    kind: str
    parts: dict[str, str]


class Dequantised:
    """The tensors of safetensors files, with the quantised ones under the name of the weight that they stand for.

    Parameters
    ----------
    files : SafetensorsFiles
        What is stored.
    settings : dict, optional
        ``quantization_config`` of the model's config.
    """

    def __init__(self, files: SafetensorsFiles, settings: dict[str, Any] | None) -> None:
        self.files = files
        self._settings = settings or {}
        self.method = str(self._settings.get("quant_method") or "") or None
        self._packed = find_packed(set(files.names), self.method)
        if self.method is None:
            # Without a word on quantisation, a scale beside a tensor of floats is a parameter of its own.
            self._packed = {
                name: packed
                for name, packed in self._packed.items()
                if packed.kind != "scaled" or BITS[files.entry(packed.parts["weight"]).dtype] == 8
            }
        hidden = {name for packed in self._packed.values() for name in packed.parts.values()}
        self._plain = [name for name in files.names if name not in hidden and not _BESIDE.search(name)]

    @property
    def names(self) -> Iterable[str]:
        """The names of all tensors, as if nothing were quantised."""
        return [*self._plain, *self._packed]

    @property
    def bytes_read(self) -> int:
        """Bytes read so far."""
        return self.files.bytes_read

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor as `read` gives it, None where that shows only when it is read.

        Raises
        ------
        UnsupportedModelError
            If it is stored in a dtype that holds no numbers as they are.
        """
        packed = self._packed.get(name)
        if packed is None:
            entry = self.files.entry(name)
            self._refuse_unknown(name, entry.dtype)
            return entry.shape
        if packed.kind == "scaled":
            entry = self.files.entry(packed.parts["weight"])
            return (*entry.shape[:-1], 2 * entry.shape[-1]) if self._holds_fp4(entry) else entry.shape
        if packed.kind == "mxfp4":
            blocks = self.files.entry(packed.parts["blocks"]).shape
            return (*blocks[:-3], 2 * blocks[-2] * blocks[-1], blocks[-3])
        return None

    @property
    def memory(self) -> Memory | None:
        """Where the files are read to."""
        return self.files.memory

    @memory.setter
    def memory(self, memory: Memory | None) -> None:
        self.files.memory = memory

    def nbytes(self, name: str, index: int | None = None) -> int:
        """Bytes that `read` takes from the files."""
        packed = self._packed.get(name)
        entries = [self.files.entry(part) for part in (packed.parts.values() if packed else (name,))]
        if index is None:
            return sum(entry.nbytes for entry in entries)
        count = entries[0].shape[0]
        return sum(entry.nbytes // count if entry.shape[:1] == (count,) else entry.nbytes for entry in entries)

    def read(self, name: str, index: int | None = None) -> Tensor:
        """A tensor in its stored float dtype, or float32 where it is quantised; or its slice along the first axis.

        Raises
        ------
        InputError
            If it cannot be read, or does not fit together.
        UnsupportedModelError
            If it is quantised in a way that is not read here.
        """
        packed = self._packed.get(name)
        if packed is None:
            self._refuse_unknown(name, self.files.entry(name).dtype)
            tensor = self.files.read(name, index)
            if tensor.element_size() > 1:
                return tensor
            if self.method is not None:
                raise InputError(
                    f"{self.file_of(name)}: {name} is quantised by {self.method}, but its scales are missing"
                )
            return tensor.to(torch.float32)
        if self.method is not None and self.method not in METHODS:
            raise UnsupportedModelError(self._refusal(name))
        try:
            return self._unpack(name, packed, index)
        except (KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, InputError | UnsupportedModelError):
                raise
            raise InputError(
                f"the tensors that make {name} in {self.files.place.label} do not fit together ({error!r})"[:300]
            ) from error

    def file_of(self, name: str) -> str:
        """What messages call the file that holds the tensor `name`."""
        packed = self._packed.get(name)
        return self.files.file_of(next(iter(packed.parts.values())) if packed else name)

    def close(self) -> None:
        """Close the files."""
        self.files.close()

    def _unpack(self, name: str, packed: Packed, index: int | None) -> Tensor:
        if packed.kind == "scaled":
            return self._scaled(name, packed, index)
        if packed.kind == "mxfp4":
            return unpack.mxfp4_experts(*(self.files.read(packed.parts[role], index) for role in ("blocks", "scales")))
        tensors = {role: self.files.read(part) for role, part in packed.parts.items()}
        if packed.kind == "bitsandbytes":
            state = json.loads(tensors.pop("state").numpy().tobytes())
            return unpack.bitsandbytes_4bit(tensors.pop("weight"), state, tensors)
        if packed.kind == "fp4":
            factor = 1.0 / float(tensors["weight_global_scale"]) if "weight_global_scale" in tensors else 1.0
            return unpack.fp4(tensors["weight_packed"], tensors["weight_scale"], factor)
        if packed.kind == "integers":
            return unpack.packed_integers(tensors)
        bits = int(self._settings.get("bits") or self._settings.get("w_bit") or 4)
        if self.method == "awq":
            version = str(self._settings.get("version") or "gemm").lower()
            if version != "gemm":
                raise UnsupportedModelError(f"{name}: AWQ in its {version} layout is not read; only gemm is")
            return unpack.awq(tensors, bits)
        if bits not in (2, 4, 8):
            raise UnsupportedModelError(f"{name}: GPTQ with {bits} bits is not read; only 2, 4 and 8 bits are")
        return unpack.gptq(tensors, bits, 0 if self._settings.get("checkpoint_format") == "gptq_v2" else 1)

    def _scaled(self, name: str, packed: Packed, index: int | None) -> Tensor:
        entry = self.files.entry(packed.parts["weight"])
        self._refuse_unknown(name, entry.dtype, quantised=True)
        tensors: dict[str, Tensor] = {}
        for role, part in packed.parts.items():
            stacked = self.files.entry(part).shape[:1] == entry.shape[:1]
            tensors[role] = self.files.read(part, index if role == "weight" or stacked else None)
        weight, scale = tensors["weight"], tensors["scale"]
        if packed.parts["scale"].endswith(".SCB"):
            scale = scale.float() / 127.0
        if self._holds_fp4(entry):
            weight = unpack.unpack_fp4(weight)
        block = self._settings.get("weight_block_size")
        return unpack.scaled(weight, scale, tensors.get("zero"), tuple(block) if block else None)

    def _holds_fp4(self, entry: Entry) -> bool:
        """Whether the bytes of an FP8 checkpoint hold two 4-bit floats each, as its experts may."""
        return self.method == "fp8" and entry.dtype == "I8"

    def _refuse_unknown(self, name: str, dtype: str, quantised: bool = False) -> None:
        kind = DTYPES.get(dtype)
        known = kind is not None and (kind.is_floating_point or (quantised and dtype in ("I8", "U8")))
        if quantised and dtype == "U8":
            known = False
        if not known:
            raise UnsupportedModelError(self._refusal(name, dtype))

    def _refusal(self, name: str, dtype: str | None = None) -> str:
        stored = f"{name} is stored as {dtype}" if dtype else f"{name} is quantised"
        method = f" by {self.method}" if self.method else ""
        return f"{stored}{method}, which is not dequantised here; give the checkpoint before quantisation"


def find_packed(names: set[str], method: str | None) -> dict[str, Packed]:
    """The quantised tensors among `names`, under the name of the weight that each stands for."""
    found: dict[str, Packed] = {}
    for name in names:
        if match := _BITSANDBYTES.match(name):
            base = match[1]
            roles = {role: f"{base}.{role}" for role in _BITSANDBYTES_ROLES if f"{base}.{role}" in names}
            found[base] = Packed("bitsandbytes", {"weight": base, "state": name, **roles})
        elif name.endswith(".qweight"):
            stem = name.removesuffix("qweight")
            roles = {role: stem + role for role in _GPTQ_ROLES if stem + role in names}
            found[f"{stem}weight"] = Packed("grouped", roles)
        elif name.endswith(".weight_packed"):
            stem = name.removesuffix("weight_packed")
            roles = {role: stem + role for role in _PACKED_ROLES if stem + role in names}
            found[f"{stem}weight"] = Packed("integers" if "weight_shape" in roles else "fp4", roles)
        elif name.endswith("_blocks") and f"{name.removesuffix('blocks')}scales" in names:
            base = name.removesuffix("_blocks")
            found[base] = Packed("mxfp4", {"blocks": name, "scales": f"{base}_scales"})
        elif (scaled := _scaled_weight(name, names, method)) is not None:
            zero = f"{scaled}_zero_point"
            roles = {"weight": scaled, "scale": name} | ({"zero": zero} if zero in names else {})
            found[scaled] = Packed("scaled", roles)
    return found


def _scaled_weight(name: str, names: set[str], method: str | None) -> str | None:
    """The weight that belongs to a scale of this name."""
    for suffix, instead in (("_scale_inv", ""), ("_scale", ""), (".SCB", ".weight"), (".scale", ".weight")):
        if not name.endswith(suffix) or (suffix == ".scale" and method != "fp8"):
            continue
        weight = name.removesuffix(suffix) + instead
        if weight in names:
            return weight
    return None
