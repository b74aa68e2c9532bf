"""The group itself: help that costs nothing, exit codes, errors as one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import sinkscope as package
from sinkscope.cli import info
from sinkscope.cli.main import COMMANDS
from sinkscope.errors import InputError, SinkscopeError

HEAVY = ("torch", "transformers", "h5py", "pydantic", "scipy", "matplotlib", "PIL", "numpy")

HELP_OF_ALL = """
import contextlib, io, json, sys
from sinkscope.cli.main import COMMANDS, run
texts = {}
calls = [[], ["--help"], ["registry"]] + [[name, "--help"] for name in COMMANDS]
for arguments in calls + [["registry", name, "--help"] for name in ("list", "show", "check")]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = run(arguments)
    texts[" ".join(arguments)] = [code, out.getvalue()]
print(json.dumps({"texts": texts, "modules": sorted(sys.modules)}))
"""


@pytest.fixture(scope="module")
def help_of_all() -> dict:
    done = subprocess.run([sys.executable, "-c", HELP_OF_ALL], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_help_imports_nothing_heavy(help_of_all):
    assert not set(HEAVY) & set(help_of_all["modules"])


def test_every_command_has_help_with_examples(help_of_all):
    texts = help_of_all["texts"]
    assert all(code == 0 for code, _ in texts.values())
    assert texts[""][1] == texts["--help"][1]
    for name in COMMANDS:
        assert name in texts["--help"][1]
        assert f"Usage: sinkscope {name}" in texts[f"{name} --help"][1]
        assert f"\n    sinkscope {name}" in texts[f"{name} --help"][1], "an example"


def test_options_are_those_of_the_design(help_of_all):
    texts = help_of_all["texts"]
    options = {
        "profile": "-o --run --texts --images --dataset --chat-template --samples --tokens --resume --no-attention "
        "--events --device --dtype --json",
        "apply": "--image --prompt --profile --compare --p --rho --attention --batch --out --resume --keep-going",
        "predict": "--json",
        "inspect": "--json",
        "info": "--json",
        "discover": "-o --json",
        "demo": "--out",
    }
    for name, named in options.items():
        for option in named.split():
            assert option in texts[f"{name} --help"][1], (name, option)


def test_module_and_version():
    done = subprocess.run([sys.executable, "-m", "sinkscope", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"sinkscope {package.__version__}\n"
    assert done.stderr == ""


def test_a_reader_that_leaves_is_no_error():
    process = subprocess.Popen(
        [sys.executable, "-m", "sinkscope", "registry", "list", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["porfile"], ["'porfile'", "did you mean profile?"]),
        (["xyzzy"], ["'xyzzy'", "profile, apply, predict, inspect"]),
        (["profile"], ["MODEL", "sinkscope profile --help"]),
        (["info", "a.h5", "--jsno"], ["--jsno", "--json"]),
        (["profile", "m", "--samples", "0"], ["--samples", "0"]),
        (["profile", "m", "--dtype", "int3"], ["--dtype", "int3", "bfloat16"]),
        (["registry", "remove"], ["remove"]),
    ],
)
def test_wrong_use(sinkscope, arguments, fragments):
    sinkscope(*arguments).refused(*fragments, code=2)


@pytest.mark.parametrize(
    ("error", "code", "fragments"),
    [
        (SinkscopeError("the run failed;\n do that"), 1, ["error: the run failed; do that"]),
        (InputError("no such thing"), 2, ["error: no such thing"]),
        (RuntimeError("odd\nlines"), 1, ["unexpected RuntimeError: odd lines", "--debug"]),
        (KeyError(), 1, ["unexpected KeyError", "--debug"]),
        (MemoryError(), 1, ["out of memory", "--dtype bfloat16"]),
        (KeyboardInterrupt(), 130, ["interrupted", "nothing was kept"]),
    ],
)
def test_every_failure_is_one_line(sinkscope, monkeypatch, error, code, fragments):
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(info.command, "callback", fail)
    sinkscope("info", "x.h5").refused(*fragments, code=code)


def test_debug_shows_the_traceback_before_the_line(sinkscope, monkeypatch):
    def fail(**_: object) -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr(info.command, "callback", fail)
    outcome = sinkscope("--debug", "info", "x.h5")
    assert outcome.code == 1
    assert "Traceback (most recent call last)" in outcome.err
    assert outcome.err.splitlines()[-1] == "sinkscope: error: unexpected RuntimeError: odd"


def test_interrupted_run_says_how_to_go_on(sinkscope, monkeypatch, here):
    from sinkscope.cli import profile

    def interrupt(**_: object) -> None:
        import click

        session = click.get_current_context().obj
        session.run = Path("a b.run.h5")
        session.run.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(profile.command, "callback", interrupt)
    # The callback is wrapped to receive the session; take the session from the context instead.
    outcome = sinkscope("profile", "m", "--run", "a b.run.h5", "--resume")
    outcome.refused("a b.run.h5 keeps", "`sinkscope profile m --run 'a b.run.h5' --resume`", code=130)
