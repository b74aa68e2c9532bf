"""From the name of a model to its config, its structure and its tensors, wherever they are."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from sinkscope.backbone.loading import locate
from sinkscope.backbone.skeleton import build_skeleton, read_config
from sinkscope.errors import InputError
from sinkscope.weights.files import first_line
from sinkscope.weights.parameters import Weights
from sinkscope.weights.places import LocalPlace, Place, RemotePlace
from sinkscope.weights.quantised import Dequantised
from sinkscope.weights.safetensors_source import INDEX_FILE, SINGLE_FILE, SafetensorsFiles

_URL = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """A model's config with the parameters of its checkpoint."""

    config: PreTrainedConfig
    weights: Weights


def open_source(name: str, revision: str | None = None, trust_remote_code: bool = False) -> Source:
    """Find config, structure and tensors of the model called `name`; see `open_checkpoint`.

    Raises
    ------
    InputError
        If something is missing or damaged.
    UnsupportedModelError
        If it is no decoder that transformers can build.
    """
    if _URL.match(name):
        place = url_place(name)
        return _open_safetensors(name, _config_of(place, trust_remote_code), place, trust_remote_code)
    _refuse_adapter(name)
    source, options = locate(name)
    if "gguf_file" in options:
        from sinkscope.weights.gguf_source import open_gguf

        config, weights = open_gguf(Path(name))
        return Source(config, weights)
    options = {"trust_remote_code": trust_remote_code} | ({"revision": revision} if revision else {})
    config = read_config(name, source, **options)
    place = LocalPlace(Path(source)) if Path(source).is_dir() else hub_place(source, revision)
    return _open_safetensors(name, config, place, trust_remote_code)


def _open_safetensors(name: str, config: PreTrainedConfig, place: Place, trust_remote_code: bool) -> Source:
    # The files are looked at before the model is built: what is wrong with them is said at once.
    tensors = Dequantised(SafetensorsFiles(place), quantization_settings(config))
    try:
        model: nn.Module = build_skeleton(name, config, trust_remote_code)
        return Source(config, Weights(model, tensors, place.label))
    except BaseException:
        tensors.close()
        raise


def quantization_settings(config: PreTrainedConfig) -> dict[str, Any] | None:
    """How the checkpoint is quantised, as its config says; a multimodal one may say so for its text model."""
    for holder in (config, config.get_text_config(decoder=True)):
        settings = getattr(holder, "quantization_config", None)
        if settings is not None:
            return dict(settings) if isinstance(settings, dict) else settings.to_dict()
    return None


def hub_place(repository: str, revision: str | None) -> Place:
    """The files of a repository: from the cache where all are there, else by byte ranges from the hub.

    Raises
    ------
    InputError
        If the hub cannot be reached.
    """
    from huggingface_hub import HfFileSystem, try_to_load_from_cache

    # transformers has asked the hub for the config just now, so the cache knows the newest revision.
    config = try_to_load_from_cache(repository, "config.json", revision=revision)
    if isinstance(config, str):
        folder = LocalPlace(Path(config).parent, repository)
        present = folder.names()
        if SINGLE_FILE in present or (INDEX_FILE in present and _complete(folder, present)):
            return folder
    try:
        # A new instance asks again, where a kept one would answer from what it listed before.
        system = HfFileSystem(skip_instance_cache=True)
    except Exception as error:
        raise InputError(f"cannot reach the hub for {repository}: {first_line(error)}") from error
    return RemotePlace(system, repository, repository, **({"revision": revision} if revision else {}))


def _complete(folder: Place, present: list[str]) -> bool:
    from sinkscope.weights.safetensors_source import read_index

    try:
        read_index(folder, present)
    except InputError:
        return False
    return True


def url_place(url: str) -> Place:
    """The files behind a URL, by any file system that fsspec has for it; http needs no further package.

    Raises
    ------
    InputError
        If there is none for it.
    """
    if url.lower().startswith(("http://", "https://")):
        from sinkscope.weights.http_ranges import RangeFileSystem

        return RemotePlace(RangeFileSystem(), url, url)
    from fsspec.core import url_to_fs

    try:
        system, root = url_to_fs(url)
    except (ImportError, ValueError, OSError) as error:
        raise InputError(f"cannot open {url}: {first_line(error)}") from error
    return RemotePlace(system, root, url)


def _config_of(place: Place, trust_remote_code: bool) -> PreTrainedConfig:
    """The config of a model that transformers cannot fetch itself."""
    if "config.json" not in place.names():
        raise InputError(f"{place.label} is not a model folder: it holds no config.json")
    file = place.open("config.json")
    try:
        text = file.read(0, file.size)
    finally:
        file.close()
    with tempfile.TemporaryDirectory(prefix="sinkscope-") as folder:
        (Path(folder) / "config.json").write_bytes(text.tobytes())
        return read_config(place.label, folder, trust_remote_code=trust_remote_code)


def _refuse_adapter(name: str) -> None:
    folder = Path(name)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        base = LocalPlace(folder).read_json("adapter_config.json").get("base_model_name_or_path") or "its base model"
        raise InputError(f"{name} is a LoRA adapter; give {base} as the model and {name} as the adapter")
