"""Passes cut in any way, through any cache, padded on either side, equal the definition of the whole sequence."""

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mode_checks import EDITED, assert_near, definition, in_passes
from mode_models import LLAVA, PLACEHOLDERS, WINDOWED, Family, built, prompts
from oracle import paper_var
from torch import Tensor, nn
from transformers import Cache, DynamicCache, QuantizedCache, StaticCache
from var_models import IMAGE_ID, SINK_IDS, profile_of

from sinkscope.errors import InputError
from sinkscope.redistribution import var

STEPS = torch.tensor([[9, 14, 33, 7], [21, 4, 17, 42], [3, 28, 8, 12]])
"""Tokens to feed as if they had been generated, text sinks among them."""
SAMPLES = prompts("bttittittt", "bitst", "btst")
WORKS_ON_PARTS = [LLAVA, WINDOWED]


class OffloadedHere(DynamicCache):
    """An offloaded cache's order of work, on the CPU: transformers' own waits for streams of a device."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        result = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        layer = self.layers[layer_idx]
        layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
        return result


CACHES: dict[str, Callable[[nn.Module], Cache]] = {
    "dynamic": lambda model: DynamicCache(),
    "dynamic by config": lambda model: DynamicCache(config=model.config.text_config),
    "static": lambda model: StaticCache(config=model.config.text_config, max_cache_len=64),
    "offloaded": lambda model: OffloadedHere(config=model.config.text_config),
}


def cut(length: int, every: int, start: int = 0) -> list[int]:
    return list(range(start, length, every))


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("family", WORKS_ON_PARTS, ids=lambda family: family.name)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("every", [3, 7, 40])
@torch.no_grad()
def test_chunks_then_steps(family: Family, cache: str, every: int, pad: str) -> None:
    model, inputs = built(family), family.batch(SAMPLES, pad, STEPS)
    total = inputs["input_ids"].shape[1]
    length = total - STEPS.shape[1]
    cuts = cut(length, every) + cut(total, 1, length)
    with var(model, profile_of(), score="phi"):
        result = in_passes(family, model, inputs, cuts, CACHES[cache](model), generated_from=length)
    expected, evidence = definition(family, model, SAMPLES, STEPS, pad=pad)
    assert evidence.edited > 0
    valid = inputs["attention_mask"].bool()
    assert_near(result[valid], expected[valid])
    plain, _ = definition(family, model, SAMPLES, STEPS, pad=pad, layers={})
    assert float((plain - expected)[0, length:].abs().amax(-1).min()) > 1e-3
    if pad == "left":
        # The sample without a picture is the plain model's; on the right, padding would count into its window.
        alone, _ = definition(family, model, SAMPLES[2:], STEPS[2:], layers={})
        assert_near(result[2, length:], alone[0, -STEPS.shape[1] :])


@pytest.mark.parametrize(
    "borders", [[0, 2], [0, 4], [0, 11], [0, 12], [0, 13], [0, 5, 8, 13, 18], [0, 3, 15, 24]], ids=str
)
@torch.no_grad()
def test_borders_before_inside_and_after_an_image(borders: list[int]) -> None:
    model, samples = built(LLAVA), prompts("bttittittt")
    inputs = LLAVA.batch(samples)
    with var(model, profile_of(), score="phi"):
        result = in_passes(LLAVA, model, inputs, borders, DynamicCache())
    expected, evidence = definition(LLAVA, model, samples)
    assert evidence.edited > 0
    assert_near(result, expected)


class Lossy(DynamicCache):
    """Gives back other keys and values than it was given, as quantised caches do, but smoothly."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return keys + 0.2 * keys.sin(), values + 0.2 * values.cos()


