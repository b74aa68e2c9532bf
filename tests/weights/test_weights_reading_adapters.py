"""LoRA adapters are added to the matrices that they change, under the names that PEFT gives them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from weights_reading_models import assert_equal_parameters, make_model, read_whole, save_model

from sinkscope.errors import InputError, UnsupportedModelError
from sinkscope.weights.checkpoint import open_checkpoint

DOWN = "model.layers.1.mlp.down_proj"
RANK = 4


def save_adapter(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    """An adapter as PEFT saves it."""
    folder.mkdir(exist_ok=True)
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "base_model_name_or_path": "someone/base", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    named = {f"base_model.model.{name}": value.contiguous() for name, value in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def halves(module: str, outputs: int, inputs: int, rank: int = RANK) -> dict[str, Tensor]:
    """The two matrices of one module."""
    return {f"{module}.lora_A.weight": torch.randn(rank, inputs), f"{module}.lora_B.weight": torch.randn(outputs, rank)}


def change(tensors: dict[str, Tensor], module: str) -> Tensor:
    return tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_the_product_is_added_with_its_scale(rank_stabilised: bool, tmp_path: Path) -> None:
    model = make_model("llama")
    save_model(model, tmp_path / "base")
    tensors = halves(DOWN, 32, 48)
    adapter = save_adapter(tmp_path / "adapter", tensors, use_rslora=rank_stabilised)
    scale = 8 / math.sqrt(RANK) if rank_stabilised else 8 / RANK
    with torch.no_grad():
        model.get_parameter(f"{DOWN}.weight").add_(scale * change(tensors, DOWN))
    with open_checkpoint(tmp_path / "base", adapter=adapter) as checkpoint:
        assert_equal_parameters(checkpoint, model, atol=1e-6)


def test_modules_may_have_their_own_rank_and_scale(tmp_path: Path) -> None:
    model = make_model("llama")
    save_model(model, tmp_path / "base")
    output = "model.layers.0.self_attn.o_proj"
    tensors = halves(DOWN, 32, 48, rank=2) | halves(output, 32, 32)
    adapter = save_adapter(
        tmp_path / "adapter", tensors, rank_pattern={"down_proj": 2}, alpha_pattern={r"layers\.1\.mlp\.down_proj": 6}
    )
    for module, scale in ((DOWN, 6 / 2), (output, 8 / RANK)):
        expected = model.get_parameter(f"{module}.weight") + scale * change(tensors, module)
        torch.testing.assert_close(read_whole(tmp_path / "base", f"{module}.weight", adapter=adapter), expected)


def test_layers_with_their_inputs_first(tmp_path: Path) -> None:
    model = make_model("gpt2")
    save_model(model, tmp_path / "base")
    module = "transformer.h.1.mlp.c_proj"
    inputs, outputs = model.get_parameter(f"{module}.weight").shape
    tensors = halves(module, outputs, inputs)
    adapter = save_adapter(tmp_path / "adapter", tensors, fan_in_fan_out=True)
    expected = model.get_parameter(f"{module}.weight") + 2 * change(tensors, module).T
    torch.testing.assert_close(read_whole(tmp_path / "base", f"{module}.weight", adapter=adapter), expected)


def test_embeddings_and_parameters_trained_in_full(tmp_path: Path) -> None:
    model = make_model("llama")
    save_model(model, tmp_path / "base")
    embedding = "model.embed_tokens"
    tensors = {
        f"{embedding}.lora_embedding_A": torch.randn(RANK, 96),
        f"{embedding}.lora_embedding_B": torch.randn(32, RANK),
    }
    tensors |= {"lm_head.weight": torch.randn(96, 32), "model.norm.weight": torch.randn(32)}
    adapter = save_adapter(tmp_path / "adapter", tensors)
    delta = 2 * (tensors[f"{embedding}.lora_embedding_B"] @ tensors[f"{embedding}.lora_embedding_A"]).T
    expected = model.get_parameter(f"{embedding}.weight") + delta
    torch.testing.assert_close(read_whole(tmp_path / "base", f"{embedding}.weight", adapter=adapter), expected)
    for name in ("lm_head.weight", "model.norm.weight"):
        assert torch.equal(read_whole(tmp_path / "base", name, adapter=adapter), tensors[name])


def test_dora_sets_the_magnitude_of_every_output(tmp_path: Path) -> None:
    model = make_model("llama")
    save_model(model, tmp_path / "base")
    magnitude = torch.rand(32) + 0.5
    tensors = halves(DOWN, 32, 48) | {f"{DOWN}.lora_magnitude_vector": magnitude}
    adapter = save_adapter(tmp_path / "adapter", tensors, use_dora=True)
    changed = model.get_parameter(f"{DOWN}.weight") + 2 * change(tensors, DOWN)
    tensor = read_whole(tmp_path / "base", f"{DOWN}.weight", adapter=adapter)
    torch.testing.assert_close(tensor, changed * (magnitude / changed.norm(dim=1)).unsqueeze(1))
    torch.testing.assert_close(tensor.norm(dim=1), magnitude)


def test_an_expert_is_changed_before_experts_are_stacked(tmp_path: Path) -> None:
    model = make_model("mixtral")
    save_model(model, tmp_path / "base")
    parameter = "model.layers.1.mlp.experts.down_proj"
    with open_checkpoint(tmp_path / "base") as checkpoint:
        module = checkpoint.find(parameter)[2].name.removesuffix(".weight")
    tensors = halves(module, 32, 48)
    adapter = save_adapter(tmp_path / "adapter", tensors)
    expected = model.get_parameter(parameter).detach().clone()
    expected[2] += 2 * change(tensors, module)
    torch.testing.assert_close(read_whole(tmp_path / "base", parameter, adapter=adapter), expected)


def test_an_adapter_may_name_modules_as_the_checkpoint_does(tmp_path: Path) -> None:
    model = make_model("llava")
    save_model(model, tmp_path / "base")
    parameter = "model.language_model.layers.1.mlp.down_proj.weight"
    with open_checkpoint(tmp_path / "base") as checkpoint:
        module = checkpoint.find(parameter)[0].name.removesuffix(".weight")
    tensors = halves(module, 32, 48)
    adapter = save_adapter(tmp_path / "adapter", tensors)
    expected = model.get_parameter(parameter) + 2 * change(tensors, module)
    torch.testing.assert_close(read_whole(tmp_path / "base", parameter, adapter=adapter), expected)


def test_half_precision_is_added_in_float32(tmp_path: Path) -> None:
    model: nn.Module = make_model("llama").to(torch.bfloat16)
    save_model(model, tmp_path / "base")
    tensors = {name: value.to(torch.bfloat16) for name, value in halves(DOWN, 32, 48).items()}
    tensor = read_whole(tmp_path / "base", f"{DOWN}.weight", adapter=save_adapter(tmp_path / "adapter", tensors))
    assert tensor.dtype == torch.float32
    delta = 2 * change({name: value.float() for name, value in tensors.items()}, DOWN)
    torch.testing.assert_close(tensor, model.get_parameter(f"{DOWN}.weight").float() + delta)


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (halves("model.layers.7.mlp.down_proj", 32, 48), {}, "does not have; wrong base model"),
        (halves(DOWN, 32, 40), {}, "another base model"),
        (halves(DOWN, 32, 48), {"peft_type": "IA3"}, "is a IA3 adapter; only LoRA"),
        (halves(DOWN, 32, 48), {"target_parameters": ["experts.down_proj"]}, "merge it first"),
        (halves(DOWN, 32, 48), {"lora_alpha": "much"}, "cannot be used"),
        ({f"{DOWN}.lora_A.weight": torch.randn(RANK, 48)}, {}, "lacks one of its two LoRA matrices"),
        ({f"{DOWN}.lora_variant_C.weight": torch.randn(RANK, 48)}, {}, "a kind of LoRA that is not added"),
        ({}, {}, "holds no LoRA matrices"),
    ],
)
def test_an_adapter_that_cannot_be_added_is_one_line(
    tensors: dict[str, Tensor], config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_model(make_model("llama"), tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", tensors, **config)
    with pytest.raises(InputError, match=message) as caught:
        open_checkpoint(tmp_path / "base", adapter=adapter)
    assert "\n" not in str(caught.value)


def test_an_adapter_without_safetensors_is_one_line(tmp_path: Path) -> None:
    save_model(make_model("llama"), tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", halves(DOWN, 32, 48))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(InputError, match="pickle only"):
        open_checkpoint(tmp_path / "base", adapter=adapter)
    with pytest.raises(InputError, match="no adapter at"):
        open_checkpoint(tmp_path / "base", adapter=tmp_path / "absent")
    with pytest.raises(InputError, match=r"holds no adapter_config\.json"):
        open_checkpoint(tmp_path / "base", adapter=tmp_path / "base")
    with pytest.raises(InputError, match="cannot get the adapter someone/absent"):
        open_checkpoint(tmp_path / "base", adapter="someone/absent")


def test_an_adapter_given_as_the_model_names_its_base(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", halves(DOWN, 32, 48))
    with pytest.raises(InputError, match="is a LoRA adapter; give someone/base as the model"):
        open_checkpoint(adapter)


def test_experts_that_a_checkpoint_stacks_cannot_be_changed_one_by_one(tmp_path: Path) -> None:
    save_model(make_model("gpt_oss"), tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", halves("model.layers.0.mlp.experts.3.down_proj", 32, 48))
    with pytest.raises(InputError, match="does not have"):
        open_checkpoint(tmp_path / "base", adapter=adapter)


def test_unsupported_is_a_kind_of_input_error() -> None:
    assert issubclass(UnsupportedModelError, InputError)
