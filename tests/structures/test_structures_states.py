"""The hidden states that are seen are those that transformers gives back, and the ones that arithmetic gives."""

import math
from typing import Any

import pytest
import torch
from structure_models import CONFIGS, DEPTH, WIDTH, text_model, texts
from torch import Tensor, nn

from sinkscope.backbone.anatomy import find_anatomy
from sinkscope.backbone.hooks import entering_states
from sinkscope.backbone.running import forward

BATCH = texts(9, 14)
VALID = BATCH["attention_mask"].bool()


def states_of(model: nn.Module) -> dict[int, Tensor]:
    """The states that sinkscope sees in the pass that a capture makes."""
    seen: dict[int, Tensor] = {}
    with torch.no_grad(), entering_states(model, find_anatomy(model), lambda layer, state: seen.update({layer: state})):
        forward(model, BATCH)
    return seen


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_states_are_those_that_transformers_gives_back(name: str) -> None:
    model = text_model(name)
    seen = states_of(model)
    output = model(**BATCH, use_cache=False, output_hidden_states=True)
    own = output.hidden_states
    assert sorted(seen) == list(range(DEPTH + 1))
    for layer in range(DEPTH):
        torch.testing.assert_close(seen[layer][VALID], own[layer][VALID], rtol=0, atol=0)
    # The last own state stands behind the final norm, or projection: what enters that is ours.
    holder = model.get_submodule(find_anatomy(model).layers_path.rpartition(".")[0])
    first = next(module for name in BEHIND if (module := getattr(holder, name, None)) is not None)
    entered: list[Tensor] = []
    handle = first.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    model(**BATCH, use_cache=False)
    handle.remove()
    torch.testing.assert_close(seen[DEPTH][VALID], entered[0][VALID], rtol=0, atol=0)
    assert seen[DEPTH].shape == (*BATCH["input_ids"].shape, WIDTH)


BEHIND = ("final_layer_norm", "project_out", "norm", "final_layernorm", "ln_f", "embedding_norm")
"""What transformers calls the first module behind the last layer."""


def hand_made_embedding(name: str, model: nn.Module) -> Tensor:
    """The state entering layer 0, from the weights, [B, T, D]; the batch is padded on the right."""
    ids, place = BATCH["input_ids"], torch.arange(BATCH["input_ids"].shape[1])
    weights = dict(model.named_parameters())

    def row(path: str) -> Tensor:
        return weights[path][ids]

    if name.startswith("gemma"):
        return row("model.embed_tokens.weight") * math.sqrt(WIDTH)
    if name.startswith("gpt2") or name == "gpt_bigcode":
        return row("transformer.wte.weight") + weights["transformer.wpe.weight"][place]
    if name.startswith("opt"):
        # OPT's positions begin at 2.
        positions = weights["model.decoder.embed_positions.weight"][place + 2]
        found = row("model.decoder.embed_tokens.weight")
        return (found @ weights["model.decoder.project_in.weight"].T if "projected" in name else found) + positions
    if name == "bloom":
        scale, shift = (weights[f"transformer.word_embeddings_layernorm.{part}"] for part in ("weight", "bias"))
        found = row("transformer.word_embeddings.weight")
        centred = found - found.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * scale + shift
    paths = [path for path in weights if path.endswith(EMBEDDINGS) and "per_layer" not in path]
    assert len(paths) == 1
    return row(paths[0])


EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_the_state_entering_layer_0_is_what_the_embedding_makes(name: str) -> None:
    model = text_model(name)
    torch.testing.assert_close(
        states_of(model)[0][VALID], hand_made_embedding(name, model)[VALID], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", ["gptj", "falcon", "falcon grouped", "cohere", "cohere2"])
@torch.no_grad()
def test_parallel_layers_add_both_branches_to_the_state_they_are_given(name: str) -> None:
    model = text_model(name)
    layer = model.get_submodule(find_anatomy(model).layers_path)[1]
    written: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        # Some layers add the one to the other in place.
        written.append((output[0] if isinstance(output, tuple) else output).clone())

    branches = [module for path, module in layer.named_children() if path in BRANCHES]
    assert len(branches) == 2
    for branch in branches:
        branch.register_forward_hook(keep)
    states = states_of(model)
    torch.testing.assert_close(states[2][VALID], (states[1] + sum(written))[VALID], rtol=1e-4, atol=1e-5)


BRANCHES = ("attn", "self_attn", "self_attention", "mlp")
