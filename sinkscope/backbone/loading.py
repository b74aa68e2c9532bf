"""Load any decoder LLM or LMM: a hub id, a local folder, or a GGUF file."""

import contextlib
import copy
import io
import os
import pickle
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from sinkscope.backbone.anatomy import Anatomy, find_anatomy
from sinkscope.backbone.placement import offloaded_bytes, offloading, place, refuse_absent, settle, to_offload
from sinkscope.backbone.tensor_parallel import plan_options, refuse_split_heads
from sinkscope.errors import InputError, SinkscopeError, UnsupportedModelError
from sinkscope.processes import this_process

DTYPES = ("auto", "float32", "bfloat16", "float16")

DAMAGED = (SafetensorError, pickle.UnpicklingError, EOFError)
"""What reading damaged weights raises."""
FAILURES = (
    OSError,
    ValueError,
    KeyError,
    ImportError,
    RuntimeError,
    NotImplementedError,
    TypeError,
    AttributeError,
    StrictDataclassError,
    *DAMAGED,
)
"""What transformers raises about a model that it cannot read, build or load."""


@dataclass(frozen=True)
class LoadedModel:
    """A model with what is needed to feed it.

    `revision` is the one that was asked for, or the commit that the hub gave without one; None for a folder or file.
    `processor` is None for text-only models, and for multimodal ones whose processor cannot be had here;
    `processor_error` then says why. Such a model can be profiled on texts. `note` is what a user should know about how
    it was loaded, if anything, one line each.
    """

    model: nn.Module = field(repr=False)
    tokenizer: Any = field(repr=False)
    processor: Any = field(repr=False)
    anatomy: Anatomy
    model_id: str
    revision: str | None = None
    processor_error: str | None = None
    note: str | None = None


def load(
    model_id_or_path: str | os.PathLike[str],
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device_map: Any = "auto",
    quantization: Any = None,
    trust_remote_code: bool = False,
    tensor_parallel: int = 1,
) -> LoadedModel:
    """Load a model with its tokenizer or processor, and find its anatomy.

    Parameters
    ----------
    model_id_or_path : str or path
        Hub id, local folder, or ``.gguf`` file.
    revision : str, optional
        Hub revision.
    dtype : str or torch.dtype
        "auto" keeps the checkpoint's dtype (GGUF files are dequantised to float32).
    device_map : str, dict or torch device
        "auto" spreads the model over the accelerators present, or leaves it on the CPU where there is none; what does
        not fit into their memory and the CPU's stays on disk and is read in every pass. "cpu" does so without
        accelerators. A dict may name "disk".
    quantization : transformers quantization config, optional
        Quantises the weights of a checkpoint that is not quantised. One that is needs no such config.
    trust_remote_code : bool
        Run code that the model's repository ships. Off by default.
    tensor_parallel : int
        So many of the processes that torchrun has started hold the model together, by transformers' tensor-parallel
        plan, each on its own device; it must divide their number. All of them must call this, best inside of
        `sinkscope.capture.ranks.joined`.

    Raises
    ------
    InputError
        If the model cannot be found or read, or the processes cannot hold it together.
    UnsupportedModelError
        If it is not a decoder model.
    """
    name = os.fspath(model_id_or_path)
    source, options = locate(name)
    options |= {"revision": revision} if revision else {}
    options |= {"trust_remote_code": trust_remote_code}
    chosen_dtype = _dtype(dtype, options)
    in_parts = {} if tensor_parallel == 1 else plan_options(tensor_parallel, device_map, this_process())
    refuse_absent(device_map)
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(source, **options)
            multimodal = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and has_vision(config)
            processor, processor_error = _processor(source, options) if multimodal else (None, None)
            tokenizer = getattr(processor, "tokenizer", None) or _tokenizer(source, options)
            auto = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
            # With the config, which takes seconds to read from a GGUF file.
            weights = {"dtype": chosen_dtype, "config": config}
            if quantization is not None:
                weights["quantization_config"] = quantization
            # transformers offloads neither quantised weights nor GGUF files.
            quantised = quantization is not None or getattr(config, "quantization_config", None) is not None
            stay = quantised or "gguf_file" in options
            weights |= in_parts or place(
                device_map, lambda: 0 if stay else _weight_bytes(auto, config, chosen_dtype, trust_remote_code)
            )
            encodes = bool(getattr(config, "is_encoder_decoder", False))  # Some decoders unset it.
            model, anatomy, notes = _with_weights(auto, source, options | weights)
            refuse_split_heads(model, anatomy, tensor_parallel)
    except SinkscopeError:
        raise
    except FAILURES as error:
        raise explain_failure(name, error) from error
    if encodes:
        notes.append("this is an encoder-decoder model: its decoder is used alone, without what the encoder would say")
    if left := offloaded_bytes(model):
        notes.append(
            f"{left / 2**20:,.1f} MiB of weights do not fit into memory; every pass brings them in anew (slow)"
        )
    return LoadedModel(
        model.eval(),
        tokenizer,
        processor,
        anatomy,
        name,
        revision or _newest_commit(source),
        processor_error,
        "\n".join(notes) or None,
    )


def _newest_commit(source: str) -> str | None:
    """The commit of a hub repository that was loaded without a revision; None for a folder or file."""
    found = None if Path(source).exists() else try_to_load_from_cache(source, "config.json")
    return Path(found).parent.name if isinstance(found, str) else None


