"""Drawn attention against the weights of the eager kernel."""

import numpy as np
import pytest
import torch
from capture_models import make_llama

from sinkscope.backbone.attention import attention_tap
from sinkscope.backbone.loading import LoadedModel
from sinkscope.capture import attention as module
from sinkscope.capture.attention import AttentionMeter, causal_expectation

LENGTHS = (19, 30, 8)


def measure(
    loaded: LoadedModel, lengths: tuple[int, ...] = LENGTHS
) -> tuple[AttentionMeter, dict[str, torch.Tensor], np.ndarray]:
    valid = np.arange(max(lengths)) < np.array(lengths)[:, None]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 60, valid.shape, generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.from_numpy(valid.astype(np.int64))}
    meter = AttentionMeter(loaded.anatomy.num_layers)
    meter.begin(valid)
    with torch.inference_mode(), attention_tap(loaded.model, loaded.anatomy, meter):
        loaded.model(**inputs, use_cache=False)
    return meter, inputs, valid


@pytest.mark.parametrize("lengths", [LENGTHS, (24, 24)])
@pytest.mark.parametrize("chunk", [1, 2**22])
def test_drawn_attention_is_that_of_the_eager_kernel(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch, chunk: int, lengths: tuple[int, ...]
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    meter, inputs, valid = measure(llama, lengths)
    found = meter.finish()
    eager = make_llama()
    eager.model.set_attn_implementation("eager")
    with torch.inference_mode():
        weights = torch.stack(eager.model(**inputs, output_attentions=True).attentions).numpy()  # [L, B, H, Q, K]
    for sample, length in enumerate(lengths):
        for key in range(valid.shape[1]):
            later = slice(key + 1, length)
            if key + 1 < length:
                expected = weights[:, sample, :, later, key].mean(axis=(1, 2))
                np.testing.assert_allclose(found.drawn[sample, key], expected, rtol=1e-4, atol=1e-6)
            else:
                assert np.isnan(found.drawn[sample, key]).all()
        causal = causal_expectation(length)
        np.testing.assert_allclose(found.expected[sample, :length, 1], causal, rtol=1e-5)


def test_a_call_that_is_not_causal_takes_the_long_way(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    short = measure(llama)[0].finish()
    monkeypatch.setattr(module, "is_causal", lambda call: False)
    long = measure(llama)[0].finish()
    np.testing.assert_allclose(short.drawn, long.drawn, rtol=1e-5)
    np.testing.assert_allclose(short.expected, long.expected, rtol=1e-5)


def test_sliding_windows_count_in_what_is_expected() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    from sinkscope.backbone.anatomy import find_anatomy

    config = MistralConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=6,
    )  # fmt: skip
    torch.manual_seed(0)
    model = MistralForCausalLM(config).eval()
    found = measure(LoadedModel(model, None, None, find_anatomy(model), "m"), (20, 20))[0].finish()
    # Query i sees min(i + 1, 6) keys; token 3 is seen by queries 4 to 8 of the 16 later ones.
    expected = sum(1 / min(query + 1, 6) for query in range(4, 9)) / 16
    np.testing.assert_allclose(found.expected[0, 3], expected, rtol=1e-5)
    # A random model attends nearly evenly.
    np.testing.assert_allclose(found.drawn[0, 3], expected, rtol=0.2)


def test_value_norms(llama: LoadedModel) -> None:
    meter, inputs, _ = measure(llama)
    found = meter.finish()
    values = []
    attention = llama.model.model.layers[0].self_attn
    handle = attention.v_proj.register_forward_hook(lambda module, args, output: values.append(output))
    with torch.inference_mode():
        llama.model(**inputs)
    handle.remove()
    norms = values[0].unflatten(-1, (2, 8)).norm(dim=-1).mean(-1)
    np.testing.assert_allclose(found.value_norm[..., 0], norms.numpy(), rtol=1e-5)


def test_the_kernel_is_left_as_it_was(llama: LoadedModel) -> None:
    _, inputs, _ = measure(llama)
    meter = AttentionMeter(3)
    meter.begin(inputs["attention_mask"].numpy().astype(bool))
    with torch.inference_mode():
        plain = llama.model(**inputs).logits
        with attention_tap(llama.model, llama.anatomy, meter):
            tapped = llama.model(**inputs).logits
    assert torch.equal(plain, tapped)
