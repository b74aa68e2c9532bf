"""Parameters from a GGUF file: names and layouts as transformers loads them, dequantised one tensor at a time.

For a few architectures transformers has rules of conversion as for safetensors; for the others, the gguf package names
the tensors and transformers' tensor processors undo what llama.cpp did to them (norm weights plus one, transposes).
"""

import importlib
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from sinkscope.backbone.skeleton import build_skeleton, read_config
from sinkscope.errors import InputError, UnsupportedModelError
from sinkscope.weights.conversion import Recipe
from sinkscope.weights.files import LocalRanges, Memory, first_line
from sinkscope.weights.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from sinkscope.weights.parameters import Weights
from sinkscope.weights.unpack import row_blocks

# Sizes that the file states and that some versions of transformers leave at the default of another model.
_EXPERT_SIZES = {
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
_FLOATS = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}


def open_gguf(path: Path) -> tuple[PreTrainedConfig, Weights]:
    """The config and the parameters of a GGUF file.

    Raises
    ------
    InputError
        If the file is damaged, or if its tensors cannot be named.
    UnsupportedModelError
        If transformers cannot build its architecture.
    """
    header = read_gguf_header(path)
    config = _config(path, header)
    model = build_skeleton(str(path), config)
    mapping = _mapping(header, config)
    if mapping is not None:
        return config, Weights(model, GgufTensors(path, header, native=True), str(path), mapping=mapping)
    processor = _processor(header, config)
    names = name_map(model, header, processor, config)
    tensors = GgufTensors(path, header, processor, names)
    return config, Weights(model, tensors, str(path), recipes=_recipes(header, names))


class GgufTensors:
    """The tensors of a GGUF file under the names that they have there.

    Parameters
    ----------
    path : Path
        The file.
    header : GgufHeader
        Its header.
    processor : TensorProcessor, optional
        Of transformers: undoes what llama.cpp did to a tensor.
    names : dict of str to str, optional
        The model's name for each tensor, which the processor asks for.
    native : bool
        Dequantise with transformers' own code, which loads these architectures, and leave half floats as they are.
    """

    def __init__(
        self,
        path: Path,
        header: GgufHeader,
        processor: Any = None,
        names: dict[str, str] | None = None,
        native: bool = False,
    ) -> None:
        self._file = LocalRanges(path)
        self.memory: Memory | None = None
        self._tensors = header.tensors
        self._processor = processor
        self._names = names or {}
        self._native = native

    @property
    def names(self) -> Iterable[str]:
        """The names of all tensors."""
        return self._tensors.keys()

    @property
    def bytes_read(self) -> int:
        """Bytes of tensors read so far."""
        return self._file.bytes_read

    @property
    def method(self) -> None:
        """None: whatever the file holds, it says of every tensor how."""
        return None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """As the file has it; None where a processor may change it."""
        shape = self._tensors[name].shape
        return None if self._processor is not None and len(shape) != 3 else shape

    def nbytes(self, name: str, index: int | None = None) -> int:
        """Bytes in the file."""
        tensor = self._tensors[name]
        return tensor.nbytes if index is None else tensor.nbytes // tensor.shape[0]

    def read(self, name: str, index: int | None = None) -> Tensor:
        """A tensor as transformers has it, or its slice along the first axis.

        Raises
        ------
        InputError
            If it cannot be read.
        """
        tensor = self._tensors[name]
        shape = tensor.shape if index is None else tensor.shape[1:]
        count = self.nbytes(name, index)
        values = self._numbers(tensor, self._file.read(tensor.begin + (index or 0) * count, count, self.memory), shape)
        if self._processor is None or len(tensor.shape) == 3:
            return values
        result = self._processor.process(
            weights=values.numpy(), name=name, tensor_key_mapping=self._names, parsed_parameters={"tensors": {}}
        )
        return torch.from_numpy(np.ascontiguousarray(result.weights))

    def file_of(self, name: str) -> str:
        """The path of the file."""
        return self._file.label

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _numbers(self, tensor: GgufTensor, data: np.ndarray, shape: tuple[int, ...]) -> Tensor:
        if tensor.kind in _FLOATS:
            values = torch.from_numpy(data).view(_FLOATS[tensor.kind]).reshape(shape)
            return values if self._native else values.to(torch.float32)
        columns = shape[-1] if shape else 1
        rows = data.reshape(int(np.prod(shape[:-1], dtype=np.int64)), -1)
        result = torch.empty(len(rows), columns, dtype=torch.float32)
        for chosen in row_blocks(len(rows), columns):
            result[chosen] = self._dequantise(rows[chosen], tensor).reshape(-1, columns)
        return result.reshape(shape)

    def _dequantise(self, rows: np.ndarray, tensor: GgufTensor) -> Tensor:
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        try:
            if self._native:
                native = importlib.import_module("transformers.integrations.gguf.dequant")
                flat = torch.from_numpy(rows).reshape(-1)
                return native.dequantize(flat, tensor.kind, torch.float32)
            return torch.from_numpy(dequantize(rows, GGMLQuantizationType(tensor.kind)))
        except (NotImplementedError, ValueError, KeyError) as error:
            kind = GGMLQuantizationType(tensor.kind).name
            raise UnsupportedModelError(
                f"{self._file.label}: {tensor.name} is quantised as {kind}, which is not dequantised here"
            ) from error


