"""Any config made small by rules on the names of its numbers. What the rules cannot know stands in `overrides`."""

import math
import re
from typing import Any

from transformers import PreTrainedConfig

from benchmarks.coverage.overrides import OVERRIDES

VOCABULARY, WIDTH, LAYERS, HEADS, HEAD_WIDTH = 640, 64, 6, 4, 16
ENCODER_LAYERS = 4
"""Fewer than the decoder has, so that nobody takes one for the other."""
FIRST_RESERVED = 600
"""Token ids from here on stand for images, videos and their delimiters; the tokenizer knows none of them."""

_DEPTH = re.compile(r"^(num_hidden_layers|n_layers?|num_layers|(num_)?(en|de)coder_layers|depth|num_blocks)$")
_WIDTH = re.compile(
    r"^(hidden_size|n_embd|d_model|word_embed_proj_dim|embedding_size|dim_model|embed_dim|dim|emb_dim|lru_width|"
    r"attention_hidden_size|out_hidden_size|output_dim|projection_dim|text_hidden_size|input_hidden_size|"
    r"output_hidden_size|hidden_dim|vision_hidden_size|projector_hidden_size|input_embedding_size|embedding_dim|encoder_hidden_size|encoder_width|cross_attention_hidden_size)$"
)
_HEAD_WIDTH = re.compile(
    r"^((swa_|global_|local_)?head_dim|v_head_dim|qk_nope_head_dim|linear_(key|value)_head_dim|kv_channels|"
    r"mamba_d_head|mamba_head_dim|attention_head_dim|swa_v_head_dim|d_kv)$"
)
_HALF_HEAD = re.compile(r"^(qk_rope_head_dim|rotary_dim|index_head_dim)$")
_INNER = re.compile(r"intermediate|ffn|^(n_inner|dim_ff|dff|mlp_dim)$")
_RANK = re.compile(r"lora_rank|^(time_step_rank|mamba_dt_rank)$")
_PLACES = re.compile(r"max_position|^(n_positions|n_ctx|max_seq_len|max_sequence_length)$")
_TOKEN = re.compile(r"_token_(id|index|ids)$|^(pad|bos|eos|sep|cls|mask)_token_id$")
_LAYER_LIST = re.compile(r"index|layer|block")
_KNOWN_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}


def shrink(config: PreTrainedConfig, kind: str) -> PreTrainedConfig:
    """Make `config`, and the configs in it, small in place; `kind` is its model type."""
    reserved: dict[Any, int] = {}
    _shrink(config, reserved)
    for path, value in OVERRIDES.get(kind, {}).items():
        *parents, name = path.split(".")
        owner: Any = config
        for parent in parents:
            owner = owner[parent] if isinstance(owner, dict) else getattr(owner, parent)
        if isinstance(owner, dict):
            owner[name] = value
        else:
            setattr(owner, name, value)
    return config


def _shrink(config: PreTrainedConfig, reserved: dict[Any, int]) -> None:
    old = dict(vars(config))
    depth = next((value for name, value in old.items() if _DEPTH.match(name) and isinstance(value, int)), None)
    heads = next((old[name] for name in ("num_attention_heads", "n_head", "num_heads") if _number(old.get(name))), None)
    short = depth is not None and depth < LAYERS and any(_per_layer(value, depth) for value in old.values())
    new = {}
    for name, value in old.items():
        if isinstance(value, PreTrainedConfig):
            _shrink(value, reserved)
        elif _TOKEN.search(name) and not name.startswith("_"):
            new[name] = _token(name, value, reserved)
        elif isinstance(value, (list, tuple)):
            new[name] = type(value)(_sequence(name, list(value), depth, old))
        elif _number(value) and not (short and _DEPTH.match(name)):
            new[name] = _size(name, value, heads, old)
        elif value is None:
            new[name] = {"head_dim": HEAD_WIDTH, "num_key_value_heads": HEADS}.get(name)
    if isinstance(old.get("rope_parameters"), dict):
        new["rope_parameters"] = _rope(old["rope_parameters"], old)
    if heads and old.get("num_kv_shared_layers"):
        new["num_kv_shared_layers"] = 1
    for name, value in new.items():
        if value is not None and value != old[name]:
            setattr(config, name, value)