@pytest.mark.parametrize("kind", ["fp8", "smooth"])
@torch.no_grad()
def test_a_quantised_cache(kind: str) -> None:
    """What it gives back is not what it was given, so the definition is taken along the same passes."""
    model, inputs = built(LLAVA), LLAVA.batch(SAMPLES, extra=STEPS)
    total = inputs["input_ids"].shape[1]
    cuts = [0, *cut(total, 1, total - STEPS.shape[1])]
    valid = inputs["attention_mask"].bool()

    def passes() -> Tensor:
        cache = Lossy() if kind == "smooth" else QuantizedCache(backend="fp8", config=model.config.text_config)
        return in_passes(LLAVA, model, inputs, cuts, cache, generated_from=cuts[1])[valid]

    with var(model, profile_of(), score="phi"):
        result = passes()
    with paper_var(model, inputs, EDITED, generated_from=cuts[1], cached=True) as evidence:
        expected = passes()
    assert evidence.edited > 0
    # A key within rounding of the middle between two of the 8-bit floats may go to either.
    assert_near(result, expected, within=1e-5 if kind == "smooth" else 2e-3)
    size = float(expected.abs().max())
    assert float((passes() - expected).abs().max()) > 2e-2 * size
    exact, _ = definition(LLAVA, model, SAMPLES, STEPS)
    assert float((exact[valid] - expected).abs().max()) > 2e-2 * size


@torch.no_grad()
def test_transformers_offloaded_cache() -> None:
    model = built(LLAVA)
    options = {"max_new_tokens": 3, "do_sample": False, "cache_implementation": "offloaded"}
    try:
        model.generate(**LLAVA.batch(SAMPLES), **options)
    except (AssertionError, RuntimeError, ValueError) as error:
        pytest.skip(f"needs a device: {error}")
    with var(model, profile_of(), score="phi"):
        result = model.generate(**LLAVA.batch(SAMPLES), **options, output_logits=True, return_dict_in_generate=True)
    length = LLAVA.batch(SAMPLES)["input_ids"].shape[1]
    expected, _ = definition(LLAVA, model, SAMPLES, result.sequences[:, length:-1])
    assert_near(torch.stack(result.logits, 1), expected[:, length - 1 :])


