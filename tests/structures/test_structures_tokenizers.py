"""Tokenizers with and without a BOS token: the sink is on whatever stands first."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from structure_models import BOS_ID, DEPTH, SINK_DIM, loaded, text_model, tokenizer, written_texts
from torch import nn

from sinkscope.capture.runner import run
from sinkscope.capture.settings import CaptureSettings
from sinkscope.discovery import discover
from sinkscope.store.layout import KIND_SPECIAL
from sinkscope.store.reader import RunReader

SAMPLES = 24


def sinks_in_first_place() -> nn.Module:
    """Massive in the state entering layers 1 to L, on the token that stands first."""
    model = text_model("llama")

    def write(module: nn.Module, args: Any, output: Any) -> Any:
        state = output.clone()
        state[:, 0, SINK_DIM] = 300.0 * (1 + 0.02 * torch.sin(state[:, 0, 0]))
        return state

    for layer in model.model.layers:
        layer.register_forward_hook(write)
    return model


@pytest.mark.parametrize("bos", [True, False])
def test_the_first_token_is_named_as_what_it_is(bos: bool, tmp_path: Path) -> None:
    model = loaded(sinks_in_first_place(), bos=bos)
    path = run(model, written_texts(SAMPLES), tmp_path / "run.h5", CaptureSettings(attention=False))
    with RunReader(path) as reader:
        first = reader.tokens.position == 0
        policy = reader.attributes.calibration["bos"]
        began = int(((reader.tokens.id == BOS_ID) & first).sum())
        special = reader.tokens.kind == KIND_SPECIAL
    profile = discover(path)
    assert profile.dims == (SINK_DIM,)
    assert (profile.sink_dimensions[0].first_layer, profile.sink_dimensions[0].last_layer) == (1, DEPTH - 1)
    if bos:
        # About every fourth text goes without.
        assert (policy["token"], policy["default"]) == ("<s>", True)
        assert SAMPLES // 2 < began < SAMPLES
        assert profile.sink_dimensions[0].triggers == ["bos", "first"]
        return
    assert tokenizer(bos=False).bos_token is None
    assert (policy["token"], policy["default"], began) == (None, False, 0)
    assert not np.any(special)
    assert profile.sink_dimensions[0].triggers == ["first"]
