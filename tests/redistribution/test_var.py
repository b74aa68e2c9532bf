"""VAR on whole models against the eager definition, without a cache."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from var_models import (
    DEPTH,
    IMAGE_ID,
    SINK_IDS,
    eager_var,
    llava_inputs,
    profile_of,
    qwen2_vl_inputs,
    sample,
    tiny_llava,
    tiny_qwen2_vl,
)

from sinkscope.backbone.anatomy import find_anatomy
from sinkscope.backbone.attention import attention_tap
from sinkscope.errors import InputError, ProfileError, SinkscopeError, UnsupportedModelError
from sinkscope.profile import Profile
from sinkscope.profile.score import sink_mask
from sinkscope.redistribution import edit, var
from sinkscope.redistribution.rules import rule_at

EDITED = [1, 2]
DEFAULTS = {"p": 0.6, "rho": 0.7, "attention_floor": 0.2}
TOLERANCE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def llava() -> nn.Module:
    return tiny_llava()


def logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits


def reference(model: nn.Module, inputs: dict[str, Tensor], profile: Profile, layers: Any, **settings: Any) -> Tensor:
    with eager_var(model, profile, inputs, layers, **settings):
        return logits(model, inputs)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"p": 1.0, "rho": 0.0},
        {"rho": 0.75, "attention_floor": 0.6},
        {"donors": "visual"},
        {"receivers": "text"},
        {"receivers": "all"},
        {"head_selection": False},
        {"score": "phi"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_llava_equals_the_eager_definition(kernel: str, changes: dict[str, Any]) -> None:
    model, profile = tiny_llava(), profile_of()
    model.config.text_config._attn_implementation = kernel
    inputs = llava_inputs([6], [1])
    plain = logits(model, inputs)
    expected = reference(model, inputs, profile, EDITED, **(DEFAULTS | changes))
    with var(model, profile, **changes) as run:
        result = logits(model, inputs)
    torch.testing.assert_close(result, expected, **TOLERANCE)
    assert float((plain - expected).abs().max()) > 1e-3
    assert torch.equal(logits(model, inputs), plain)
    if not changes:
        # The case tells chosen from passed-over heads only where both occur.
        assert all(0 < entry.image_centric_share < 1 for entry in run.summary())


@pytest.mark.parametrize("pad", ["left", "right"])
def test_a_padded_batch_with_several_images_equals_its_samples(llava: nn.Module, pad: str) -> None:
    images, profile = [1, 2, 0, 1], profile_of()
    inputs = llava_inputs([6, 2, 5, 0], images, pad=pad)
    with var(llava, profile) as run:
        together = logits(llava, inputs)
        pairs = [entry.pairs for entry in run.summary()]
        for index in range(len(images)):
            alone = sample(inputs, index, images)
            kept = inputs["attention_mask"][index].bool()
            torch.testing.assert_close(together[index, kept], logits(llava, alone)[0], **TOLERANCE)
    assert [entry.pairs for entry in run.summary()] == [2 * count for count in pairs]
    valid = inputs["attention_mask"].bool()
    expected = reference(llava, inputs, profile, EDITED, **DEFAULTS)
    torch.testing.assert_close(together[valid], expected[valid], **TOLERANCE)


def test_qwen2_vl_equals_the_eager_definition() -> None:
    model, profile, inputs = tiny_qwen2_vl(), profile_of(), qwen2_vl_inputs()
    expected = reference(model, inputs, profile, EDITED, **DEFAULTS)
    with var(model, profile) as run:
        result = logits(model, inputs)
    valid = inputs["attention_mask"].bool()
    torch.testing.assert_close(result[valid], expected[valid], **TOLERANCE)
    assert float((logits(model, inputs) - expected)[valid].abs().max()) > 1e-3
    assert all(0 < entry.image_centric_share < 1 for entry in run.summary())


@pytest.mark.parametrize("weights_at_once", [1, 300])
def test_chunks_of_rows_change_nothing(llava: nn.Module, monkeypatch: Any, weights_at_once: int) -> None:
    inputs = llava_inputs([9, 3], [1, 1])
    with var(llava, profile_of()):
        whole = logits(llava, inputs)
        monkeypatch.setattr(edit, "WEIGHTS_AT_ONCE", weights_at_once)
        torch.testing.assert_close(logits(llava, inputs), whole, **TOLERANCE)


def test_p_of_zero_is_bit_identical_and_attaches_nothing(llava: nn.Module) -> None:
    inputs = llava_inputs([6], [1])
    plain = logits(llava, inputs)
    with var(llava, profile_of(), p=0) as run:
        assert torch.equal(logits(llava, inputs), plain)
    assert all(entry.pairs == 0 for entry in run.summary())


def test_text_without_an_image_and_rows_before_it_are_bit_identical(llava: nn.Module) -> None:
    text = llava_inputs([8], [0])
    inputs = llava_inputs([6], [1])
    first = int((inputs["input_ids"] == IMAGE_ID).int().argmax())
    plain, plain_text = logits(llava, inputs), logits(llava, text)
    with var(llava, profile_of()):
        assert torch.equal(logits(llava, text), plain_text)
        assert torch.equal(logits(llava, inputs)[:, :first], plain[:, :first])


def test_no_future_token_leaks(llava: nn.Module) -> None:
    inputs = llava_inputs([8], [1])
    other = dict(inputs, input_ids=inputs["input_ids"].clone())
    # A sink token appears at the very end: nothing before it may move.
    other["input_ids"][:, -1] = SINK_IDS[2]
    with var(llava, profile_of()):
        first, second = logits(llava, inputs), logits(llava, other)
    torch.testing.assert_close(first[:, :-1], second[:, :-1], **TOLERANCE)
    assert not torch.allclose(first[:, -1], second[:, -1])


def test_visual_rows_are_queries_only_on_request(llava: nn.Module) -> None:
    inputs = llava_inputs([0], [1])
    with var(llava, profile_of()) as text:
        logits(llava, inputs)
    with var(llava, profile_of(), queries="all") as everything:
        logits(llava, inputs)
    assert [entry.pairs for entry in text.summary()] == [4 * 2] * 2
    assert [entry.pairs for entry in everything.summary()] == [4 * (8 + 2)] * 2


def test_eager_maps_are_the_redistributed_ones(llava: nn.Module) -> None:
    model, inputs, profile = tiny_llava(), llava_inputs([6], [1]), profile_of()
    model.set_attn_implementation("eager")
    with torch.no_grad(), var(model, profile):
        maps = model(**inputs, output_attentions=True).attentions
    with torch.no_grad(), eager_var(model, profile, inputs, EDITED, **DEFAULTS):
        expected = model(**inputs, output_attentions=True).attentions
    for mine, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(mine, theirs, **TOLERANCE)


def test_gradients_flow(llava: nn.Module) -> None:
    inputs, profile = llava_inputs([6], [1]), profile_of()
    weight = llava.model.multi_modal_projector.linear_1.weight
    with eager_var(llava, profile, inputs, EDITED, **DEFAULTS):
        (expected,) = torch.autograd.grad(llava(**inputs).logits.square().sum(), weight)
    with var(llava, profile):
        (result,) = torch.autograd.grad(llava(**inputs).logits.square().sum(), weight)
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-6)


def state_of(model: nn.Module) -> list[Any]:
    hooks = [
        [len(module._forward_pre_hooks), len(module._forward_hooks), len(module._forward_hooks_always_called)]
        for module in model.modules()
    ]
    return [hooks, [type(m.config._attn_implementation) for m in model.modules() if hasattr(m, "config")]]


def test_everything_is_restored_after_leaving_detaching_and_exceptions(llava: nn.Module) -> None:
    inputs, profile = llava_inputs([6], [1]), profile_of()
    plain = logits(llava, inputs)
    before = state_of(llava)

    def fails(module: nn.Module, args: Any) -> None:
        raise RuntimeError("stop")

    handle = llava.model.language_model.layers[3].register_forward_pre_hook(fails)
    run = var(llava, profile)
    with pytest.raises(RuntimeError, match="stop"), run:
        logits(llava, inputs)
    handle.remove()
    assert state_of(llava) == before
    assert torch.equal(logits(llava, inputs), plain)

    run = var(llava, profile).attach()
    assert state_of(llava) != before
    with pytest.raises(InputError, match="attached already"):
        run.attach()
    edited = logits(llava, inputs)
    run.detach()
    run.detach()
    assert state_of(llava) == before
    assert torch.equal(logits(llava, inputs), plain)
    with run:
        assert torch.equal(logits(llava, inputs), edited)


def test_an_exception_inside_a_pass_leaves_no_trace_in_the_next(llava: nn.Module) -> None:
    inputs = llava_inputs([6], [1])
    with var(llava, profile_of()):
        expected = logits(llava, inputs)
        handle = llava.model.language_model.layers[2].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            logits(llava, llava_inputs([3, 4], [2, 1]))
        handle.remove()
        assert torch.equal(logits(llava, inputs), expected)


def test_two_models_at_once(llava: nn.Module) -> None:
    other, profile = tiny_llava(seed=5), profile_of()
    inputs = llava_inputs([6], [1])
    with var(llava, profile):
        alone = logits(llava, inputs)
        plain_other = logits(other, inputs)
        with var(other, profile, p=1.0):
            torch.testing.assert_close(logits(llava, inputs), alone, rtol=0, atol=0)
            expected = logits(other, inputs)
        assert torch.equal(logits(other, inputs), plain_other)
    assert not torch.allclose(expected, plain_other)
    torch.testing.assert_close(
        expected, reference(other, inputs, profile, EDITED, **(DEFAULTS | {"p": 1.0})), **TOLERANCE
    )


def test_it_composes_with_another_tap(llava: nn.Module) -> None:
    inputs, seen = llava_inputs([6], [1]), []
    with var(llava, profile_of()):
        alone = logits(llava, inputs)
        with attention_tap(llava, find_anatomy(llava), lambda call: seen.append(call.layer) or call.base()):
            assert torch.equal(logits(llava, inputs), alone)
    assert seen == list(range(DEPTH))


def test_layers_are_chosen_and_the_last_is_left_alone(llava: nn.Module) -> None:
    inputs, profile = llava_inputs([6], [1]), profile_of(var={"excluded_layers": []})
    assert var(llava, profile).layers == (1, 2)
    run = var(llava, profile, layers=[2])
    with run:
        result = logits(llava, inputs)
    assert run.layers == (2,)
    torch.testing.assert_close(
        result, reference(llava, inputs, profile, [2], p=0.6, rho=0.8, attention_floor=0.2), **TOLERANCE
    )
    with pytest.raises(InputError, match="last"):
        var(llava, profile, layers=[DEPTH - 1])
    with pytest.raises(ProfileError, match="no sink tokens"):
        var(llava, profile, layers=[0])


@pytest.mark.parametrize("score", ["auto", "phi", "calibrated"])
@pytest.mark.parametrize("tau", [None, 1.8])
@pytest.mark.parametrize("dims", [[5], [5, 2]])
def test_the_rule_is_the_profiles_sink_mask(score: Any, tau: float | None, dims: list[int]) -> None:
    band = {"first_layer": 1, "last_layer": 3, "dims": dims, "scale": 2.0, "tau_score": 1.5, "tau_phi": 2.0}
    profile = profile_of(bands=[band], sink_dimensions=[{"dim": dim} for dim in dims])
    state = torch.randn(2, 400, 32, generator=torch.Generator().manual_seed(0)) * 2
    for layer in range(4):
        rule = rule_at(profile, layer, score=score, tau=tau)
        expected = sink_mask(state, profile, layer, score=score, tau=tau)
        assert (rule is None) == (layer == 0)
        if rule is not None:
            assert torch.equal(rule(state), expected)
            assert 0 < int(expected.sum()) < expected.numel()


@pytest.mark.parametrize(
    ("profile", "options", "error", "words"),
    [
        (profile_of(width=64), {}, ProfileError, "64.*32"),
        (profile_of(depth=5), {}, ProfileError, "5 layers.*4"),
        (profile_of(verdict="none", sink_dimensions=[], bands=[]), {}, ProfileError, "no sink"),
        (profile_of(), {"p": 1.5}, InputError, "p is 1.5"),
        (profile_of(), {"rho": -1}, InputError, "rho"),
        (profile_of(), {"tau": 0}, InputError, "tau"),
        (profile_of(), {"score": "energy"}, InputError, "phi"),
        (profile_of(), {"queries": "some"}, InputError, "text"),
        (profile_of(), {"donors": "none"}, InputError, "visual"),
        (profile_of(), {"layers": [-1]}, InputError, "layer -1"),
    ],
)
def test_wrong_use_is_one_clear_line(
    llava: nn.Module, profile: Profile, options: dict[str, Any], error: type[SinkscopeError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        var(llava, profile, **options)
    assert "\n" not in str(caught.value)


def test_a_text_model_is_refused(llava: nn.Module) -> None:
    with pytest.raises(UnsupportedModelError, match="visual tokens"):
        var(llava.model.language_model, profile_of())


def test_embeddings_instead_of_ids_are_refused(llava: nn.Module) -> None:
    inputs = llava_inputs([6], [1])
    with var(llava, profile_of()):
        expected = logits(llava, inputs)
        with pytest.raises(InputError, match="input_ids"):
            llava(inputs_embeds=torch.randn(1, 5, 32))
        assert torch.equal(logits(llava, inputs), expected)


def test_the_decoder_alone_is_refused_inside(llava: nn.Module) -> None:
    with var(llava, profile_of()), pytest.raises(InputError, match="input_ids"):
        llava.model.language_model(inputs_embeds=torch.randn(1, 5, 32))


def test_the_model_below_the_head_may_be_called(llava: nn.Module) -> None:
    inputs = llava_inputs([6], [1])
    with torch.no_grad(), var(llava, profile_of()):
        state = llava.model(**inputs).last_hidden_state
        torch.testing.assert_close(llava.lm_head(state), llava(**inputs).logits)


def test_a_kernel_that_is_no_softmax_attention_is_refused(llava: nn.Module) -> None:
    inputs = llava_inputs([6], [1])
    strange = attention_tap(llava, find_anatomy(llava), lambda call: call.base() * 1.5)
    with strange, var(llava, profile_of()), pytest.raises(UnsupportedModelError, match="softmax"):
        logits(llava, inputs)


def test_attention_that_bypasses_the_interface_is_refused(llava: nn.Module) -> None:
    model, inputs = tiny_llava(), llava_inputs([6], [1])
    layer = model.model.language_model.layers[1]
    own = layer.self_attn.forward
    with var(model, profile_of()):
        logits(model, inputs)
        layer.self_attn.forward = lambda hidden_states, **kwargs: (hidden_states, None)
        with pytest.raises(UnsupportedModelError, match=r"layer 1: .* interface"):
            logits(model, inputs)
        layer.self_attn.forward = own
        logits(model, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float32(dtype: torch.dtype) -> None:
    model, profile, inputs = tiny_llava(), profile_of(), llava_inputs([6], [1])
    plain = logits(model, inputs)
    with var(model, profile, p=1, rho=0):
        expected = logits(model, inputs)
    model = model.to(dtype)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    with var(model, profile, p=1, rho=0):
        result = logits(model, inputs)
    assert result.dtype == dtype
    edit_size = float((expected - plain).abs().max())
    assert float((result.float() - expected).abs().max()) < 0.2 * edit_size
