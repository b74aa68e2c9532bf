"""Models that several processes hold together: the profile of one process alone, kills, and what is refused."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import several_processes
import torch
from capture_models import llama_config, make_tokenizer
from planted_sink import plant_sink
from test_capture_runner import SAMPLES as ALL_SAMPLES
from test_capture_runner import SETTINGS
from test_distributed import contents
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.testing._internal.two_tensor import TwoTensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel
from transformers.distributed import DistributedConfig

from sinkscope.backbone.anatomy import decoder_layers
from sinkscope.backbone.loading import load
from sinkscope.backbone.tensor_parallel import Team, team_of
from sinkscope.capture.distributed import run
from sinkscope.capture.ranks import joined
from sinkscope.capture.runner import text_entry
from sinkscope.causal import CausalSettings
from sinkscope.cli.main import run as command
from sinkscope.discovery import discover
from sinkscope.errors import InputError, SinkscopeError
from sinkscope.pipeline import profile_model
from sinkscope.processes import share_path
from sinkscope.profile import Profile, read_profile
from sinkscope.store.reader import RunReader

SINK = 5
SAMPLES = ALL_SAMPLES[:24]
SMALL = replace(SETTINGS, batch_tokens=192, attention_texts=20)
QUICK = CausalSettings(texts=3, draws=2, resamples=100)
IN_PARTS = {"model.layers.*.mlp.down_proj.weight": "packed_rowwise", "model.layers.*.mlp.down_proj": "local_params"}
"""A plan whose processes do not add up what the MLP of a layer gives."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose heads all look for one dimension, which is massive on full stops. It has biases to add up."""
    torch.manual_seed(0)
    config = llama_config(
        4, attention_bias=True, mlp_bias=True, rope_parameters={"rope_type": "default", "rope_theta": 1e9}
    )
    model, tokenizer = LlamaForCausalLM(config), make_tokenizer()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or "bias" in name:
                parameter.normal_(0, 1.0 if "embed_tokens" in name else 0.05)
    plant_sink(model, [tokenizer.convert_tokens_to_ids(".")], SINK)
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(load(folder), SAMPLES, tmp_path_factory.mktemp("alone") / "run.h5", SMALL, source="tests")


