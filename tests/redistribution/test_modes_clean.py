"""Contexts, threads and failures: nothing is shared, and nothing is left."""

import json
import threading
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from mode_checks import EDITED, STEPS, assert_by_definition, assert_near, definition, in_passes, write
from mode_models import (
    FAMILIES,
    GEMMA3,
    LLAVA,
    ONEVISION,
    PLACEHOLDERS,
    QWEN2,
    WINDOWED,
    Family,
    Prompt,
    built,
    prompts,
)
from oracle import Paper
from torch import Tensor, nn
from transformers import DynamicCache
from var_models import SINK_IDS, profile_of, tiny_llava

from sinkscope.errors import InputError
from sinkscope.redistribution import var

SAMPLES = prompts("bttittittt", "bitst", "btst")


@torch.no_grad()
def logits(model: nn.Module, samples: list[Prompt] = SAMPLES, family: Family = LLAVA, **changes: Any) -> Tensor:
    return model(**family.positions(family.batch(samples) | changes), use_cache=False).logits


def greedy(model: nn.Module, samples: list[Prompt] = SAMPLES, family: Family = LLAVA, **options: Any) -> Tensor:
    defaults = {"max_new_tokens": STEPS, "do_sample": False, "suppress_tokens": PLACEHOLDERS}
    with torch.no_grad():
        result = model.generate(
            **family.batch(samples), **defaults | options, output_logits=True, return_dict_in_generate=True
        )
    return torch.stack(result.logits)


def everything(model: nn.Module) -> Any:
    """All of a model that VAR could touch, and that can be compared."""
    modules = []
    for name, module in model.named_modules():
        names = {key: type(value) for key, value in vars(module).items()}
        hooks = {
            key: list(value) for key, value in vars(module).items() if key.endswith("_hooks") and value is not None
        }
        config = getattr(module, "config", None)
        kernel = None if config is None else (type(config._attn_implementation), config._attn_implementation)
        modules.append((name, names, hooks, kernel, module.training, module.__dict__.get("forward")))
    weights = {name: (tensor.data_ptr(), tensor._version) for name, tensor in model.state_dict(keep_vars=True).items()}
    return modules, weights, json.dumps(model.config.to_dict(), default=str), model.generation_config.to_dict()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_everything_is_as_before_and_the_plain_results_too(family: Family) -> None:
    model = built(family)
    samples = prompts("bttvtt", "btvtt") if family is ONEVISION else prompts("bttitt", "bitst")
    # The first static cache leaves its length on the model, with or without VAR.
    greedy(model, samples, family, cache_implementation="static")
    before = everything(model)
    plain, written = logits(model, samples, family), greedy(model, samples, family)
    with var(model, profile_of(), score="phi"):
        first = greedy(model, samples, family)
        assert torch.equal(greedy(model, samples, family), first)
        greedy(model, samples, family, num_beams=2)
        greedy(model, samples, family, cache_implementation="static")
        again = greedy(model, samples, family)
    assert torch.equal(again, first)
    assert not torch.equal(first, written)
    assert torch.equal(logits(model, samples, family), plain)
    assert torch.equal(greedy(model, samples, family), written)
    assert everything(model) == before
    with var(model, profile_of(), score="phi"):
        assert torch.equal(greedy(model, samples, family), first)


P_OF_ZERO: dict[str, dict[str, Any]] = {
    "greedy": {},
    "static": {"cache_implementation": "static"},
    "chunks": {"prefill_chunk_size": 5},
    "no cache": {"use_cache": False},
    "sampling": {"do_sample": True, "num_return_sequences": 2, "seed": 1},
    "beams": {"num_beams": 3},
}


@pytest.mark.parametrize("mode", P_OF_ZERO)
@pytest.mark.parametrize("family", [LLAVA, WINDOWED, QWEN2, GEMMA3], ids=lambda family: family.name)
def test_p_of_zero_is_bit_identical(family: Family, mode: str) -> None:
    if family is GEMMA3 and mode == "chunks":
        pytest.skip("Gemma 3 does not take its images in chunks")
    model, samples, options = built(family), prompts("bttitt", "bitst"), dict(P_OF_ZERO[mode])
    seed = options.pop("seed", 0)
    torch.manual_seed(seed)
    plain = greedy(model, samples, family, **options)
    torch.manual_seed(seed)
    with var(model, profile_of(), score="phi", p=0):
        result = greedy(model, samples, family, **options)
    assert torch.equal(result, plain)


