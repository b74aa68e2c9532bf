"""What the shrinking rules cannot know, per model type. For building test models only; sinkscope has no such table.

A path of attributes, or keys of dictionaries, with the value that goes there once the rules have been applied.
"""

from typing import Any

LETTERS = "ABCDEFGHIJ"
CODES = 16
"""Entries of the small codebooks of models whose images are discrete tokens."""

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_HYBRID = ["linear_attention", "linear_attention", "full_attention"] * 2
_ZAMBA = ["linear_attention", "linear_attention", "hybrid"] * 2
_SHARING = ["sliding_attention", "full_attention"] * 3
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}


def _inside(name: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}.{path}": value for path, value in values.items()}


_CHAMELEON = {f"IMGIMG{''.join(LETTERS[int(digit)] for digit in str(code))}Z": 610 + code for code in range(CODES)}
_EMU3 = {f"<|visual token {code:06d}|>": 610 + code for code in range(CODES)}
_QWEN4_EXP: dict[str, Any] = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}
_COMPASS = {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}, "logit_scale": 1.0}

_SLIDING_HEADS = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 24,
    "swa_qk_nope_head_dim": 16,
    "swa_v_head_dim": 16,
}
_DOTS3 = {
    "hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 16,
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "head_dim": 16,
    "index_head_dim": 16, "index_n_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
} | _SLIDING_HEADS  # fmt: skip
_GEMMA4_SEES: dict[str, Any] = {"vision_config": {}}

ARGUMENTS: dict[str, dict[str, Any]] = {
    "dots3_note": {
        "text_config": _DOTS3,
        "vision_config": {"hidden_size": 64, "num_attention_heads": 4, "adapter_in_dim": 64, "adapter_out_dim": 64},
        "audio_config": {"hidden_size": 64, "num_attention_heads": 4, "adapter_input_size": 64, "adapter_out_dim": 64},
    },
    "dots3_note_text": _DOTS3,
    "gemma4": _GEMMA4_SEES,
    "gemma4_unified": _GEMMA4_SEES,
    "muse_spark": {"audio_config": {"hidden_sizes": (16, 16, 32, 64)}},
}
"""What the config is made with: sizes that cannot be changed later, and towers that are left out by default."""

OVERRIDES: dict[str, dict[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {49: 16}},
    "aya_vision": {"vision_config.image_size": 112},
    "bamba": {"attn_layer_indices": [2, 5], "mamba_d_state": 8},
    "chameleon": {
        "vocabulary_map": {"<image>": 600, **_CHAMELEON},
        "vq_config.num_embeddings": CODES,
        "vq_config.base_channels": 32,
    },
    "cohere_compass": _inside("text_config", _COMPASS),
    "cohere_compass_text": _COMPASS,
    "dbrx": {"attn_config.rope_theta": 10000.0, "attn_config.clip_qkv": 8.0},
    "deepseek_ocr2": _inside("text_config", {"mlp_layer_types": ["dense"] * 6, "num_experts_per_tok": 2})
    | {"vision_config.sam_config.downsample_channels": [32, 64]},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_vl_hybrid": {"high_res_vision_config.image_size": 256},
    "diffusion_gemma": _inside("text_config", {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 64}),
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1} | _EXPERTS,
    "emu3": {
        "vocabulary_map": {"<image>": 600, "<|extra_200|>": 601, **_EMU3},
        "vq_config.codebook_size": CODES,
        "vq_config.base_channels": 32,
        "vq_config.hidden_size": 128,
        "vq_config.embed_dim": 4,
    },
    "ernie4_5_vl_moe": {"text_config.rope_parameters.mrope_section": [3, 3, 2]},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_d_state": 8},
    "gemma3": {"mm_tokens_per_image": 49},
    "gemma3n_text": {
        "num_kv_shared_layers": 2,
        "layer_types": _SHARING,
        "activation_sparsity_pattern": [0.5, *[0.0] * 5],
    },
    "gemma4_unified_assistant": {"text_config.num_kv_shared_layers": 2, "text_config.layer_types": _SHARING},
    "got_ocr2": {"vision_config.image_size": 256},
    "granite4_vision": {
        "deepstack_layer_map": [(1, 1), (3, 3)],
        "spatial_target_layers": [0, 2, 4, 5],
        "downsample_rate": "4/8",
        "vision_config.image_size": 256,
        "image_grid_pinpoints": [[512, 512]],
    },
    "granitemoehybrid": {"layer_types": _HYBRID},
    "hrm_text": {"num_layers_per_stack": 6, "num_hidden_layers": 48},
    "mllama": {"cross_attention_layers": [1, 4]}
    | _inside("text_config", {"cross_attention_layers": [1, 4]})
    | {"vision_config.vision_output_dim": 384, "vision_config.image_size": 56},
    "idefics3": {"vision_config.image_size": 256},
    "kimi_k25": {"projection_hidden_size": 64},
    "llama4": {
        "vision_config.intermediate_size": 256,
        "vision_config.projector_input_dim": 64,
        "vision_config.projector_output_dim": 64,
        "vision_config.vision_output_dim": 64,
    },
    "minimax_m3_vl": {"merged_hidden_size": 256},
    "molmo2": {"image_patch_id": 600, "adapter_config.vision_feature_layer": [-2, -4]},
    "muse_glimmer": {"out_hidden_size": 256},
    "muse_spark": {"out_hidden_size": 256},
    "kosmos-2": {"text_config.layers": 6},
    "kosmos-2.5": {"text_config.layers": 6},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 3},
    "mamba2": {"num_heads": 8},
    "pp_chart2table": {"vision_config.image_size": 256},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 605, "vision_end_token_id": 606, "audio_start_token_id": 607},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 605, "vision_end_token_id": 606, "audio_start_token_id": 607},
    "qwen4_exp": _inside("text_config", _QWEN4_EXP),
    "qwen4_exp_text": _QWEN4_EXP,
    "reformer": {"axial_pos_embds": False},
    "shieldgemma2": {"mm_tokens_per_image": 49},
    "smolvlm": {"vision_config.image_size": 256},
    "step3p7": {"text_config.sliding_window": 64},
    "unlimited_ocr": {"vision_config.sam_config.downsample_channels": [32, 64]},
    "vipllava": {"vision_feature_layers": [-2, -3, -4, -5, 3]},
    "xlstm": {"qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": _ZAMBA, "attention_hidden_size": 128, "attention_head_dim": 32},
    "zamba2": {
        "layers_block_type": _ZAMBA,
        "hybrid_layer_ids": [2, 5],
        "n_mamba_heads": 8,
        "mamba_headdim": 16,
        "attention_head_dim": 32,
        "attention_hidden_size": 128,
    },
}