def _per_layer(value: Any, depth: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == depth


def _number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _size(name: str, value: int, heads: int | None, old: dict[str, Any]) -> int | None:
    """The small value of one number, None to leave it."""
    if _DEPTH.match(name):
        return ENCODER_LAYERS if "encoder" in name else LAYERS
    if _WIDTH.match(name):
        return WIDTH
    if name == "head_dim" and "qk_rope_head_dim" in old and old["qk_rope_head_dim"] == value:
        return HEAD_WIDTH // 2
    if _HEAD_WIDTH.match(name):
        return HEAD_WIDTH
    if _HALF_HEAD.match(name):
        return HEAD_WIDTH // 2
    if name == "qk_head_dim":
        return HEAD_WIDTH + HEAD_WIDTH // 2
    if "mamba" in name and "heads" in name:
        return 2 * WIDTH // HEAD_WIDTH
    if "heads" in name or name in ("n_head", "n_heads"):
        grouped = ("key_value" in name or "kv" in name) and value != heads
        return min(value, HEADS // 2) if grouped else HEADS
    if _INNER.search(name):
        return 2 * WIDTH
    if "vocab" in name:
        return VOCABULARY
    if _RANK.search(name):
        return HEAD_WIDTH
    if _PLACES.search(name):
        return min(value, 4096)
    if name in ("n_group", "topk_group", "num_expert_group", "num_experts_per_group"):
        return 1
    if re.search(r"per_tok|top_?k|^moe_k$", name) and value > 2 and value < 64:
        return 2
    if "experts" in name and "shared" not in name and value > 4:
        return 4
    return None


def _token(name: str, value: Any, reserved: dict[Any, int]) -> Any:
    """A token id of the small vocabulary: one and the same for one and the same old id."""
    if name in _KNOWN_TOKENS:
        return None if value is None and name != "pad_token_id" else _KNOWN_TOKENS[name]
    if isinstance(value, (list, tuple)):
        return type(value)(_token(f"{name}{place}", entry, reserved) for place, entry in enumerate(value))
    if value is None and not re.match(r"(image|video)_token", name):
        return None
    key = name.replace("_index", "_id") if value is None else value
    return reserved.setdefault(key, FIRST_RESERVED + len(reserved))


def _sequence(name: str, values: list[Any], depth: int | None, old: dict[str, Any]) -> list[Any]:
    """Lists with an entry per layer keep the stretch of layers with most kinds; indices of layers move to the front."""
    if depth and len(values) == depth and depth > LAYERS:
        start = _stretch(old, depth)
        return values[start : start + LAYERS]
    indices = all(_number(value) and 0 <= value < (depth or 0) for value in values)
    if values and indices and depth and _LAYER_LIST.search(name):
        return sorted({value * LAYERS // depth for value in values})
    return values


def _stretch(old: dict[str, Any], depth: int) -> int:
    """Where the first stretch of layers begins that holds most kinds of layer."""
    columns = [value for value in old.values() if isinstance(value, (list, tuple)) and len(value) == depth]
    rows = [tuple(map(str, row)) for row in zip(*columns, strict=True)]
    return max(range(depth - LAYERS + 1), key=lambda start: (len(set(rows[start : start + LAYERS])), -start))


def _rope(rope: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings with the sections of multimodal positions made to fill half of a small head's rotary part.

    Models that name no sections have defaults for large heads in their code, so every model is given some.
    """
    if "rope_theta" not in rope:
        return rope
    part = rope.get("partial_rotary_factor") or old.get("partial_rotary_factor") or 1.0
    sections = _shared_out(rope.get("mrope_section") or [16, 24, 24], int(HEAD_WIDTH * part) // 2)
    return rope | {"mrope_section": sections}


def _shared_out(parts: list[int], total: int) -> list[int]:
    """`total` in whole parts, in proportion to `parts`."""
    exact = [part * total / sum(parts) for part in parts]
    shares = [math.floor(share) for share in exact]
    by_rest = sorted(range(len(parts)), key=lambda place: shares[place] - exact[place])
    for place in by_rest[: total - sum(shares)]:
        shares[place] += 1
    return shares
