"""Every parameter that is read from a checkpoint equals the model's own, whatever layout the checkpoint keeps."""

import json
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from weights_reading_models import FAMILIES, assert_equal_parameters, make_model, read_whole, save_model

from sinkscope.errors import InputError
from sinkscope.weights.checkpoint import open_checkpoint
from sinkscope.weights.conversion import find_recipes

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_equals_the_models_own(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    save_model(model, tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        assert all(parameter.is_meta for parameter in checkpoint.model.parameters())
        assert_equal_parameters(checkpoint, model)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_shards_are_found_through_the_index(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    save_model(model, tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    with open_checkpoint(tmp_path) as checkpoint:
        assert_equal_parameters(checkpoint, model)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "jamba"])
def test_experts_stored_one_by_one_are_read_one_by_one(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    save_model(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    name = next(name for name, value in model.named_parameters() if name.endswith("experts.down_proj"))
    assert name not in stored, "the test wants a checkpoint that keeps its experts apart"
    with open_checkpoint(tmp_path) as checkpoint:
        found = checkpoint.find(name)
        assert [entry.part for entry in found] == [0, 1, 2, 3]
        assert len({entry.name for entry in found}) == 4
        assert all(entry.name in stored for entry in found)
        before = checkpoint.bytes_read
        checkpoint.read(found[2])
        assert checkpoint.bytes_read - before == found[2].nbytes == stored[found[2].name].numel() * 4


def test_one_expert_of_a_stack_is_read_alone(tmp_path: Path) -> None:
    model = make_model("gpt_oss")
    save_model(model, tmp_path)
    name = "model.layers.0.mlp.experts.down_proj"
    with open_checkpoint(tmp_path) as checkpoint:
        found = checkpoint.find(name)
        assert [(entry.name, entry.part) for entry in found] == [(name, part) for part in range(4)]
        before = checkpoint.bytes_read
        assert torch.equal(checkpoint.read(found[3]), model.get_parameter(name)[3])
        assert checkpoint.bytes_read - before == model.get_parameter(name)[3].numel() * 4


def test_a_transposed_stack_is_turned_expert_by_expert(tmp_path: Path) -> None:
    """Qwen3-VL's checkpoints keep their experts with the inputs first."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    text = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    text |= {"vocab_size": 96, "intermediate_size": 40, "moe_intermediate_size": 24, "num_experts": 4}
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 32, "intermediate_size": 16}
    config = AutoConfig.for_model(
        "qwen3_vl_moe", text_config=text, vision_config={**vision, "deepstack_visual_indexes": [0]}
    )
    model = AutoModelForImageTextToText.from_config(config).eval()
    save_model(model, tmp_path)
    name = next(name for name, _ in model.named_parameters() if name.endswith("experts.down_proj"))
    stored = load_file(tmp_path / "model.safetensors")
    kept = next(value for key, value in stored.items() if key.endswith("layers.0.mlp.experts.down_proj"))
    turned = tuple(kept.shape) != tuple(model.get_parameter(name).shape)
    with open_checkpoint(tmp_path) as checkpoint:
        assert_equal_parameters(checkpoint, model)
        assert [entry.part for entry in checkpoint.find(name)] == [0, 1, 2, 3]
    if not turned:
        save_file({key: value.mT.contiguous() if value is kept else value for key, value in stored.items()},
                  tmp_path / "model.safetensors", {"format": "pt"})  # fmt: skip
        assert torch.equal(read_whole(tmp_path, name), model.get_parameter(name))


def test_a_fused_projection_is_taken_apart(tmp_path: Path) -> None:
    """Where a converter makes several parameters of one tensor, each of them can be asked for."""
    from transformers.core_model_loading import Chunk, WeightConverter

    class Model(nn.Module):
        base_model_prefix = "model"

        def __init__(self) -> None:
            super().__init__()
            self.query, self.value = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    rule = WeightConverter("fused.weight", ["query.weight", "value.weight"], [Chunk(dim=0)])
    recipes = find_recipes(Model(), ["fused.weight"], [rule])
    assert recipes["query.weight"] is recipes["value.weight"]
    assert recipes["value.weight"].names == ["fused.weight"]


def test_tied_parameters_are_found_under_either_name(tmp_path: Path) -> None:
    model = make_model("llama_tied")
    save_model(model, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        (head,) = checkpoint.find("lm_head.weight")
        assert (head.name, head.parameter) == ("model.embed_tokens.weight", "lm_head.weight")
        assert torch.equal(checkpoint.read(head), model.get_parameter("lm_head.weight"))


def test_a_checkpoint_of_the_inner_model_serves_the_whole_one(tmp_path: Path) -> None:
    model = make_model("gpt2")
    save_model(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    plain = {name.removeprefix("transformer."): value for name, value in stored.items()}
    assert plain.keys() != stored.keys()
    save_file(plain, tmp_path / "model.safetensors", {"format": "pt"})
    with open_checkpoint(tmp_path) as checkpoint:
        assert_equal_parameters(checkpoint, model)


def test_the_old_layout_of_a_multimodal_checkpoint_is_understood(tmp_path: Path) -> None:
    model = make_model("llava")
    save_model(model, tmp_path)
    names = {
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    }
    old = {}
    for name, value in model.state_dict().items():
        new, former = next((new, former) for new, former in names.items() if name.startswith(new))
        old[former + name.removeprefix(new)] = value.contiguous()
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    with open_checkpoint(tmp_path) as checkpoint:
        (stored,) = checkpoint.find("model.language_model.layers.1.mlp.down_proj.weight")
        assert stored.name == "language_model.model.layers.1.mlp.down_proj.weight"
        assert_equal_parameters(checkpoint, model)


def test_without_transformers_rules_names_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import conversion_mapping

    monkeypatch.delattr(conversion_mapping, "get_model_conversion_mapping")
    recipes = find_recipes(make_model("gpt2"), ["h.0.mlp.c_proj.weight", "transformer.h.1.mlp.c_proj.weight", "other"])
    assert {name: recipe.names for name, recipe in recipes.items()} == {
        "transformer.h.0.mlp.c_proj.weight": ["h.0.mlp.c_proj.weight"],
        "transformer.h.1.mlp.c_proj.weight": ["transformer.h.1.mlp.c_proj.weight"],
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_stored_dtype_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    model = make_model("llama").to(dtype)
    save_model(model, tmp_path)
    tensor = read_whole(tmp_path, DOWN)
    assert tensor.dtype == dtype
    assert torch.equal(tensor, model.get_parameter(DOWN))


def test_reading_takes_the_memory_of_one_matrix_and_only_its_bytes(tmp_path: Path) -> None:
    model = make_model("llama", hidden_size=512, intermediate_size=4096)
    save_model(model, tmp_path)
    size = 512 * 4096 * 4
    tracemalloc.start()
    try:
        with open_checkpoint(tmp_path) as checkpoint:
            opened = checkpoint.bytes_read
            tracemalloc.reset_peak()
            base = tracemalloc.get_traced_memory()[0]
            for layer in range(2):
                (stored,) = checkpoint.find(f"model.layers.{layer}.mlp.down_proj.weight")
                tensor = checkpoint.read(stored)
                assert stored.nbytes == size
                del tensor
            peak = tracemalloc.get_traced_memory()[1] - base
            assert checkpoint.bytes_read - opened == 2 * size
    finally:
        tracemalloc.stop()
    assert opened < 10_000, "only the header is read when a checkpoint is opened"
    assert size <= peak < 1.1 * size


def test_memory_used_again_holds_what_was_read_last(tmp_path: Path) -> None:
    model = make_model("mixtral")
    save_model(model, tmp_path)
    with open_checkpoint(tmp_path) as plain, open_checkpoint(tmp_path, reuse_memory=True) as reusing:
        parameters = [name for name, parameter in model.named_parameters() if parameter.dim() >= 2]
        expected = [plain.read(stored) for name in parameters for stored in plain.find(name)]
        found = [stored for name in parameters for stored in reusing.find(name)]
        addresses = set()
        for stored, values in zip(found, expected, strict=True):
            tensor = reusing.read(stored)
            assert torch.equal(tensor, values)
            addresses.add(tensor.data_ptr())
        assert len(addresses) < len(expected) / 2
        # Every thread has its own.
        with ThreadPoolExecutor(4) as workers:
            read = workers.map(lambda stored: reusing.read(stored).clone(), found * 4)
            assert all(torch.equal(tensor, values) for tensor, values in zip(read, expected * 4, strict=True))
        assert reusing.bytes_read - plain.bytes_read == 4 * sum(stored.nbytes for stored in found)


def test_what_was_not_found_is_not_read(tmp_path: Path) -> None:
    save_model(make_model("llama"), tmp_path)
    with open_checkpoint(tmp_path) as checkpoint, open_checkpoint(tmp_path) as other:
        with pytest.raises(InputError, match=r"no parameter model\.layers\.9"):
            checkpoint.find("model.layers.9.mlp.down_proj.weight")
        with pytest.raises(InputError, match="call find first"):
            other.read(checkpoint.find(DOWN)[0])


def test_an_index_may_name_shards_in_a_folder_below(tmp_path: Path) -> None:
    model = make_model("llama")
    save_model(model, tmp_path)
    (tmp_path / "shards").mkdir()
    (tmp_path / "model.safetensors").rename(tmp_path / "shards" / "a.safetensors")
    names = load_file(tmp_path / "shards" / "a.safetensors")
    index = {"weight_map": dict.fromkeys(names, "shards/a.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with open_checkpoint(tmp_path) as checkpoint:
        assert_equal_parameters(checkpoint, model)
