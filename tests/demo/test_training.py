"""The training code's mathematics on tiny tensors; no pretrained weights are needed."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from sinkscope.demo.alignment import Projector, alignment_targets
from sinkscope.demo.joint import collate, learning_rate_share, pack
from sinkscope.demo.lora import add_lora, lora_state, merge_lora
from sinkscope.demo.pictures import CELLS, COLORS, SHAPES, Question, generate
from sinkscope.demo.recipe import IMAGE_TOKEN, IMAGE_TOKEN_ID
from sinkscope.demo.shipped import read_weights, write_weights
from sinkscope.demo.vision import patch_labels, pixel_values


def tokenize(text):
    """One token a character, and one for the image token."""
    first, *rest = text.split(IMAGE_TOKEN)
    ids = [20 + ord(character) for character in first]
    for piece in rest:
        ids += [IMAGE_TOKEN_ID, *(20 + ord(character) for character in piece)]
    return ids


@pytest.fixture
def tiny_llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=160,
    )
    return LlamaForCausalLM(config).eval()


def test_packed_branches_equal_separate_prompts(tiny_llama):
    questions = [Question("a", "What is it?", "red"), Question("b", "Where?", "top left")]
    batch = collate([pack(questions, tokenize), pack(questions[:1], tokenize)])
    packed = tiny_llama(
        input_ids=batch["tokens"], attention_mask=batch["mask"], position_ids=batch["positions"], use_cache=False
    ).logits
    predicting = packed[0][batch["predicts"][0]]
    targets = batch["tokens"].roll(-1, dims=1)[batch["predicts"]]
    alone, expected = [], []
    for question in questions:
        only = collate([pack([question], tokenize)])
        # A plain causal mask: the branch is the whole sequence.
        logits = tiny_llama(input_ids=only["tokens"], use_cache=False).logits
        alone.append(logits[0][only["predicts"][0]])
        expected += tokenize(f"{question.answer}<|im_end|>")
    torch.testing.assert_close(predicting, torch.cat(alone), atol=1e-5, rtol=1e-4)
    assert targets[: len(expected)].tolist() == expected


def test_lora_starts_as_the_base_and_merges_exactly(tiny_llama):
    tokens = torch.arange(30, 50)[None]
    before = tiny_llama(tokens).logits
    plain = LlamaForCausalLM(tiny_llama.config).eval()
    plain.load_state_dict(tiny_llama.state_dict())
    wrapped = add_lora(tiny_llama.model.layers, seed=1)
    assert len(wrapped) == 2 * 7
    torch.testing.assert_close(tiny_llama(tokens).logits, before)
    with torch.no_grad():
        for layer in wrapped.values():
            layer.up.normal_(std=0.1)
    merge_lora(plain.model.layers, lora_state(wrapped), rank=8, alpha=16)
    assert not torch.allclose(plain(tokens).logits, before, atol=1e-3)
    torch.testing.assert_close(plain(tokens).logits, tiny_llama(tokens).logits, atol=1e-4, rtol=1e-4)


def test_folded_projector_equals_the_trained_one():
    torch.manual_seed(0)
    features = 3 + 2 * torch.randn(5, 36, 64)
    projector = Projector(features, 0.1 * torch.randn(50, 576))
    first, second = nn.Linear(64, 576), nn.Linear(576, 576)
    folded = projector.folded()
    for name, layer in (("linear_1", first), ("linear_2", second)):
        layer.load_state_dict({part: folded[f"{name}.{part}"] for part in ("weight", "bias")})
    torch.testing.assert_close(second(nn.functional.gelu(first(features))), projector(features), atol=1e-5, rtol=1e-4)


def test_background_is_aligned_to_its_text_alone():
    scenes = generate(0, 3)
    labels = patch_labels(scenes)
    words = {name: torch.randn(8) for name in (*COLORS, *SHAPES, *CELLS, " ")}
    targets = alignment_targets(labels, words, torch.zeros(8), " ")
    background = labels[..., 0] == 0
    assert bool((targets[background] == words[" "]).all())
    thing, patch = scenes[0].things[0], int((scenes[0].patch_owners() == 0).argmax())
    expected = 0.65 * words[thing.color] + 0.65 * words[thing.shape] + 0.5 * words[CELLS[thing.cell]]
    torch.testing.assert_close(targets[0, patch], expected)


def test_pixels_are_centred():
    pixels = pixel_values(generate(0, 4))
    assert pixels.shape == (4, 3, 48, 48)
    assert pixels.abs().max() <= 1


def test_learning_rate_warms_up_and_decays():
    shares = [learning_rate_share(step, 200) for step in range(200)]
    assert shares[0] == pytest.approx(0.05)
    assert shares[60] == 1.0
    assert shares[-1] < 0.03


def test_weights_survive_a_round_trip(tmp_path):
    path = tmp_path / "weights.safetensors"
    write_weights(path, {"lora": {"0.q.A": torch.ones(2, 3)}}, {"seed": 5})
    groups, metadata = read_weights(path)
    assert metadata == {"seed": 5}
    torch.testing.assert_close(groups["lora"]["0.q.A"], torch.ones(2, 3))
