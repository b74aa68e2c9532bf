"""Which rows are edited: those of generated tokens alone, in every way of generating them."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache
from var_models import eager_var, llava_inputs, profile_of, tiny_llava

from sinkscope.redistribution import var

EDITED, DEFAULTS = [1, 2], {"p": 0.6, "rho": 0.7, "attention_floor": 0.2}
TOLERANCE = {"rtol": 0, "atol": 1e-5}
NEW = 6


@pytest.fixture(scope="module")
def llava() -> nn.Module:
    return tiny_llava()


def definition(model: Any, inputs: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    """The definition's logits from the end of `inputs` on, with the rows of the prompt left alone."""
    prompt = inputs["input_ids"].shape[1]
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(ids[:, prompt:])], 1)
    whole = dict(inputs, input_ids=ids, attention_mask=mask)
    with eager_var(model, profile_of(), whole, EDITED, first_query=prompt, **DEFAULTS):
        return model(**whole, use_cache=False).logits[:, prompt - 1 :]


@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 7}, {"cache_implementation": "static"}])
@torch.no_grad()
def test_generated_tokens_alone_are_edited(llava: Any, options: dict[str, Any]) -> None:
    inputs = llava_inputs([5, 8], [1, 2])
    settings = {"max_new_tokens": NEW, "do_sample": False, "disable_compile": True}
    settings |= {"return_dict_in_generate": True, "output_logits": True}
    with var(llava, profile_of(), queries="generated", layers=EDITED, **DEFAULTS) as run:
        done = llava.generate(**inputs, **settings, **options)
    expected = definition(llava, inputs, done.sequences)
    found = torch.stack(done.logits, 1)
    torch.testing.assert_close(found, expected[:, :NEW], **TOLERANCE)
    plain = llava(**inputs).logits[:, -1]
    torch.testing.assert_close(found[:, 0], plain, **TOLERANCE)
    with var(llava, profile_of(), layers=EDITED, **DEFAULTS):
        text_too = llava(**inputs).logits[:, -1]
    assert (text_too - plain).abs().max() > 1e-3
    assert any(layer.image_centric_share > 0 for layer in run.summary())
    assert "generate" not in vars(llava)


@torch.no_grad()
def test_candidates_of_an_assistant_are_generated_and_a_kept_conversation_is_not(llava: Any) -> None:
    inputs = llava_inputs([5], [1])
    settings = {"max_new_tokens": NEW, "do_sample": False, "disable_compile": True}
    with var(llava, profile_of(), queries="generated", layers=EDITED, **DEFAULTS):
        one_by_one = llava.generate(**inputs, **settings)
        looked_up = llava.generate(**inputs, **settings, prompt_lookup_num_tokens=3)
        assert torch.equal(one_by_one, looked_up)
        # The second turn takes the first one's answer as its prompt; what is cached stays as it was.
        cache = DynamicCache(config=llava.config.get_text_config())
        first = llava.generate(**inputs, **settings, past_key_values=cache)
        turn = torch.cat([first, torch.tensor([[9, 4, 11]])], 1)
        longer = {"input_ids": turn, "attention_mask": torch.ones_like(turn), "past_key_values": cache}
        second = llava.generate(**longer, **settings, return_dict_in_generate=True, output_logits=True)
    assert second.sequences.shape[1] == turn.shape[1] + NEW
    with var(llava, profile_of(), layers=EDITED, **DEFAULTS):
        cache = DynamicCache(config=llava.config.get_text_config())
        llava.generate(**inputs, **settings, past_key_values=cache)
        text_too = llava.generate(
            **dict(longer, past_key_values=cache), **settings, return_dict_in_generate=True, output_logits=True
        )
    assert (second.logits[0] - text_too.logits[0]).abs().max() > 1e-4


@torch.no_grad()
def test_without_generate_a_step_of_one_token_is_generated(llava: Any) -> None:
    inputs = llava_inputs([5], [1])
    tokens = torch.tensor([[9, 14, 33]])
    cache = DynamicCache(config=llava.config.get_text_config())
    found = []
    with var(llava, profile_of(), queries="generated", layers=EDITED, **DEFAULTS):
        llava(**inputs, past_key_values=cache)
        for token in tokens.T:
            found.append(llava(input_ids=token[None], past_key_values=cache).logits[:, -1])
    expected = definition(llava, inputs, torch.cat([inputs["input_ids"], tokens], 1))
    torch.testing.assert_close(torch.stack(found, 1), expected[:, 1:], **TOLERANCE)
