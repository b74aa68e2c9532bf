"""Held-out pieces through a tiny random model, and the judgement of a profile on them."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import sinkscope
from benchmarks.real_models.captured import WITH_BOS, WITHOUT_BOS, captured, text_pieces
from benchmarks.real_models.disagreements import CAUSES, collect
from benchmarks.real_models.judging import ORACLE, OWN, PUBLISHED, judge
from benchmarks.real_models.targets import KNOWN_CHECKPOINTS, named, targets
from sinkscope.backbone.anatomy import find_anatomy
from sinkscope.backbone.loading import LoadedModel
from sinkscope.profile.schema import parse_profile

WIDTH, DEPTH, DIM = 32, 3, 5
TEXTS = {
    "letters": "The quick brown fox jumps over the lazy dog. " * 8,
    "digits": "; ".join(str(number * 7919 % 1000) for number in range(90)),
    "short": "Too short to be judged.",
}


def byte_tokenizer():
    vocabulary = {"<s>": 0}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[character] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


@pytest.fixture(scope="module")
def loaded():
    """A random Llama in which "." carries a massive dimension."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
        model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("."), DIM] = 60.0
    return LoadedModel(model, tokenizer, None, find_anatomy(model), "tiny-llama")


@pytest.fixture(scope="module")
def profile():
    band = {"first_layer": 1, "last_layer": 2, "dims": [DIM], "tau_phi": 4.0, "scale": 1.0, "tau_score": 30.0}
    return parse_profile(
        json.dumps(
            {
                "name": "tiny",
                "verdict": "sinks",
                "reason": "",
                "backbone": {"model_type": "llama", "hidden_size": WIDTH, "num_layers": DEPTH},
                "sink_dimensions": [{"dim": DIM}],
                "bands": [band],
                "provenance": {"kind": "measured"},
            }
        )
    )


@pytest.fixture(scope="module")
def data(loaded):
    with captured(loaded, text_pieces(loaded, TEXTS)) as found:
        yield found


def test_texts_are_cut_into_pieces_with_and_without_bos(loaded):
    pieces = text_pieces(loaded, TEXTS)
    without = [piece for piece in pieces if piece.variant == WITHOUT_BOS]
    having = [piece for piece in pieces if piece.variant == WITH_BOS]
    assert {piece.source for piece in pieces} == {"letters", "digits"}
    assert [len(piece) for piece in without] == [255, 255, 105, len(TEXTS["digits"]) - 255]
    assert all(len(piece) <= 255 for piece in without)
    for one, other in zip(without, having, strict=True):
        assert other.inputs["input_ids"][0].tolist() == [0, *one.inputs["input_ids"][0].tolist()]


def test_fewer_tokens_keep_every_kind_of_text(loaded):
    pieces = [piece for piece in text_pieces(loaded, TEXTS, 520) if piece.variant == WITHOUT_BOS]
    assert [piece.source for piece in pieces] == ["letters", "digits"]


def test_states_and_attention_are_those_that_transformers_hands_out(loaded, data):
    ids = data.pieces[1].inputs["input_ids"]
    rows = data.piece == 1
    loaded.model.set_attn_implementation("eager")
    with torch.no_grad():
        output = loaded.model(ids, output_hidden_states=True, output_attentions=True)
    loaded.model.set_attn_implementation("sdpa")
    length = ids.shape[1]
    later = torch.tril(torch.ones(length, length), -1)
    for layer in range(DEPTH):
        assert np.allclose(data.states[layer][rows], output.hidden_states[layer][0].numpy(), atol=1e-5)
        drawn = (output.attentions[layer][0].mean(0) * later).sum(0) / later.sum(0).clamp(min=1)
        assert np.allclose(data.drawn[rows, layer], drawn.numpy(), atol=1e-6)
    assert data.judged[rows].tolist() == [place < length - 40 for place in range(length)]
    assert data.position[rows].tolist() == list(range(length))


def test_the_model_gets_its_own_kernel_back_even_after_an_error(loaded):
    before = loaded.model.config._attn_implementation
    broken = text_pieces(loaded, {"letters": TEXTS["letters"]})[:1]
    broken[0].inputs["input_ids"] = torch.full((1, 70), 10**6)
    with pytest.raises(IndexError), captured(loaded, broken):
        pass
    assert loaded.model.config._attn_implementation == before


def test_the_judgement_is_that_of_the_definition(data, profile):
    judged = judge(data, profile, bootstraps=20)
    entry = judged.variants[WITHOUT_BOS]["thresholds"]["0.05"]
    assert entry["layers"] == [1, 2]
    rows = data.chosen(WITHOUT_BOS) & data.judged
    scores = []
    for place, layer in enumerate(entry["layers"]):
        sinks = data.drawn[rows, layer] > 0.05
        flagged = sinkscope.sink_mask(torch.from_numpy(np.array(data.states[layer][rows])), profile, layer).numpy()
        assert entry["sinks"][place] == sinks.sum()
        own = entry["methods"][OWN]["layers"]
        assert (own["flagged"][place], own["both"][place]) == (flagged.sum(), (flagged & sinks).sum())
        assert flagged.sum() > 0
        if sinks.any():
            scores.append(2 * (flagged & sinks).sum() / (flagged.sum() + sinks.sum()))
    if scores:
        assert entry["methods"][OWN]["f1"] == pytest.approx(np.mean(scores), rel=1e-3)
        assert entry["methods"][ORACLE]["f1"] >= entry["methods"][OWN]["f1"]
    assert PUBLISHED in entry["methods"]
    assert "Sun 100 / 1000x" in entry["methods"]
    assert judged.variants[WITH_BOS]["pieces"] == 4


def test_every_disagreement_is_counted_with_a_cause(data, profile, loaded):
    judged = judge(data, profile, bootstraps=5)
    found = collect(data, judged, loaded)
    for variant in (WITHOUT_BOS, WITH_BOS):
        rows = data.chosen(variant) & data.judged
        expected = sum(
            int(((np.nan_to_num(data.drawn[:, view.layer]) > 0.1) != view.flagged[OWN])[rows].sum())
            for view in judged.views
        )
        causes = found["causes"].get(variant, {})
        assert sum(sum(by_cause.values()) for by_cause in causes.values()) == expected
        assert all(cause in CAUSES for by_cause in causes.values() for cause in by_cause)
    assert 0 < len(found["tokens"]) <= 20
    first = found["tokens"][0]
    assert first["token"] == "."
    # The same token of the other variant is found by counting from the end, since BOS stands at the start.
    assert first["drawn_in_other_variant"] is not None
    distances = [token["distance"] for token in found["tokens"]]
    assert distances == sorted(distances, reverse=True)


def test_models_are_named_after_their_path_or_as_given(tmp_path):
    assert named("Some=there/model.gguf").name == "Some"
    assert named("there/gpt2basic-gold-v4").expected == KNOWN_CHECKPOINTS["gpt2basic-gold-v4"]
    assert named("a/b=c").name == "b=c"
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").touch()
    (tmp_path / "notes.md").touch()
    with targets(["x=y"], [tmp_path], defaults=False) as found:
        assert [target.name for target in found] == ["one", "x"]
