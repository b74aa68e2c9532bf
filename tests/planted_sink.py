"""A sink planted into the weights of a Llama with biases in its attention."""

from collections.abc import Sequence

import torch
from transformers import LlamaForCausalLM


def plant_sink(model: LlamaForCausalLM, tokens: Sequence[int], dim: int) -> None:
    """All heads attend to some tokens, which are large in one dimension from the embedding on.

    Positions turn the coordinate by which they do little, if `rope_theta` is large: it is in the last pair of a head.
    """
    config = model.config
    heads, groups, width = config.num_attention_heads, config.num_key_value_heads, config.hidden_size
    component = width // heads // 2 - 1
    with torch.no_grad():
        for token in tokens:
            model.model.embed_tokens.weight[token, dim] = 60.0
        for layer in model.model.layers:
            layer.self_attn.q_proj.bias.view(heads, -1)[:, component] = 6.0
            layer.self_attn.k_proj.weight.view(groups, -1, width)[:, component, dim] = 0.7
