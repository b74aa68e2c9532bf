"""Models with recurrent or convolutional layers between those of attention: what is captured, and what can persist."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from structure_models import DEPTH, HYBRIDS, NATIVE, STOP_ID, loaded, text_model, written_texts
from torch import nn

from sinkscope.backbone.anatomy import find_anatomy
from sinkscope.capture.runner import run
from sinkscope.capture.settings import CaptureSettings
from sinkscope.capture.synthetic import write_synthetic
from sinkscope.discovery import discover
from sinkscope.store.reader import RunReader

NAMES = [name for name in HYBRIDS if name not in NATIVE]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_run_holds_the_states_of_all_layers_and_the_attention_of_some(name: str, tmp_path: Path) -> None:
    model = loaded(text_model(name))
    path = run(model, written_texts(3, length=40), tmp_path / "run.h5", CaptureSettings(sampled_tokens=4096))
    with RunReader(path) as reader:
        assert reader.attributes.num_layers == DEPTH
        for sample in range(3):
            rows = np.flatnonzero(reader.tokens.sample == sample)
            ids = torch.from_numpy(reader.tokens.id[rows].astype(np.int64))[None]
            own = model.model(ids, output_hidden_states=True, use_cache=False).hidden_states
            for layer in range(DEPTH):
                expected = (own[layer][0] / own[layer][0].square().mean(-1, keepdim=True).sqrt()).numpy()
                stored, states = reader.sampled(layer)
                here = states[np.searchsorted(stored, rows)]
                np.testing.assert_allclose(here.astype(np.float32), expected, atol=4e-3)
        assert reader.attention is not None
        measured = ~np.isnan(reader.attention.drawn).all(axis=0)
        assert measured.tolist() == list(HYBRIDS[name])
        assert find_anatomy(model.model).attention_layers == HYBRIDS[name]


SINK, STEADY = 5, 9
"""The sink dimension, and one that is as large as the state's RMS on every token."""


class Sinking:
    """Attention in layers 1 and 3, where every query looks at full stops by their massive dimension.

    It is massive entering these layers and, where so "massive" `between`, entering layer 2 as well.
    """

    def __init__(self, between: str) -> None:
        self.model = text_model("lfm2")
        self.massive = {1, 3} if between == "quiet" else {1, 2, 3}
        self.stops = torch.zeros(0, 0, dtype=torch.bool)
        self.model.get_input_embeddings().register_forward_pre_hook(self.read)
        for index, layer in enumerate(self.model.model.layers):
            layer.register_forward_pre_hook(partial(self.write, index), with_kwargs=True)
            if index % 2:
                self.turn_to_sinks(layer)

    @torch.no_grad()
    def turn_to_sinks(self, layer: Any) -> None:
        # Every head has a direction that rotary embedding hardly turns, that of the slowest of its four pairs.
        layer.self_attn.q_proj.weight[3::8, STEADY] = 40.0
        layer.self_attn.k_proj.weight[3::8, SINK] = 10.0
        layer.self_attn.q_layernorm.weight.fill_(3.0)
        layer.operator_norm.weight.fill_(1.0)

    def read(self, module: nn.Module, args: Any) -> None:
        self.stops = args[0] == STOP_ID

    def write(self, index: int, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        state = args[0].clone()
        scale = state.square().mean(-1).sqrt()
        state[..., STEADY] = scale
        # Spread by what the token holds, so that it does not depend on the batch.
        spread = torch.sin(state[..., 0])
        spike = 300.0 * (1 + 0.02 * spread) if index in self.massive else 0.3 * spread
        state[..., SINK] = torch.where(self.stops, spike, 0.3 * spread)
        return (state, *args[1:]), kwargs


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("between", ["quiet", "massive"])
def test_a_dimension_persists_over_the_layers_that_hold_attention(
    between: str, attention: bool, tmp_path: Path
) -> None:
    """A spike may be written before each layer of attention and taken away behind it."""
    model = loaded(Sinking(between).model)
    samples = written_texts(24, stops=(10, 40))
    profile = discover(run(model, samples, tmp_path / "run.h5", CaptureSettings(attention=attention)))
    assert profile.dims == (SINK,)
    spans = [(band.first_layer, band.last_layer) for band in profile.bands]
    assert spans == ([(1, 1), (3, 3)] if between == "quiet" else [(1, 3)])
    if attention:
        drawn = {row["layer"]: row["drawn_by_flagged"] for row in profile.evidence.attention["layers"]}
        assert set(drawn) == {1, 3}
        assert min(drawn.values()) > 0.2


FEW = (9, 18, 27)
"""The attention layers of a hybrid of 32 layers that is in use."""


@pytest.mark.parametrize("attention", [True, False])
def test_a_deep_hybrid_with_little_attention_may_hold_its_sink_twice(attention: bool, tmp_path: Path) -> None:
    """A spike that begins between the first and the second layer of attention can last for two of them at most."""
    depth, width, samples, length = 32, 64, 24, 64
    generator = np.random.default_rng(0)
    steps = generator.normal(size=(depth + 1, samples * length, width)).astype(np.float32)
    steps[1:] *= 0.4
    states = steps.cumsum(axis=0)
    first = np.tile(np.arange(length), samples) == 0
    for layer in FEW[1:]:
        states[layer, first, SINK] = 300.0 * (1 + 0.02 * generator.normal(size=samples))
    drawn = np.full((samples * length, depth), np.nan)
    drawn[:, FEW] = np.where(first[:, None], 0.4, 0.005)
    drawn[:, FEW[0]] = 0.005
    profile = discover(
        write_synthetic(
            tmp_path / "run.h5",
            states,
            np.repeat(np.arange(samples), length),
            drawn=drawn if attention else None,
            settings={"attention_layers": list(FEW)},
        )
    )
    assert profile.dims == (SINK,)
    assert [(band.first_layer, band.last_layer) for band in profile.bands] == [(18, 18), (27, 27)]
