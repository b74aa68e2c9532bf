"""The command line called in this process, with its exit code and both outputs."""

import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_outcome import Outcome

from sinkscope.cli.main import run


@pytest.fixture
def sinkscope(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Call ``sinkscope(*arguments)``; gives its `Outcome`."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, with an empty folder of user profiles elsewhere."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SINKSCOPE_PROFILES", str(tmp_path / "profiles"))
    return folder


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model in this test is a failure: the mistake must be found before."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    module = types.ModuleType("sinkscope.pipeline")
    module.load = module.resolve = load
    module.profile_model = module.measure_model = load
    monkeypatch.setitem(sys.modules, "sinkscope.pipeline", module)
