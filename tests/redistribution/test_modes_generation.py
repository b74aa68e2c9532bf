"""Every way in which `generate` decodes equals the definition, recomputed in full over what it wrote."""

import copy
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from mode_checks import EDITED, STEPS, assert_by_definition, assert_near, definition, write
from mode_models import (
    FAMILIES,
    LLAVA,
    ONEVISION,
    PLACEHOLDERS,
    QWEN2,
    QWEN25,
    WINDOWED,
    Family,
    Prompt,
    built,
    prompts,
)
from oracle import paper_var
from transformers import DynamicCache, StaticCache
from var_models import profile_of

from sinkscope.redistribution import var


def mixed(family: Family) -> list[Prompt]:
    """Samples of different lengths with different numbers of pictures, interleaved with text."""
    if family is ONEVISION:
        return prompts("bttvttsttt", "btvttvt", "bttt")
    if family in (QWEN2, QWEN25):
        return prompts("bttItvttt", "btit", "bts", "vtitIt")
    return prompts("bttittittt", "bitst", "btst")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("cache", [None, "static", "none"])
def test_greedy_decoding_of_a_mixed_batch(family: Family, cache: str | None) -> None:
    model, samples = built(family), mixed(family)
    options: dict[str, Any] = {"use_cache": False} if cache == "none" else {"cache_implementation": cache}
    result = write(family, model, samples, **options)
    assert_by_definition(family, model, samples, result)


MODES: dict[str, dict[str, Any]] = {
    "sampling": {"do_sample": True, "temperature": 1.5, "seed": 3},
    "sampling three each": {"do_sample": True, "num_return_sequences": 3, "seed": 4},
    "beam search": {"num_beams": 3},
    "all beams": {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.0},
    "sampled beams": {"num_beams": 3, "do_sample": True, "seed": 5},
    "beams in a static cache": {"num_beams": 3, "cache_implementation": "static"},
    "beams without a cache": {"num_beams": 3, "use_cache": False},
}


@pytest.mark.parametrize("family", [LLAVA, WINDOWED, QWEN2], ids=lambda family: family.name)
@pytest.mark.parametrize("mode", MODES)
def test_sampling_and_beams(family: Family, mode: str) -> None:
    # Transformers repeats the grids of several Qwen pictures per sample in the wrong order, with or without VAR.
    model, samples = built(family), prompts("bttIttt", "btist") if family is QWEN2 else mixed(family)[:2]
    result = write(family, model, samples, **MODES[mode])
    assert_by_definition(family, model, samples, result)


@pytest.mark.parametrize("size", [1, 2, 5, 8, 13])
@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("family", [LLAVA, WINDOWED, QWEN2], ids=lambda family: family.name)
def test_chunked_prefill(family: Family, cache: str | None, size: int) -> None:
    """Chunk borders fall inside images."""
    model, samples = built(family), prompts("bttittittt", "bitst")
    result = write(family, model, samples, prefill_chunk_size=size, cache_implementation=cache)
    assert_by_definition(family, model, samples, result)


@pytest.mark.parametrize("family", [LLAVA, QWEN2], ids=lambda family: family.name)
def test_a_prompt_that_ends_in_an_image_whose_last_token_is_a_chunk(family: Family) -> None:
    model, samples = built(family), prompts("btittti")
    length = family.batch(samples)["input_ids"].shape[1]
    result = write(family, model, samples, prefill_chunk_size=length - 1)
    expected, evidence = definition(family, model, samples)
    assert evidence.edited > 0
    assert_near(result.logits[0], expected[:, -1])
    # Qwen's first word after a picture gets another position in `generate` than in one pass, with or without VAR.
    if family is LLAVA:
        assert_by_definition(family, model, samples, result)


@pytest.mark.parametrize("family", [LLAVA, QWEN2], ids=lambda family: family.name)
def test_prompt_lookup(family: Family) -> None:
    model, samples = built(family), prompts("bttittittt")
    result = write(family, model, samples, prompt_lookup_num_tokens=3)
    assert_by_definition(family, model, samples, result)


