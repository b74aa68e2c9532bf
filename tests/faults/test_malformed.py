"""Malformed input of every kind, as in `python -m benchmarks.faults` but less of it; and what it once found."""

import json
import os
import tempfile
from pathlib import Path

import pytest

from benchmarks.faults.malformed import FUNCTIONS, KINDS, check, check_kind
from benchmarks.faults.malformed.base import Link, NamedPipe, picture, run_file, run_plan
from benchmarks.faults.malformed.forging import Forged
from benchmarks.faults.malformed.judging import ACCEPTED, DONE, FINDING, REFUSED, judged
from benchmarks.faults.malformed.pictures import POSTSCRIPT, full_png
from benchmarks.faults.malformed.profiles import VALID
from benchmarks.faults.watched import Content, Ending, Watched, Work

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="watches processes as Linux shows them"
)

COUNTS = {"profiles": 80, "lines": 100, "pictures": 100, "run files": 50, "disguises": 15}


@pytest.mark.parametrize("kind", KINDS)
def test_malformed_input_is_refused_or_harmless(tmp_path: Path, kind: str) -> None:
    outcome = check_kind(kind, tmp_path, COUNTS[kind], seed=1)
    assert outcome.problems == []
    assert outcome.tried == COUNTS[kind]
    assert outcome.figures[REFUSED] > COUNTS[kind] / 5
    assert kind == "disguises" or outcome.figures[REFUSED] < COUNTS[kind]


def test_examples_are_shared_out_over_all_kinds(tmp_path: Path) -> None:
    outcome = check(tmp_path, 20, seed=2)
    assert outcome.tried == 20
    assert set(outcome.figures) == set(KINDS)


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    run_plan()
    with Watched(tmp_path_factory.mktemp("child"), FUNCTIONS) as watched:
        yield watched


def test_a_good_input_is_taken(child: Watched) -> None:
    files: dict[str, bytes | Content] = {"p.json": json.dumps(VALID).encode(), "picture.png": picture()}
    files |= {"run.h5": run_file(), "other.h5": run_file(1)}
    asked = ("--image", "picture.png", "--prompt", "What?", "--profile", "p.json")
    for call, wanted in (
        (("registry", "show", "p.json"), DONE),
        (("apply", "demo:lmm", *asked), ACCEPTED),
        (("discover", "run.h5"), DONE),
        (("merge", "run.h5", "other.h5", "-o", "merged.h5"), DONE),
        (("read all", "run.h5"), DONE),
        (("resume", "run.h5"), DONE),
    ):
        work = Work(call, files)
        assert judged(work, child.run(work)) == (wanted, [])


