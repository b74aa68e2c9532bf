"""Tiny random models of many structures, made from their own configs: nothing is downloaded."""

from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

from sinkscope.backbone.anatomy import find_anatomy
from sinkscope.backbone.loading import LoadedModel
from sinkscope.calibration import Sample

WIDTH, DEPTH, VOCABULARY = 32, 4, 120
PAD_ID, BOS_ID, IMAGE_ID = 0, 1, 110
WORDS = (10, 80)
"""First word of the vocabulary that prompts are made of, and one past the last."""
SINK_DIM, SINK_IDS = 5, (BOS_ID, 14, 21, 28, 35, 42, 49, 56, 63)
"""The planted dimension, and the ids of text tokens that hold it."""

IDS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD_ID,
    "bos_token_id": BOS_ID,
    "eos_token_id": None,
}
SHAPE: dict[str, Any] = IDS | {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
GPT: dict[str, Any] = IDS | {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": 4, "n_positions": 256}
HEADS: dict[str, Any] = IDS | {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 4}
LATENT: dict[str, Any] = SHAPE | {
    "num_key_value_heads": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 6,
}
EXPERTS: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
WINDOW = 6
ALTERNATING = ["sliding_attention", "full_attention"] * 2
SLIDING = {"sliding_window": WINDOW, "layer_types": ALTERNATING}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def _gemma4(**changes: Any) -> Any:
    rope = {"sliding_attention": ROPE, "full_attention": ROPE}
    return transformers.Gemma4TextConfig(
        **SHAPE | {"num_kv_shared_layers": 0} | changes, **SLIDING, head_dim=8, global_head_dim=12,
        num_global_key_value_heads=2, rope_parameters=rope, hidden_size_per_layer_input=4,
        vocab_size_per_layer_input=VOCABULARY,
    )  # fmt: skip


CONFIGS: dict[str, Any] = {
    # Scaled embeddings, norms before and after each block.
    "gemma2": lambda: transformers.Gemma2Config(
        **SHAPE, **SLIDING, head_dim=8, query_pre_attn_scalar=8, attn_logit_softcapping=2.0
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SHAPE, **SLIDING, head_dim=8, query_pre_attn_scalar=8),
    "gemma4": _gemma4,
    "gemma4 shared": lambda: _gemma4(num_kv_shared_layers=2),
    # Attention and MLP side by side.
    "gptj": lambda: transformers.GPTJConfig(**GPT, rotary_dim=4),
    "falcon": lambda: transformers.FalconConfig(**HEADS, multi_query=True, new_decoder_architecture=False),
    "falcon grouped": lambda: transformers.FalconConfig(**HEADS, new_decoder_architecture=True, num_kv_heads=2),
    "cohere": lambda: transformers.CohereConfig(**SHAPE),
    "cohere2": lambda: transformers.Cohere2Config(**SHAPE, **SLIDING),
    # Learned positions.
    "gpt2": lambda: transformers.GPT2Config(**GPT),
    "gpt2 scaled": lambda: transformers.GPT2Config(**GPT, scale_attn_by_inverse_layer_idx=True),
    "opt": lambda: transformers.OPTConfig(**HEADS, ffn_dim=48, word_embed_proj_dim=WIDTH, max_position_embeddings=256),
    "opt projected": lambda: transformers.OPTConfig(
        **HEADS, ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False, max_position_embeddings=256
    ),
    # Queries, keys and values from one matrix.
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**HEADS, intermediate_size=48, max_position_embeddings=256),
    "phi3": lambda: transformers.Phi3Config(**SHAPE),
    "bloom": lambda: transformers.BloomConfig(**IDS, hidden_size=WIDTH, n_layer=DEPTH, n_head=4),
    # One head of keys and values.
    "gpt_bigcode": lambda: transformers.GPTBigCodeConfig(**GPT, multi_query=True),
    "llama": lambda: transformers.LlamaConfig(**SHAPE),
    # Keys and values from a latent state, of different widths.
    "deepseek_v2": lambda: transformers.DeepseekV2Config(**LATENT, **EXPERTS),
    # The same, where each layer picks a few keys for each query.
    "deepseek_v32": lambda: transformers.DeepseekV32Config(
        **LATENT, **EXPERTS, index_topk=4, index_head_dim=8, index_n_heads=2
    ),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(**LATENT, **EXPERTS),
    # Layers that do not see everything.
    "mistral": lambda: transformers.MistralConfig(**SHAPE, sliding_window=WINDOW),
    "llama4": lambda: transformers.Llama4TextConfig(
        **SHAPE, head_dim=8, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=WINDOW,
        layer_types=["chunked_attention", "full_attention"] * 2, no_rope_layers=[1, 0, 1, 0],
    ),
    # Learned sink logits.
    "gpt_oss": lambda: transformers.GptOssConfig(
        **SHAPE, **SLIDING, head_dim=8, num_local_experts=2, num_experts_per_tok=1
    ),
    "mimo": lambda: transformers.MiMoV2FlashConfig(
        **SHAPE, **SLIDING, head_dim=8, v_head_dim=6, n_routed_experts=2, num_experts_per_tok=1,
        moe_intermediate_size=24, mlp_layer_types=["dense"] * 2 + ["sparse"] * 2,
    ),
    # Experts.
    "mixtral": lambda: transformers.MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
    # Recurrent, linear or convolutional layers among those of attention.
    "jamba": lambda: transformers.JambaConfig(
        **SHAPE, num_experts=2, num_experts_per_tok=1, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=0, use_mamba_kernels=False, mamba_d_state=4, mamba_dt_rank=4,
    ),
    "bamba": lambda: transformers.BambaConfig(
        **SHAPE, attn_layer_indices=[1, 3], mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=1,
        mamba_chunk_size=8,
    ),
    "falcon_h1": lambda: transformers.FalconH1Config(
        **SHAPE, head_dim=8, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_chunk_size=8
    ),
    "qwen3_next": lambda: transformers.Qwen3NextConfig(
        **SHAPE, head_dim=8, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=24,
        shared_expert_intermediate_size=24, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
        linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"] * 2,
    ),
    "lfm2": lambda: transformers.Lfm2Config(
        **SHAPE, layer_types=["conv", "full_attention"] * 2, block_auto_adjust_ff_dim=False
    ),
}  # fmt: skip
OUTSIDE = ("gptj", "falcon", "falcon grouped", "bloom")
"""Those whose attention does not go through transformers' attention interface."""
EVERY_SECOND = (False, True, False, True)
HYBRIDS: dict[str, tuple[bool, ...]] = {
    "jamba": EVERY_SECOND,
    "bamba": EVERY_SECOND,
    "qwen3_next": EVERY_SECOND,
    "lfm2": EVERY_SECOND,
    "falcon_h1": (True,) * DEPTH,
    "LFM2-VL": (False, True, True, False),
    "Qwen3.5": (False, True, True, False),
}
"""Which layers hold softmax attention, as the configs above are made."""


def layer_kinds(name: str) -> dict[int, tuple[str, int | None]]:
    """Kind and window of every layer that holds softmax attention, as the configs above are made."""
    kinds = {"mistral": ["sliding"] * DEPTH, "llama4": ["chunked", "full"] * 2}
    if name in HYBRIDS:
        return {layer: ("full", None) for layer, softmax in enumerate(HYBRIDS[name]) if softmax}
    alternating = name.lower().startswith("gemma") or name in ("cohere2", "gpt_oss", "mimo")
    found = kinds.get(name) or (["sliding", "full"] * 2 if alternating else ["full"] * DEPTH)
    return {layer: (kind, None if kind == "full" else WINDOW) for layer, kind in enumerate(found)}


def spread(model: nn.Module, seed: int = 1) -> None:
    """Weights large enough that attention is uneven and every layer does something; norms that are not all ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.empty_like(weight).normal_(generator=generator)
            if name.endswith("sinks") or "bias" in name:
                weight.copy_(0.5 * noise)
            elif (weight.ndim == 1 and "norm" in name) or "ln_" in name:
                weight.add_(0.1 * noise)
            elif weight.ndim > 1 and "A_log" not in name:
                weight.copy_(noise * 0.25)


def text_model(name: str, kernel: str | None = None) -> nn.Module:
    """A decoder of one of `CONFIGS`, on the kernel that transformers chooses for it by default."""
    torch.manual_seed(0)
    options = {"attn_implementation": kernel} if kernel else {}
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), **options).eval()
    spread(model)
    return model


def tokenizer(*, bos: bool = True) -> transformers.PreTrainedTokenizerFast:
    """One token per character, from id 10 on; with a BOS token before every text, or with none at all."""
    special = ["<pad>", "<s>", "</s>", "<unk>", *(f"<{number}>" for number in range(6))]
    inner = Tokenizer(
        models.WordLevel({name: id for id, name in enumerate([*special, *CHARACTERS])}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS_ID)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} if bos else {}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", **names)


CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;!?()-\n"
STOP_ID = 10 + CHARACTERS.index(".")


def loaded(model: nn.Module, *, bos: bool = True) -> LoadedModel:
    return LoadedModel(model, tokenizer(bos=bos), None, find_anatomy(model), "tiny")


def written_texts(count: int, length: int = 96, stops: tuple[int, ...] = ()) -> list[Sample]:
    """Texts of random letters and digits, with full stops in the given places."""
    texts = np.array(list(CHARACTERS[:62]))[np.random.default_rng(0).integers(62, size=(count, length))]
    texts[:, list(stops)] = "."
    return [Sample(text="".join(text)) for text in texts]


def words(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(*WORDS, (count,), generator=generator).tolist()


def texts(*lengths: int, pad: str = "right") -> dict[str, Tensor]:
    """A padded batch of words."""
    return padded([words(length, seed) for seed, length in enumerate(lengths)], pad)


def padded(rows: list[list[int]], pad: str) -> dict[str, Tensor]:
    longest = max(map(len, rows))
    ids, mask = torch.full((len(rows), longest), PAD_ID), torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), longest) if pad == "left" else slice(0, len(row))
        ids[index, place], mask[index, place] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


class Planted:
    """Sinks: the planted dimension is massive in the state entering layer 0 of some tokens.

    These are the text tokens `SINK_IDS` and, where `visual`, every third visual token.
    """

    def __init__(self, model: Any, layer: nn.Module, visual: bool) -> None:
        self.visual = visual
        self.chosen = torch.zeros(0, 0, dtype=torch.bool)
        model.register_forward_pre_hook(self.choose, with_kwargs=True)
        layer.register_forward_pre_hook(self.write, with_kwargs=True)

    def choose(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"]
        image = ids == IMAGE_ID
        self.chosen = torch.isin(ids, torch.tensor(SINK_IDS)) | (image & (image.cumsum(1) % 3 == 2) & self.visual)

    def write(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        state = (args[0] if args else kwargs["hidden_states"]).clone()
        state[..., SINK_DIM] = torch.where(self.chosen, 300.0, 0.1 * state[..., SINK_DIM])
        return ((state, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": state})


def layers_of(decoder: nn.Module) -> nn.ModuleList:
    """The decoder layers: in these models the list that holds most."""
    lists = [module for module in decoder.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda entry: sum(parameter.numel() for parameter in entry.parameters()))


def seeing_model(name: str, *, visual_sinks: bool = True) -> Any:
    """A model of `NATIVE`, or LLaVA on a decoder of one of `CONFIGS`, with sinks."""
    torch.manual_seed(0)
    config = NATIVE[name]() if name in NATIVE else _llava(CONFIGS[name]())
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    spread(model)
    Planted(model, layers_of(model.model.language_model)[0], visual_sinks)
    return model


def _llava(text: Any) -> Any:
    # LLaVA ties embeddings by a name that not all decoders use.
    text.tie_word_embeddings = False
    vision = transformers.CLIPVisionConfig(**TOWER | {"image_size": 24, "patch_size": 8})
    return transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE_ID, image_token_id=IMAGE_ID,
        vision_feature_layer=-1, image_seq_length=9,
    )  # fmt: skip


TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
MIXED = ["full_attention"] * 2
NATIVE: dict[str, Any] = {
    # Upper layers that share keys with those below, and embeddings in every layer.
    "Gemma 4": lambda: transformers.Gemma4Config(
        text_config=_gemma4(num_kv_shared_layers=2), image_token_id=IMAGE_ID, video_token_id=IMAGE_ID + 1,
        audio_token_id=IMAGE_ID + 2, vision_config=TOWER
        | {"model_type": "gemma4_vision", "patch_size": 4, "head_dim": 8, "num_key_value_heads": 2,
           "position_embedding_size": 16},
    ),
    "Kimi": lambda: transformers.Kimi_K25Config(
        text_config=transformers.DeepseekV3Config(**LATENT, **EXPERTS), image_token_id=IMAGE_ID,
        vision_config=TOWER | {"patch_size": 4, "pos_emb_height": 8, "pos_emb_width": 8}, projection_hidden_size=16,
        video_token_id=IMAGE_ID + 1, vision_start_token_id=IMAGE_ID + 2, vision_end_token_id=IMAGE_ID + 3,
        tie_word_embeddings=False,
    ),
    "LFM2-VL": lambda: transformers.Lfm2VlConfig(
        text_config=transformers.Lfm2Config(
            **SHAPE, layer_types=["conv", *MIXED, "conv"], block_auto_adjust_ff_dim=False
        ),
        vision_config=transformers.Siglip2VisionConfig(**TOWER, patch_size=4, num_patches=36), image_token_id=IMAGE_ID,
        projector_hidden_size=16,
    ),
    "Qwen3.5": lambda: transformers.Qwen3_5Config(
        text_config=SHAPE | {
            "head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
            "linear_value_head_dim": 8, "layer_types": ["linear_attention", *MIXED, "linear_attention"],
            "rope_parameters": ROPE | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0},
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 4,
            "out_hidden_size": WIDTH, "num_position_embeddings": 16,
        },
        image_token_id=IMAGE_ID, video_token_id=IMAGE_ID + 1, vision_start_token_id=IMAGE_ID + 2,
        vision_end_token_id=IMAGE_ID + 3,
    ),
}  # fmt: skip


def questions(name: str, *letters: str, pad: str = "left", seed: int = 0) -> dict[str, Tensor]:
    """A padded batch of prompts for `seeing_model(name)`.

    Each is a string of letters: b BOS, t a word, s a word that is a sink, i a picture.
    """
    rows = []
    for number, prompt in enumerate(letters):
        some = iter([word for word in words(400, seed + number) if word not in SINK_IDS])
        row: list[int] = []
        for place, letter in enumerate(prompt):
            sink = SINK_IDS[1 + (place + number) % 8]
            picture = [IMAGE_ID] * (6 if name in NATIVE else 9)
            row += {"b": [BOS_ID], "t": [next(some)], "i": picture, "s": [sink]}[letter]
        rows.append(row)
    inputs = padded(rows, pad)
    if name in ("Gemma 4", "Qwen3.5"):
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE_ID).long()
    return inputs | _pictures(name, "".join(letters).count("i"), torch.Generator().manual_seed(100 + seed))


def _pictures(name: str, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Noise in the layout that the model takes: pictures of 3 by 3 patches, or of 4 by 6 that are merged by four."""

    def noise(*shape: int) -> dict[str, Tensor]:
        return {"pixel_values": torch.randn(*shape, generator=generator)}

    grid = {"image_grid_thw": torch.tensor([[1, 4, 6]] * count)}
    if name == "Gemma 4":
        places = torch.tensor([[x, y] for y in range(6) for x in range(9)])
        return noise(count, 54, 48) | {"image_position_ids": places.expand(count, -1, -1).clone()}
    if name == "Kimi":
        return noise(24 * count, 3, 4, 4) | grid
    if name == "Qwen3.5":
        return noise(24 * count, 96) | grid
    if name == "LFM2-VL":
        shapes = {"spatial_shapes": torch.tensor([[4, 6]] * count)}
        return noise(count, 24, 48) | shapes | {"pixel_attention_mask": torch.ones(count, 24, dtype=torch.long)}
    return noise(count, 3, 24, 24)