@pytest.mark.parametrize("family", [LLAVA, WINDOWED, GEMMA3, QWEN2], ids=lambda family: family.name)
def test_samples_never_see_each_other(family: Family) -> None:
    """The second sample changes: words, sinks, picture. The first stays where it is."""
    model = built(family)
    one = prompts("bttitst")
    others = [Prompt("bittstt", 5), Prompt("bssisss", 6), Prompt("bttittt", 7)]
    if family is LLAVA:
        # The same length, padding included, without a picture.
        others.append(Prompt("bsssttttttttsst", 8))
    with var(model, profile_of(), score="phi"):
        results = [greedy(model, [*one, other], family)[:, 0] for other in others]
        prefills = [logits(model, [*one, other], family)[0] for other in others]
    for result, prefill in zip(results, prefills, strict=True):
        assert_near(result, results[0], within=1e-6)
        assert_near(prefill, prefills[0], within=1e-6)
    expected, evidence = definition(family, model, one)
    assert evidence.edited > 0
    assert_near(prefills[0][-expected.shape[1] :], expected[0])


@pytest.mark.parametrize("family", [LLAVA, WINDOWED, QWEN2], ids=lambda family: family.name)
def test_the_order_and_the_splits_of_a_batch_do_not_matter(family: Family) -> None:
    model, samples = built(family), prompts("bttitst", "bittstt", "bssisss", "bttittt")
    order = [2, 0, 3, 1]
    with var(model, profile_of(), score="phi"):
        whole = greedy(model, samples, family, suppress_tokens=None, begin_suppress_tokens=PLACEHOLDERS)[0]
        shuffled = greedy(model, [samples[index] for index in order], family, max_new_tokens=1)[0]
        halves = torch.cat([greedy(model, samples[at : at + 2], family, max_new_tokens=1)[0] for at in (0, 2)])
    assert_near(shuffled, whole[order])
    assert_near(halves, whole)


@pytest.mark.parametrize("family", [LLAVA, WINDOWED], ids=lambda family: family.name)
@pytest.mark.parametrize("every", [50, 4])
@pytest.mark.parametrize("position", [14, 18, 28])
@torch.no_grad()
def test_no_future_token_leaks(family: Family, position: int, every: int) -> None:
    """Other tokens from `position` on, sinks above all, leave the rows before it where they are."""
    model, samples = built(family), prompts("bttitttttttitst")
    inputs = family.batch(samples)
    changed = dict(inputs, input_ids=inputs["input_ids"].clone())
    later = changed["input_ids"][:, position:]
    later[later != 50] = SINK_IDS[3]
    changed["pixel_values"] = inputs["pixel_values"].clone()
    if position < 20:
        changed["pixel_values"][1] *= -2
    cuts = list(range(0, inputs["input_ids"].shape[1], every))
    with var(model, profile_of(), score="phi", rho=0.0, attention_floor=0.0):
        one, other = (in_passes(family, model, each, cuts, DynamicCache()) for each in (inputs, changed))
    assert_near(other[:, :position], one[:, :position], within=1e-6)
    assert float((other - one)[:, position:].abs().amax(-1).min()) > 1e-3


def test_two_models_in_nested_contexts() -> None:
    first, second = built(LLAVA), tiny_llava(seed=3)
    plain = [logits(first), logits(second)]
    with var(first, profile_of(), score="phi"), var(second, profile_of(), score="phi", p=0.9):
        both = [logits(first), logits(second)]
    for model, result, papers in ((first, both[0], Paper()), (second, both[1], Paper(p=0.9))):
        valid = LLAVA.batch(SAMPLES)["attention_mask"].bool()
        expected, _ = definition(LLAVA, model, SAMPLES, layers={1: [papers], 2: [papers]})
        assert_near(result[valid], expected[valid])
    assert torch.equal(logits(first), plain[0])
    assert torch.equal(logits(second), plain[1])


@pytest.mark.parametrize("layers", [((1,), (2,)), ((1,), (1,)), ((1, 2), (2,))], ids=str)
@pytest.mark.parametrize("inner_first", [False, True])
def test_two_contexts_on_one_model(layers: tuple[tuple[int, ...], ...], inner_first: bool) -> None:
    """In different layers both hold, and may end in any order; two in one layer are refused."""
    model, papers = built(LLAVA), [Paper(), Paper(p=0.3, rho=0.2)]
    plain, before = logits(model), everything(model)
    expected_layers: dict[int, list[Paper]] = {1: [], 2: []}
    for chosen, paper in zip(layers, papers, strict=True):
        for layer in chosen:
            expected_layers[layer].append(paper)
    runs = [
        var(model, profile_of(), score="phi", layers=chosen, p=paper.p, rho=paper.rho)
        for chosen, paper in zip(layers, papers, strict=True)
    ]
    runs[0].attach()
    shared = set(layers[0]) & set(layers[1])
    if shared:
        with pytest.raises(InputError, match=f"another VAR edits layer {min(shared)}"):
            runs[1].attach()
        runs[0].detach()
        with runs[1]:
            logits(model)
        assert torch.equal(logits(model), plain)
        return
    try:
        runs[1].attach()
        result, written = logits(model), write_within(model)
    finally:
        for run in reversed(runs) if inner_first else runs:
            run.detach()
    valid = LLAVA.batch(SAMPLES)["attention_mask"].bool()
    expected, _ = definition(LLAVA, model, SAMPLES, layers=expected_layers)
    assert_near(result[valid], expected[valid])
    start = LLAVA.batch(SAMPLES)["input_ids"].shape[1]
    expected, _ = definition(LLAVA, model, SAMPLES, written.sequences[:, start:-1], layers=expected_layers)
    assert_near(torch.stack(written.logits, 1), expected[:, start - 1 :])
    assert torch.equal(logits(model), plain)
    assert everything(model) == before


