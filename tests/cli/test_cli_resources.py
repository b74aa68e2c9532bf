"""Where the machine has no room left: outputs on a full disk, and memory; and what an interrupt finds."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

from sinkscope.cli import main
from sinkscope.cli.main import Session
from sinkscope.errors import DiskError
from sinkscope.store.lock import WriterLock

FULL = Path("/dev/full")


def command(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "sinkscope", *arguments]
    return subprocess.run(words, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_an_output_on_a_full_disk_is_one_line() -> None:
    with FULL.open("w") as full:
        done = command("--help", stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 1
        assert done.stderr == "sinkscope: error: no space is left; free space there\n"
        # Where errors cannot be told, the exit code still says what happened.
        assert command("info", "nowhere.h5", stdout=subprocess.DEVNULL, stderr=full).returncode == 2


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let `sinkscope demo` fail."""

    @click.command()
    def command() -> None:
        raise error

    monkeypatch.setattr("sinkscope.cli.demo.command", command)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        np._core._exceptions._ArrayMemoryError((2**40,), np.dtype("float64")),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("can't start new thread"),
        SystemError("error return without exception set"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_whatever_says_that_memory_is_short(sinkscope, monkeypatch, error) -> None:
    failing(monkeypatch, error)
    sinkscope("demo").refused("out of memory; load the model with --dtype bfloat16", code=1)


def test_a_full_disk_that_nobody_expected(sinkscope, monkeypatch) -> None:
    failing(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "/scratch/x"))
    monkeypatch.setattr(main, "silence", lambda stream: None)
    sinkscope("demo").refused("no space is left for /scratch/x; free space there", code=1)


def test_a_disk_that_fails_after_the_run_leaves_a_way_on(tmp_path: Path) -> None:
    run = tmp_path / "r.h5"
    session, error = Session(run=run), DiskError("cannot write p.json: no space")
    assert session.told(error) == str(error)
    run.touch()
    assert session.told(error) == f"{error}; {run} keeps what was measured, go on with it: --resume"
    assert session.told(DiskError("free space, then --resume")) == "free space, then --resume"


def test_a_run_file_that_is_being_written_is_told_with_its_process(sinkscope, here, no_model) -> None:
    (here / "r.h5").touch()
    arguments = ("profile", "demo:llm", "--run", "r.h5")
    sinkscope(*arguments).refused("r.h5 exists already; go on with it: --resume")
    with WriterLock(here / "r.h5") as lock:
        lock.tell(0)
        sinkscope(*arguments).refused(f"r.h5 exists already and is being written (process {os.getpid()}); ")


INTERRUPTED = """
import signal, sys, time, weakref, click, sinkscope.cli.demo
from sinkscope.cli.main import main

def arrive(*_):
    signal.raise_signal(signal.SIGTERM)

class Mine:
    pass

class Finalized:
    __del__ = arrive

@click.command()
def command():
    {}
    for _ in range(1000):
        time.sleep(0.02)

sinkscope.cli.demo.command = command
sys.argv = ["sinkscope", "demo"]
main()
"""


@pytest.mark.parametrize(
    "where",
    [
        "exec('raise KeyboardInterrupt')",
        "arrive()",
        "Finalized()",
        "mine = Mine(); watched = weakref.ref(mine, arrive); del mine",
        "mine = Mine(); mine.end = Finalized(); mine.itself = mine; del mine; __import__('gc').collect()",
        "type('Made', (), {'part': type('Part', (), {'__set_name__': arrive})()})",  # Python 3.11 wraps what is raised.
    ],
)
def test_an_interrupt_ends_with_its_code_wherever_it_comes(tmp_path: Path, where: str) -> None:
    (tmp_path / "interrupted.py").write_text(INTERRUPTED.replace("{}", where, 1))
    words = [sys.executable, "-m", "interrupted"]
    environment = {**os.environ, "PYTHONPATH": str(Path(main.__file__).parents[2])}
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.stderr == "sinkscope: error: interrupted; nothing was kept\n"
    assert done.returncode == 130


@pytest.mark.parametrize(("closed", "shown"), [(">&-", ""), ("2>&-", "sinkscope"), ("<&- >&- 2>&-", "")])
def test_outputs_may_be_closed(tmp_path: Path, closed: str, shown: str) -> None:
    script = f'"$0" -m sinkscope --version {closed}'
    done = subprocess.run(["sh", "-c", script, sys.executable], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(shown)
    script = f'"$0" -m sinkscope info nowhere.h5 {closed}'
    assert subprocess.run(["sh", "-c", script, sys.executable], capture_output=True, check=False).returncode == 2


def test_no_interrupt_is_heard_after_the_end(monkeypatch) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(sys, "argv", ["sinkscope", "--version"])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    try:
        with pytest.raises(SystemExit) as ended:
            main.main()
        assert ended.value.code == 0
        assert {signal.getsignal(number) for number in before} == {signal.SIG_IGN}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
