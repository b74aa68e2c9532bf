"""The forward pass, and the statistics beside it: per token, layer and dimension."""

import itertools
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.plans import bare_plan
from benchmarks.scale.fits import least_seconds, line
from sinkscope.backbone.running import forward
from sinkscope.capture.collector import Collector
from sinkscope.capture.reading_on_device import read_on_device
from sinkscope.capture.statistics import LayerStatistics

LENGTH, BATCH = 256, 2048
MODELS = ((256, 4), (256, 8), (512, 4), (512, 8), (768, 8))
SWEEPS = {
    "tokens": [(tokens, 1024, 8) for tokens in (512, 1024, 2048, 4096)],
    "width": [(BATCH, width, 8) for width in (1024, 2048, 4096, 8192)],
    "layers": [(BATCH, 1024, layers) for layers in (2, 4, 8, 16)],
}


def passes() -> dict[str, Any]:
    """Seconds for each floating-point operation of the plain pass: 2 for each token and parameter that multiplies."""
    points = []
    for width, depth in MODELS:
        torch.manual_seed(0)
        shape = {"hidden_size": width, "intermediate_size": 11 * width // 4, "num_hidden_layers": depth}
        config = LlamaConfig(vocab_size=256, num_attention_heads=width // 64, **shape)
        model = LlamaForCausalLM(config).eval()
        taking_part = sum(parameter.numel() for parameter in model.model.layers.parameters())
        ids = torch.randint(0, 256, (BATCH // LENGTH // 2, LENGTH))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.inference_mode():
            seconds = least_seconds(lambda model=model, inputs=inputs: forward(model, dict(inputs)))
        points.append((2.0 * taking_part * ids.numel(), seconds))
    return line(points)


def statistics() -> dict[str, Any]:
    """Seconds for each element of the hidden states, T * D * (L + 1): along each of the three, and over all points."""
    measured = {
        name: [(float(tokens * width * (layers + 1)), read(tokens, width, layers)) for tokens, width, layers in sweep]
        for name, sweep in SWEEPS.items()
    }
    return {name: line(points) for name, points in measured.items()} | {
        "all": line(list(itertools.chain.from_iterable(measured.values())))
    }


def read(tokens: int, width: int, layers: int) -> float:
    """Seconds to read the states of a batch, once the accumulators know what is large."""
    collector = Collector(bare_plan(tokens, width, layers, samples=5))
    batches = itertools.count()
    torch.manual_seed(0)
    scale = torch.randn(width).mul(0.5).exp()
    drawn = [torch.randn(1, tokens, width) * scale for _ in range(2)]
    for state in drawn:
        state[0, ::LENGTH, 7] = 300.0

    def once() -> None:
        number = next(batches)
        collector.begin([number])
        for layer in range(layers + 1):
            collector(layer, drawn[number % 2])
        collector.finish()

    once()
    once()
    return least_seconds(once)


class MovedBytes(TorchDispatchMode):
    """Adds up the bytes of tensors that operations read and write; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        read = tensors((*args, *(kwargs or {}).values()))
        written = tensors(output if isinstance(output, (tuple, list)) else (output,))
        places = {tensor.untyped_storage().data_ptr() for tensor in read}
        in_place = function._schema.is_mutable
        if in_place or not any(tensor.untyped_storage().data_ptr() in places for tensor in written):
            # An expanded tensor is read from its storage.
            self.bytes += sum(min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in (*read, *written))
        return output


def tensors(values: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for value in values:
        found += tensors(value) if isinstance(value, (tuple, list)) else [value] * isinstance(value, torch.Tensor)
    return found


def moved_on_devices() -> dict[str, Any]:
    """Bytes that the accelerator's form of the statistics moves for each element of bfloat16 states."""
    points = []
    for tokens, width in ((1024, 1024), (2048, 1024), (2048, 2048), (2048, 4096), (4096, 4096)):
        states = torch.randn(tokens, width, dtype=torch.bfloat16)
        before = LayerStatistics.empty(width)
        with MovedBytes() as moved:
            read_on_device(states, None, torch.arange(tokens), before, 8)
        points.append((float(tokens * width), float(moved.bytes)))
    return line(points)
