"""The parameters of a model straight from its checkpoint, one matrix at a time, without the model.

    with open_checkpoint("mistralai/Mistral-7B-v0.1") as checkpoint:
        for stored in checkpoint.find("model.layers.1.mlp.down_proj.weight"):
            matrix = checkpoint.read(stored)

From a local folder or GGUF file, a repository on the hub, or a URL. Only the wanted bytes are read, and nothing is ever
unpickled. What is quantised is dequantised; a LoRA adapter is added before the matrix is handed out.
"""

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from torch import Tensor, nn
from transformers import PreTrainedConfig

from sinkscope.errors import InputError, UnsupportedModelError
from sinkscope.weights.adapters import Adapter, read_adapter
from sinkscope.weights.files import Memory
from sinkscope.weights.parameters import Piece, Weights
from sinkscope.weights.sources import open_source


@dataclass(frozen=True)
class Stored:
    """One tensor of the checkpoint that holds a parameter, or one expert's part of a stacked one.

    Attributes
    ----------
    name : str
        In the checkpoint; the first one where several are put together.
    parameter : str
        In the model, as ``named_parameters`` says.
    part : int or None
        Which entry of the parameter's first axis it is; None for the whole parameter.
    shape : tuple of int
        Of what `Checkpoint.read` gives.
    nbytes : int
        Bytes that are read from the file for it.
    """

    name: str
    parameter: str
    part: int | None
    shape: tuple[int, ...]
    nbytes: int


class Checkpoint:
    """A model's checkpoint, open for reading. A context manager.

    Attributes
    ----------
    config : PreTrainedConfig
        Of the model.
    model : nn.Module
        Its structure, on the meta device.
    label : str
        What messages call the checkpoint.
    in_order : bool
        Whether its tensors must be read one after another, not side by side.
    """

    in_order = False

    def __init__(
        self,
        config: PreTrainedConfig,
        model: nn.Module,
        weights: Weights,
        adapter: Adapter | None = None,
        *,
        reuse_memory: bool = False,
    ) -> None:
        self.config = config
        self.model = model
        self.label = weights.label
        self._weights = weights
        self._memory = weights.tensors.memory = Memory() if reuse_memory else None
        self._adapter = adapter
        self._pieces: dict[Stored, Piece] = {}
        self._shared = _shared_names(model)
        if adapter is not None:
            adapter.attach(weights)

    def find(self, parameter: str) -> list[Stored]:
        """What has to be read for a parameter: one tensor, or the parts of a stack one by one.

        Parameters
        ----------
        parameter : str
            A name of ``named_parameters``. A parameter that is tied to another may be stored under either name.

        Raises
        ------
        InputError
            If the checkpoint lacks it, or if its file is missing, damaged or truncated.
        UnsupportedModelError
            If it is quantised in a way that is not read.
        """
        names = self._shared.get(parameter)
        if names is None:
            raise InputError(f"the model of {self.label} has no parameter {parameter}")
        for name in (parameter, *names):
            pieces = self._weights.pieces(name)
            if pieces:
                break
        else:
            raise self._absent(parameter)
        found = [Stored(piece.name, parameter, piece.part, piece.shape, piece.nbytes) for piece in pieces]
        self._pieces.update(zip(found, pieces, strict=True))
        return found

    def read(self, stored: Stored) -> Tensor:
        """The numbers: float32 where they were quantised or adapted, else the stored float dtype.

        Parameters
        ----------
        stored : Stored
            Of `find`.

        Returns
        -------
        Tensor
            Of shape `stored.shape`, with the axes of the model's parameter.

        Raises
        ------
        InputError
            If the file cannot be read, or holds something of another shape.
        UnsupportedModelError
            If it is quantised in a way that is not read.
        """
        piece = self._piece(stored)
        if self._memory is not None:
            self._memory.clear()
        tensor = piece.load()
        if tuple(tensor.shape) != stored.shape:
            raise InputError(
                f"{piece.file}: {piece.name} gives shape {tuple(tensor.shape)}, the model's {stored.parameter} has "
                f"{stored.shape}; they do not belong together"
            )
        if not tensor.is_floating_point():
            raise InputError(f"{piece.file}: {piece.name} holds {tensor.dtype}, which are no weights")
        return tensor if self._adapter is None else self._adapter.apply(stored.parameter, stored.part, tensor)

    @property
    def bytes_read(self) -> int:
        """Bytes read from the checkpoint's files so far."""
        return self._weights.tensors.bytes_read

    def close(self) -> None:
        """Close the files."""
        self._weights.tensors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _absent(self, parameter: str) -> InputError:
        method = self._weights.tensors.method
        if method is None:
            return InputError(f"{self.label} holds no tensor for {parameter}; the checkpoint is not complete")
        return UnsupportedModelError(
            f"{self.label} is quantised by {method}, and {parameter} cannot be dequantised here; give the checkpoint "
            "before quantisation"
        )

    def _piece(self, stored: Stored) -> Piece:
        piece = self._pieces.get(stored)
        if piece is None:
            raise InputError(f"{stored.parameter} was not found in {self.label}; call find first")
        return piece


def open_checkpoint(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    adapter: str | os.PathLike[str] | None = None,
    reuse_memory: bool = False,
) -> Checkpoint:
    """Open the checkpoint of a model.

    Parameters
    ----------
    model : str or path
        Local folder, ``.gguf`` file, hub id, or the URL of a folder on a server that sends byte ranges.
    revision : str, optional
        Hub revision.
    trust_remote_code : bool
        Run code that the model's repository ships.
    adapter : str or path, optional
        LoRA adapter to add, as PEFT saves it: a folder or a hub id.
    reuse_memory : bool
        Faster for large checkpoints: what `read` gives is written over by the next `read` in the same thread.

    Raises
    ------
    InputError
        If the checkpoint cannot be found or read, or if the adapter belongs to another model.
    UnsupportedModelError
        If it is no decoder that transformers can build, or if the adapter does something that is not read.
    """
    source = open_source(os.fspath(model), revision, trust_remote_code)
    try:
        added = read_adapter(os.fspath(adapter)) if adapter is not None else None
        return Checkpoint(source.config, source.weights.model, source.weights, added, reuse_memory=reuse_memory)
    except BaseException:
        source.weights.tensors.close()
        raise


def _shared_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """For every name of a parameter, the other names of the same one."""
    groups: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups[id(parameter)].append(name)
    shared = {name: tuple(other for other in group if other != name) for group in groups.values() for name in group}
    # Some models tie their parameters when they load weights only; they say so by name or by pattern.
    declared = getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None)
    if isinstance(declared, dict) and getattr(getattr(model, "config", None), "tie_word_embeddings", False):
        for tied, source in declared.items():
            for name in [name for name in shared if name == tied or re.fullmatch(tied, name)]:
                if source in shared and source not in shared[name] and name != source:
                    shared[name] = (*shared[name], source)
    return shared
