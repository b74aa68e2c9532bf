"""Load any decoder LLM or LMM: a hub id, a local folder, or a GGUF file."""

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
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
from sinkscope.errors import InputError, SinkscopeError, UnsupportedModelError

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LoadedModel:
    """A model with what is needed to feed it.

    `processor` is None for text-only models, and for multimodal ones whose processor cannot be had here;
    `processor_error` then says why. Such a model can be profiled on texts.
    """

    model: nn.Module = field(repr=False)
    tokenizer: Any = field(repr=False)
    processor: Any = field(repr=False)
    anatomy: Anatomy
    model_id: str
    revision: str | None = None
    processor_error: str | None = None


def load(
    model_id_or_path: str | os.PathLike[str],
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device_map: Any = "auto",
    quantization: Any = None,
    trust_remote_code: bool = False,
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
        "auto" spreads the model over the accelerators present, and stays on the CPU where there is none.
    quantization : transformers quantization config, optional
        Handed to ``from_pretrained``.
    trust_remote_code : bool
        Run code that the model's repository ships. Off by default.

    Raises
    ------
    InputError
        If the model cannot be found or read.
    UnsupportedModelError
        If it is not a decoder model.
    """
    name = os.fspath(model_id_or_path)
    source, options = locate(name)
    options |= {"revision": revision} if revision else {}
    options |= {"trust_remote_code": trust_remote_code}
    weights: dict[str, Any] = {"dtype": _dtype(dtype, options), **_placement(device_map)}
    if quantization is not None:
        weights["quantization_config"] = quantization
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(source, **options)
            multimodal = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and has_vision(config)
            auto = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
            model = auto.from_pretrained(source, **options, **weights)
            processor, processor_error = _processor(source, options) if multimodal else (None, None)
            tokenizer = getattr(processor, "tokenizer", None) or _tokenizer(source, options)
    except SinkscopeError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, NotImplementedError, TypeError) as error:
        raise explain_failure(name, error) from error
    return LoadedModel(model.eval(), tokenizer, processor, find_anatomy(model), name, revision, processor_error)


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


def _placement(device_map: Any) -> dict[str, Any]:
    if device_map is None or device_map == "cpu" or (device_map == "auto" and not torch.accelerator.is_available()):
        return {}
    return {"device_map": device_map}


def has_vision(config: PreTrainedConfig) -> bool:
    """Whether a model of this config is a text decoder with something beside it that sees."""
    return config.get_text_config(decoder=True) is not config or hasattr(config, "vision_config")


def _processor(source: str, options: dict[str, Any]) -> tuple[Any, str | None]:
    """The processor, or None with the reason: some need packages that are not installed, some models ship none."""
    try:
        return AutoProcessor.from_pretrained(source, **options), None
    except (ImportError, OSError, ValueError, KeyError, TypeError) as error:
        return None, _first_line(error)


def _tokenizer(source: str, options: dict[str, Any]) -> Any:
    try:
        return AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"no usable tokenizer in {source}: {_first_line(error)}") from error


def explain_failure(name: str, error: Exception) -> SinkscopeError:
    """One line from the many that a failed load prints."""
    text = _first_line(error)
    if "trust_remote_code" in str(error):
        return InputError(f"{name} ships its own code; read it, then pass --trust-remote-code to run it")
    unreachable = ("is not a local folder", "Hub", "connect to", "cached files", "offline")
    if isinstance(error, OSError) and any(words in str(error) for words in unreachable):
        return InputError(
            f"model {name!r} was not found here or on the hub; check the name, the network, and `hf auth login` for "
            "gated models"
        )
    if "Unrecognized configuration class" in str(error) or "Unrecognized model" in str(error):
        return UnsupportedModelError(f"{name} is not a decoder language model that transformers can load: {text}")
    if isinstance(error, ImportError):
        return InputError(f"{name} needs a package that is not installed: {text}")
    return InputError(f"cannot load {name}: {text}")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