def write_within(model: nn.Module) -> Any:
    """What `write` gives, without a context of its own."""
    return write(LLAVA, model, SAMPLES, p=0)


def test_two_threads_with_two_models() -> None:
    models = [built(LLAVA), tiny_llava(seed=3)]
    alone, plain = [], []
    for model in models:
        plain.append(logits(model))
        with var(model, profile_of(), score="phi"):
            alone.append(greedy(model))
    found: dict[int, list[Tensor]] = {0: [], 1: []}
    errors: list[BaseException] = []
    begin = threading.Barrier(2)

    def work(which: int) -> None:
        try:
            begin.wait()
            for _ in range(4):
                with var(models[which], profile_of(), score="phi"):
                    found[which].append(greedy(models[which]))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for which in (0, 1):
        assert len(found[which]) == 4
        assert all(torch.equal(result, alone[which]) for result in found[which])
        assert torch.equal(logits(models[which]), plain[which])


class Stop(Exception):
    """Raised by the tests themselves."""


def raise_at(model: nn.Module, stack: ExitStack, call: int) -> None:
    """Make the third layer fail in its `call`-th pass."""
    calls = iter(range(1000))

    def fails(module: nn.Module, args: Any) -> None:
        if next(calls) == call:
            raise Stop

    stack.callback(model.model.language_model.layers[2].register_forward_pre_hook(fails).remove)


@pytest.mark.parametrize("call", [0, 2])
@pytest.mark.parametrize("where", ["out of the context", "inside the context"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"prefill_chunk_size": 6}], ids=str)
def test_a_failure_inside_generate(options: dict[str, Any], where: str, call: int) -> None:
    model = built(LLAVA)
    plain, before = greedy(model), everything(model)
    with var(model, profile_of(), score="phi"):
        expected = greedy(model)
    with ExitStack() as stack:
        raise_at(model, stack, call)
        if where == "out of the context":
            with pytest.raises(Stop), var(model, profile_of(), score="phi"):
                greedy(model, **options)
        else:
            with var(model, profile_of(), score="phi"):
                with pytest.raises(Stop):
                    greedy(model, **options)
                stack.close()
                assert torch.equal(greedy(model), expected)
    assert torch.equal(greedy(model), plain)
    assert everything(model) == before


def test_one_object_many_times() -> None:
    model, run = built(LLAVA), None
    plain = greedy(model)
    run = var(model, profile_of(), score="phi")
    results = []
    for number in range(3):
        run.attach()
        with pytest.raises(InputError, match="attached already"):
            run.attach()
        results.append(greedy(model))
        run.detach()
        run.detach()
        assert torch.equal(greedy(model), plain)
        assert run.summary()[0].pairs == (number + 1) * run.summary()[0].pairs // (number + 1) > 0
    with run as entered:
        results.append(greedy(model))
    assert entered is run
    assert all(torch.equal(result, results[0]) for result in results)
    assert not torch.equal(results[0], plain)


def test_generation_settings_and_padding_side_do_not_matter() -> None:
    """A sample's rows are the same alone, padded on the left and padded on the right."""
    model, samples = built(LLAVA), prompts("bttitst", "btitttittts")
    results = {}
    with torch.no_grad(), var(model, profile_of(), score="phi"):
        for pad in ("left", "right"):
            inputs = LLAVA.batch(samples, pad)
            out = model(**LLAVA.positions(inputs), use_cache=False).logits
            results[pad] = out[0][inputs["attention_mask"][0].bool()]
        alone = logits(model, samples[:1])[0]
    assert_near(results["left"], alone)
    assert_near(results["right"], alone)
    assert_by_definition(LLAVA, model, samples, write(LLAVA, model, samples))
    assert EDITED[1] == [Paper()]


@torch.no_grad()
def test_outputs_as_a_tuple() -> None:
    model = built(LLAVA)
    steps = torch.tensor([[9], [21], [3]])
    longer = LLAVA.positions(LLAVA.batch(SAMPLES, extra=steps))
    with var(model, profile_of(), score="phi"):
        first, cache = model(**LLAVA.positions(LLAVA.batch(SAMPLES)), use_cache=True, return_dict=False)[:2]
        last = model(
            input_ids=steps,
            attention_mask=longer["attention_mask"],
            position_ids=longer["position_ids"][:, -1:],
            past_key_values=cache,
        ).logits
    expected, _ = definition(LLAVA, model, SAMPLES, steps)
    valid = longer["attention_mask"].bool()
    assert_near(torch.cat([first, last], 1)[valid], expected[valid])