def kill_later(model: torch.nn.Module, passes: int) -> None:
    """Kill this process in the pass after so many."""
    left = [passes]

    def count(*_: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    model.register_forward_pre_hook(count)


def capture(rank: int, folder: Path, path: Path, team: int, resume: bool, killed: int | None) -> dict[str, Any]:
    """One process of a run by teams of `team` processes; `killed` kills itself in the fifth pass."""
    seen: list[int] = []
    with joined() as ranks:
        loaded = load(folder, tensor_parallel=team)
        if rank == killed:
            kill_later(loaded.model, 4)
        run(loaded, SAMPLES, path, SMALL, resume, lambda done, _: seen.append(done), source="tests", ranks=ranks)
    return {"seen": seen}


def assert_same_run(first: Path, second: Path) -> None:
    """The same choices and counts, and the same statistics and sink dimensions up to rounding."""
    one, other = contents(first), contents(second)
    assert one.keys() == other.keys()
    for name, value in one.items():
        # Checksums are of the bytes; tokens may change places among the strongest where they are as good as equal.
        if name.startswith("checksums/") or name in ("statistics/topk_token", "recovery/topk_token"):
            continue
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            least = 1e-3 if value.dtype == np.float16 else 1e-5
            scale = np.nanmax(np.abs(value.astype(float)), initial=0.0)
            np.testing.assert_allclose(other[name], value, rtol=least, atol=least * scale, err_msg=name)
        else:
            np.testing.assert_array_equal(other[name], value, err_msg=name)
    assert_same_profile(discover(first), discover(second))


def assert_same_profile(one: Profile, other: Profile) -> None:
    assert one.verdict == other.verdict == "sinks"
    assert SINK in one.dims
    assert one.dims == other.dims
    places = [[(band.first_layer, band.last_layer, band.dims) for band in profile.bands] for profile in (one, other)]
    assert places[0] == places[1]
    assert one.tau is not None
    assert other.tau is not None
    assert other.tau.phi == pytest.approx(one.tau.phi, rel=1e-5)
    for found, expected in zip(other.bands, one.bands, strict=True):
        assert found.tau_phi == pytest.approx(expected.tau_phi, rel=1e-5)
        assert found.tau_score == pytest.approx(expected.tau_score, rel=1e-5)


def test_two_processes_of_one_model_of_which_one_is_killed(folder: Path, alone: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    outcomes = several_processes.start(2, tmp_path, capture, folder, path, 2, False, 1)
    assert outcomes[1] == {}
    assert "another process of the run has ended" in outcomes[0]["error"]
    with RunReader(path) as reader:  # One team writes the run file itself.
        done, total = reader.progress
        assert 0 < done < total
    kept = shutil.copy(path, tmp_path / "kept.h5")
    outcomes = several_processes.start(2, tmp_path, capture, folder, path, 2, True, None)
    assert outcomes[0]["seen"][0] > done
    assert outcomes[1]["seen"] == []  # It computes with the first, which writes.
    assert_same_run(alone, path)
    # What two processes began, one alone goes on with.
    assert_same_run(alone, run(load(folder), SAMPLES, kept, SMALL, resume=True, source="tests"))


def test_two_models_in_two_processes_each(folder: Path, alone: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    outcomes = several_processes.start(4, tmp_path, capture, folder, path, 2, False, 2)
    assert outcomes[2] == {}
    assert all("another process of the run has ended" in outcomes[rank]["error"] for rank in (0, 1, 3))
    assert not path.exists()
    assert sorted(tmp_path.glob("*.h5")) == [share_path(path, 0), share_path(path, 1)]
    refused = several_processes.start(2, tmp_path, capture, folder, path, 2, True, None)
    assert "rank0.h5 is one of 2 shares of a run, not of 1" in refused[0]["error"]
    whole = tmp_path / "whole"
    whole.mkdir()
    for share in (0, 1):
        shutil.copy(share_path(path, share), whole)
    outcomes = several_processes.start(4, tmp_path, capture, folder, path, 2, True, None)
    assert [bool(outcome["seen"]) for outcome in outcomes] == [False, False, True, False]
    assert_same_run(alone, path)
    # Two shares are two shares, however many processes hold the model of each.
    several_processes.start(2, tmp_path, capture, folder, whole / "run.h5", 1, True, None)
    assert_same_run(alone, whole / "run.h5")


def profiles(rank: int, folder: Path, run_path: Path) -> dict[str, Any]:
    """A profile with all of its evidence, of a model that was loaded with transformers alone."""
    with joined() as ranks:
        model = LlamaForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(tp_size=2))
        helper = load(folder).tokenizer
        try:
            profile_model(model, helper, texts=texts())
            alone = "not refused"
        except InputError as error:
            alone = str(error)
        profile = profile_model(model, helper, texts=texts(), run=run_path, causal=QUICK, ranks=ranks)
    return {"alone": alone, "profile": json.loads(profile.to_json())}


def texts() -> list[str]:
    return [sample.text or "" for sample in SAMPLES]


def test_the_weights_and_the_causal_check_of_a_model_in_two_processes(folder: Path, tmp_path: Path) -> None:
    outcomes = several_processes.start(2, tmp_path, profiles, folder, tmp_path / "run.h5")
    assert "is held by 2 processes together" in outcomes[0]["alone"]
    assert outcomes[0]["profile"] == outcomes[1]["profile"]
    together = Profile.model_validate(outcomes[0]["profile"])
    expected = profile_model(load(folder), texts=texts(), causal=QUICK)
    assert_same_profile(expected, together)
    assert together.evidence.weights == expected.evidence.weights
    assert expected.evidence.weights is not None
    assert "unavailable" not in expected.evidence.weights
    for found, known in zip(_falls(together), _falls(expected), strict=True):
        assert found == pytest.approx(known, rel=1e-3, abs=1e-5)
    assert max(_falls(expected)) > 0.5


def _falls(profile: Profile) -> list[float]:
    causal = profile.evidence.causal
    assert causal is not None
    assert causal["status"] == "tested"
    lines = [line for band in causal["bands"] for layer in band["layers"] for line in layer["comparisons"]]
    return [line["network"]["fall"] for line in lines]


def refusals(rank: int, folder: Path, others: Path) -> dict[str, Any]:
    """What two processes are told about models that they cannot hold together."""
    told = {}
    with joined() as ranks:
        for name in ("no plan", "one head"):
            told[name] = _refused(lambda name=name: load(others / name, tensor_parallel=2))
        told["device"] = _refused(lambda: load(folder, tensor_parallel=2, device_map="cuda:1"))
        plan = DistributedConfig(tp_size=2, tp_plan=IN_PARTS)
        sums = LlamaForCausalLM.from_pretrained(folder, distributed_config=plan)
        loaded = load(folder, tensor_parallel=2)
        told["in parts"] = _refused(lambda: text_entry(replace(loaded, model=sums), SAMPLES))
        for name, change in (("tokens", _some_tokens), ("tensor", _spread)):
            changed = load(folder, tensor_parallel=2)
            decoder_layers(changed.model, changed.anatomy)[1].register_forward_hook(change)
            told[name] = _refused(lambda changed=changed: text_entry(changed, SAMPLES))
        told["quantised"] = _refused(lambda: team_of(_quantised(loaded.model)))
        if rank == 1:
            loaded.model.register_forward_pre_hook(_out_of_memory, with_kwargs=True)
        told["memory"] = _refused(lambda: run(loaded, SAMPLES, others / "run.h5", SMALL, ranks=ranks))
    return told


def _refused(function: Any) -> str:
    try:
        function()
    except SinkscopeError as error:
        return str(error)
    return "not refused"


def _some_tokens(module: Any, args: Any, output: Tensor) -> Tensor:
    return output[:, torch.distributed.get_rank() :: 2]


def _spread(module: Any, args: Any, output: Tensor) -> Tensor:
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    return DTensor.from_local(output, mesh, [Replicate()], run_check=False)


def _quantised(model: torch.nn.Module) -> torch.nn.Module:
    """With a weight that is made of two tensors, as torchao's are."""
    return torch.nn.ModuleList([model, torch.nn.ParameterList([TwoTensor(torch.ones(2, 2), torch.ones(2, 2))])])


def _out_of_memory(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
    if len(kwargs["input_ids"]) > 2:  # Not in the trial.
        raise torch.OutOfMemoryError("a test")


def test_what_two_processes_cannot_hold_together(folder: Path, tmp_path: Path) -> None:
    width = {"vocab_size": 83, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2}
    others: dict[str, PreTrainedModel] = {
        "no plan": GPT2LMHeadModel(GPT2Config(**width)),
        "one head": LlamaForCausalLM(llama_config(1, num_key_value_heads=1)),
    }
    for name, model in others.items():
        model.save_pretrained(tmp_path / name)
        make_tokenizer().save_pretrained(tmp_path / name)
    outcomes = several_processes.start(2, tmp_path, refusals, folder, tmp_path)
    expected = {
        "no plan": "has no tensor-parallel plan for",
        "one head": "2 processes cannot share the 1 key-value heads of llama evenly; choose one of 1",
        "quantised": "do not tell which part of the whole they are",
        "device": "leave the device at auto, not cuda:1",
        "in parts": "the whole state entering layer 1 to each of its 2 processes (it is another one in each, apart by",
        "tokens": "the whole state entering layer 2 to each of its 2 processes (a process has [2, 10] of [2, 19]",
        "tensor": "the whole state entering layer 2 to each of its 2 processes (it is a DTensor)",
    }
    for name, text in expected.items():
        assert text in outcomes[0][name]
    assert "which processes that hold a model together cannot halve" in outcomes[1]["memory"]
    assert "another process of the run has ended" in outcomes[0]["memory"]


def test_the_command_for_two_processes(folder: Path, alone: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()))
    arguments = ["profile", str(folder), "--texts", str(tmp_path / "texts.jsonl"), "--json"]
    together = [
        *arguments,
        "--tensor-parallel",
        "2",
        "--run",
        str(tmp_path / "two.h5"),
        "-o",
        str(tmp_path / "two.json"),
    ]
    outcomes = several_processes.start(2, tmp_path, command_line, together)
    assert [outcome["code"] for outcome in outcomes] == [0, 0]
    assert command([*arguments, "--run", str(tmp_path / "one.h5"), "-o", str(tmp_path / "one.json")]) == 0
    assert_same_run(tmp_path / "one.h5", tmp_path / "two.h5")
    assert_same_profile(read_profile(tmp_path / "one.json"), read_profile(tmp_path / "two.json"))
    assert len(list(tmp_path.glob("*.h5"))) == 2


def command_line(rank: int, arguments: list[str]) -> dict[str, Any]:
    return {"code": command(arguments)}


@pytest.mark.parametrize(
    ("size", "team", "said"),
    [
        (None, "2", "a model in 2 processes needs that many; start with `torchrun --nproc-per-node 2 -m sinkscope -- "),
        (4, "3", "4 processes cannot be split into teams of 3; start a multiple of 3, or choose another"),
    ],
)
def test_processes_that_cannot_be_teams(
    size: int | None, team: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    if size is not None:
        places = {"RANK": 0, "WORLD_SIZE": size, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": 1}
        for name, value in places.items():
            monkeypatch.setenv(name, str(value))
    assert command(["profile", "no-model-is-looked-for", "--tensor-parallel", team]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"sinkscope: error: {said}")
    assert captured.err.count("\n") == 1
    with pytest.raises(InputError, match=re.escape(said)):
        load("no-model-is-looked-for", tensor_parallel=int(team))


def test_means_count_every_head_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three heads here, whose mean is 1 and 4, and one elsewhere with 5 and 8."""

    def all_reduce(packed: Tensor, group: Any = None) -> None:
        packed += torch.tensor([5.0, 8.0, 1.0, 1.0])

    monkeypatch.setattr("sinkscope.backbone.tensor_parallel.distributed.all_reduce", all_reduce)
    values, counts = torch.tensor([[1.0, 4.0]]), torch.tensor([3.0, 3.0])
    assert Team((0, 1)).mean(values, counts).tolist() == [[2.0, 5.0]]
    assert Team((0,)).mean(values, counts).tolist() == [[1.0, 4.0]]
    assert Team((0,)).spread(values).tolist() == [0.0]
