"""Quantised checkpoints: what is read equals what the method's own formula gives, entry by entry."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from weights_reading_models import (
    assert_equal_parameters,
    change_config,
    change_tensors,
    make_model,
    read_whole,
    save_model,
)

from sinkscope.errors import InputError, UnsupportedModelError
from sinkscope.weights import unpack
from sinkscope.weights.checkpoint import open_checkpoint

DOWN = "model.layers.1.mlp.down_proj.weight"
STEM = DOWN.removesuffix(".weight")
FLOAT8 = torch.float8_e4m3fn


def quantise(folder: Path, config: dict[str, Any] | None, replacement: dict[str, Tensor], name: str = DOWN) -> None:
    """Put `replacement` in the place of one weight."""
    change_tensors(folder, lambda tensors: {key: v for key, v in tensors.items() if key != name} | replacement)
    if config is not None:
        change_config(folder, quantization_config=config)


@pytest.fixture
def weight(tmp_path: Path) -> Tensor:
    """The weight [32, 48] of a model in `tmp_path`."""
    model = make_model("llama")
    save_model(model, tmp_path)
    return model.get_parameter(DOWN).detach()


@pytest.mark.parametrize("block", [(16, 16), (32, 48), (1, 48), (20, 20)])
def test_fp8_with_block_scales(block: tuple[int, int], weight: Tensor, tmp_path: Path) -> None:
    rows, columns = (math.ceil(size / step) for size, step in zip(weight.shape, block, strict=True))
    scale = 0.5 + torch.rand(rows, columns)
    wide = scale.repeat_interleave(block[0], 0)[:32].repeat_interleave(block[1], 1)[:, :48]
    stored = (weight / wide).to(FLOAT8)
    quantise(tmp_path, {"quant_method": "fp8", "weight_block_size": list(block)},
             {DOWN: stored, f"{DOWN}_scale_inv": scale})  # fmt: skip
    assert torch.equal(read_whole(tmp_path, DOWN), stored.float() * wide)


@pytest.mark.parametrize("scale", [torch.tensor(0.25), torch.tensor([0.25]), torch.tensor([[0.25]])])
def test_fp8_with_one_scale(scale: Tensor, weight: Tensor, tmp_path: Path) -> None:
    stored = (weight / 0.25).to(FLOAT8)
    quantise(tmp_path, {"quant_method": "fp8"}, {DOWN: stored, f"{DOWN}_scale_inv": scale})
    with open_checkpoint(tmp_path) as checkpoint:
        (found,) = checkpoint.find(DOWN)
        before = checkpoint.bytes_read
        tensor = checkpoint.read(found)
        assert checkpoint.bytes_read - before == found.nbytes == 32 * 48 + 4
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor, stored.float() * 0.25)


def test_fp8_agrees_with_transformers(weight: Tensor, tmp_path: Path) -> None:
    module = pytest.importorskip("transformers.integrations.finegrained_fp8")
    stored, scale = weight.to(FLOAT8), torch.rand(2, 3)
    quantise(tmp_path, {"quant_method": "fp8", "weight_block_size": [16, 16]},
             {DOWN: stored, f"{DOWN}_scale_inv": scale})  # fmt: skip
    expected = module.Fp8Dequantize(None)._dequantize_one(stored, scale, torch.float32)
    assert torch.equal(read_whole(tmp_path, DOWN), expected)


@pytest.mark.parametrize("settings", [None, {"quant_method": "compressed-tensors", "format": "int-quantized"}])
@pytest.mark.parametrize("per_row", [True, False])
def test_int8_with_scales(settings: dict[str, Any] | None, per_row: bool, weight: Tensor, tmp_path: Path) -> None:
    scale = weight.abs().amax(dim=1, keepdim=True) / 127 if per_row else weight.abs().max() / 127
    stored = (weight / scale).round().to(torch.int8)
    quantise(tmp_path, settings, {DOWN: stored, f"{DOWN}_scale": scale})
    tensor = read_whole(tmp_path, DOWN)
    assert torch.equal(tensor, stored.float() * scale)
    assert (tensor - weight).abs().max() <= scale.max()


def test_int8_with_zero_points(weight: Tensor, tmp_path: Path) -> None:
    scale, zero = torch.rand(32, 1) + 0.1, torch.randint(-20, 20, (32, 1), dtype=torch.int8)
    stored = torch.randint(-128, 128, weight.shape, dtype=torch.int8)
    quantise(tmp_path, {"quant_method": "compressed-tensors"},
             {DOWN: stored, f"{DOWN}_scale": scale, f"{DOWN}_zero_point": zero})  # fmt: skip
    assert torch.equal(read_whole(tmp_path, DOWN), (stored.float() - zero.float()) * scale)


def test_bitsandbytes_8_bit(weight: Tensor, tmp_path: Path) -> None:
    largest = weight.abs().amax(dim=1)
    stored = (weight * 127 / largest.unsqueeze(1)).round().to(torch.int8)
    beside = {f"{STEM}.SCB": largest, f"{STEM}.weight_format": torch.tensor(0, dtype=torch.uint8)}
    quantise(tmp_path, {"quant_method": "bitsandbytes", "load_in_8bit": True}, {DOWN: stored, **beside})
    torch.testing.assert_close(
        read_whole(tmp_path, DOWN), stored.float() * largest.unsqueeze(1) / 127, atol=1e-6, rtol=1e-6
    )


# The 16 values of NF4 (https://arxiv.org/abs/2305.14314, appendix E).
NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)  # fmt: skip
FP4 = (0.0, 0.0052, 0.6667, 1.0, 0.3333, 0.5, 0.1667, 0.25, 0.0, -0.0052, -0.6667, -1.0, -0.3333, -0.5, -0.1667, -0.25)


@pytest.mark.parametrize(("kind", "values"), [("nf4", NF4), ("fp4", FP4)])
@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_4_bit(
    kind: str, values: tuple[float, ...], nested: bool, weight: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "BLOCK_ENTRIES", 200)
    code, size = torch.tensor(values), 64
    blocks = weight.reshape(-1, size)
    largest = blocks.abs().amax(dim=1)
    state: dict[str, Any] = {"quant_type": kind, "blocksize": size, "shape": [32, 48], "dtype": "bfloat16"}
    tensors: dict[str, Tensor] = {}
    if nested:
        outer_code, offset = torch.linspace(-1, 1, 256), float(largest.mean())
        outer = torch.stack([part.abs().max() for part in (largest - offset).split(16)])
        index = ((largest - offset) / outer.repeat_interleave(16)[: len(largest)]).unsqueeze(1) - outer_code
        stored = index.abs().argmin(dim=1).to(torch.uint8)
        state |= {"nested_blocksize": 16, "nested_offset": offset, "nested_dtype": "float32"}
        tensors |= {"absmax": stored, "nested_absmax": outer, "nested_quant_map": outer_code}
        largest = outer_code[stored.long()] * outer.repeat_interleave(16)[: len(largest)] + offset
    else:
        tensors["absmax"] = largest
    entries = ((blocks / largest.unsqueeze(1)).unsqueeze(2) - code).abs().argmin(dim=2).reshape(-1)
    packed = (entries[0::2] * 16 + entries[1::2]).to(torch.uint8).unsqueeze(1)
    tensors["quant_map"] = code
    tensors[f"quant_state.bitsandbytes__{kind}"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    quantise(tmp_path, {"quant_method": "bitsandbytes", "load_in_4bit": True},
             {DOWN: packed} | {f"{DOWN}.{role}": value for role, value in tensors.items()})  # fmt: skip
    expected = (code[entries].reshape(-1, size) * largest.unsqueeze(1)).reshape(32, 48)
    torch.testing.assert_close(read_whole(tmp_path, DOWN), expected, atol=1e-7, rtol=1e-6)


def pack(entries: Tensor, bits: int) -> Tensor:
    """Unsigned integers into 32-bit words along the last axis, lowest first."""
    per_word = 32 // bits
    words = torch.zeros(*entries.shape[:-1], entries.shape[-1] // per_word, dtype=torch.int64)
    for place in range(per_word):
        words |= entries[..., place::per_word].long() << (bits * place)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_gptq(bits: int, version: str, weight: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "BLOCK_ENTRIES", 300)
    entries = torch.randint(0, 2**bits, (48, 32))
    offset = 1 if version == "gptq" else 0
    zeros, scales = torch.randint(offset, 2**bits, (3, 32)), torch.rand(3, 32).half()
    group_of = torch.randint(0, 3, (48,), dtype=torch.int32)
    stored = {
        "qweight": pack(entries.T, bits).T,
        "qzeros": pack(zeros - offset, bits),
        "scales": scales,
        "g_idx": group_of,
    }
    quantise(tmp_path, {"quant_method": "gptq", "bits": bits, "group_size": 16, "checkpoint_format": version},
             {f"{STEM}.{role}": value for role, value in stored.items()})  # fmt: skip
    expected = ((entries - zeros[group_of.long()]) * scales[group_of.long()].float()).T
    assert torch.equal(read_whole(tmp_path, DOWN), expected)


def test_awq(weight: Tensor, tmp_path: Path) -> None:
    entries, zeros = torch.randint(0, 16, (48, 32)), torch.randint(0, 16, (3, 32))
    scales = torch.rand(3, 32).half()
    # Place p of a word holds the output 8 w + (0, 2, 4, 6, 1, 3, 5, 7)[p].
    order = torch.arange(32).reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(-1)
    stored = {"qweight": pack(entries[:, order], 4), "qzeros": pack(zeros[:, order], 4), "scales": scales}
    quantise(tmp_path, {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": True},
             {f"{STEM}.{role}": value for role, value in stored.items()})  # fmt: skip
    group_of = torch.arange(48) // 16
    assert torch.equal(read_whole(tmp_path, DOWN), ((entries - zeros[group_of]) * scales[group_of].float()).T)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("asymmetric", [True, False])
def test_packed_integers_of_compressed_tensors(bits: int, asymmetric: bool, weight: Tensor, tmp_path: Path) -> None:
    half = 2 ** (bits - 1)
    entries = torch.randint(-half, half, (32, 48))
    scales, zeros = torch.rand(32, 3), torch.zeros(32, 3, dtype=torch.int64)
    stored = {"packed": pack(entries + half, bits), "scale": scales, "shape": torch.tensor([32, 48])}
    if asymmetric:
        zeros = torch.randint(-half, half, (32, 3))
        stored["zero_point"] = pack((zeros + half).T, bits).T
    quantise(tmp_path, {"quant_method": "compressed-tensors", "format": "pack-quantized"},
             {f"{DOWN}_{role}": value for role, value in stored.items()})  # fmt: skip
    expected = (entries - zeros.repeat_interleave(16, 1)) * scales.repeat_interleave(16, 1)
    assert torch.equal(read_whole(tmp_path, DOWN), expected)


@pytest.mark.parametrize("kind", ["nvfp4", "mxfp4"])
def test_4_bit_floats_of_compressed_tensors(kind: str, weight: Tensor, tmp_path: Path) -> None:
    packed = torch.randint(0, 256, (32, 24), dtype=torch.uint8)
    values = torch.tensor(unpack.FP4_VALUES)
    numbers = torch.stack((values[(packed & 15).long()], values[(packed >> 4).long()]), dim=2).reshape(32, 48)
    if kind == "nvfp4":
        scale, overall = torch.rand(32, 3).to(FLOAT8), torch.tensor([4.0])
        stored, wide = {"scale": scale, "global_scale": overall}, (scale.float() / 4.0).repeat_interleave(16, 1)
    else:
        scale = torch.randint(120, 130, (32, 3), dtype=torch.uint8)
        stored, wide = {"scale": scale}, (2.0 ** (scale.float() - 127)).repeat_interleave(16, 1)
    quantise(tmp_path, {"quant_method": "compressed-tensors"},
             {f"{DOWN}_packed": packed} | {f"{DOWN}_{role}": value for role, value in stored.items()})  # fmt: skip
    assert torch.equal(read_whole(tmp_path, DOWN), numbers * wide)


def test_mxfp4_experts_agree_with_transformers(tmp_path: Path) -> None:
    module = pytest.importorskip("transformers.integrations.mxfp4")
    model = make_model("gpt_oss", intermediate_size=64)
    save_model(model, tmp_path)
    name = "model.layers.1.mlp.experts.down_proj"
    blocks = torch.randint(0, 256, (4, 32, 2, 16), dtype=torch.uint8)
    scales = torch.randint(118, 132, (4, 32, 2), dtype=torch.uint8)
    quantise(tmp_path, {"quant_method": "mxfp4"}, {f"{name}_blocks": blocks, f"{name}_scales": scales}, name)
    expected = module.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    with open_checkpoint(tmp_path) as checkpoint:
        found = checkpoint.find(name)
        assert [part.nbytes for part in found] == [32 * 2 * 16 + 32 * 2] * 4
        tensors = torch.stack([checkpoint.read(part) for part in found])
    assert tensors.shape == (4, 64, 32)
    assert torch.equal(tensors, expected)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_fp8_experts_are_dequantised_one_by_one(family: str, tmp_path: Path) -> None:
    """Experts stored apart, each with its scales, and a stack with a stack of scales."""
    model = make_model(family)
    save_model(model, tmp_path)
    name = "model.layers.1.mlp.experts.down_proj"
    with open_checkpoint(tmp_path) as checkpoint:
        names = [part.name for part in checkpoint.find(name)]
    expected = model.get_parameter(name).detach().clone()

    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for number, stored in enumerate(names if len(set(names)) == 4 else names[:1]):
            tensor = tensors[stored]
            scale = 0.5 + torch.rand(*tensor.shape[:-2], 2, 2)
            wide = scale.repeat_interleave(tensor.shape[-2] // 2, -2).repeat_interleave(tensor.shape[-1] // 2, -1)
            tensors[stored] = (tensor / wide).to(FLOAT8)
            tensors[f"{stored}_scale_inv"] = scale
            value = tensors[stored].float() * wide
            expected[number if value.dim() == 2 else slice(None)] = value
        return tensors

    change_tensors(tmp_path, change)
    change_config(tmp_path, quantization_config={"quant_method": "fp8"})
    with open_checkpoint(tmp_path) as checkpoint:
        found = checkpoint.find(name)
        assert [part.part for part in found] == [0, 1, 2, 3]
        assert all(part.nbytes == 32 * 48 + 4 * 4 for part in found)
        assert torch.equal(torch.stack([checkpoint.read(part) for part in found]), expected)


def test_4_bit_experts_of_an_fp8_checkpoint(tmp_path: Path) -> None:
    model = make_model("mixtral")
    save_model(model, tmp_path)
    name = "model.layers.0.mlp.experts.down_proj"
    with open_checkpoint(tmp_path) as checkpoint:
        stored = checkpoint.find(name)[2].name
    packed = torch.randint(-128, 128, (32, 24), dtype=torch.int8)
    scale = torch.randint(120, 130, (32, 3), dtype=torch.uint8)
    quantise(tmp_path, {"quant_method": "fp8"}, {stored: packed, f"{stored}_scale_inv": scale}, stored)
    module = pytest.importorskip("transformers.integrations.finegrained_fp8")
    expected = module.Fp8Dequantize(None)._dequantize_one(packed, scale, torch.float32)
    with open_checkpoint(tmp_path) as checkpoint:
        assert torch.equal(checkpoint.read(checkpoint.find(name)[2]), expected)


def test_what_is_not_quantised_stays_as_it_is(tmp_path: Path) -> None:
    model = make_model("llama").to(torch.bfloat16)
    save_model(model, tmp_path)
    stored = model.get_parameter(DOWN).detach().to(FLOAT8)
    quantise(tmp_path, {"quant_method": "fp8"}, {DOWN: stored, f"{DOWN}_scale_inv": torch.ones(1)})
    with torch.no_grad():
        model.get_parameter(DOWN).copy_(stored.float())
    with open_checkpoint(tmp_path) as checkpoint:
        assert_equal_parameters(checkpoint, model)
        assert checkpoint.read(checkpoint.find("model.norm.weight")[0]).dtype == torch.bfloat16


def test_the_memory_of_dequantising_is_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    widen = unpack._widen

    def watch(grid: Tensor, wide: int, columns: int) -> Tensor:
        nonlocal largest
        result = widen(grid, wide, columns)
        largest = max(largest, result.numel())
        return result

    monkeypatch.setattr(unpack, "_widen", watch)
    monkeypatch.setattr(unpack, "BLOCK_ENTRIES", 1000)
    unpack.scaled(torch.ones(300, 128).to(FLOAT8), torch.ones(3, 1), None, (128, 128))
    unpack.scaled(torch.ones(300, 128).to(FLOAT8), torch.ones(3, 2), None, (128, 64))
    assert 0 < largest <= 1000


UNREAD = {"quant_method": "hqq", "nbits": 4}


def test_an_unread_method_is_named(weight: Tensor, tmp_path: Path) -> None:
    quantise(tmp_path, UNREAD, {DOWN: torch.zeros(16, 48, dtype=torch.uint8)})
    with pytest.raises(UnsupportedModelError, match="stored as U8 by hqq, which is not dequantised here"):
        read_whole(tmp_path, DOWN)


def test_scales_of_an_unread_method_are_not_guessed(weight: Tensor, tmp_path: Path) -> None:
    quantise(tmp_path, UNREAD, {DOWN: torch.zeros(32, 48, dtype=torch.int8), f"{DOWN}_scale": torch.ones(32, 1)})
    with pytest.raises(UnsupportedModelError, match="is quantised by hqq, which is not dequantised here"):
        read_whole(tmp_path, DOWN)


def test_missing_scales_are_said(weight: Tensor, tmp_path: Path) -> None:
    quantise(tmp_path, {"quant_method": "fp8"}, {DOWN: weight.to(FLOAT8)})
    with pytest.raises(InputError, match="its scales are missing"):
        read_whole(tmp_path, DOWN)


def test_scales_that_do_not_fit_are_said(weight: Tensor, tmp_path: Path) -> None:
    quantise(tmp_path, {"quant_method": "fp8"}, {DOWN: weight.to(FLOAT8), f"{DOWN}_scale_inv": torch.ones(5, 7)})
    with pytest.raises(InputError, match="5 scales do not fit 32 rows"):
        read_whole(tmp_path, DOWN)


def test_a_part_of_a_quantised_weight_that_is_missing_is_said(weight: Tensor, tmp_path: Path) -> None:
    quantise(tmp_path, {"quant_method": "gptq", "bits": 4}, {f"{STEM}.qweight": torch.zeros(6, 32, dtype=torch.int32)})
    with pytest.raises(InputError, match="do not fit together"):
        read_whole(tmp_path, DOWN)


def test_a_parameter_called_scale_is_no_quantisation(tmp_path: Path) -> None:
    save_model(make_model("llama"), tmp_path)
    change_tensors(tmp_path, lambda tensors: tensors | {f"{DOWN}_scale": torch.ones(32, 1)})
    assert torch.equal(read_whole(tmp_path, DOWN), load_file(tmp_path / "model.safetensors")[DOWN])