def _config(path: Path, header: GgufHeader) -> PreTrainedConfig:
    """The config that transformers makes from the metadata."""
    if header.architecture in _archs("gguf_config_mapping", "GGUF_CONFIG_ARCHS"):
        return read_config(str(path), str(path.parent), gguf_file=path.name)
    with tempfile.TemporaryDirectory(prefix="sinkscope-") as folder:
        header.write_stub(Path(folder) / path.name)
        config = read_config(str(path), folder, gguf_file=path.name)
    embedding = header.tensors.get("token_embd.weight")
    if embedding is not None:
        # Some architectures leave the size of the vocabulary to the list that the stub does not have.
        config.vocab_size = embedding.shape[0]
    for key, attribute in _EXPERT_SIZES.items():
        size = header.metadata.get(f"{header.architecture}.{key}")
        if isinstance(size, int) and hasattr(config, attribute):
            setattr(config, attribute, size)
    return config


def _archs(module: str, name: str) -> dict[str, Any]:
    """Architectures for which transformers has its newer way of reading GGUF; none in versions without it."""
    try:
        return dict(getattr(importlib.import_module(f"transformers.integrations.gguf.{module}"), name))
    except (ImportError, AttributeError, TypeError):
        return {}


def _mapping(header: GgufHeader, config: PreTrainedConfig) -> list[Any] | None:
    make = _archs("gguf_conversion_mapping", "GGUF_ARCHS").get(header.architecture)
    return None if make is None else list(make(config))


def _processor(header: GgufHeader, config: PreTrainedConfig) -> Any:
    try:
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor
    except ImportError as error:
        raise UnsupportedModelError(
            f"this version of transformers cannot tell how GGUF files store {header.architecture}: {first_line(error)}"
        ) from error
    return TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=config.to_dict())


def name_map(model: nn.Module, header: GgufHeader, processor: Any, config: PreTrainedConfig) -> dict[str, str]:
    """The model's name for each tensor, by the gguf package's table for the architecture.

    The same as transformers' `get_gguf_hf_weights_map`, which makes the table anew for every module of the model. Names
    are looked up whole first, then without the modules in front: some models were converted from their inner model.

    Raises
    ------
    InputError
        If the gguf package does not know the architecture.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next((key for key, value in MODEL_ARCH_NAMES.items() if value == header.architecture), None)
    if arch is None:
        raise InputError(f"this version of gguf does not know the architecture {header.architecture}; update it")
    table = get_tensor_name_map(arch, config.get_text_config(decoder=True).num_hidden_layers)
    parameters = [name.split(".") for name in model.state_dict()]
    names: dict[str, str] = {}
    for depth in range(max(map(len, parameters), default=0)):
        found: dict[str, str] = {}
        for parts in parameters:
            if len(parts) <= depth:
                continue
            front = "".join(f"{part}." for part in parts[:depth])
            name, suffix = processor.preprocess_name(".".join(parts[depth:])), ""
            for ending in (".weight", ".bias"):
                if name.endswith(ending):
                    name, suffix = name.removesuffix(ending), ending
            stored = table.get_name(name)
            if stored is not None:
                found[stored + suffix] = front + name + suffix
            else:
                processor.perform_fallback_tensor_mapping(found, suffix, front, name + suffix)
        names = {**found, **names}
    return names


def _recipes(header: GgufHeader, names: dict[str, str]) -> dict[str, Recipe]:
    """How each parameter is made; the gates and the inputs of stacked experts are one parameter in transformers."""
    sources: dict[str, list[str]] = {}
    for stored in header.tensors:
        # Stacked experts are parameters without an ending, where the file has one.
        experts = len(header.tensors[stored].shape) == 3 and stored.endswith("_exps.weight")
        parameter = names.get(stored) or (names.get(stored.removesuffix(".weight")) if experts else None)
        if parameter is not None:
            sources.setdefault(parameter, []).append(stored)
    recipes = {}
    for parameter, parts in sources.items():
        if len(parts) == 1:
            recipes[parameter] = Recipe(parameter, {parameter: parts})
            continue
        ordered = sorted(parts, key=lambda name: "_up_" in name)
        recipes[parameter] = Recipe(parameter, {name: [name] for name in ordered}, _concatenation(parameter, ordered))
    return recipes


def _concatenation(parameter: str, stored: list[str]) -> Any:
    from transformers.core_model_loading import Concatenate, WeightConverter

    return WeightConverter(source_patterns=list(stored), target_patterns=parameter, operations=[Concatenate(dim=1)])
