"""Copies, pickles and checkpoints of a model, made inside a context or after it."""

import copy
import io
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mode_models import LLAVA, built, prompts
from torch import Tensor, nn
from var_models import profile_of, tiny_llava

from sinkscope.errors import SinkscopeError
from sinkscope.redistribution import var


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    inputs = LLAVA.batch(prompts("bttittittt", "bitst", "btst"))
    return model(**LLAVA.positions(inputs), use_cache=False).logits


def test_a_copy_of_the_model_afterwards_is_plain_and_takes_its_own_context() -> None:
    model = built(LLAVA)
    with var(model, profile_of(), score="phi"):
        expected = logits(model)
    duplicate = copy.deepcopy(model)
    assert torch.equal(logits(duplicate), logits(model))
    with var(duplicate, profile_of(), score="phi"):
        assert torch.equal(logits(duplicate), expected)
        assert not torch.equal(logits(model), expected)


def test_a_copy_of_the_model_made_inside_is_plain_or_refused() -> None:
    model = built(LLAVA)
    plain = logits(model)
    with var(model, profile_of(), score="phi"):
        expected = logits(model)
        try:
            duplicate = copy.deepcopy(model)
        except SinkscopeError:
            return
        assert torch.equal(logits(model), expected)
    assert torch.equal(logits(duplicate), plain)
    with var(duplicate, profile_of(), score="phi"):
        assert torch.equal(logits(duplicate), expected)


def without_planted_hooks(make: Callable[[], nn.Module]) -> nn.Module:
    """A model that pickles: the planted hook of the projector does not."""
    model = make()
    model.model.multi_modal_projector._forward_hooks.clear()
    return model


def test_pickles_afterwards_and_weights_inside() -> None:
    # Not run before it is pickled: transformers' own hooks, for hidden states, do not pickle.
    model = without_planted_hooks(tiny_llava)
    with var(model, profile_of(), score="phi"):
        inside = io.BytesIO()
        torch.save(model.state_dict(), inside)
        config = copy.deepcopy(model.config)
        dictionary = model.config.to_dict()
    assert type(config.text_config._attn_implementation) is str
    assert "sinkscope" not in json.dumps(dictionary, default=str)
    again = pickle.loads(pickle.dumps(model))
    with var(model, profile_of(), score="phi"):
        expected = logits(model)
    with var(again, profile_of(), score="phi"):
        assert torch.equal(logits(again), expected)
    inside.seek(0)
    again.load_state_dict(torch.load(inside))
    assert torch.equal(logits(again), logits(model))


def test_a_pickle_made_inside_fails_and_leaves_the_model_whole() -> None:
    """Hooks of a context belong to it, and do not pickle."""
    model, same = without_planted_hooks(tiny_llava), without_planted_hooks(tiny_llava)
    assert pickle.dumps(model)
    with var(model, profile_of(), score="phi"):
        with pytest.raises((AttributeError, pickle.PicklingError, TypeError, SinkscopeError)):
            pickle.dumps(model)
        result = logits(model)
    with var(same, profile_of(), score="phi"):
        assert torch.equal(result, logits(same))
    assert torch.equal(logits(model), logits(same))


def test_saved_inside_is_the_plain_model(tmp_path: Any) -> None:
    model = without_planted_hooks(tiny_llava)
    plain = logits(model)
    with var(model, profile_of(), score="phi"):
        model.save_pretrained(tmp_path)
    assert "sinkscope" not in (tmp_path / "config.json").read_text(encoding="utf-8")
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), plain)