@torch.no_grad()
def test_contrastive_search_moves_the_cache() -> None:
    """Per step it repeats the cache per candidate, runs them all, and keeps one each."""
    model, inputs, wide = built(LLAVA), LLAVA.batch(SAMPLES), 3
    length = inputs["input_ids"].shape[1]
    kept, written = DynamicCache(), torch.zeros(3, 0, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    seen = []
    with var(model, profile_of(), score="phi"):
        in_passes(LLAVA, model, inputs, [0], kept)
        for step in range(4):
            candidates = torch.randint(2, 48, (3, wide), generator=generator)
            candidates[0, 0] = SINK_IDS[2]
            kept.batch_repeat_interleave(wide)
            mask = torch.cat([inputs["attention_mask"], torch.ones(3, step + 1, dtype=torch.long)], 1)
            positions = (mask.cumsum(1) - 1)[:, -1:]
            out = model(
                input_ids=candidates.reshape(-1, 1),
                attention_mask=mask.repeat_interleave(wide, 0),
                position_ids=positions.repeat_interleave(wide, 0),
                past_key_values=kept,
            )
            choice = torch.tensor([step % wide, (step + 1) % wide, 0])
            rows = torch.arange(3) * wide + choice
            kept.batch_select_indices(rows)
            seen.append(out.logits[rows, 0])
            written = torch.cat([written, candidates[torch.arange(3), choice][:, None]], 1)
    expected, _ = definition(LLAVA, model, SAMPLES, written)
    assert_near(torch.stack(seen, 1), expected[:, length:])


@torch.no_grad()
def test_dola_reads_the_states_of_all_layers() -> None:
    model, inputs = built(LLAVA), LLAVA.batch(SAMPLES)
    with var(model, profile_of(), score="phi"):
        result = model.generate(
            **inputs,
            max_new_tokens=4,
            do_sample=False,
            suppress_tokens=PLACEHOLDERS,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
    length = inputs["input_ids"].shape[1]
    whole = LLAVA.batch(SAMPLES, extra=result.sequences[:, length:-1])
    with paper_var(model, whole, EDITED, generated_from=length):
        expected = model(**LLAVA.positions(whole), use_cache=False, output_hidden_states=True).hidden_states
    for layer, states in enumerate(expected):
        mine = torch.stack([step[layer][:, -1] for step in result.hidden_states], 1)
        assert_near(mine, states[:, length - 1 :])


@pytest.mark.parametrize("options", [{"penalty_alpha": 0.6, "top_k": 4}, {"dola_layers": "low"}], ids=str)
def test_contrastive_search_and_dola_left_transformers(options: dict[str, Any]) -> None:
    """They live in repositories of their own since 4.57, and need `custom_generate` and the hub."""
    model = built(LLAVA)
    with var(model, profile_of()), pytest.raises((ValueError, OSError), match="transformers-community"):
        model.generate(**LLAVA.batch(SAMPLES), max_new_tokens=2, do_sample=False, **options)


@torch.no_grad()
def test_turns_with_right_padding_between_them() -> None:
    """A second turn on a batch whose first turn was padded on the right: padding stays inside the cache."""
    model = built(LLAVA)
    first, second = prompts("bttitt", "bts"), prompts("tittt", "ssitt", seed=9)
    one, two = LLAVA.batch(first, "right"), LLAVA.batch(second, "right")
    whole = {name: torch.cat([one[name], two[name]], 1) for name in ("input_ids", "attention_mask")}
    # Features go by sample, then by place: the second turn's picture of a sample follows its first.
    whole["pixel_values"] = torch.stack([one["pixel_values"][0], two["pixel_values"][0], two["pixel_values"][1]])
    border = one["input_ids"].shape[1]
    with var(model, profile_of(), score="phi"):
        result = in_passes(LLAVA, model, whole, [0, border], DynamicCache())
    with paper_var(model, whole, EDITED) as evidence:
        expected = model(**LLAVA.positions(whole), use_cache=False).logits
    assert evidence.edited > 0
    valid = whole["attention_mask"].bool()
    assert_near(result[valid], expected[valid])


@torch.no_grad()
def test_a_generated_placeholder_is_text() -> None:
    """In a cache, the model's own placeholder token is a token like others: it carries no picture."""
    model, steps = built(LLAVA), torch.tensor([[9, IMAGE_ID, 14, 8]])
    inputs = LLAVA.batch(SAMPLES[:1], extra=steps)
    total = inputs["input_ids"].shape[1]
    with var(model, profile_of(), score="phi"):
        one_by_one = in_passes(
            LLAVA, model, inputs, [0, *cut(total, 1, total - 4)], DynamicCache(), generated_from=total - 4
        )
    with paper_var(model, inputs, EDITED, generated_from=total - 4, cached=True) as evidence:
        expected = in_passes(LLAVA, model, inputs, [0, total - 4], DynamicCache(), generated_from=total - 4)
    assert evidence.edited > 0
    assert_near(one_by_one, expected)


@torch.no_grad()
def test_a_generated_placeholder_is_text_among_several_tokens_too() -> None:
    """As assisted decoding feeds it."""
    model, steps = built(LLAVA), torch.tensor([[9, IMAGE_ID, 14, 8]])
    inputs = LLAVA.batch(SAMPLES[:1], extra=steps)
    total = inputs["input_ids"].shape[1]
    with var(model, profile_of(), score="phi"):
        result = in_passes(LLAVA, model, inputs, [0, total - 4], DynamicCache(), generated_from=total - 4)
    with paper_var(model, inputs, EDITED, generated_from=total - 4, cached=True):
        expected = in_passes(LLAVA, model, inputs, [0, total - 4], DynamicCache(), generated_from=total - 4)
    assert_near(result, expected)


@torch.no_grad()
def test_inference_mode_then_none() -> None:
    """A cache that was begun in inference mode may be continued outside it."""
    model, inputs = built(LLAVA), LLAVA.batch(SAMPLES, extra=STEPS)
    total = inputs["input_ids"].shape[1]
    length = total - STEPS.shape[1]
    cache = DynamicCache()
    first = {name: value[:, :length] if name != "pixel_values" else value for name, value in inputs.items()}
    with var(model, profile_of(), score="phi"):
        with torch.inference_mode():
            begun = in_passes(LLAVA, model, first, [0], cache)
        later = LLAVA.positions(inputs)
        parts = [
            model(
                input_ids=inputs["input_ids"][:, at : at + 1],
                attention_mask=inputs["attention_mask"][:, : at + 1],
                position_ids=later["position_ids"][:, at : at + 1],
                past_key_values=cache,
            ).logits
            for at in range(length, total)
        ]
    expected, _ = definition(LLAVA, model, SAMPLES, STEPS)
    valid = inputs["attention_mask"].bool()
    assert_near(torch.cat([begun, *parts], 1)[valid], expected[valid])


def test_a_cache_from_outside_is_refused_by_generate() -> None:
    model = built(LLAVA)
    inputs = LLAVA.batch(SAMPLES[:1])
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        longer = LLAVA.batch(SAMPLES[:1], extra=STEPS[:1])
        longer.pop("pixel_values")
        with var(model, profile_of()), pytest.raises(InputError, match=r"tokens that VAR has not seen; run the whole"):
            model.generate(**longer, past_key_values=cache, max_new_tokens=2, do_sample=False)
        # Filled in an earlier context counts as outside as well.
        with var(model, profile_of()):
            cache = model(**inputs, use_cache=True).past_key_values
        with var(model, profile_of()), pytest.raises(InputError, match=r"tokens that VAR has not seen; run the whole"):
            model.generate(**longer, past_key_values=cache, max_new_tokens=2, do_sample=False)


@torch.no_grad()
def test_a_failed_pass_leaves_a_cache_that_is_refused() -> None:
    """The cache holds tokens of some layers only; going on would be wrong."""
    model, inputs, cache = built(LLAVA), LLAVA.batch(SAMPLES[:1], extra=STEPS[:1]), DynamicCache()
    total = inputs["input_ids"].shape[1]
    begun = {name: value[:, : total - 4] if name != "pixel_values" else value for name, value in inputs.items()}

    def fails(module: nn.Module, args: Any) -> None:
        raise RuntimeError("stop")

    with var(model, profile_of()):
        in_passes(LLAVA, model, begun, [0], cache)
        handle = model.model.language_model.layers[2].register_forward_pre_hook(fails)
        step = {"attention_mask": inputs["attention_mask"][:, : total - 3], "past_key_values": cache}
        with pytest.raises(RuntimeError, match="stop"):
            model(input_ids=STEPS[:1, :1], **step)
        handle.remove()
        with pytest.raises(InputError, match="has not seen"):
            model(input_ids=STEPS[:1, 1:2], **step)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@torch.no_grad()
def test_no_cache_is_kept_alive(cache: str) -> None:
    model, watch = built(LLAVA), []

    def see(module: nn.Module, args: Any, kwargs: Any) -> None:
        watch.append(weakref.ref(kwargs["past_key_values"]))

    handle = model.register_forward_pre_hook(see, with_kwargs=True)
    run = var(model, profile_of())
    with run:
        kept = model.generate(
            **LLAVA.batch(SAMPLES), max_new_tokens=3, do_sample=False, cache_implementation=cache, num_beams=2
        )
        handle.remove()
        gc.collect()
        assert len(watch) >= 3
        assert all(reference() is None for reference in watch)
        assert not run._tracker._sequences
    assert kept.shape[0] == 3


@torch.no_grad()
def test_a_copied_cache_goes_its_own_way() -> None:
    """One prompt, several endings: each copy of the cache equals the definition of its own sequence."""
    model, begun = built(LLAVA), LLAVA.batch(SAMPLES)
    length = begun["input_ids"].shape[1]
    endings = [STEPS, STEPS.flip(1), STEPS + 1]
    with var(model, profile_of(), score="phi"):
        cache = DynamicCache()
        in_passes(LLAVA, model, begun, [0], cache)
        copies = [copy.deepcopy(cache) for _ in endings]
        results: list[list[Tensor]] = [[] for _ in endings]
        for step in range(STEPS.shape[1]):
            for number, ending in enumerate(endings):
                inputs = LLAVA.positions(LLAVA.batch(SAMPLES, extra=ending))
                at = slice(length + step, length + step + 1)
                out = model(
                    input_ids=ending[:, step : step + 1],
                    attention_mask=inputs["attention_mask"][:, : at.stop],
                    position_ids=inputs["position_ids"][:, at],
                    past_key_values=copies[number],
                )
                results[number].append(out.logits)
    for ending, result in zip(endings, results, strict=True):
        expected, _ = definition(LLAVA, model, SAMPLES, ending)
        assert_near(torch.cat(result, 1), expected[:, length:])
