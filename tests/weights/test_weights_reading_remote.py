"""Over a network only the wanted bytes are sent: header and matrix, from a plain server and from a hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import torch
from weights_reading_models import assert_equal_parameters, make_model, save_model, serve

from sinkscope.errors import InputError
from sinkscope.weights import http_ranges
from sinkscope.weights.checkpoint import open_checkpoint
from sinkscope.weights.files import RemoteRanges

DOWN = "model.layers.1.mlp.down_proj.weight"
REPOSITORY = "someone/tiny"


def test_a_server_sends_the_header_and_the_matrix_alone(tmp_path: Path) -> None:
    model = make_model("llama", vocab_size=20_000, hidden_size=64)
    save_model(model, tmp_path)
    whole = (tmp_path / "model.safetensors").stat().st_size
    with serve(tmp_path) as server, open_checkpoint(server.url) as checkpoint:
        (stored,) = checkpoint.find(DOWN)
        assert torch.equal(checkpoint.read(stored), model.get_parameter(DOWN))
        header = int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")
        assert server.sent["model.safetensors"] == 8 + header + stored.nbytes == checkpoint.bytes_read
        assert server.sent["model.safetensors"] < 0.02 * whole


@pytest.mark.parametrize("listing", [True, False])
def test_of_shards_only_those_that_hold_the_matrix_are_touched(listing: bool, tmp_path: Path) -> None:
    model = make_model("mixtral")
    save_model(model, tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.1.mlp.experts.down_proj"
    with serve(tmp_path, listing=listing) as server, open_checkpoint(server.url) as checkpoint:
        found = checkpoint.find(name)
        assert {file for file, _, _ in server.ranges if file.startswith("model-")} == {
            index[part.name] for part in found
        }
        tensors = torch.stack([checkpoint.read(part) for part in found])
        assert torch.equal(tensors, model.get_parameter(name))


def test_a_large_matrix_comes_in_several_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinkscope.weights.files.REMOTE_STEP", 1000)
    model = make_model("llama")
    save_model(model, tmp_path)
    with serve(tmp_path) as server, open_checkpoint(server.url) as checkpoint:
        assert_equal_parameters(checkpoint, model)
        assert max(stop - start for _, start, stop in server.ranges) <= 1000


def test_any_fsspec_file_system_serves(tmp_path: Path) -> None:
    model = make_model("llama")
    save_model(model, tmp_path)
    memory = fsspec.filesystem("memory")
    for path in tmp_path.iterdir():
        memory.pipe(f"/reading/{path.name}", path.read_bytes())
    with open_checkpoint("memory://reading") as checkpoint:
        assert_equal_parameters(checkpoint, model)


HUB_SCRIPT = """
import sys, torch
from safetensors.torch import load_file
from sinkscope.errors import InputError
from sinkscope.weights.checkpoint import open_checkpoint
name = "model.layers.1.mlp.down_proj.weight"
with open_checkpoint(sys.argv[1]) as checkpoint:
    (stored,) = checkpoint.find(name)
    assert torch.equal(checkpoint.read(stored), load_file(sys.argv[2])[name])
    print("read", checkpoint.bytes_read)
with open_checkpoint(sys.argv[1], revision="main") as checkpoint:
    assert checkpoint.find(name) == [stored]
    print("read", checkpoint.bytes_read)
for wrong in ("someone/absent", "someone/tiny@nothing"):
    try:
        open_checkpoint(wrong)
    except InputError as error:
        print("refused", error)
"""


def test_a_hub_sends_the_header_and_the_matrix_alone(tmp_path: Path) -> None:
    """In a process of its own, with a hub that is a local server."""
    model = make_model("llama", vocab_size=20_000, hidden_size=64)
    folder, home = tmp_path / "model", tmp_path / "home"
    save_model(model, folder)
    whole = (folder / "model.safetensors").stat().st_size
    with serve(folder, REPOSITORY) as server:
        environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
        environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", HUB_SCRIPT, REPOSITORY, str(folder / "model.safetensors")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    counts = [int(line.removeprefix("read ")) for line in lines[:2]]
    assert server.sent["model.safetensors"] == sum(counts) < 0.02 * whole
    assert len(lines) == 4
    assert all(line.startswith("refused") for line in lines[2:])
    cached = [path for path in home.rglob("*") if path.is_file() and path.stat().st_size > 0.02 * whole]
    assert not cached, "the weights must not be downloaded"


def test_a_complete_cache_is_read_without_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    commit = "3" * 40
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / commit
    save_model(model, snapshot)
    (tmp_path / "models--someone--tiny" / "refs").mkdir()
    (tmp_path / "models--someone--tiny" / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path), raising=False)
    with open_checkpoint(REPOSITORY) as checkpoint:
        assert checkpoint.label == REPOSITORY
        assert_equal_parameters(checkpoint, model)


def test_an_unreachable_hub_is_one_line() -> None:
    with pytest.raises(InputError) as caught:
        open_checkpoint("someone/absent-model")
    assert "someone/absent-model" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_without_ranges_is_refused(tmp_path: Path) -> None:
    save_model(make_model("llama"), tmp_path)
    with serve(tmp_path, ranges=False) as server, pytest.raises(InputError, match="does not answer byte ranges"):
        open_checkpoint(server.url)


def test_an_unreachable_server_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_ranges, "ATTEMPTS", 1)
    with pytest.raises(InputError, match=r"cannot reach http://127\.0\.0\.1:9"):
        open_checkpoint("http://127.0.0.1:9/model")


def test_a_url_without_a_model_is_one_line(tmp_path: Path) -> None:
    with serve(tmp_path) as server, pytest.raises(InputError, match="there is nothing at"):
        open_checkpoint(f"{server.url}/nothing")


def test_an_unknown_kind_of_url_is_one_line() -> None:
    with pytest.raises(InputError, match="cannot open nowhere://model"):
        open_checkpoint("nowhere://model")


def test_an_answer_that_is_too_short_is_noticed() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/short/file", b"0123456789")
    file = RemoteRanges(memory, "/short/file", "the file")
    file.size = 20
    with pytest.raises(InputError, match="sent 8 bytes where 18 were asked for"):
        file.read(2, 18)
