"""Heads, widths and layers that are told of each structure, against what its forward pass leaves behind."""

import pytest
import torch
from structure_models import CONFIGS, DEPTH, WIDTH, layer_kinds, text_model, texts

from sinkscope.backbone.anatomy import find_anatomy

LATENT = [name for name in CONFIGS if name.startswith("deepseek")]
REPEATED = "falcon grouped"
"""Its code repeats keys and values before it caches them."""


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_heads_of_keys_and_values_are_those_that_are_cached(name: str) -> None:
    model = text_model(name)
    anatomy = find_anatomy(model)
    layers = model(**texts(9), use_cache=True).past_key_values.layers
    # Layers that share the keys of others cache none.
    cached = [keys for layer in layer_kinds(name) if (keys := layers[layer].keys) is not None]
    heads = min(keys.shape[1] for keys in cached)
    assert (anatomy.hidden_size, anatomy.num_layers, anatomy.num_heads) == (WIDTH, DEPTH, 4)
    assert [kind.span == "none" for kind in anatomy.attention_kinds] == [
        layer not in layer_kinds(name) for layer in range(DEPTH)
    ]
    for layer, (span, window) in layer_kinds(name).items():
        kind = anatomy.attention_kinds[layer]
        assert (kind.span, kind.window) == (span, window)
        assert ("latent" in kind.features) == (name in LATENT)
        if name not in LATENT:
            expected = 2 if name == REPEATED else heads
            assert anatomy.num_kv_heads == expected
            assert ("grouped" in kind.features) == (expected < 4)
