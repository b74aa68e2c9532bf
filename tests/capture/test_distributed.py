"""Several processes: shares of the plan, ranks that are killed, and the file and profile of one process alone."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import several_processes
from capture_models import make_llama
from test_capture_runner import SAMPLES, SETTINGS

from sinkscope.backbone.loading import LoadedModel
from sinkscope.capture.distributed import run
from sinkscope.capture.planning import make_plan
from sinkscope.capture.ranks import Ranks, joined
from sinkscope.capture.shares import deal, share_of
from sinkscope.cli.main import run as command
from sinkscope.discovery import discover
from sinkscope.errors import StoreError
from sinkscope.processes import device_share, share_path, this_process
from sinkscope.store.layout import ATTENTION_MEASURED
from sinkscope.store.merge import merge
from sinkscope.store.reader import RunReader

ROOT = Path(__file__).parents[2]
SMALL = replace(SETTINGS, batch_tokens=128)


def work(rank: int, path: Path, resume: bool, killed: int | None) -> dict[str, Any]:
    """One process of a run; `killed` kills itself in the middle of its share."""
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if rank == killed and done > total // 2:
            os.kill(os.getpid(), signal.SIGKILL)

    with joined() as ranks:
        run(make_llama(), SAMPLES, path, SMALL, resume, progress, source="tests", ranks=ranks)
        verdict = ranks.from_first(lambda: discover(path).verdict)
    return {"seen": seen, "verdict": verdict}


def start(size: int, path: Path, resume: bool = False, killed: int | None = None) -> list[dict[str, Any]]:
    """Run all ranks to their ends; what each reports, nothing where it was killed."""
    return several_processes.start(size, path.parent, work, path, resume, killed)


def contents(path: Path) -> dict[str, Any]:
    """All that a finished file holds, but for its journal."""
    found: dict[str, Any] = {}

    def take(name: str, entry: Any) -> None:
        if isinstance(entry, h5py.Dataset) and name not in ("progress/record", "progress/seal"):
            array = entry[()]
            found[name] = list(array) if array.dtype == object else array

    with h5py.File(path) as file:
        found |= {name: str(value) for name, value in file.attrs.items()}
        file.visititems(take)
    return found


def assert_same_file(first: Path, second: Path) -> None:
    """The same attributes and the same bytes; sums may be rounded apart by the order of the ranks."""
    one, other = contents(first), contents(second)
    assert one.keys() == other.keys()
    for name, value in one.items():
        if "/sum_" in name:
            np.testing.assert_allclose(other[name], value, rtol=1e-12, atol=1e-12, err_msg=name)
        else:
            np.testing.assert_array_equal(other[name], value, err_msg=name)


def profile_of(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(discover(path).to_json())
    document["provenance"].pop("date")
    return document


@pytest.fixture(scope="module")
def alone(llama: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(llama, SAMPLES, tmp_path_factory.mktemp("alone") / "run.h5", SMALL, source="tests")


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_of_which_one_is_killed_and_resumed_are_one_process_alone(alone: Path, tmp_path: Path, size: int) -> None:
    path = tmp_path / "run.h5"
    outcomes = start(size, path, killed=1)
    assert outcomes[1] == {}
    assert all("another process of the run has ended" in outcomes[rank]["error"] for rank in range(size) if rank != 1)
    assert not path.exists()
    with RunReader(share_path(path, 1)) as reader:
        done, total = reader.progress
        assert 0 < done < total
    if size == 3:
        refused = start(2, path, resume=True)
        assert "rank0.h5 is one of 3 shares of a run, not of 2; go on with as many" in refused[0]["error"]
        with pytest.raises(StoreError, match=r"rank0\.h5 is one of 3 shares of a run, not of 1; go on with as many"):
            run(make_llama(), SAMPLES, path, SMALL, resume=True, source="tests")
    outcomes = start(size, path, resume=True)
    verdicts = {outcome["verdict"] for outcome in outcomes}
    assert len(verdicts) == 1
    assert len(outcomes[1]["seen"]) > 0
    assert outcomes[0]["seen"] == []  # Its share was complete: nothing of it is computed again.
    assert_same_file(alone, path)
    assert profile_of(path) == profile_of(alone)
    again = start(size, path, resume=True)
    assert [outcome["seen"] for outcome in again] == [[]] * size
    # The shares also merge by hand, all of them only, and one process alone takes up the merged file.
    shares = [share_path(path, rank) for rank in range(size)]
    assert_same_file(path, merge(shares, tmp_path / "again.h5"))
    with pytest.raises(StoreError, match=r"part 0 of the run that .*rank1\.h5 is part of is missing"):
        merge(shares[1:], tmp_path / "none.h5")
    with pytest.raises(StoreError, match=r"alone.*run\.h5 is a whole run among parts of one"):
        merge([*shares, alone], tmp_path / "none.h5")
    run(make_llama(), SAMPLES, path, SMALL, resume=True, source="tests")


def test_shares_are_the_whole_and_are_even(llama: LoadedModel) -> None:
    plan = make_plan(llama, SAMPLES, SMALL, ATTENTION_MEASURED, "tests")
    for ranks in (1, 2, 5, len(plan.batches) + 2):
        dealt = deal(plan, ranks)
        assert sorted(batch for batches in dealt for batch in batches) == sorted(plan.batches)
        shares = [share for rank in range(ranks) if (share := share_of(plan, rank, ranks)) is not None]
        assert len(shares) == min(ranks, len(plan.batches))
        tokens = [len(share.run.tokens) for share in shares]
        assert sum(tokens) == len(plan.run.tokens)
        if ranks <= 5:
            assert max(tokens) - min(tokens) <= 2 * SMALL.batch_tokens
        numbers = [share.run.part[0] for share in shares]  # type: ignore[index]
        assert sorted(np.concatenate(numbers).tolist()) == list(range(len(plan.samples)))
        for share, number in zip(shares, numbers, strict=True):
            assert [plan.samples[i].ids.tolist() for i in number] == [sample.ids.tolist() for sample in share.samples]
            assert {int(number[i]) for i in share.attended} == plan.attended & set(number.tolist())
        assert sum(len(share.run.sampled_tokens) for share in shares) == len(plan.run.sampled_tokens)
        assert sum(len(share.run.attention_tokens) for share in shares) == len(plan.run.attention_tokens)


def test_which_process_and_which_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert this_process().is_alone
    monkeypatch.setenv("WORLD_SIZE", "8")  # Some cluster images set it without torchrun.
    assert this_process().is_alone
    devices = [str(number) for number in range(8)]
    assert [device_share(devices, rank, 8) for rank in range(8)] == [[device] for device in devices]
    assert [device_share(devices, rank, 2) for rank in range(2)] == [devices[:4], devices[4:]]
    assert [device for rank in range(3) for device in device_share(devices, rank, 3)] == devices
    assert [device_share(devices[:1], rank, 2) for rank in range(2)] == [["0"], ["0"]]


def test_the_command_under_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = make_llama()
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": sample.text}) + "\n" for sample in SAMPLES))

    def arguments(texts: str, name: str) -> list[str]:
        files = [f"--texts={texts}", "--run", f"{name}.h5", "-o", f"{name}.json"]
        return ["profile", str(tmp_path / "model"), *files, "--json"]

    def torchrun(texts: str, name: str) -> subprocess.CompletedProcess[str]:
        launcher = ["torch.distributed.run", "--nproc-per-node", "2", "-m", "sinkscope", "--"]
        return subprocess.run(
            [sys.executable, "-m", *launcher, *arguments(texts, name)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    monkeypatch.chdir(tmp_path)
    together = torchrun("texts.jsonl", "two")
    assert together.returncode == 0, together.stderr
    assert json.loads(together.stdout)["backbone"]["num_layers"] == 3
    assert together.stderr.count("run file: two.h5") == 1
    assert command(arguments("texts.jsonl", "one")) == 0
    assert (tmp_path / "two.json").read_text() == (tmp_path / "one.json").read_text()
    assert_same_file(tmp_path / "one.h5", tmp_path / "two.h5")
    failed = torchrun("nowhere.jsonl", "none")
    assert failed.returncode != 0
    assert failed.stdout == ""
    errors = [line for line in failed.stderr.splitlines() if "sinkscope: error:" in line]
    assert errors == ["sinkscope: error: there is nothing at nowhere.jsonl; check --texts"]


def test_one_process_needs_no_others() -> None:
    with joined() as ranks:
        assert isinstance(ranks, Ranks)
        assert ranks.gather("value") == ["value"]
        assert ranks.from_first(lambda: 3) == 3
