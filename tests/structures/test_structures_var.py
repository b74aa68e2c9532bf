"""VAR on decoders of many structures: prompts and cached steps against the paper, row by row."""

from typing import Any

import pytest
import torch
from structure_models import (
    CONFIGS,
    DEPTH,
    HYBRIDS,
    IMAGE_ID,
    NATIVE,
    OUTSIDE,
    SINK_IDS,
    layer_kinds,
    questions,
    seeing_model,
)
from structure_oracle import paper_var, profile_of
from torch import Tensor

from sinkscope.errors import InputError
from sinkscope.redistribution import var

NO_LLAVA = ("opt projected", "gemma4", "gemma4 shared")
"""LLaVA gives its decoder embeddings of the hidden size, and no ids; these want others, or both."""
NAMES = [*(name for name in CONFIGS if name not in (*OUTSIDE, *NO_LLAVA)), *NATIVE]
WINDOWED = ["gemma2", "gemma3", "cohere2", "mistral", "llama4", "gpt_oss", "mimo", "Gemma 4"]
PICKS = "deepseek_v32"
"""Picks a few keys for each query; by scores that tie in so small a model, which whole passes break in other ways."""
STEPS = 8
"""Tokens that are written: more than the window holds."""


def positions(name: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs with the positions that `generate` makes; Qwen makes its own in three axes."""
    if name == "Qwen3.5":
        return inputs
    return inputs | {"position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)}


def extended(inputs: dict[str, Tensor], sequences: Tensor) -> dict[str, Tensor]:
    """The inputs of one pass over a prompt and all that was written after it."""
    more = sequences.shape[1] - inputs["input_ids"].shape[1]
    fill = {"attention_mask": 1, "mm_token_type_ids": 0}
    grown = {
        name: torch.nn.functional.pad(inputs[name], (0, more), value=value)
        for name, value in fill.items()
        if name in inputs
    }
    return inputs | grown | {"input_ids": sequences}


def write(model: Any, inputs: dict[str, Tensor], never: tuple[int, ...] = (), **options: Any) -> Any:
    return model.generate(
        **inputs,
        max_new_tokens=STEPS,
        do_sample=False,
        suppress_tokens=[IMAGE_ID, *never],
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )


def apart(mine: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a part of the largest value."""
    return float((mine - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_prompts_and_steps_are_the_papers(name: str) -> None:
    """A left-padded batch, longer than the windows."""
    model, kinds = seeing_model(name), layer_kinds(name)
    prompt = questions(name, "btttitstttst", "bitstt")
    inputs, valid = positions(name, prompt), prompt["attention_mask"].bool()
    edited = [layer for layer in range(1, DEPTH - 1) if layer in kinds]

    plain = model(**inputs, use_cache=False).logits
    with paper_var(model, inputs, kinds, []):
        assert apart(model(**inputs, use_cache=False).logits[valid], plain[valid]) < 1e-5
    with paper_var(model, inputs, kinds, edited) as evidence:
        expected = model(**inputs, use_cache=False).logits
    with var(model, profile_of(model), score="phi") as run:
        mine = model(**inputs, use_cache=False).logits
    assert apart(mine[valid], expected[valid]) < 1e-5
    assert apart(plain[valid], expected[valid]) > 1e-2
    assert run.layers == tuple(edited)
    assert {entry.layer: round(entry.image_centric_share * entry.pairs) for entry in run.summary()} == evidence.edited
    assert all(evidence.edited.values())
    assert evidence.passed_over
    assert bool(evidence.out_of_sight) == (name in (*WINDOWED, PICKS))
    assert (min(evidence.sums) < 0.9) == (name in ("gpt_oss", "mimo"))
    if name == PICKS:
        return
    with var(model, profile_of(model), score="phi"):
        written = write(model, prompt)
    assert_steps_are_the_papers(name, model, prompt, written)


def assert_steps_are_the_papers(name: str, model: Any, prompt: dict[str, Tensor], written: Any) -> None:
    """Every logit that led to a written token is that of a whole pass by the paper."""
    whole, start = positions(name, extended(prompt, written.sequences[:, :-1])), prompt["input_ids"].shape[1]
    kinds = layer_kinds(name)
    edited = [layer for layer in range(1, DEPTH - 1) if layer in kinds]
    with paper_var(model, whole, kinds, edited, generated_from=start) as evidence:
        steps = model(**whole, use_cache=False).logits[:, start - 1 :]
    assert all(evidence.edited.values())
    # Recurrent layers compute prompts and steps in different ways, which round differently.
    assert apart(torch.stack(written.logits, 1), steps) < (1e-4 if name in HYBRIDS else 1e-5)


@pytest.mark.parametrize("name", WINDOWED)
@torch.no_grad()
def test_a_sink_out_of_sight_gives_nothing(name: str) -> None:
    """The only sink stands before the image, beyond the reach of a windowed layer's text queries."""
    model, kinds = seeing_model(name, visual_sinks=False), layer_kinds(name)
    prompt = questions(name, "bttttttittttt")
    inputs = positions(name, prompt)
    plain, steps = model(**inputs, use_cache=False).logits, write(model, prompt, SINK_IDS)
    for layer in range(1, DEPTH - 1):
        with var(model, profile_of(model), score="phi", rho=0.0, attention_floor=0.0, layers=[layer]) as run:
            mine, after = model(**inputs, use_cache=False).logits, write(model, prompt, SINK_IDS)
        (entry,) = run.summary()
        assert entry.sink_tokens == 2
        if kinds[layer][0] == "full":
            assert entry.image_centric_share == 1
            assert apart(mine, plain) > 1e-3
            continue
        assert entry.image_centric_share == 0
        assert torch.equal(mine, plain)
        assert torch.equal(after.sequences, steps.sequences)
        assert apart(torch.stack(after.logits), torch.stack(steps.logits)) < 1e-6


@pytest.mark.parametrize("name", ["llama4", "gpt_oss", "Gemma 4", "Qwen3.5"])
@torch.no_grad()
def test_static_caches(name: str) -> None:
    """Their windowed layers hold as many keys as they can see, in places of their own."""
    model, prompt = seeing_model(name), questions(name, "btttitstttst", "bitstt")
    with var(model, profile_of(model), score="phi"):
        written = write(model, prompt, cache_implementation="static")
    assert_steps_are_the_papers(name, model, prompt, written)


@pytest.mark.parametrize(("name", "layer"), [("gpt_oss", 1), ("mimo", 2)])
@torch.no_grad()
def test_rows_keep_the_part_that_a_learned_sink_leaves_them(name: str, layer: int) -> None:
    model = seeing_model(name)
    inputs = positions(name, questions(name, "btttitstttst"))
    plain = model(**inputs, use_cache=False, output_attentions=True).attentions[layer]
    with var(model, profile_of(model), score="phi", layers=[layer]):
        edited = model(**inputs, use_cache=False, output_attentions=True).attentions[layer]
    assert float(plain.sum(-1).max()) < 1
    assert apart(edited, plain) > 1e-2
    torch.testing.assert_close(edited.sum(-1), plain.sum(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if name in HYBRIDS and name != "falcon_h1"])
def test_layers_without_softmax_attention_cannot_be_edited(name: str) -> None:
    model = seeing_model(name)
    for layer in range(DEPTH - 1):
        if layer not in layer_kinds(name):
            with pytest.raises(InputError, match=f"layer {layer} holds no softmax attention"):
                var(model, profile_of(model), layers=[layer])
