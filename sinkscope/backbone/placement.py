"""Where a model's weights rest: in memory if they fit, else on disk, from where they pass through it module by module.

    size of the weights, free memory ──> place ──> options of from_pretrained (accelerate's disk offload)
    accelerate's hooks on the modules ──> OffloadedWeights ──> the checkpoint's own safetensors files

Files are read, never mapped: a mapping counts in full against limits on a process's memory, and Linux refuses one that
is larger than the machine's.
"""

import contextlib
import ctypes
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers.integrations.accelerate
import transformers.modeling_utils
from accelerate.utils import OffloadedWeightsLoader, PrefixedDataset, get_max_memory
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sinkscope.backbone.memory import free_memory
from sinkscope.backbone.tensor_parallel import whole
from sinkscope.errors import InputError, UnsupportedModelError

WHOLE_SHARE = 0.9
"""Part of the free memory that the weights may take; transformers leaves the same room for what a pass needs."""
RESIDENT_SHARE = 0.25
"""That part where weights stay on disk: the rest is for a pass, and for what comes after."""

_MAPPING_THRESHOLD = -3, 128 * 1024
"""M_MMAP_THRESHOLD of glibc's mallopt, and the value that it begins with."""


def place(device_map: Any, weight_bytes: Callable[[], int]) -> dict[str, Any]:
    """Options of ``from_pretrained`` that put the weights where there is room for them.

    Parameters
    ----------
    device_map : str, dict, torch device or None
        "auto" uses the accelerators, then the CPU's memory, then the disk; "cpu" does without the first. Anything else
        is handed on.
    weight_bytes : callable
        Gives the size of the weights in bytes. Called if the choice depends on it.
    """
    if device_map is None:
        return {}
    if device_map not in ("auto", "cpu"):
        return {"device_map": device_map}
    on_cpu = device_map == "cpu" or not torch.accelerator.is_available()
    memory: dict[int | str, float] = {} if on_cpu else get_max_memory()
    if on_cpu or "cpu" in memory:
        memory["cpu"] = free_memory()
    if weight_bytes() <= WHOLE_SHARE * sum(memory.values()):
        return {} if on_cpu else {"device_map": "auto"}
    share = dict.fromkeys(memory, WHOLE_SHARE) | {"cpu": RESIDENT_SHARE}
    return {"device_map": "auto", "max_memory": {device: int(share[device] * memory[device]) for device in memory}}


def refuse_absent(device_map: Any) -> None:
    """Refuse a device, such as "cuda" or "cuda:1", that this machine or this build of PyTorch does not have.

    Raises
    ------
    InputError
        Naming the devices that are there.
    """
    try:
        device = torch.device(device_map) if isinstance(device_map, str) else device_map
    except RuntimeError:  # No name of a device; transformers knows more, such as "auto".
        return
    if not isinstance(device, torch.device) or device.type in ("cpu", "meta"):
        return
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = torch.accelerator.device_count() if there is not None else 0
    if there is None or device.type != there.type or (device.index or 0) >= count:
        present = ["cpu", *(f"{there.type}:{number}" for number in range(count) if there is not None)]
        raise InputError(f"there is no device {device} here, only {', '.join(present)}; choose another --device")


def to_offload(options: Mapping[str, Any]) -> bool:
    """Whether a model loaded with the options of `place` rests on disk in part."""
    device_map = options.get("device_map")
    return "max_memory" in options or (isinstance(device_map, dict) and "disk" in device_map.values())


