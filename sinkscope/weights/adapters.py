"""LoRA adapters, as PEFT saves them: what training added to a matrix is added before the matrix is looked at.

    W' = W + s B A          s = alpha / r, or alpha / sqrt(r) for rank-stabilised adapters

https://arxiv.org/abs/2106.09685; DoRA (https://arxiv.org/abs/2402.09353) then scales every output to its own magnitude.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sinkscope.errors import InputError, UnsupportedModelError
from sinkscope.weights.files import ByteRanges, first_line
from sinkscope.weights.parameters import Weights
from sinkscope.weights.places import LocalPlace
from sinkscope.weights.safetensors_source import DTYPES, read_header

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."
_LORA = re.compile(r"^(.+)\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)(?:\.weight)?$")


@dataclass
class Delta:
    """The change of one matrix.

    Attributes
    ----------
    down : Tensor [r, I]
        A.
    up : Tensor [O, r]
        B.
    scale : float
        Of their product.
    transposed : bool
        Whether the matrix has its inputs first.
    magnitude : Tensor [O] or None
        The norm that DoRA gives to every output.
    """

    down: Tensor
    up: Tensor
    scale: float
    transposed: bool = False
    magnitude: Tensor | None = None

    def apply(self, weight: Tensor) -> Tensor:
        """The changed matrix, float32 and shaped as `weight`."""
        change = self.scale * (self.up.float() @ self.down.float())
        changed = weight.to(torch.float32) + (change.T if self.transposed else change)
        if self.magnitude is None:
            return changed
        outputs = changed.T if self.transposed else changed
        outputs = outputs * (self.magnitude.float().reshape(-1) / outputs.norm(dim=1)).unsqueeze(1)
        return outputs.T.contiguous() if self.transposed else outputs

    def shape(self) -> tuple[int, int]:
        """Of the matrices that it changes."""
        shape = (self.up.shape[0], self.down.shape[1])
        return (shape[1], shape[0]) if self.transposed else shape


@dataclass
class Adapter:
    """A LoRA adapter.

    Attributes
    ----------
    label : str
        What messages call it.
    modules : dict of str to Delta
        By module, as the adapter names them.
    replaced : dict of str to Tensor
        Parameters that were trained in full, by name.
    """

    label: str
    modules: dict[str, Delta]
    replaced: dict[str, Tensor] = field(default_factory=dict)
    _deltas: dict[str, Delta] = field(default_factory=dict)
    _full: dict[str, Tensor] = field(default_factory=dict)

    def attach(self, weights: Weights) -> None:
        """Find the matrices that are changed, in the model or in the checkpoint.

        An adapter may name modules as the model has them today or as the checkpoint does; experts that the model stacks
        are changed one by one, before they are put together.

        Raises
        ------
        InputError
            If a module is in neither, or has another shape.
        """
        shapes = {name: tuple(value.shape) for name, value in weights.model.named_parameters(remove_duplicate=False)}
        stored = set(weights.tensors.names)
        unchanged = {
            recipe.names[0]: name
            for name, recipe in weights.recipes.items()
            if recipe.converter is None and name in shapes
        }
        before: dict[str, Delta] = {}
        for module, delta in self.modules.items():
            parameter = _parameter(f"{module}.weight", shapes, unchanged)
            if parameter is not None:
                delta.transposed = _is_transposed(weights.model, parameter, delta)
                self._check(module, delta.shape(), shapes[parameter])
                self._deltas[parameter] = delta
                continue
            name = _stored_name(f"{module}.weight", stored, weights.model)
            if name is None:
                raise InputError(
                    f"{self.label} changes {module}, which {weights.label} does not have; wrong base model?"
                )
            shape = weights.tensors.shape(name)
            self._check(module, delta.shape(), shape or delta.shape())
            before[name] = delta
        for name, tensor in self.replaced.items():
            parameter = _parameter(name, shapes, unchanged)
            if parameter is not None:
                self._check(name, tuple(tensor.shape), shapes[parameter])
                self._full[parameter] = tensor
        if before:
            weights.change = lambda name, tensor: before[name].apply(tensor) if name in before else tensor

    def apply(self, parameter: str, part: int | None, tensor: Tensor) -> Tensor:
        """The changed parameter; `tensor` itself where the adapter leaves it alone."""
        if parameter in self._full:
            tensor = self._full[parameter] if part is None else self._full[parameter][part]
        delta = self._deltas.get(parameter)
        return tensor if delta is None else delta.apply(tensor)

    def _check(self, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if found != expected:
            raise InputError(
                f"{self.label} changes {name} by a matrix {found}, where the model's is {expected}: another base model"
            )


def read_adapter(name: str) -> Adapter:
    """Read a LoRA adapter: a folder, or a repository on the hub.

    Raises
    ------
    InputError
        If it is missing or damaged.
    UnsupportedModelError
        If it is no LoRA adapter, or changes weights in another way.
    """
    place = LocalPlace(_adapter_folder(name), name)
    present = place.names()
    if CONFIG_FILE not in present:
        raise InputError(f"{name} is not an adapter: it holds no {CONFIG_FILE}")
    if WEIGHTS_FILE not in present:
        reason = (
            "holds its weights as a pickle only, which is never opened here; save it"
            if any(file.endswith((".bin", ".pt")) for file in present)
            else "holds no weights; it should have them"
        )
        raise InputError(f"{name} {reason} as {WEIGHTS_FILE}")
    config = place.read_json(CONFIG_FILE)
    if not isinstance(config, dict):
        raise InputError(f"{CONFIG_FILE} of {name} is not a JSON object")
    kind = str(config.get("peft_type") or "").upper()
    if kind != "LORA":
        raise UnsupportedModelError(
            f"{name} is a {kind or 'nameless'} adapter; only LoRA is added here, merge it first"
        )
    if config.get("target_parameters"):
        raise UnsupportedModelError(f"{name} adapts stacked parameters (target_parameters); merge it first")
    file = place.open(WEIGHTS_FILE)
    try:
        return _assemble(name, config, _all_tensors(file))
    except (TypeError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{CONFIG_FILE} of {name} cannot be used: {first_line(error)}") from error
    finally:
        file.close()


def _adapter_folder(name: str) -> Path:
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise InputError(f"no adapter at {name!r}; give a folder or a hub id")
    from huggingface_hub import hf_hub_download

    try:
        paths = [Path(hf_hub_download(name, file)) for file in (CONFIG_FILE, WEIGHTS_FILE)]
    except Exception as error:  # The hub has a kind of error for everything, some of them not OSErrors.
        raise InputError(f"cannot get the adapter {name} with its {WEIGHTS_FILE}: {first_line(error)}") from error
    return paths[0].parent


def _all_tensors(file: ByteRanges) -> dict[str, Tensor]:
    tensors = {}
    for name, entry in read_header(file).items():
        if entry.dtype not in DTYPES:
            raise UnsupportedModelError(f"{file.label}: {name} is stored as {entry.dtype}, which is not read")
        data = torch.from_numpy(file.read(entry.begin, entry.nbytes))
        tensors[name] = data.view(DTYPES[entry.dtype]).reshape(entry.shape)
    return tensors


def _assemble(label: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> Adapter:
    halves: dict[str, dict[str, Tensor]] = {}
    replaced: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = name.removeprefix(_PEFT_PREFIX)
        match = _LORA.match(plain)
        if match:
            halves.setdefault(match[1].replace(".base_layer", ""), {})[match[2]] = tensor
        elif ".lora_" in plain:
            raise UnsupportedModelError(f"{label}: {plain} is a kind of LoRA that is not added here; merge it first")
        else:
            replaced[plain.replace(".modules_to_save", "").replace(".base_layer", "")] = tensor
    modules = {module: _delta(label, module, config, parts) for module, parts in halves.items()}
    if not modules and not replaced:
        raise InputError(f"{label} holds no LoRA matrices")
    return Adapter(label, modules, replaced)


def _delta(label: str, module: str, config: dict[str, Any], parts: dict[str, Tensor]) -> Delta:
    embedding = "embedding_A" in parts
    down, up = parts.get("embedding_A" if embedding else "A"), parts.get("embedding_B" if embedding else "B")
    if down is None or up is None:
        raise InputError(f"{label}: {module} lacks one of its two LoRA matrices; the adapter is damaged")
    if down.dim() != 2 or up.dim() != 2 or down.shape[0] != up.shape[1]:
        raise UnsupportedModelError(f"{label}: the LoRA matrices of {module} are no matrices that fit; merge it first")
    rank = _pattern(config.get("rank_pattern"), module, config.get("r", down.shape[0]))
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", rank))
    scale = float(alpha) / (float(rank) ** 0.5 if config.get("use_rslora") else float(rank))
    # An embedding holds the vectors that it writes as rows, so its inputs come first.
    return Delta(down, up, scale, embedding or bool(config.get("fan_in_fan_out")), parts.get("magnitude_vector"))


def _pattern(patterns: Any, module: str, default: Any) -> Any:
    """The value for a module where some have their own: PEFT matches the end of the name."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _is_transposed(model: nn.Module, parameter: str, delta: Delta) -> bool:
    """Whether the model's matrix has its inputs first, which the model's layers tell better than the adapter."""
    module = model.get_submodule(parameter.rpartition(".")[0])
    if isinstance(module, nn.Linear):
        return False
    if isinstance(module, nn.Embedding) or type(module).__name__ == "Conv1D":
        return True
    return delta.transposed


def _parameter(name: str, shapes: dict[str, Any], unchanged: dict[str, str]) -> str | None:
    """The model's parameter of that name, or the one that the checkpoint's tensor of that name becomes as it is."""
    return name if name in shapes else unchanged.get(name)


def _stored_name(name: str, stored: set[str], model: nn.Module) -> str | None:
    """The tensor of the checkpoint that has this name, up to the base model's prefix."""
    prefix = str(getattr(model, "base_model_prefix", "") or "")
    for candidate in (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"):
        if candidate in stored:
            return candidate
    return None
