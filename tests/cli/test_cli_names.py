"""Names that are derived: of output files, and of layers."""

import pytest

from sinkscope.cli.pictures import named_layers
from sinkscope.cli.places import short_name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("llava-hf/llava-1.5-7b-hf", "llava-1.5-7b-hf"),
        ("gpt2", "gpt2"),
        ("demo:llm", "demo-llm"),
        ("./models/SmolLM2-135M.Q4_1.gguf", "smollm2-135m.q4_1"),
        ("models/My Model (new)/", "my-model-new"),
        ("../..", None),
        ("/", "model"),
    ],
)
def test_short_name(model, name, tmp_path, monkeypatch):
    below = tmp_path / "outer" / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert short_name(model) == (name or "outer")


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ((), "layers none"),
        ((4,), "layer 4"),
        ((3, 4, 5), "layers 3-5"),
        ((3, 4, 5, 12, 13, 20), "layers 3-5, 12-13 and 20"),
    ],
)
def test_named_layers(layers, text):
    assert named_layers(layers) == text
