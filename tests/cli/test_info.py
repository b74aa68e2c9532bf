"""``sinkscope info`` on run files that are finished, being written by another process, left behind, and damaged."""

import json
import random
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

SAMPLES, LENGTH = 60, 10

WRITER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from store_runs import make_plan, make_rows, make_statistics
from sinkscope.store.writer import RunWriter

settings = {"max_samples": 60, "max_tokens": None, "attention": True, "chat_template": True}
plan = make_plan(samples=60, model_id="some org/model", revision="abc", seed=3, settings=settings,
                 calibration={"fingerprint": "0123456789abcdef", "source": "texts from corpus.txt"})
made = RunWriter.create if sys.argv[3] == "create" else RunWriter.resume
with made(sys.argv[2], plan) as writer:
    for done in range(writer.samples_done, 60):
        writer.commit_batch([make_rows(plan, int(plan.order[done]))], make_statistics(plan, done + 1))
        print(done + 1, flush=True)
        time.sleep(float(sys.argv[4]))
    writer.complete(make_statistics(plan, 60))
"""


def start_writer(path: Path, how: str, pause: float) -> subprocess.Popen:
    store = Path(__file__).parents[1] / "store"
    command = [sys.executable, "-c", WRITER, str(store), str(path), how, str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "done.h5"
    process = start_writer(path, "create", 0)
    process.communicate(timeout=60)
    assert process.returncode == 0
    return path


def test_a_run_that_is_written_then_killed_then_resumed(sinkscope, here):
    path = here / "my run.h5"
    process = start_writer(path, "create", 0.05)
    seen: list[int] = []
    try:
        while process.stdout.readline().strip() != "3":
            pass
        for _ in range(60):
            shown = sinkscope("info", path, "--json")
            assert shown.code == 0, shown.err
            facts = json.loads(shown.out)
            if facts["samples"]["done"] == SAMPLES:
                break
            seen.append(facts["samples"]["done"])
            assert facts["tokens"]["done"] == seen[-1] * LENGTH
            assert facts["tokens"]["total"] == SAMPLES * LENGTH
            assert facts["writer"]["process"] == process.pid
            assert facts["writer"]["alive"] is True
            assert facts["rate"] > 0
            assert facts["resume"] is None
            if len(set(seen)) >= 8:
                break
        assert sorted(seen) == seen
        assert len(set(seen)) >= 8, "read in many states"
        assert f"being written by process {process.pid}" in sinkscope("info", path).out
    finally:
        process.kill()
        process.wait()
    facts = json.loads(sinkscope("info", path, "--json").out)
    done = facts["samples"]["done"]
    assert 8 <= done < SAMPLES
    assert facts["writer"]["alive"] is False
    # Of the samples that count, one was written without the pause that follows it.
    assert 1 < facts["rate"] < 2 * LENGTH / 0.05
    again = "sinkscope profile 'some org/model' --run " + shlex.quote(str(path))
    again += " --revision abc --samples 60 --seed 3 --chat-template --resume"
    assert facts["resume"] == again
    shown = sinkscope("info", path).out
    lines = ("interrupted: its process was killed", f"{done} of 60", " a second, ", again, "texts from corpus.txt")
    for part in lines:
        assert part in shown

    process = start_writer(path, "resume", 0)
    assert int(process.stdout.readline()) == done + 1
    process.communicate(timeout=60)
    facts = json.loads(sinkscope("info", path, "--json").out)
    assert (facts["status"], facts["samples"]["done"]) == ("complete", SAMPLES)
    assert (facts["writer"], facts["rate"], facts["resume"]) == (None, None, None)


def test_an_interrupted_run_and_one_of_several_processes(sinkscope, here, monkeypatch):
    from sinkscope.cli import info
    from sinkscope.store.lock import WriterLock
    from sinkscope.store.reader import RunReader

    path = here / "r.rank1.h5"
    process = start_writer(path, "create", 0.05)
    process.stdout.readline()
    process.kill()
    process.wait()
    WriterLock.place(path).unlink()
    assert "status         interrupted\n" in sinkscope("info", path).out
    with RunReader(path) as reader:
        reader.attributes.calibration["part"] = {"rank": 1, "ranks": 4}
        facts = info.describe(reader)
    assert facts["resume"].startswith("torchrun --nproc-per-node 4 -m sinkscope -- profile 'some org/model' --run ")
    assert str(here / "r.h5") in facts["resume"]
    assert "part 1 of a run of 4 processes" in "\n".join(info._lines(facts))
    # A writer on another machine cannot be asked.
    WriterLock.place(path).write_text("1 1700000000.0 0 elsewhere")
    assert "written, if it still runs, by process 1 on elsewhere" in sinkscope("info", path).out
    for nonsense in ("", "a b c d", "1 2", "\xff" * 40):
        WriterLock.place(path).write_text(nonsense)
        assert json.loads(sinkscope("info", path, "--json").out)["writer"] is None


def test_a_run_that_was_killed_before_its_last_step(sinkscope, here):
    process = start_writer(here / "r.h5", "create", 0.2)
    while process.stdout.readline().strip() != str(SAMPLES):
        pass
    process.kill()
    process.wait()
    facts = json.loads(sinkscope("info", "r.h5", "--json").out)
    assert (facts["status"], facts["samples"]) == ("running", {"done": SAMPLES, "total": SAMPLES})
    assert facts["resume"].endswith(" --resume")
    assert "status         interrupted: its process was killed\n" in sinkscope("info", "r.h5").out


def test_the_way_on_has_all_that_it_takes(finished, monkeypatch):
    from sinkscope.cli import info
    from sinkscope.store.reader import RunReader

    with RunReader(finished) as reader:
        settings = {**reader.attributes.settings, "max_store": 7_000_000}
        changed = replace(reader.attributes, model_id="./m.gguf", status="running", settings=settings)
        monkeypatch.setattr(reader, "attributes", changed)
        facts = info.describe(reader)
    assert facts["resume"].startswith("sinkscope profile ./m.gguf --run ")
    assert " --max-store 7000000 " in facts["resume"]
    assert info._lines(facts)[-1].endswith("--device, where the run was begun")


def test_no_row_data_are_read(sinkscope, finished, monkeypatch):
    from sinkscope.store.reader import RunReader

    def refuse(self: object, name: str) -> None:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(RunReader, "_check", refuse)
    shown = sinkscope("info", finished)
    assert shown.code == 0, shown.err
    for part in ("complete", "60 of 60", "600 of 600: 600 text", "200 tokens sampled", "measured, 300 tokens"):
        assert part in shown.out


def test_damage_is_one_line_or_does_no_harm(sinkscope, finished, here):
    whole = finished.read_bytes()
    path, draw = here / "damaged.h5", random.Random(0)
    refused = 0
    for _ in range(60):
        shutil.copy(finished, path)
        data = bytearray(whole)
        if draw.random() < 0.3:
            data = data[: draw.randrange(len(data))]
        else:
            for _ in range(draw.choice((1, 8))):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        outcome = sinkscope("info", path, "--json")
        if outcome.code == 0:
            assert json.loads(outcome.out)["samples"] == {"done": SAMPLES, "total": SAMPLES}
        else:
            outcome.refused("damaged.h5")
            refused += 1
    assert refused >= 20
