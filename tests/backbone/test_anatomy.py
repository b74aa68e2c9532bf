"""Decoder layers and refusals found by structure, on the meta device."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig

from sinkscope.backbone.anatomy import Anatomy, find_anatomy
from sinkscope.errors import UnsupportedModelError


def anatomy_of(config: PreTrainedConfig, auto: Any = AutoModelForCausalLM) -> Anatomy:
    with torch.device("meta"):
        return find_anatomy(auto.from_config(config))


def test_parallel_lists_are_no_layers():
    with pytest.raises(UnsupportedModelError, match=r"parallel lists \(attentions, layer_norm1, ffns, layer_norm2\)"):
        anatomy_of(AutoConfig.for_model("xlm", n_layers=3))


def test_stacks_that_run_in_cycles_are_told():
    config = AutoConfig.for_model("hrm_text", num_layers_per_stack=2, num_hidden_layers=16)
    with pytest.raises(UnsupportedModelError, match=r"states 16 layers and holds 4 .* run more than once in a pass"):
        anatomy_of(config)
    config.num_hidden_layers = 5
    with pytest.raises(UnsupportedModelError, match="no list of 5 decoder layers found"):
        anatomy_of(config)


def test_an_encoder_beside_the_decoder_is_told_whatever_the_config_says():
    experts = {"num_hidden_layers": 2, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64}
    config = AutoConfig.for_model("diffusion_gemma", text_config=experts)
    assert not config.is_encoder_decoder
    with pytest.raises(UnsupportedModelError, match="diffusion_gemma is an encoder-decoder model"):
        anatomy_of(config, AutoModelForImageTextToText)
    wrapped = anatomy_of(AutoConfig.for_model("blip-2"), AutoModelForImageTextToText)
    assert wrapped.layers_path == "language_model.model.decoder.layers"


def test_layers_are_those_that_transformers_records_as_hidden_states():
    # A cross-attention layer before every layer: a second list of the same length that holds more parameters.
    config = AutoConfig.for_model("idefics", num_hidden_layers=4, cross_layer_interval=1)
    anatomy = anatomy_of(config, AutoModelForImageTextToText)
    assert anatomy.layers_path == "model.layers"
    assert "cross-attention" in str(anatomy.var_refusal)


@pytest.mark.parametrize(
    ("model_type", "options", "words"),
    [
        ("llama", {}, None),
        ("mamba", {}, "mamba has no softmax attention"),
        ("codegen", {"n_layer": 2}, "the attention of codegen does not go through transformers' attention interface"),
    ],
)
def test_attention_that_cannot_be_reached_is_one_sentence(model_type, options, words):
    assert anatomy_of(AutoConfig.for_model(model_type, **{"num_hidden_layers": 2} | options)).attention_refusal == words
