"""Commands that look at weights."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sinkscope.profile import Backbone, Profile, Provenance, SinkDimension

WIDTH, LAYERS, DIM = 96, 8, 41


@pytest.fixture
def model(here):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=160,
        vocab_size=64,
    )
    made = LlamaForCausalLM(config)
    weight = made.model.layers[2].mlp.down_proj.weight
    with torch.no_grad():
        weight[DIM, 7] = 30 * weight.abs().amax(1).median()
    made.save_pretrained(here / "model")
    return here / "model"


def test_predict(sinkscope, model):
    document = json.loads(sinkscope("predict", model, "--json").out)
    assert document["verdict"] == "sinks"
    (entry,) = document["sink_dimensions"]
    assert (entry["dim"], entry["created_layers"], entry["bands"]) == (DIM, [2], [[3, LAYERS - 1]])
    assert entry["ratio"] == pytest.approx(30, rel=0.01)
    assert document["backbone"]["hidden_size"] == WIDTH
    shown = sinkscope("predict", model)
    assert shown.code == 0
    assert str(DIM) in shown.out
    assert f"{2 * LAYERS} matrices" in shown.err


def test_predict_refuses_bad_input(sinkscope, here, model):
    sinkscope("predict", here / "nothing").refused("nothing")
    (model / "model.safetensors").unlink()
    sinkscope("predict", model, "--json").refused("safetensors")


def test_inspect_shows_what_the_weights_say(sinkscope, model):
    facts = json.loads(sinkscope("inspect", model, "--json").out)
    assert [entry["dim"] for entry in facts["by_weights"]["sink_dimensions"]] == [DIM]
    assert "by_weights" not in json.loads(sinkscope("inspect", model, "--json", "--no-weights").out)
    assert f"dimension {DIM}" in sinkscope("inspect", model).out
    (model / "model.safetensors").unlink()
    assert "safetensors" in json.loads(sinkscope("inspect", model, "--json").out)["by_weights"]["unavailable"]


@pytest.mark.parametrize(("dim", "code"), [(DIM, 0), (3, 1)])
def test_registry_check_against_weights(sinkscope, here, model, dim, code):
    Profile(
        name="published",
        verdict="sinks",
        reason="from a paper",
        backbone=Backbone(model_type="llama", hidden_size=WIDTH, num_layers=LAYERS),
        sink_dimensions=[SinkDimension(dim=dim)],
        provenance=Provenance(kind="literature", source="a paper"),
    ).save(here / "p.json")
    done = sinkscope("registry", "check", "p.json", "--weights", model)
    assert done.code == code
    assert ("the weights name 41, too" if code == 0 else "3 is not named by the weights") in done.out + done.err
    sinkscope("registry", "check", "--weights", model).refused("name them")
