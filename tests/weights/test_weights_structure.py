"""Which parameters write into the residual stream, on models of many families built from their configs."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MambaConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Qwen2MoeConfig,
)

from sinkscope.backbone.anatomy import find_anatomy
from sinkscope.errors import UnsupportedModelError
from sinkscope.weights.structure import Scale, find_writers

WIDTH, LAYERS = 64, 3
SHAPE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 100,
}


def writers_of(config, auto=AutoModelForCausalLM):
    with torch.device("meta"):
        model = auto._from_config(config) if auto is LlavaForConditionalGeneration else auto.from_config(config)
    return find_writers(model, find_anatomy(model)), dict(model.named_parameters())


def written(writers, kind, layer=1):
    return {
        writer.parameter: (writer.axis, writer.scales)
        for writer in writers
        if writer.kind == kind and writer.layer == layer
    }


@pytest.mark.parametrize(
    ("config", "mlp", "attention"),
    [
        (
            LlamaConfig(**SHAPE),
            ("model.layers.1.mlp.down_proj.weight", 0),
            ("model.layers.1.self_attn.o_proj.weight", 0),
        ),
        (
            GPT2Config(n_embd=WIDTH, n_layer=LAYERS, n_head=4, vocab_size=100),
            ("transformer.h.1.mlp.c_proj.weight", 1),
            ("transformer.h.1.attn.c_proj.weight", 1),
        ),
        (
            FalconConfig(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, vocab_size=100),
            ("transformer.h.1.mlp.dense_4h_to_h.weight", 0),
            ("transformer.h.1.self_attention.dense.weight", 0),
        ),
        (
            OPTConfig(
                hidden_size=WIDTH,
                num_hidden_layers=LAYERS,
                ffn_dim=96,
                num_attention_heads=4,
                word_embed_proj_dim=WIDTH,
            ),
            ("model.decoder.layers.1.fc2.weight", 0),
            ("model.decoder.layers.1.self_attn.out_proj.weight", 0),
        ),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_dense_models(config, mlp, attention):
    writers, _ = writers_of(config)
    assert written(writers, "mlp") == {mlp[0]: (mlp[1], ())}
    assert written(writers, "attention") == {attention[0]: (attention[1], ())}
    assert {writer.layer for writer in writers} == set(range(LAYERS))


def test_norms_after_a_block_scale_what_is_written():
    writers, _ = writers_of(Gemma3TextConfig(**SHAPE, head_dim=16))
    scale = Scale("model.layers.1.post_feedforward_layernorm.weight", 1.0)
    assert written(writers, "mlp") == {"model.layers.1.mlp.down_proj.weight": (0, (scale,))}
    writers, _ = writers_of(Olmo2Config(**SHAPE))
    scale = Scale("model.layers.1.post_attention_layernorm.weight", 0.0)
    assert written(writers, "attention") == {"model.layers.1.self_attn.o_proj.weight": (0, (scale,))}


def test_experts_and_shared_experts():
    writers, parameters = writers_of(MixtralConfig(**SHAPE, num_local_experts=4))
    ((name, (axis, scales)),) = written(writers, "mlp").items()
    assert parameters[name].shape == (4, WIDTH, 96)
    assert (axis, scales) == (1, ())
    assert list(written(writers, "attention")) == ["model.layers.1.self_attn.o_proj.weight"]
    config = Qwen2MoeConfig(
        **SHAPE, num_experts=8, moe_intermediate_size=48, shared_expert_intermediate_size=80, decoder_sparse_step=1
    )
    writers, parameters = writers_of(config)
    shapes = sorted(tuple(parameters[name].shape) for name in written(writers, "mlp"))
    assert shapes == [(8, WIDTH, 48), (WIDTH, 80)]
    latent = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "kv_lora_rank": 16, "q_lora_rank": 16}
    config = DeepseekV3Config(
        **SHAPE | {"num_key_value_heads": 4, "head_dim": 8},
        **latent,
        n_routed_experts=16,
        moe_intermediate_size=48,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    )
    writers, parameters = writers_of(config)
    assert [len(written(writers, "mlp", layer)) for layer in range(LAYERS)] == [1, 2, 2]


def test_the_decoder_of_a_multimodal_model_only():
    config = LlavaConfig(text_config=LlamaConfig(**SHAPE))
    writers, parameters = writers_of(config, LlavaForConditionalGeneration)
    names = [writer.parameter for writer in writers]
    assert len(names) == 2 * LAYERS
    assert all("vision" not in name and name in parameters for name in names)


def test_a_recurrence_mixes_tokens_as_attention_does():
    writers, parameters = writers_of(MambaConfig(hidden_size=WIDTH, num_hidden_layers=LAYERS, vocab_size=100))
    assert {writer.kind for writer in writers} == {"attention"}
    assert all(parameters[writer.parameter].shape[writer.axis] == WIDTH for writer in writers)


def test_a_model_that_needs_values_is_refused():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE))
    anatomy = find_anatomy(model)
    model.model.layers[1].mlp.forward = lambda state: state.to("cpu").tolist()
    with pytest.raises(UnsupportedModelError, match="cannot be followed without values"):
        find_writers(model, anatomy)
