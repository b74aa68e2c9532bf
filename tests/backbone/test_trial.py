"""One short text through a model: how it is run on texts, and which structures are refused."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from sinkscope.backbone.anatomy import find_anatomy
from sinkscope.backbone.hooks import entering_states
from sinkscope.backbone.trial import TextEntry, try_text
from sinkscope.errors import SinkscopeError, UnsupportedModelError

TEXT = torch.arange(3, 22)
SMALL: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    "cpmant": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "dim_head": 16, "dim_ff": 32},
    "llama": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    "prophetnet": {"hidden_size": 32, "num_decoder_layers": 2, "num_decoder_attention_heads": 2},
    "reformer": {"hidden_size": 32, "attn_layers": ["local", "lsh"], "is_decoder": True, "axial_pos_embds": False},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 32},
}
IDEFICS_VISION = {
    "embed_dim": 16,
    "image_size": 8,
    "patch_size": 4,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}


def small(model_type: str, **options: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, vocab_size=50, **SMALL[model_type] | options)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    return model


def try_on(model: nn.Module, processor: Any = None) -> TextEntry:
    return try_text(model, find_anatomy(model), TEXT, processor, name="a-model")


@pytest.mark.parametrize(
    ("model_type", "options", "words"),
    [
        ("reformer", {}, "take 2 states and give 2 back: it keeps several residual streams"),
        ("prophetnet", {}, r"\[2, 57\] samples and positions for \[2, 19\] tokens: it keeps several residual streams"),
        ("cpmant", {}, r"\[2, 51\] samples and positions for \[2, 19\] tokens: it adds or drops positions"),
        ("xlnet", {"attn_type": "bi"}, "xlnet is an encoder"),
        ("xlnet", {"attn_type": "uni"}, r"\[tokens, batch, width\]"),
    ],
)
def test_structures_that_are_refused_with_a_sentence(model_type, options, words):
    with pytest.raises(UnsupportedModelError, match=words):
        try_on(small(model_type, **options))


def test_layers_that_run_again_are_refused():
    model = small("llama")
    model.model.layers[1] = model.model.layers[0]
    with pytest.raises(UnsupportedModelError, match="run more than once in a pass"):
        try_on(model)


@pytest.mark.parametrize("model_type", ["llama", "bert"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plain_decoder_is_run_as_it_is(model_type, dtype):
    model = small(model_type, **({"is_decoder": True} if model_type == "bert" else {})).to(dtype)
    entry = try_on(model)
    assert entry.module is model
    inputs = {"input_ids": TEXT[None]}
    assert entry.complete(inputs) == inputs
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_a_text_may_be_short(tokens):
    model = small("llama")
    assert try_text(model, find_anatomy(model), TEXT[:tokens]).module is model


def test_a_failing_pass_is_one_line():
    model = small("llama")
    model.model.layers[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("no\nkernel")))
    with pytest.raises(SinkscopeError, match=r"the forward pass of a-model failed \(RuntimeError: no kernel\)"):
        try_on(model)


def demands_pictures(llava: Any) -> None:
    """Make a model refuse texts without pictures, as some do."""
    forward = llava.forward

    def demanding(input_ids: Tensor, pixel_values: Tensor | None = None, **kwargs: Any) -> Any:
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        return forward(input_ids=input_ids, pixel_values=pixel_values, **kwargs)

    llava.forward = demanding


def test_texts_go_through_the_inner_model_where_the_outer_one_demands_pictures():
    config = AutoConfig.for_model("llava", text_config=SMALL["llama"] | {"model_type": "llama", "vocab_size": 50})
    config.vision_config.num_hidden_layers = 1
    model = AutoModelForImageTextToText.from_config(config).eval()
    assert try_on(model).module is model
    demands_pictures(model)
    entry = try_on(model)
    assert entry.module is model.model
    assert not entry.beside


def idefics() -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "idefics",
        vocab_size=50,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        cross_layer_interval=1,
        alpha_initializer="ones",
        vision_config=IDEFICS_VISION,
    )
    return AutoModelForImageTextToText.from_config(config).eval()


def test_a_model_that_reads_a_picture_in_every_layer_is_given_one_that_no_token_sees():
    model = idefics()
    anatomy = find_anatomy(model)
    assert anatomy.layers_path == "model.layers"

    def processor(text: str, return_tensors: str) -> dict[str, Tensor]:
        tokens = len(text.split())
        return {
            "input_ids": torch.ones(1, tokens, dtype=torch.long),
            "attention_mask": torch.ones(1, tokens, dtype=torch.long),
            "pixel_values": torch.zeros(1, 1, 3, 8, 8),
            "image_attention_mask": torch.zeros(1, tokens, 1, dtype=torch.bool),
        }

    entry = try_on(model, processor)
    batch = entry.complete({"input_ids": torch.stack([TEXT, TEXT])})
    assert entry.module is model
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "input_ids": (2, 19),
        "pixel_values": (2, 1, 3, 8, 8),
        "image_attention_mask": (2, 19, 1),
    }
    seen: dict[int, Tensor] = {}
    with torch.no_grad(), entering_states(model, anatomy, lambda layer, state: seen.update({layer: state})):
        own = model(**batch, output_hidden_states=True).hidden_states
    assert torch.equal(seen[0], own[0])
    # What transformers records is what left a layer; the cross-attention before the next one has written since.
    assert not torch.equal(seen[1], own[1])
    with pytest.raises(SinkscopeError, match="image_encoder_embeddings"):
        try_on(model)
    with pytest.raises(SinkscopeError, match="image_encoder_embeddings"):
        try_on(model, SimpleNamespace())
