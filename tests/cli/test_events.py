"""Progress: lines on stderr and events, with rate and time left; and how every ending shows in the events."""

import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_models import save_tiny_llama

from sinkscope.cli import output, profile
from sinkscope.cli.events import EventLog
from sinkscope.cli.output import Measure, ProgressBar
from sinkscope.errors import SinkscopeError

COMMON = {"event", "time", "rank"}
FIELDS = {
    "started": {"events_version", "pid", "sinkscope", "model", "run", "profile", "resumed"},
    "progress": {"stage", "unit", "done", "total", "rate", "seconds_left"},
    "error": {"kind", "message", "exit_code", "resumable"},
    "finished": {"exit_code", "verdict", "dims", "run", "profile", "bytes"},
}


def read_events(text: str) -> list[dict]:
    """The events among the lines of a text, each with all the fields of its kind, and those of a capture no others."""
    events = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    for event in events:
        more = {"layers", "bytes"} if event.get("stage") == "capture" else set()
        assert set(event) == COMMON | FIELDS[event["event"]] | more, event
        assert event["time"].endswith("Z")
    return events


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in a list of one number that the test changes."""
    now = [100.0]
    # Of this module alone: event loops in other threads would wait for the true time for ever.
    monkeypatch.setattr(output, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def count(bar: ProgressBar, clock: list[float], unit: str, steps: list[tuple[float, int]], total: int) -> None:
    show = bar.stage("work", unit, lambda: {"layers": 31, "bytes": 12_300_000})
    for now, done in steps:
        clock[0] = now
        show(done, total)


def test_lines_tell_rate_time_left_and_details(capsys, clock):
    with ProgressBar() as bar:
        # What the first call names was done before, and counts for no rate.
        count(bar, clock, "tokens", [(100, 3000), (101, 4000), (105, 13000), (112, 27000), (113, 30000)], 30000)
        count(bar, clock, "bytes", [(200, 0), (210, 50_000_000)], 10**9)
        count(bar, clock, "work", [(300, 0), (310, 4), (320, 8), (326, 800)], 100_000)
    more = "31 layers, 12.3 MB"
    assert capsys.readouterr().err.splitlines() == [
        f"work: 3,000 of 30,000 tokens, {more}",
        f"work: 13,000 of 30,000 tokens, 2,000 a second, 8.5 s left, {more}",
        f"work: 27,000 of 30,000 tokens, 2,000 a second, 1.5 s left, {more}",
        f"work: 30,000 of 30,000 tokens, 2,077 a second, {more}",
        f"work: 0 bytes of 1.0 GB, {more}",
        f"work: 50.0 MB of 1.0 GB, 5.0 MB a second, 0:03:10 left, {more}",
        f"work: 0 of 100,000, {more}",
        f"work: 4 of 100,000, 2.5 s each, 2 days, 21:26:30 left, {more}",
        f"work: 8 of 100,000, 2.5 s each, 2 days, 21:26:20 left, {more}",
        f"work: 800 of 100,000, 30.8 a second, 0:53:44 left, {more}",
    ]


def test_a_terminal_shows_the_same_in_a_bar(capsys, clock, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    with ProgressBar() as bar:
        with bar.waiting("loading"):
            pass
        count(bar, clock, "tokens", [(100, 0), (102, 4000)], 8000)
    shown = capsys.readouterr().err
    assert "4,000 of 8,000 tokens, 2,000 a second, 2.0 s left, 31 layers, 12.3 MB" in shown


def test_other_ranks_show_nothing(capsys, clock, monkeypatch):
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    with ProgressBar() as bar:
        count(bar, clock, "tokens", [(100, 0), (110, 30)], 30)
    assert capsys.readouterr().err == ""


def test_events_are_throttled_and_the_last_is_never_lost(here, clock):
    events = EventLog("events.jsonl")
    with ProgressBar(events) as bar, bar.waiting("loading"):
        count(bar, clock, "tokens", [(100 + step / 10, 10 * step) for step in range(124)], 10_000)
    written = read_events((here / "events.jsonl").read_text().replace('"work"', '"capture"'))
    assert [event["done"] for event in written] == [0, 0, 500, 1000], "at once, without closing the file"
    assert written[0] | {"stage": "loading", "unit": None, "total": None, "rate": None} == written[0]
    assert written[2] | {"rate": 100.0, "seconds_left": 95.0, "layers": 31, "bytes": 12_300_000} == written[2]
    events.failed("Interrupted", "interrupted", 130, resumable=True)
    events.progress(Measure("late", None, 0, None), due=True)
    written = read_events((here / "events.jsonl").read_text().replace('"work"', '"capture"'))
    assert [event.get("done") for event in written[4:]] == [1230, None]
    assert written[-1]["event"] == "error"


def test_a_full_disk_ends_the_events_and_not_the_run(capsys, here):
    events = EventLog("/dev/full")
    for _ in range(3):
        events.progress(Measure("work", "tokens", 1, 2), due=True)
    events.finished()
    assert capsys.readouterr().err == "no more events are written: No space left on device\n"


def test_a_finished_run(sinkscope, here, tiny):
    done = sinkscope("profile", tiny, "--samples", "8", "--events", "events.jsonl", "--json")
    assert done.code == 0, done.err
    events = read_events((here / "events.jsonl").read_text())
    assert [event["event"] for event in events][0 :: len(events) - 1] == ["started", "finished"]
    stages = [event["stage"] for event in events[1:-1]]
    assert list(dict.fromkeys(stages)) == ["reading the calibration data", f"loading {tiny}", "capture"]
    last = events[-2]
    assert last["done"] == last["total"] > 0
    assert last["layers"] == 3
    assert last["bytes"] > 0
    assert events[-1]["verdict"] == json.loads(done.out)["verdict"]
    assert events[0]["resumed"] is False
    # Further events are appended, and those on stderr come in place of the lines for people.
    again = sinkscope("profile", tiny, "--samples", "8", "--events", "-", "--resume")
    events = read_events(again.err)
    assert events[0]["resumed"] is True
    assert events[-1]["event"] == "finished"
    assert "capture: " not in again.err


@pytest.mark.parametrize("method", [None, "gzip"])
def test_a_run_that_keeps_no_states_is_done_without_a_profile(sinkscope, here, tiny, method):
    more = [] if method is None else ["--compress", method]
    done = sinkscope(
        "profile", tiny, "--samples", "4", "--keep", "none", "--run", "r.h5", "--events", "e.jsonl", "--json", *more
    )
    assert done.code == 0, done.err
    assert "none can be made, because --keep none kept no hidden states" in done.err
    assert json.loads(done.out)["status"] == "complete"
    first, *_, last = read_events((here / "e.jsonl").read_text())
    assert first["profile"] is None
    assert (last["event"], last["verdict"], last["dims"], last["profile"]) == ("finished", None, [], None)
    assert not list(here.glob("*.json"))
    again = sinkscope("profile", tiny, "--samples", "4", "--keep", "none", "--run", "r.h5", "--resume", *more)
    assert (again.code, "status         complete" in again.out) == (0, True)


@pytest.mark.parametrize(("arguments", "fragment"), [
    (["--texts", "broken.jsonl"], "line 1 of broken.jsonl is not valid JSON"),
    (["--texts", "absent.txt"], "absent.txt"),
    (["--dataset", "broken.jsonl"], "cannot read the dataset broken.jsonl"),
    (["--run", "nowhere/r.h5"], "no folder nowhere"),
])  # fmt: skip
def test_bad_input_is_told_before_the_model_is_loaded(sinkscope, here, no_model, arguments, fragment):
    (here / "broken.jsonl").write_text('{"text": ')
    outcome = sinkscope("profile", "demo:llm", *arguments, "--events", "events.jsonl")
    outcome.refused(fragment)
    first, *_, last = read_events((here / "events.jsonl").read_text())
    assert (first["event"], last["event"]) == ("started", "error")
    assert (last["kind"], last["exit_code"], last["resumable"]) == ("InputError", 2, False)
    assert outcome.err.splitlines()[-1] == f"sinkscope: error: {last['message']}"


def test_events_that_cannot_be_written_are_an_error(sinkscope, here, no_model):
    sinkscope("profile", "demo:llm", "--events", "nowhere/e.jsonl").refused("nowhere/e.jsonl", "--events")


def test_an_error_halfway_is_told(sinkscope, here, tiny, monkeypatch):
    def fail(*arguments: object, **options: object) -> None:
        options["progress"](5, 10)
        options["progress"](6, 10)
        raise SinkscopeError("the model\nfell over")

    monkeypatch.setattr("sinkscope.pipeline.profile_model", fail)
    assert sinkscope("profile", tiny, "--events", "-").code == 1
    outcome = sinkscope("profile", tiny, "--events", "-")
    events = read_events(outcome.err)
    assert [event.get("done") for event in events[-3:]] == [5, 6, None]
    assert (events[-1]["message"], events[-1]["exit_code"]) == ("the model fell over", 1)


def test_ctrl_c_is_told_and_the_run_goes_on(here, tiny):
    (here / "texts.txt").write_text("\n\n".join(f"{number} " + "many words follow here " * 40 for number in range(400)))
    command = [sys.executable, "-m", "sinkscope", "profile", str(tiny), "--no-attention", "--run", "r.h5"]
    command += ["--texts", "texts.txt", "--events", "events.jsonl"]
    # Where the tests run in the background of a shell, they and their children ignore ctrl-C.
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and '"stage": "capture"' not in _text(here / "events.jsonl"):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=60)[1].splitlines()[-1]
    assert process.returncode == 130
    events = read_events(_text(here / "events.jsonl"))
    last = events[-1]
    assert (last["event"], last["kind"], last["exit_code"]) == ("error", "Interrupted", 130)
    assert last["resumable"] is True
    assert message == f"sinkscope: error: {last['message']}"
    assert "--resume" in message
    assert 0 < events[-2]["done"] < events[-2]["total"]


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_the_schema_is_documented():
    document = (Path(profile.__file__).parents[2] / "docs" / "progress.md").read_text()
    for names in (COMMON, *FIELDS.values(), {"layers"}):
        assert all(f"`{name}`" in document for name in names)