CALLS = {
    "texts.jsonl": ("profile", "demo:llm", "--texts", "texts.jsonl"),
    "texts.parquet": ("profile", "demo:llm", "--texts", "texts.parquet"),
    "in.jsonl": ("apply", "demo:lmm", "--batch", "in.jsonl", "--out", "out.jsonl"),
    "x.png": ("profile", "demo:lmm", "--images", "x.png"),
    "pictures/x.png": ("profile", "demo:lmm", "--images", "pictures"),
    "out.jsonl": ("apply", "demo:lmm", "--batch", "good.jsonl", "--out", "out.jsonl", "--resume"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("content", [NamedPipe(), Link("/dev/zero")], ids=["pipe", "device"])
def test_nothing_waits_for_a_pipe_or_reads_a_device(child: Watched, name: str, content: Content) -> None:
    line = b'{"image": "picture.png", "prompt": "What?"}\n'
    files: dict[str, bytes | Content] = {"picture.png": picture(), "good.jsonl": line, "out.jsonl.settings.json": b"{}"}
    work = Work(CALLS[name], files | {name: content})
    ending = child.run(work)
    assert judged(work, ending) == (REFUSED, [])
    assert "pipe or a device" in ending.err or "no pictures at" in ending.err


def test_a_long_name_does_not_fill_the_screen(child: Watched) -> None:
    line = json.dumps({"image": "x" * 100_000, "prompt": "What?"}).encode()
    work = Work(("apply", "demo:lmm", "--batch", "in.jsonl", "--out", "out.jsonl"), {"in.jsonl": line})
    ending = child.run(work)
    assert judged(work, ending) == (REFUSED, [])
    assert ending.err.startswith("sinkscope: error: line 1 of in.jsonl: cannot read the picture xxx")
    assert ending.err.endswith("(File name too long); check the path\n")


def test_postscript_is_not_run(child: Watched) -> None:
    work = Work(("apply", "demo:lmm", "--image", "x.png", "--prompt", "What?"), {"x.png": POSTSCRIPT})
    ending = child.run(work)
    assert judged(work, ending) == (REFUSED, [])
    assert "cannot identify" in ending.err


def test_a_picture_that_fills_the_memory_is_not_decoded(child: Watched) -> None:
    work = Work(("profile", "demo:lmm", "--images", "x.png"), {"x.png": full_png(12_000, 10_000, 1, 0)})
    ending = child.run(work)
    assert judged(work, ending) == (REFUSED, [])
    assert "120000000 pixels" in ending.err
    assert ending.memory < 2**26


def test_warnings_about_odd_tags_stay_inside(child: Watched) -> None:
    data = bytearray(picture("TIFF", "L"))
    place = data.index(b"\x11\x01")  # The tag that says where the rows are: of a type that no tag has, then.
    data[place + 2 : place + 8] = b"\x04\x00\xff\xff\xff\x0f"
    work = Work(("apply", "demo:lmm", "--image", "x.tif", "--prompt", "What?"), {"x.tif": bytes(data)})
    assert judged(work, child.run(work))[1] == []


def test_what_pillow_logs_stays_inside(child: Watched) -> None:
    data = bytearray(picture("TIFF"))
    place = data.index(b"\x15\x01\x03\x00\x01\x00\x00\x00\x03\x00")  # The number of samples of a pixel.
    data[place + 8] = 44
    work = Work(("apply", "demo:lmm", "--image", "x.tif", "--prompt", "What?"), {"x.tif": bytes(data)})
    assert judged(work, child.run(work)) == (REFUSED, [])


@pytest.mark.parametrize("call", [("registry", "show"), ("registry", "check")])
def test_control_characters_of_a_profile_are_not_printed(child: Watched, call: tuple[str, ...]) -> None:
    odd = VALID | {"name": "p\x1b[2J\x9b31m", "reason": "because \x1b]0;owned\x07", "models": ["\u202eevil"]}
    files: dict[str, bytes | Content] = {"p.json": json.dumps(odd).encode()}
    work = Work((*call, "p.json"), files)
    ending = child.run(work)
    assert judged(work, ending) == (DONE, [])
    assert call[1] == "check" or "because " in ending.out
    files["p.json"] = json.dumps(odd | {"verdict": "\x1b[2J", "backbone": {"\x1b[31m": 1}}).encode()
    work = Work((*call, "p.json"), files)
    assert judged(work, child.run(work))[1] == []


@pytest.mark.parametrize("call", [("info", "\x1b[2Jrun.h5"), ("apply", "m", "--image", "\x9b2J.png", "--prompt", "?")])
def test_control_characters_of_a_name_are_not_printed(child: Watched, call: tuple[str, ...]) -> None:
    ending = child.run(Work(call))
    assert judged(Work(call), ending) == (REFUSED, [])
    assert "\\x1b[2Jrun.h5" in ending.err or "\\x9b2J.png" in ending.err


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("external_link", "is a link to something else"),
        ("external_storage", "has its data in another file"),
        ("virtual", "has its data in another file"),
        ("soft_loop", "is a link to something else"),
        ("strange_filter", "is packed in an unknown way"),
        ("enlarge", "is larger than its file"),
        ("hard_loop", "belongs to no run file"),
    ],
)
def test_a_sealed_file_of_a_strange_form_is_refused_for_it(child: Watched, step: str, reason: str) -> None:
    told = []
    for seed in range(6):
        files: dict[str, bytes | Content] = {"run.h5": Forged((step,), seed, True), "secret.h5": run_file()}
        work = Work(("info", "run.h5"), files | {"pipe": NamedPipe()})
        ending = child.run(work)
        assert judged(work, ending)[1] == []
        told.append(reason in ending.err)
    assert any(told)  # Not every dataset can be made so.


