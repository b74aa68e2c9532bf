"""The writers that are found on the meta device are those of the same model run with numbers."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Cohere2Config,
    DbrxConfig,
    DeepseekV3Config,
    FalconConfig,
    FalconH1Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GptOssConfig,
    GraniteMoeConfig,
    JambaConfig,
    Llama4TextConfig,
    LlamaConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    Qwen2MoeConfig,
    Qwen3NextConfig,
)

from sinkscope.backbone.anatomy import decoder_layers, find_anatomy
from sinkscope.backbone.hooks import entering_states
from sinkscope.weights.structure import find_writers

WIDTH, LAYERS = 32, 3
SHAPE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 50,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT_SHAPE = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
HEADS = {"hidden_size": WIDTH, "num_attention_heads": 4, "num_hidden_layers": LAYERS, "vocab_size": 50}

CONFIGS = [
    LlamaConfig(**SHAPE),
    Gemma3TextConfig(**SHAPE, head_dim=8),
    GPT2Config(**GPT_SHAPE),
    GPTJConfig(**GPT_SHAPE, rotary_dim=4),
    BloomConfig(**HEADS, n_layer=LAYERS, n_head=4),
    OPTConfig(**HEADS, ffn_dim=48, word_embed_proj_dim=WIDTH),
    FalconConfig(**HEADS),
    Phi3Config(**SHAPE),
    Olmo2Config(**SHAPE),
    Cohere2Config(**SHAPE),
    MixtralConfig(**SHAPE, num_local_experts=4),
    GptOssConfig(**SHAPE, num_local_experts=4, head_dim=8),
    GraniteMoeConfig(**SHAPE, num_local_experts=4),
    DbrxConfig(
        d_model=WIDTH, n_heads=4, n_layers=LAYERS, vocab_size=50, max_seq_len=64,
        attn_config={"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        ffn_config={"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": WIDTH},
    ),
    Qwen2MoeConfig(**SHAPE, **EXPERTS, shared_expert_intermediate_size=40),
    Llama4TextConfig(**SHAPE, num_local_experts=4, head_dim=8, intermediate_size_mlp=48),
    DeepseekV3Config(
        **SHAPE | {"num_key_value_heads": 4, "head_dim": 8},
        qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, kv_lora_rank=8, q_lora_rank=8,
        n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, n_group=1, topk_group=1,
        first_k_dense_replace=1,
    ),
    JambaConfig(
        **SHAPE, num_experts=4, attn_layer_period=2, attn_layer_offset=1, expert_layer_offset=0, use_mamba_kernels=False
    ),
    Qwen3NextConfig(
        **SHAPE, **EXPERTS, head_dim=8, shared_expert_intermediate_size=24,
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
        layer_types=["linear_attention", "linear_attention", "full_attention"],
    ),
    FalconH1Config(
        **SHAPE, head_dim=8, mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=4
    ),
]  # fmt: skip


def built(config):
    """The writers by the meta device, and the same model with large random parameters."""
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    anatomy = find_anatomy(skeleton)
    writers = find_writers(skeleton, anatomy)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            low, high = (-0.3, 0.3) if parameter.dim() > 1 else (0.3, 0.9)
            parameter.uniform_(low, high, generator=generator)
    return writers, model, anatomy


def states_of(model, anatomy, first=7, without=()):
    """Hidden states entering layers 0, ..., L [L + 1, T, D] with some parameters at zero."""
    parameters = dict(model.named_parameters())
    saved = {name: parameters[name].detach().clone() for name in without}
    states = {}
    with torch.no_grad():
        for name in saved:
            parameters[name].zero_()
        with entering_states(model, anatomy, lambda layer, state: states.update({layer: state[0].clone()})):
            model(input_ids=torch.tensor([[first, 8, 9, 10, 11, 12]]), use_cache=False)
        for name, values in saved.items():
            parameters[name].copy_(values)
    return torch.stack([states[layer] for layer in sorted(states)])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_writers_are_all_that_writes_and_attention_all_that_mixes(config):
    writers, model, anatomy = built(config)
    names = {writer.parameter for writer in writers}
    assert len(names) == len(writers)
    prefix = f"{anatomy.layers_path}."
    biases = {name for name, _ in model.named_parameters() if name.startswith(prefix) and "bias" in name}
    plain = states_of(model, anatomy)
    assert torch.isfinite(plain).all()

    # Without the writers of all layers nothing is ever written.
    still = states_of(model, anatomy, without=names | biases)
    torch.testing.assert_close(still, still[:1].expand_as(still), rtol=1e-5, atol=1e-5)
    # Each of them writes, in its layer first.
    for writer in writers:
        change = (states_of(model, anatomy, without=[writer.parameter]) - plain).abs().amax((1, 2))
        assert change[writer.layer] == 0
        assert change[writer.layer + 1] > 1e-4

    # Without attention no token hears of the first; with the attention of one layer alone they do.
    attention = {writer.parameter for writer in writers if writer.kind == "attention"}
    assert attention
    assert attention < names
    deaf = [states_of(model, anatomy, first, attention | biases)[:, 1:] for first in (7, 30)]
    torch.testing.assert_close(*deaf, rtol=1e-5, atol=1e-5)
    for writer in writers:
        if writer.kind == "attention":
            without = names - {writer.parameter}
            heard = [states_of(model, anatomy, first, without)[-1, 1:] for first in (7, 30)]
            assert (heard[0] - heard[1]).abs().max() > 1e-5


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_the_axis_of_a_writer_runs_over_the_dimensions(config):
    writers, model, anatomy = built(config)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            if "bias" in name:
                parameter.zero_()
        for writer in writers:
            parameters[writer.parameter].select(writer.axis, 3).zero_()
    states = states_of(model, anatomy)
    torch.testing.assert_close(states[..., 3], states[:1, :, 3].expand_as(states[..., 3]), rtol=1e-5, atol=1e-5)
    assert (states[1:, :, 4] - states[:-1, :, 4]).abs().amax(-1).min() > 1e-4


def test_layers_are_those_of_the_model():
    writers, model, anatomy = built(CONFIGS[0])
    for writer in writers:
        layer = decoder_layers(model, anatomy)[writer.layer]
        assert any(parameter is model.get_parameter(writer.parameter) for parameter in layer.parameters())