@pytest.mark.parametrize("family", [LLAVA, QWEN2], ids=lambda family: family.name)
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("kind", ["itself", "another", "another under VAR"])
def test_an_assistant_model(family: Family, sampled: bool, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its proposals are taken and refused: the cache is cropped, and what VAR knows about it too."""
    model, samples, cropped = built(family), prompts("bttittittt"), list[int]()
    assistant = copy.deepcopy(model)
    if kind != "itself":
        torch.manual_seed(1)
        with torch.no_grad():
            for layer in assistant.model.language_model.layers:
                layer.mlp.down_proj.weight.normal_(std=0.3)
    # Sharp enough that the two models disagree.
    sharp = {"temperature": 0.02} if sampled else {}
    own = DynamicCache.crop
    monkeypatch.setattr(DynamicCache, "crop", lambda cache, count: (cropped.append(count), own(cache, count))[1])
    with ExitStack() as stack:
        if kind == "another under VAR":
            stack.enter_context(var(assistant, profile_of(), score="phi"))
        result = write(family, model, samples, assistant_model=assistant, do_sample=sampled, seed=6, **sharp)
    assert any(count < 0 for count in cropped) or kind == "itself"
    assert_by_definition(family, model, samples, result)


@pytest.mark.parametrize("family", [LLAVA, WINDOWED], ids=lambda family: family.name)
def test_guidance_runs_the_model_on_a_second_cache(family: Family) -> None:
    """Classifier-free guidance continues a text without the picture in between the steps."""
    model, samples = built(family), prompts("bttittittt", "bitst")
    result = write(family, model, samples, guidance_scale=1.5)
    assert_by_definition(family, model, samples, result)


def test_qwen_takes_several_turns_on_a_kept_cache() -> None:
    """A later turn's picture is placed after all that the cache holds."""
    model, kept = built(QWEN2), DynamicCache()
    first, second = QWEN2.batch(prompts("bttItst")), QWEN2.batch(prompts("stitt", seed=4))
    options = {"max_new_tokens": STEPS, "do_sample": False, "suppress_tokens": PLACEHOLDERS}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad(), var(model, profile_of(), score="phi"):
        begun = model.generate(**first, **options, past_key_values=kept)
        ids = torch.cat([begun.sequences, second["input_ids"]], 1)
        mask = torch.ones_like(ids)
        whole = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == 50).int()}
        whole["image_grid_thw"] = torch.cat([first["image_grid_thw"], second["image_grid_thw"]])
        whole["pixel_values"] = torch.cat([first["pixel_values"], second["pixel_values"]])
        # The positions of all pictures, the features of the new one.
        positions, _ = model.model.get_rope_index(
            **{name: whole[name] for name in ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")}
        )
        offset = kept.get_seq_length()
        result = model(
            input_ids=ids[:, offset:],
            attention_mask=mask,
            position_ids=positions[..., offset:],
            pixel_values=second["pixel_values"],
            image_grid_thw=second["image_grid_thw"],
            past_key_values=kept,
        ).logits
    with torch.no_grad(), paper_var(model, whole, EDITED) as evidence:
        expected = model(**whole, use_cache=False).logits
    assert evidence.edited > 0
    assert_near(result, expected[:, offset:])
    start = first["input_ids"].shape[1]
    assert_near(torch.stack(begun.logits, 1), expected[:, start - 1 : start - 1 + STEPS])


@pytest.mark.parametrize("cache", [DynamicCache, StaticCache])
def test_a_kept_cache_serves_several_turns(cache: type) -> None:
    """Each turn brings pictures or none; what was written stays in the cache between the turns."""
    model, turns = built(LLAVA), ["bttitt", "sttitt", "ttt"]
    kept = DynamicCache() if cache is DynamicCache else StaticCache(config=model.config.text_config, max_cache_len=96)
    whole: list[int] = []
    config = {"max_new_tokens": STEPS, "do_sample": False, "suppress_tokens": PLACEHOLDERS}
    with torch.no_grad(), var(model, profile_of(), score="phi"):
        logits = []
        for number, turn in enumerate(turns):
            inputs = LLAVA.batch(prompts(turn, seed=number))
            whole += inputs["input_ids"][0].tolist()
            ids = torch.tensor([whole])
            new_only = {name: value for name, value in inputs.items() if name == "pixel_values"}
            result = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                **new_only,
                **config,
                past_key_values=kept,
                output_logits=True,
                return_dict_in_generate=True,
            )
            logits.append((len(whole), result.logits))
            whole = result.sequences[0].tolist()
    written = torch.tensor([whole])
    pixels = torch.cat(
        [LLAVA.batch(prompts(turn, seed=n))["pixel_values"] for n, turn in enumerate(turns) if "i" in turn]
    )
    inputs = {"input_ids": written, "attention_mask": torch.ones_like(written), "pixel_values": pixels}
    with torch.no_grad(), paper_var(model, inputs, EDITED) as evidence:
        expected = model(**inputs, use_cache=False).logits
    assert evidence.edited > 0
    for start, steps in logits:
        assert_near(torch.stack(steps, 1), expected[:, start - 1 : start - 1 + STEPS])
