"""Kernels, precisions, gradients and compilation: equal to the definition, or refused with a reason."""

import copy
from typing import Any

import pytest
import torch
import transformers
from mode_checks import EDITED, assert_by_definition, assert_near, definition, in_passes, write
from mode_models import GEMMA3, LLAVA, QWEN2, WINDOWED, Family, built, prompts
from oracle import paper_var
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import flash_attention_mask
from var_models import profile_of

from sinkscope.errors import SinkscopeError
from sinkscope.redistribution import var

SAMPLES = prompts("bttittittt", "bitst", "btst")
FLASH = "stand_in_flash_attention"


def flash(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """What flash attention computes, from the mask that it is given: padding [B, K] or nothing, and a window.

    Keys beyond the mask are the empty end of a static cache; the last query sees the last key before it. Without a
    mask, positions that begin anew in a single row begin a sample of their own.
    """
    packed = kwargs.get("position_ids") if attention_mask is None and len(query) == 1 else None
    if attention_mask is not None:
        assert attention_mask.ndim == 2
        key, value = key[:, :, : attention_mask.shape[1]], value[:, :, : attention_mask.shape[1]]
    groups, rows, columns = query.shape[1] // key.shape[1], query.shape[2], key.shape[2]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    place, column = torch.arange(columns - rows, columns)[:, None], torch.arange(columns)[None, :]
    seen = (column <= place) & (column > place - (kwargs.get("sliding_window") or columns + 1))
    if packed is not None and query.shape[2] == key.shape[2]:
        sample = (packed[0].diff(prepend=packed[0, :1]) < 0).cumsum(0)
        seen = seen & (sample[:, None] == sample[None, :])
    seen = seen[None, None]
    if attention_mask is not None:
        seen = seen & attention_mask[:, None, None, :].bool()
    logits = (query @ key.mT * kwargs["scaling"]).masked_fill(~seen, torch.finfo(query.dtype).min)
    return (logits.softmax(-1) @ value).transpose(1, 2), None


@pytest.fixture
def kernel(request: pytest.FixtureRequest) -> str:
    AttentionInterface.register(FLASH, flash)
    AttentionMaskInterface.register(FLASH, flash_attention_mask)
    return request.param


def with_kernel(family: Family, name: str) -> nn.Module:
    model = copy.deepcopy(built(family))
    model.model.language_model.config._attn_implementation = {"": name}
    return model


@pytest.mark.parametrize("kernel", ["eager", "sdpa", FLASH], indirect=True)
@pytest.mark.parametrize("family", [LLAVA, WINDOWED, QWEN2], ids=lambda family: family.name)
@pytest.mark.parametrize("mode", [{}, {"num_beams": 2}, {"prefill_chunk_size": 7}], ids=str)
def test_a_padded_batch_through_every_kernel(kernel: str, family: Family, mode: dict[str, Any]) -> None:
    model, samples = with_kernel(family, kernel), prompts("bttittt", "bitst")
    assert_by_definition(family, model, samples, write(family, model, samples, **mode))


@pytest.mark.parametrize(
    "kernel",
    ["eager", FLASH],
    indirect=True,
)
@pytest.mark.parametrize("chunk", [None, 7])
def test_static_caches_through_other_kernels(kernel: str, chunk: int | None) -> None:
    """The keys of a static cache have an empty end, which flash attention is told of by its mask alone."""
    model, samples = with_kernel(LLAVA, kernel), prompts("bttittt", "bitst")
    plain, _ = definition(LLAVA, built(LLAVA), samples, layers={})
    with torch.no_grad():
        mine = write(LLAVA, model, samples, p=0, cache_implementation="static", prefill_chunk_size=chunk)
    assert_near(mine.logits[0], plain[:, -1])
    result = write(LLAVA, model, samples, cache_implementation="static", prefill_chunk_size=chunk)
    assert_by_definition(LLAVA, model, samples, result)


@pytest.mark.slow
@pytest.mark.parametrize("family", [LLAVA, WINDOWED], ids=lambda family: family.name)
@torch.no_grad()
def test_flex_attention(family: Family) -> None:
    model, samples = with_kernel(family, "flex_attention"), prompts("bttittt", "bitst")
    steps = torch.tensor([[14, 9], [3, 21]])
    inputs = family.batch(samples, extra=steps)
    total, valid = inputs["input_ids"].shape[1], inputs["attention_mask"].bool()
    # Compiled anew in each pass: on some CPUs the kernel for all lengths does not compile, with or without VAR.
    handle = model.register_forward_pre_hook(lambda module, args: torch._dynamo.reset())
    with var(model, profile_of(), score="phi"):
        result = in_passes(family, model, inputs, [0, total - 2, total - 1], DynamicCache(), generated_from=total - 2)
    handle.remove()
    expected, evidence = definition(family, built(family), samples, steps)
    assert evidence.edited > 0
    assert_near(result[valid], expected[valid])


@torch.no_grad()
def logits(model: nn.Module, samples: Any = SAMPLES, family: Family = LLAVA) -> Tensor:
    return model(**family.positions(family.batch(samples)), use_cache=False).logits


@pytest.mark.parametrize("family", [LLAVA, GEMMA3], ids=lambda family: family.name)
def test_bfloat16_is_the_definition_up_to_its_own_rounding(family: Family) -> None:
    """As far from float32 as the definition computed in bfloat16 is, and nearer to it than the plain model."""
    exact, _ = definition(family, built(family), SAMPLES)
    plain = logits(built(family), family=family)
    half = copy.deepcopy(built(family)).to(torch.bfloat16)
    inputs = family.positions(family.batch(SAMPLES))
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    valid = inputs["attention_mask"].bool()
    with torch.no_grad(), paper_var(half, inputs, EDITED):
        rounded = half(**inputs, use_cache=False).logits
    with torch.no_grad(), var(half, profile_of(), score="phi"):
        result = half(**inputs, use_cache=False).logits
        cached = half(**inputs, past_key_values=DynamicCache()).logits
    assert result.dtype == torch.bfloat16
    assert torch.equal(cached[valid], result[valid])

    def distance(one: Tensor, other: Tensor) -> float:
        return float((one.float() - other.float())[valid].square().mean().sqrt())

    assert distance(result, exact) < 1.5 * distance(rounded, exact)
    assert distance(result, rounded) < 1.5 * distance(rounded, exact)
    assert distance(result, exact) < 0.5 * distance(plain, exact)


def test_autocast() -> None:
    model = built(LLAVA)
    valid = LLAVA.batch(SAMPLES)["attention_mask"].bool()
    exact, _ = definition(LLAVA, model, SAMPLES)
    with torch.autocast("cpu", torch.bfloat16):
        plain = logits(model)
        with var(model, profile_of(), score="phi"):
            result = logits(model)
    error = float((result - exact)[valid].square().mean().sqrt())
    assert error < 0.3 * float((plain - exact)[valid].square().mean().sqrt())


def test_inference_mode_is_no_grad_bit_for_bit() -> None:
    model = built(LLAVA)
    with var(model, profile_of(), score="phi"):
        expected = logits(model)
        with torch.inference_mode():
            result = logits(model)
        again = logits(model)
    assert torch.equal(result, expected)
    assert torch.equal(again, expected)


def labels_of(inputs: dict[str, Any]) -> Tensor:
    """No padding, nor the token after it, which would be predicted by a row that sees nothing."""
    valid = inputs["attention_mask"].bool()
    return inputs["input_ids"].masked_fill(~(valid & valid.roll(1, 1)), -100)


def gradients(model: nn.Module, family: Family) -> dict[str, Tensor]:
    """Of a training loss, for every parameter that it reaches."""
    inputs = family.batch(SAMPLES)
    model.zero_grad()
    model(**inputs, labels=labels_of(inputs), use_cache=False).loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("kernel", ["eager", "sdpa"], indirect=True)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", [LLAVA, QWEN2, GEMMA3], ids=lambda family: family.name)
def test_gradients_are_the_definitions(family: Family, training: bool, kernel: str) -> None:
    model = with_kernel(family, kernel).train(training)
    plain = gradients(model, family)
    with paper_var(model, family.batch(SAMPLES), EDITED) as evidence:
        expected = gradients(model, family)
    with var(model, profile_of(), score="phi"):
        result = gradients(model, family)
    assert evidence.edited > 0
    assert result.keys() == expected.keys() == plain.keys()
    for name, gradient in expected.items():
        assert bool(result[name].isfinite().all())
        # A bias of the keys cancels in the softmax: its gradient is rounding.
        if float(gradient.abs().max()) > 1e-8:
            assert_near(result[name], gradient, within=1e-4)
    name = "model.language_model.layers.1.self_attn.v_proj.weight"
    assert float((plain[name] - expected[name]).abs().max()) > 1e-2 * float(expected[name].abs().max())


def test_gradients_through_a_cache() -> None:
    model, steps = copy.deepcopy(built(LLAVA)), torch.tensor([[9, 14, 33], [21, 4, 17], [3, 28, 8]])
    inputs = LLAVA.batch(SAMPLES, extra=steps)
    start = inputs["input_ids"].shape[1] - 3
    valid, weight = inputs["attention_mask"].bool(), model.model.multi_modal_projector.linear_1.weight
    with paper_var(model, inputs, EDITED, generated_from=start):
        whole = model(**LLAVA.positions(inputs), use_cache=False).logits
        (expected,) = torch.autograd.grad(whole[valid].square().sum(), weight)
    with var(model, profile_of(), score="phi"):
        cuts = [0, start, start + 1, start + 2]
        parts = in_passes(LLAVA, model, inputs, cuts, DynamicCache(), generated_from=start)
        (result,) = torch.autograd.grad(parts[valid].square().sum(), weight)
    assert_near(result, expected, within=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_gradient_checkpointing_is_right_or_refused(reentrant: bool, inside: bool) -> None:
    """Layers run again in the backward pass, where nothing may be computed otherwise than before."""
    model = copy.deepcopy(built(LLAVA))
    with paper_var(model, LLAVA.batch(SAMPLES), EDITED):
        expected = gradients(model, LLAVA)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    inputs = LLAVA.batch(SAMPLES)
    try:
        with var(model, profile_of(), score="phi"):
            loss = model(**inputs, labels=labels_of(inputs), use_cache=False).loss
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
    except SinkscopeError:
        return
    for name, weight in model.named_parameters():
        if name in expected and float(expected[name].abs().max()) > 1e-8:
            assert_near(weight.grad, expected[name], within=1e-4)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "place", [pytest.param("model", marks=SLOW), pytest.param("forward", marks=SLOW), "decoder", "each layer"]
)
@torch.no_grad()
def test_compiled_models_are_edited_and_then_plain_again(place: str) -> None:
    torch._dynamo.reset()
    model = copy.deepcopy(built(LLAVA))
    plain = logits(model)
    called = model
    if place == "model":
        called = torch.compile(model, backend="eager")
    elif place == "forward":
        model.forward = torch.compile(model.forward, backend="eager")
    elif place == "decoder":
        model.model.language_model.compile(backend="eager")
    else:
        for layer in model.model.language_model.layers:
            layer.compile(backend="eager")
    logits(called)
    with var(model, profile_of(), score="phi"):
        result = logits(called)
    expected, _ = definition(LLAVA, model, SAMPLES)
    valid = LLAVA.batch(SAMPLES)["attention_mask"].bool()
    assert_near(result[valid], expected[valid])
    assert_near(logits(called), plain, within=1e-6)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "kernel",
    ["eager", "sdpa", FLASH],
    indirect=True,
)
@torch.no_grad()
def test_packed_samples_keep_apart(kernel: str) -> None:
    """Several samples in one row, told apart by their positions alone."""
    model, samples = with_kernel(LLAVA, kernel), prompts("bttittt", "bitst", "btsttitt")
    alone = [definition(LLAVA, model, [prompt])[0][0] for prompt in samples]
    batches = [LLAVA.batch([prompt]) for prompt in samples]
    packed = {
        "input_ids": torch.cat([batch["input_ids"] for batch in batches], 1),
        "position_ids": torch.cat([torch.arange(batch["input_ids"].shape[1])[None] for batch in batches], 1),
        "pixel_values": torch.cat([batch["pixel_values"] for batch in batches]),
    }
    apart = [definition(LLAVA, model, [prompt], layers={})[0][0] for prompt in samples]
    assert_near(model(**packed, use_cache=False).logits[0], torch.cat(apart))
    with var(model, profile_of(), score="phi"):
        result = model(**packed, use_cache=False).logits
    assert_near(result[0], torch.cat(alone))


@pytest.mark.skipif(not hasattr(transformers, "ContinuousBatchingConfig"), reason="needs transformers 5.23")
@torch.no_grad()
def test_continuous_batching_is_right_or_refused() -> None:
    """It packs requests into one row, and keeps their keys in pages that only its own cache can tell apart."""
    model = copy.deepcopy(built(LLAVA))
    rows = [LLAVA.row(prompt) for prompt in prompts("bttittt", "bitst")]
    config = transformers.GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=-1, pad_token_id=0)
    small = transformers.ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)

    def serve() -> list[Any]:
        return list(model.generate_batch(rows, config, continuous_batching_config=small).values())

    if any(request.error for request in serve()):
        pytest.skip("continuous batching does not run here")
    with var(model, profile_of(), rho=0.0) as run:
        try:
            refused = all(request.error for request in serve())
        except SinkscopeError:
            refused = True
    assert refused or not any(layer.pairs for layer in run.summary())
