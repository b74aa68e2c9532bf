"""A fast subset of the sweep: types chosen for how differently they are built."""

import pytest

from benchmarks.coverage.verdict import judge

LANGUAGE = [
    "bart",  # a decoder out of an encoder-decoder; its config's depth is the encoder's
    "bert",  # an encoder class run as a decoder, norms after the residual sum
    "bloom",  # ALiBi, fused QKV
    "cohere2",  # parallel attention, layers without positions
    "dbrx",  # clipped fused QKV, experts, configs inside the config
    "deepseek_v3",  # latent attention, other widths for keys and values
    "falcon",  # parallel attention, one KV head
    "falcon_h1",  # attention and state space side by side in a layer
    "gemma2",  # scaled embeddings, sandwich norms, capped logits
    "gemma3_text",  # sliding and full layers with rotations of their own
    "gemma4_text",  # layers that share keys and values
    "gpt2",  # learned positions, Conv1D
    "gpt_oss",  # learned sink logits
    "gptj",  # parallel attention without a second norm
    "jamba",  # state space, attention and experts in turn
    "lfm2",  # short convolutions
    "llama",
    "llama4_text",  # chunked attention
    "longcat_flash",  # two attentions in a layer
    "mamba",  # no attention at all
    "mixtral",  # experts
    "olmo2",  # norms behind the branches only
    "opt",  # learned positions with an offset
    "phi3",  # fused QKV and gate
    "qwen3_next",  # linear attention and gated attention
    "rwkv",  # recurrent
    "zamba2",  # one attention block shared by several layers
]
REFUSED = {
    ("blt", "causal-lm"): "no single hidden size",
    ("cpmant", "causal-lm"): "positions on the way",
    ("deepseek_v4", "causal-lm"): "several residual streams",
    ("diffusion_gemma", "image-text-to-text"): "is an encoder-decoder",
    ("hrm_text", "causal-lm"): "run more than once",
    ("prophetnet", "causal-lm"): "several residual streams",
    ("reformer", "causal-lm"): "several residual streams",
    ("xlm", "causal-lm"): "parallel lists",
    ("xlnet", "causal-lm"): "is an encoder (",
}
PROJECTORS = [
    "chameleon",  # discrete image tokens
    "fuyu",  # no vision tower
    "gemma4",  # patches with places, bidirectional images
    "glm4v",
    "idefics3",  # pixel shuffle
    "inkling2",  # learned sinks made from each token
    "internvl",
    "kimi_k25",  # latent attention
    "lfm2_vl",  # short convolutions
    "minicpmv4_6",
    "mistral3",  # pictures of any size
    "molmo2",  # pooled pairs of patches
    "ovis2",  # visual words
    "paligemma",  # a prefix that sees itself in both directions
    "qwen2_vl",  # rotations in three axes
    "qwen3_5",  # linear attention
    "qwen3_vl",  # visual features in several layers
]
OTHERS = [
    "blip-2",
    "idefics",  # demands a picture for every text
    "idefics2",
    "kosmos-2",  # texts through the inner model
    "mllama",
]


@pytest.mark.parametrize("kind", LANGUAGE)
def test_a_language_model_profiles_with_exactly_the_planted_dimensions(kind):
    verdict = judge(kind, "causal-lm")
    assert verdict["verdict"] == "works", verdict["reason"]
    assert verdict["profile"]["found"] == verdict["profile"]["planted"]
    assert verdict["states_agree"] is not False


@pytest.mark.parametrize(("kind", "mapping"), REFUSED)
def test_a_refusal_for_structure_says_so_and_is_true(kind, mapping):
    verdict = judge(kind, mapping)
    assert (verdict["verdict"], verdict["structural"]) == ("refused", True)
    assert REFUSED[kind, mapping] in verdict["reason"]


def test_what_cannot_be_built_is_no_silent_skip():
    verdict = judge("musicgen", "causal-lm")
    assert verdict["verdict"] == "not built"
    assert verdict["reason"]


@pytest.mark.parametrize("kind", PROJECTORS)
def test_var_on_a_projector_model_is_the_definition(kind):
    verdict = judge(kind, "image-text-to-text")
    assert verdict["verdict"] == "works", verdict["reason"]
    assert verdict["var"]["error"] <= 1e-5
    assert verdict["var"]["effect"] >= 1e-4
    assert verdict["pictures"]["status"] == "works"


@pytest.mark.parametrize("kind", OTHERS)
def test_other_connectors_are_refused_by_var_and_profile(kind):
    verdict = judge(kind, "image-text-to-text")
    assert verdict["verdict"] == "works", verdict["reason"]
    assert verdict["var"]["status"] == "refused"
    assert any(words in verdict["var"]["reason"] for words in ("resampler", "cross-attention"))
