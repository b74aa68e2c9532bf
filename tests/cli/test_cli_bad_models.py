"""Models that cannot be used, at every command that takes one: one clear line, nothing written, and no traceback."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_models import byte_tokenizer, save_tiny_llama
from PIL import Image
from transformers import BartConfig, BartForConditionalGeneration, BertConfig, BertForMaskedLM, LlamaForCausalLM

from sinkscope.backbone.loading import load
from sinkscope.backbone.placement import refuse_absent
from sinkscope.errors import InputError

WEIGHTS = "model.safetensors"
QUANTISED = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}


def configured(**changes: Any) -> Callable[[Path], object]:
    """Change entries of a model's config."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def without(pattern: str) -> Callable[[Path], object]:
    return lambda folder: [path.unlink() for path in folder.glob(pattern)]


def cut(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def encoder(folder: Path) -> None:
    config = BertConfig(
        vocab_size=len(byte_tokenizer()),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    BertForMaskedLM(config).save_pretrained(folder)


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")


# What makes a small Llama unusable, and what is said by commands that run it, read its weights, and read its config;
# None where they can do their work.
CASES: dict[str, tuple[Callable[[Path], object], list[str], list[str] | None, list[str] | None]] = {
    "unknown": (configured(model_type="brandnew"), ["brandnew"], ["brandnew"], ["brandnew"]),
    "misfit": (configured(num_attention_heads=5), ["multiple"], ["multiple"], ["multiple"]),
    "encoder": (encoder, ["bert is an encoder"], ["bert is an encoder"], ["bert is an encoder"]),
    "weightless": (without(WEIGHTS), [WEIGHTS], ["no weights"], None),
    "mute": (without("tokenizer*"), ["no usable tokenizer", "put the model's own there"], None, None),
    "garbled": (lambda folder: (folder / "tokenizer.json").write_text("{"), ["no usable tokenizer"], None, None),
    "cut": (cut, ["weights", "damaged"], ["truncated"], None),
    "text": (lambda folder: (folder / WEIGHTS).write_text("no safetensors" * 9), ["damaged"], ["truncated"], None),
    "empty": (lambda folder: (folder / WEIGHTS).write_bytes(b""), ["damaged"], ["truncated"], None),
    "pickled": (pickled, ["damaged"], ["pickles"], None),
    "deep": (configured(num_hidden_layers=5), ["lacks", "model.layers.3"], ["model.layers.3"], None),
    "narrow": (configured(hidden_size=32), ["other shapes"], ["shape"], None),
    "quantised": (configured(quantization_config=QUANTISED), ["not installed", "optimum"], None, None),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one unusable model for every case, and a good one."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_llama(folder / "good")
    for name, (spoil, *_) in CASES.items():
        shutil.copytree(folder / "good", folder / name)
        spoil(folder / name)
    return folder


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("command", ["profile", "apply", "predict", "inspect"])
def test_unusable_models_are_refused(sinkscope, here, models, command, name):
    if name == "quantised" and importlib.util.find_spec("optimum") is not None:
        pytest.skip("optimum is installed, so its absence cannot be told")
    _, run, read, look = CASES[name]
    Image.new("RGB", (48, 48)).save(here / "picture.png")
    options = {
        "profile": ["--samples", 2, "--tokens", 100],
        "apply": ["--image", "picture.png", "--prompt", "What?"],
    }.get(command, [])
    before = sorted(here.iterdir())
    outcome = sinkscope(command, models / name, *options, "--json")
    said = {"predict": read, "inspect": look}.get(command, run)
    if said is None:
        assert outcome.code == 0, outcome.err
        json.loads(outcome.out)
    else:
        outcome.refused(name, *said)
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize("device", ["cuda", "cuda:99", "mps", "xpu"])
def test_a_device_that_is_not_there_is_named(sinkscope, here, models, monkeypatch, device):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    outcome = sinkscope("profile", models / "good", "--samples", 2, "--device", device)
    outcome.refused(f"there is no device {device} here, only cpu; choose another --device")


def test_devices_that_are_there(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 2)
    for device in ("auto", "balanced", "cpu", "cuda", "cuda:1", torch.device("cuda:0"), 0, {"": "cpu"}, None):
        refuse_absent(device)
    for device in ("cuda:2", "mps", torch.device("xpu")):
        with pytest.raises(InputError, match="only cpu, cuda:0, cuda:1; choose"):
            refuse_absent(device)


def test_what_is_left_of_a_checkpoint_is_told(sinkscope, here, models):
    shutil.copytree(models / "good", here / "shallow")
    configured(num_hidden_layers=1)(here / "shallow")
    outcome = sinkscope("profile", "shallow", "--samples", 2, "--tokens", 100)
    assert outcome.code == 0, outcome.err
    assert "the checkpoint holds 2 decoder layers beyond the 1 of its config; they are left out" in outcome.err
    config = BartConfig(
        vocab_size=len(byte_tokenizer()),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        encoder_ffn_dim=32,
    )
    BartForConditionalGeneration(config).save_pretrained(here / "bart")
    byte_tokenizer().save_pretrained(here / "bart")
    assert "its decoder is used alone" in str(load(here / "bart").note)
    assert load(models / "good").note is None


@pytest.mark.parametrize("error", [RuntimeError, KeyError, AssertionError, ImportError])
def test_a_model_whose_forward_fails_says_so_on_one_line(sinkscope, here, models, monkeypatch, error):
    def forward(self: Any, input_ids: Any, **_: Any) -> None:
        raise error("this kernel\nis not for you")

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    outcome = sinkscope("profile", models / "good", "--samples", 2, "--tokens", 100)
    outcome.refused("this kernel", "is not for you", code=1)
    assert not list(here.glob("*.json"))