def _with_weights(auto: Any, source: str, options: dict[str, Any]) -> tuple[Any, Anatomy, list[str]]:
    """The model with its weights, its anatomy, and what a user should know about them."""
    if to_offload(options):
        with offloading() as folder:
            model, report = auto.from_pretrained(source, **options, offload_folder=folder, output_loading_info=True)
        settle(model, folder)
    else:
        model, report = auto.from_pretrained(source, **options, output_loading_info=True)
    anatomy = find_anatomy(model)
    # transformers fills them with random numbers.
    missing = sorted(name for name in report["missing_keys"] if name.startswith(f"{anatomy.layers_path}."))
    if missing:
        raise InputError(
            f"{source} lacks weights of the decoder layers, {missing[0]} among {len(missing)}; the checkpoint is not "
            "complete, or its config belongs to another model"
        )
    notes = []
    if further := further_layers(report["unexpected_keys"], anatomy):
        notes.append(
            f"the checkpoint holds {further} decoder layers beyond the {anatomy.num_layers} of its config; they are "
            "left out"
        )
    return model, anatomy, notes


def further_layers(names: Iterable[str], anatomy: Anatomy) -> int:
    """How many decoder layers weights of these names belong to that the model does not have."""
    found = (re.match(rf"{re.escape(anatomy.layers_path)}\.(\d+)\.", name) for name in names)
    return len({match[1] for match in found if match is not None and int(match[1]) >= anatomy.num_layers})


def _weight_bytes(auto: Any, config: PreTrainedConfig, dtype: Any, trust_remote_code: bool) -> int:
    """Size of the weights in memory, from a model that has none."""
    stated = getattr(config, "dtype", None) or getattr(config.get_text_config(decoder=True), "dtype", None)
    width = (dtype if isinstance(dtype, torch.dtype) else stated or torch.float32).itemsize
    with torch.device("meta"):
        model = auto.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)  # It sets dtypes there.
    return width * sum(parameter.numel() for parameter in model.parameters())


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' own bars and notes for the time of a load; the caller shows its own progress."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        # transformers draws a bar on stderr while it dequantises a GGUF file, and has no switch for it.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def locate(name: str) -> tuple[str, dict[str, Any]]:
    """Where transformers finds `name`: a folder or hub id, and the file inside it for GGUF."""
    path = Path(name)
    if name.lower().endswith(".gguf"):
        if not path.is_file():
            raise InputError(f"no GGUF file at {name}; check the path")
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise InputError(f"{name} is not a GGUF file (its first bytes are not GGUF); download it again")
        return str(path.parent or "."), {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{name} is not a model folder: it holds no config.json")
        return name, {}
    if path.exists():
        raise InputError(f"{name} is neither a model folder nor a .gguf file")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip():
        raise InputError(f"no model at {name!r}; give a hub id, a local folder, a .gguf file, demo:llm or demo:lmm")
    return name, {}


def _dtype(dtype: str | torch.dtype, options: dict[str, Any]) -> Any:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    if dtype == "auto":
        return torch.float32 if "gguf_file" in options else "auto"
    return getattr(torch, dtype)


def has_vision(config: PreTrainedConfig) -> bool:
    """Whether a model of this config is a text decoder with something beside it that sees."""
    return config.get_text_config(decoder=True) is not config or hasattr(config, "vision_config")


def _processor(source: str, options: dict[str, Any]) -> tuple[Any, str | None]:
    """The processor, or None with the reason: some need packages that are not installed, some models ship none."""
    try:
        return AutoProcessor.from_pretrained(source, **options), None
    except (ImportError, OSError, ValueError, KeyError, TypeError) as error:
        return None, _one_line(error)


def _tokenizer(source: str, options: dict[str, Any]) -> Any:
    try:
        return AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if "trust_remote_code" in str(error):
            raise explain_failure(source, error) from error
        raise InputError(f"no usable tokenizer in {source}; put the model's own there ({_one_line(error)})") from error


def explain_failure(name: str, error: Exception) -> SinkscopeError:
    """One line from the many that a failed load prints."""
    text, whole = _one_line(error), str(error)
    sentence = text.split(". ")[0].removesuffix(".")
    if "trust_remote_code" in whole:
        return InputError(f"{name} ships its own code; read it, then pass --trust-remote-code to run it")
    unreachable = ("is not a local folder", "Hub", "connect to", "cached files", "offline")
    if isinstance(error, OSError) and any(words in whole for words in unreachable):
        return InputError(
            f"model {name!r} was not found here or on the hub; check the name, the network, and `hf auth login` for "
            "gated models"
        )
    if "does not recognize this architecture" in whole:
        return UnsupportedModelError(
            f"transformers {transformers.__version__} does not know the kind of {name} ({sentence}); a newer one may"
        )
    if "Unrecognized configuration class" in whole or "Unrecognized model" in whole:
        return UnsupportedModelError(f"{name} is not a decoder language model that transformers can load: {sentence}")
    if "has no `tp_plan`" in whole:
        return UnsupportedModelError(
            f"transformers {transformers.__version__} has no tensor-parallel plan for {name}, by which several "
            "processes could hold it together; without, whole layers are spread over the devices of each process"
        )
    if isinstance(error, ImportError):
        return InputError(f"{name} needs a package that is not installed: {text}")
    if isinstance(error, DAMAGED):
        return InputError(f"the weights of {name} are damaged ({sentence}); get them again")
    if "ignore_mismatched_sizes" in whole:
        return InputError(f"the weights of {name} have other shapes than its config says; get both from one place")
    return InputError(f"cannot load {name}: {text}")


def _one_line(error: Exception) -> str:
    """The first line of what the error says, all of it where that begins a list; with its type if it is one word."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines) if lines and lines[0].endswith(":") else "".join(lines[:1])
    text = text if len(text) <= 300 else text[:300].rsplit(" ", 1)[0] + " ..."
    return text if len(text.split()) > 1 else f"{type(error).__name__} {text}".strip()