def test_a_schema_that_is_nested_without_end_is_a_problem_of_the_folder(child: Watched) -> None:
    files: dict[str, bytes | Content] = {
        "folder/p.json": json.dumps(VALID).encode(),
        "folder/schema.json": b"[" * 100_000,
    }
    work = Work(("registry", "check", "folder"), files)
    ending = child.run(work)
    assert judged(work, ending) == (FINDING, [])
    assert "schema.json: missing or unreadable" in ending.err


def test_an_odd_attribute_of_a_sealed_file_is_refused(child: Watched) -> None:
    for seed in range(12):
        work = Work(("info", "run.h5"), {"run.h5": Forged(("attribute",) * 5, seed, True)})
        assert judged(work, child.run(work))[1] == []


GOOD = Ending(2, err="sinkscope: error: no\n")


@pytest.mark.parametrize(
    ("ending", "wrong"),
    [
        (Ending(None, death="died of SIGSEGV"), "SIGSEGV"),
        (Ending(3, err=GOOD.err), "exit code 3"),
        (Ending(1, err=GOOD.err), "exit code 1"),
        (Ending(2, err=""), "no line of error"),
        (Ending(2, err="Traceback\n" + GOOD.err), "a traceback"),
        (Ending(2, err="a warning\n" + GOOD.err), "more on stderr"),
        (Ending(2, err="sinkscope: error: unexpected KeyError: 3\n"), "not foreseen"),
        (Ending(2, out="half of it", err=GOOD.err), "an output"),
        (Ending(2, err="sinkscope: error: \x1b[2J\n"), "control characters"),
        (Ending(2, err=f"sinkscope: error: {'x' * 5000}\n"), "nobody reads"),
        (Ending(2, err=GOOD.err, memory=2**31), "2048 MiB"),
        (Ending(2, err=GOOD.err, changed=("p.json",)), "changed 'p.json'"),
        (Ending(0, changed=("executed",)), "changed 'executed'"),
        (Ending(0, strange=("os.system (b'x',)",)), "os.system"),
    ],
)
def test_what_is_wrong_is_judged_wrong(ending: Ending, wrong: str) -> None:
    assert wrong in "; ".join(judged(Work(("info", "run.h5")), ending)[1])
    assert judged(Work(("info", "run.h5")), GOOD) == (REFUSED, [])
    finding = Ending(1, err="sinkscope: error: 2 problems found: p: x\n")
    assert judged(Work(("registry", "check", "p.json")), finding) == (FINDING, [])


def kill(_: str = "") -> None:
    os.abort()


def shell(_: str = "") -> None:
    os.system("true")


def leave(name: str) -> None:
    Path("here.txt").write_text("x")
    Path(name).write_text("x")


def forget(_: str = "") -> None:
    tempfile.mkdtemp(prefix="forgotten-")


def fill(_: str = "") -> None:
    bytearray(2**27)[::4096] = b"x" * 2**15


def test_the_child_notices_what_is_done(tmp_path: Path) -> None:
    functions = {"kill": kill, "shell": shell, "leave": leave, "forget": forget, "fill": fill}
    with Watched(tmp_path, functions) as watched:
        assert watched.run(Work(("kill",))).death == "died of SIGABRT"
        assert "os.system" in watched.run(Work(("shell",))).strange[0]
        left = watched.run(Work(("leave", str(tmp_path / "outside"))))
        assert left.changed == ("here.txt",)
        assert left.strange == (f"open {tmp_path / 'outside'}",)
        assert watched.run(Work(("forget",))).strange[0].startswith("left forgotten-")
        assert watched.run(Work(("fill",))).memory > 2**26
        assert watched.run(Work(("info", "nothing.h5"))).code == 2