@contextlib.contextmanager
def offloading() -> Iterator[str]:
    """Load a model inside this context, with the folder it gives as `offload_folder`; then `settle` it.

    Weights that transformers changes while it loads them (merged experts, pickles) cannot be read from the checkpoint
    later. They are written once more, into the folder, which is temporary and lives as long as the model.
    """
    folder = tempfile.mkdtemp(prefix="sinkscope-offload-")
    try:
        with _reading_files():
            yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def settle(model: nn.Module, folder: str) -> None:
    """Make a model that was loaded in `offloading` read its weights without mappings, and own the temporary folder."""
    if any(Path(folder).iterdir()):
        weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    views = list(_views(model))
    if views:
        store = views[0].dataset
        ours = OffloadedWeights(store.state_dict, store.save_folder, store.index, store.device)
        for view in views:
            view.dataset = ours
        _give_freed_memory_back()


def offloaded_bytes(model: nn.Module) -> int:
    """Size of the parameters that rest on the meta device: their values are elsewhere."""
    return sum(parameter.nbytes for parameter in model.parameters() if parameter.is_meta)


def parameter_values(model: nn.Module, name: str) -> Tensor:
    """A parameter with its values, wherever they rest; what several processes hold, all must ask for together.

    Raises
    ------
    UnsupportedModelError
        If the model has no values for it.
    """
    parameter = model.get_parameter(name)
    if not parameter.is_meta:
        return whole(parameter)
    store: Mapping[str, Tensor] = next((view.dataset for view in _views(model)), {})
    if name not in store:
        raise UnsupportedModelError(f"{name} of {type(model).__name__} has no values; load the model with its weights")
    return store[name]


def plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that hold the numbers: those inside a quantised one, or the tensor itself."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from plain_tensors(getattr(tensor, name))
    else:
        yield tensor.detach()


def dense(tensor: Tensor) -> Tensor:
    """The numbers that a quantised tensor stands for, or the tensor itself."""
    return tensor.dequantize().detach() if is_traceable_wrapper_subclass(tensor) else tensor.detach()


def room_for_a_pass(model: nn.Module) -> int:
    """Free bytes where the weights of a model come together that rest elsewhere."""
    named = next((view.dataset.device for view in _views(model)), None)
    device = torch.device("cpu" if named is None else named)
    if device.type == "cpu":
        return free_memory()
    memory = get_max_memory()
    return int(memory[device.type] if device.type in memory else memory[device.index or 0])


class OffloadedWeights(OffloadedWeightsLoader):
    """accelerate's weights outside memory, read from safetensors files without mapping them."""

    def __getitem__(self, key: str) -> Tensor:
        entry: Any = self.index.get(key)
        if key in self.state_dict or not entry or "safetensors_file" not in entry:
            stored: Tensor = super().__getitem__(key)
            return stored
        with safe_open(entry["safetensors_file"], framework="pt", backend="pread") as file:
            tensor: Tensor = file.get_tensor(entry["weight_name"])
        return tensor.to("cpu" if self.device is None else self.device, getattr(torch, entry["dtype"]))


@contextlib.contextmanager
def _reading_files() -> Iterator[None]:
    """Make transformers read safetensors files instead of mapping them; it has no switch for that."""

    def opened(file: Any, framework: str = "pt", device: Any = "cpu", **_: Any) -> Any:
        return safe_open(file, framework=framework, device=device, backend="pread")

    modules: tuple[Any, ...] = (transformers.modeling_utils, transformers.integrations.accelerate)
    try:
        for module in modules:
            module.safe_open = opened
        yield
    finally:
        for module in modules:
            module.safe_open = safe_open


def _views(model: nn.Module) -> Iterator[Any]:
    """What accelerate's hooks read weights from: for each module a view of one store, by parameter names."""
    for module in model.modules():
        hook: Any = getattr(module, "_hf_hook", None)
        for part in getattr(hook, "hooks", (hook,)):
            view = getattr(part, "weights_map", None)
            if isinstance(view, PrefixedDataset):
                yield view


def _give_freed_memory_back() -> None:
    """Have the C library return freed blocks to the system at once.

    glibc learns to keep blocks of up to 32 MiB, and before 2.38 it cannot use aligned ones again: of weights that pass
    through memory, most would stay there.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(*_MAPPING_THRESHOLD)
