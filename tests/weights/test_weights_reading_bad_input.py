"""Whatever is wrong with a checkpoint is said in one line, and nothing is unpickled."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from weights_reading_models import change_tensors, make_model, save_model

from sinkscope.errors import InputError, UnsupportedModelError
from sinkscope.weights.checkpoint import open_checkpoint
from sinkscope.weights.safetensors_source import MAX_HEADER_BYTES

DOWN = "model.layers.1.mlp.down_proj.weight"
EXPERTS = "model.layers.1.mlp.experts.down_proj"


def read(folder: Path, parameter: str = DOWN) -> None:
    with open_checkpoint(folder) as checkpoint:
        for stored in checkpoint.find(parameter):
            checkpoint.read(stored)


def refused(folder: Path, message: str, parameter: str = DOWN, kind: type[InputError] = InputError) -> None:
    with pytest.raises(kind, match=message) as caught:
        read(folder, parameter)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound model in one file."""
    return save_model(make_model("llama"), tmp_path / "model")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A sound model in shards."""
    return save_model(make_model("llama"), tmp_path / "model", max_shard_size="20KB")


def write_file(folder: Path, header: Any, data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    count = len(text) if length is None else length
    (folder / "model.safetensors").write_bytes(count.to_bytes(8, "little") + text + data)


def entry(**changes: Any) -> dict[str, Any]:
    return {DOWN: {"dtype": "F32", "shape": [32, 48], "data_offsets": [0, 6144], **changes}}


DATA = b"\0" * 6144


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"no json", DATA, "not valid JSON"),
        (b"\xff\xfe", DATA, "not valid JSON"),
        (b"[" * 100_000, DATA, "not valid JSON"),
        ([], DATA, "not a JSON object"),
        ({DOWN: 3}, DATA, "lacks dtype, shape or offsets"),
        ({DOWN: {"dtype": "F32"}}, DATA, "lacks dtype, shape or offsets"),
        (entry(dtype="F33"), DATA, "unknown dtype 'F33'"),
        (entry(shape=[32, -48]), DATA, "no sizes"),
        (entry(shape="wide"), DATA, "no sizes"),
        (entry(data_offsets=[0, True]), DATA, "no sizes"),
        (entry(data_offsets=[0, 6148]), DATA, "6148 bytes for F32"),
        (entry(data_offsets=[6144, 0]), DATA, "damaged"),
        (entry(), DATA[:-1], "is truncated"),
        (entry(data_offsets=[10**15, 10**15 + 6144]), DATA, "is truncated"),
    ],
)
def test_a_damaged_header_is_one_line(header: Any, data: bytes, message: str, folder: Path) -> None:
    write_file(folder, header, data)
    refused(folder, message)


def test_a_header_that_names_itself_too_long_is_not_read(folder: Path) -> None:
    write_file(folder, entry(), DATA, length=MAX_HEADER_BYTES + 1)
    refused(folder, "its header would take 100000001 bytes")
    write_file(folder, entry(), DATA, length=MAX_HEADER_BYTES)
    refused(folder, "ends inside its header")


@pytest.mark.parametrize("size", [0, 5, 8, 100, 5000])
def test_a_truncated_file_is_one_line(size: int, folder: Path) -> None:
    os.truncate(folder / "model.safetensors", size)
    refused(folder, "truncated")


def test_a_truncated_shard_is_one_line(sharded: Path) -> None:
    index = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    path = sharded / index[DOWN]
    os.truncate(path, path.stat().st_size - 1)
    refused(sharded, "is truncated")


def test_a_file_that_shrinks_while_it_is_read_is_one_line(folder: Path) -> None:
    with open_checkpoint(folder) as checkpoint:
        (stored,) = checkpoint.find(DOWN)
        os.truncate(folder / "model.safetensors", 6000)
        with pytest.raises(InputError, match="truncated"):
            checkpoint.read(stored)


def test_missing_shards_are_named(sharded: Path) -> None:
    shards = sorted(sharded.glob("model-*.safetensors"))
    shards[0].unlink()
    refused(sharded, rf"lacks {shards[0].name}, named by its index")
    shards[1].unlink()
    refused(sharded, rf"lacks {shards[0].name} and 1 more")


@pytest.mark.parametrize(
    "index", [b"{", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": {"a": 1}}', b'{"weight_map": 1}']
)
def test_a_damaged_index_is_one_line(index: bytes, sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_bytes(index)
    refused(sharded, "weight_map|not valid JSON")


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/../../b.safetensors", "C:\\a", ""])
def test_an_index_that_leads_outside_is_refused(name: str, sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {DOWN: name}}))
    refused(sharded, "outside its folder")


def test_an_index_that_is_wrong_about_a_tensor_is_one_line(sharded: Path) -> None:
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    other = next(file for file in index["weight_map"].values() if file != index["weight_map"][DOWN])
    index["weight_map"][DOWN] = other
    path.write_text(json.dumps(index))
    refused(sharded, f"says that {other} holds {DOWN}, which it does not")


class Bomb:
    """Tells when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return pytest.fail, ("a pickle was opened",)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "consolidated.00.pth"]
)
def test_pickles_are_never_opened(name: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    refused(folder, "pickles only, which are never opened here; convert it to safetensors")


def test_a_folder_without_weights_is_one_line(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    refused(folder, "download the index too")
    (folder / "model-00001-of-00002.safetensors").rename(folder / "model.gguf")
    refused(folder, "give the path of one .gguf file")
    (folder / "model.gguf").unlink()
    refused(folder, "holds no weights")


def test_no_config_is_one_line(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, r"holds no config\.json")


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"model_type": "nothing-known"}'])
def test_a_config_that_says_nothing_is_one_line(config: str, folder: Path) -> None:
    (folder / "config.json").write_text(config)
    refused(folder, ".")


def test_a_model_that_is_no_decoder_is_one_line(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    refused(folder, "not a decoder language model", kind=UnsupportedModelError)


def test_a_config_that_cannot_be_built_is_one_line(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_size": -8}))
    refused(folder, ".")


def test_a_missing_tensor_is_named(folder: Path) -> None:
    change_tensors(folder, lambda tensors: {name: value for name, value in tensors.items() if name != DOWN})
    refused(folder, f"holds no tensor for {DOWN}")


def test_a_tensor_of_another_shape_is_one_line(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors | {DOWN: torch.zeros(32, 40)})
    refused(folder, r"has shape \(32, 40\), the model's .* \(32, 48\)")


def test_a_tensor_of_integers_is_one_line(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors | {DOWN: torch.zeros(32, 48, dtype=torch.int32)})
    refused(folder, "is stored as I32, which is not dequantised here", kind=UnsupportedModelError)


def test_a_missing_expert_is_one_line(tmp_path: Path) -> None:
    folder = save_model(make_model("mixtral"), tmp_path / "model")
    with open_checkpoint(folder) as checkpoint:
        gone = checkpoint.find(EXPERTS)[3].name
    stored = load_file(folder / "model.safetensors")
    save_file({name: v for name, v in stored.items() if name != gone}, folder / "model.safetensors", {"format": "pt"})
    refused(folder, f"holds 3 of the 4 tensors .* that make {EXPERTS}", EXPERTS)


def test_an_expert_of_another_shape_is_one_line(tmp_path: Path) -> None:
    folder = save_model(make_model("mixtral"), tmp_path / "model")
    with open_checkpoint(folder) as checkpoint:
        other = checkpoint.find(EXPERTS)[3].name
    change_tensors(folder, lambda tensors: tensors | {other: torch.zeros(32, 40)})
    refused(folder, r"gives shape \(32, 40\)", EXPERTS)


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "a/b/c", " ", "nowhere.gguf"])
def test_a_place_that_does_not_exist_is_one_line(name: str) -> None:
    refused(Path(name) if name.strip() else name, ".")  # type: ignore[arg-type]


def test_a_file_that_is_no_model_is_one_line(folder: Path) -> None:
    refused(folder / "model.safetensors", "neither a model folder nor a .gguf file")
