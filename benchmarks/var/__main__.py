"""What VAR costs, side by side in one run: the plain model, sinkscope, and two eager forms of the definition.

    python -m benchmarks.var [--repeats N] [--device cuda --shape 7b] [--no-curve]

A model of LLaVA-1.5's shape with random weights (hidden 1024, 16 heads, 8 layers; the 7B's own on a GPU), and the
attention of one layer alone. Passes of all forms take turns, in decoding at every step, so that a machine that slows
down slows all. Every figure is the median of the ratios to the plain pass beside it; the fastest pass over the fastest
plain one stands beside. On the CPU times are those of the process on one thread, which other work disturbs least.
Writes `results/var.json`.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

import sinkscope
from benchmarks.process_memory import memory, reset_peak
from benchmarks.timing import by_turns, seconds
from benchmarks.var.attention import attention
from benchmarks.var.eager import eager_var
from benchmarks.var.models import SEVEN_B, SMALL, Shape, build, inputs, profile

RESULTS = Path(__file__).parents[1] / "results" / "var.json"
SHAPES = {"1024": Shape(), "small": SMALL, "7b": SEVEN_B}
FORMS = ("plain", "sinkscope", "eager", "by head", "by row")
DECODED = 32
HEAP = {"MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_MMAP_THRESHOLD_": str(2**32)}
"""The heap keeps what is freed: else whether the growing caches get fresh pages decides the times, in all forms."""


def context(form: Any, model: Any, shape: Shape) -> AbstractContextManager[Any]:
    """The model as it runs in one of the forms."""
    if form == "plain":
        return nullcontext()
    if form == "sinkscope":
        return sinkscope.var(model, profile(shape))
    return eager_var(model, form)


def prefill(model: Any, given: dict[str, Any], cache: Any = None) -> Any:
    """One pass over the prompt."""
    return model(**given, use_cache=True, past_key_values=cache, logits_to_keep=1)


def prefill_seconds(model: Any, given: dict[str, Any]) -> float:
    """Seconds of one pass over the prompt."""
    return seconds(model.device.type, lambda: prefill(model, given))


def decoding(model: Any, given: dict[str, Any]) -> Iterator[float]:
    """Seconds of one cached step after another; after `DECODED` steps it begins anew, with a prompt not counted."""
    while True:
        cache = DynamicCache(config=model.config.get_text_config())
        token, mask = prefill(model, given, cache).logits[:, -1:].argmax(-1), given["attention_mask"]
        for _ in range(DECODED):
            mask = torch.cat([mask, torch.ones_like(token)], dim=1)
            step = partial(model, input_ids=token, attention_mask=mask, past_key_values=cache)
            yield seconds(model.device.type, step)


def steps_side_by_side(model: Any, shape: Shape, given: dict[str, Any], forms: tuple[str, ...], runs: int) -> Any:
    """As `side_by_side`, for single steps: copies of the model that share its weights take turns at every step."""
    weights = {id(tensor): tensor for tensor in model.parameters()}
    with ExitStack() as stack:
        turns = {}
        for form in forms:
            own = copy.deepcopy(model, dict(weights))
            stack.enter_context(context(form, own, shape))
            turns[form] = partial(next, decoding(own, given))
        return by_turns(turns, runs * DECODED)


def side_by_side(
    model: Any, shape: Shape, forms: tuple[str, ...], repeats: int, once: Callable[[], float]
) -> dict[str, Any]:
    """Seconds of the plain pass, and each form's ratio to it; `once` gives the seconds of a pass."""

    def within(form: str) -> float:
        with context(form, model, shape):
            return once()

    return by_turns({form: partial(within, form) for form in forms}, repeats)


def costs(model: Any, shape: Shape, repeats: int) -> dict[str, Any]:
    """Prefill of 632 tokens and decoding, at batch 1 and 8."""
    found: dict[str, Any] = {}
    for batch in (1, 8):
        given = inputs(model, batch=batch)
        forms, turns = (FORMS, repeats) if batch == 1 else (FORMS[:2], max(3, repeats // 2))
        with torch.inference_mode():
            found[f"prefill, batch {batch}"] = side_by_side(
                model,
                shape,
                forms,
                turns,
                partial(prefill_seconds, model, given),
            )
            print(f"prefill, batch {batch}", json.dumps(found[f"prefill, batch {batch}"]), flush=True)
            found[f"decode, batch {batch}"] = steps_side_by_side(model, shape, given, forms, turns)
            print(f"decode, batch {batch}", json.dumps(found[f"decode, batch {batch}"]), flush=True)
    return found


def curve(shape: Shape, device: str, dtype: torch.dtype, repeats: int) -> list[dict[str, Any]]:
    """Seconds that VAR adds to a prefill, by images and text: it grows with text queries times keys."""
    model, rows = build(shape, device=device, dtype=dtype), []
    for images, text in ((1, 64), (1, 512), (1, 2048), (2, 64), (4, 64), (8, 64), (8, 1024), (8, 4096), (8, 11741)):
        given = inputs(model, images=images, text=text)
        keys = int(given["input_ids"].shape[1])
        with torch.inference_mode():
            found = side_by_side(
                model,
                shape,
                FORMS[:2],
                repeats,
                partial(prefill_seconds, model, given),
            )
        extra = (found["sinkscope"]["ratio"] - 1) * found["plain_seconds"]
        rows.append(
            {
                "images": images,
                "text": text,
                "tokens": keys,
                "plain_seconds": found["plain_seconds"],
                "ratio": found["sinkscope"]["ratio"],
                "extra_seconds": extra,
                "nanoseconds_per_query_and_key": 1e9 * extra / (text * keys * shape.heads * (shape.layers - 1)),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def peak(form: str, shape: str) -> float:
    """Bytes that a process takes at most for one prefill and a few steps in one of the forms."""
    code = f"from benchmarks.var.__main__ import print_peak; print_peak({form!r}, {shape!r})"
    # Whatever is freed goes back at once, so that the mark is that of the tensors and not of the heap.
    exact = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | exact
    )
    return float(done.stdout)


def print_peak(form: str, name: str) -> None:
    """What `peak` reads."""
    torch.set_num_threads(1)
    shape = SHAPES[name]
    model = build(shape)
    # The highest mark begins anew, so that building the model does not count (Linux).
    reset_peak()
    with torch.inference_mode(), context(form, model, shape):
        list(islice(decoding(model, inputs(model)), DECODED))
    print(memory("VmHWM"))


def device_peak(form: str, model: Any, shape: Shape) -> float:
    """The same on a device."""
    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode(), context(form, model, shape):
        list(islice(decoding(model, inputs(model)), DECODED))
    return float(torch.cuda.max_memory_allocated())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="1024")
    parser.add_argument("--no-curve", action="store_true", help="keep the curve of the results file")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    on_cpu = options.device == "cpu"
    if on_cpu and not HEAP.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.var", *sys.argv[1:]], os.environ | HEAP)
    if on_cpu:
        torch.set_num_threads(1)
    dtype = torch.float32 if on_cpu else torch.bfloat16
    model = build(shape, device=options.device, dtype=dtype)
    results: dict[str, Any] = {
        "machine": "cpu" if on_cpu else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "shape": options.shape,
        "attention": attention(shape, options.device, dtype, 5 * options.repeats),
        "costs": costs(model, shape, options.repeats),
    }
    peaks = {
        form: peak(form, options.shape) if on_cpu else device_peak(form, model, shape)
        for form in ("plain", "sinkscope", "eager")
    }
    results["peak"] = {"plain_gib": peaks["plain"] / 2**30} | {
        form: peaks[form] / peaks["plain"] - 1 for form in ("sinkscope", "eager")
    }
    print("extra memory", json.dumps(results["peak"]), flush=True)
    target = RESULTS if on_cpu else RESULTS.with_name(f"var-{options.device}.json")
    if options.no_curve and target.exists():
        results["curve"] = json.loads(target.read_text()).get("curve")
    elif not options.no_curve:
        del model
        results["curve"] = curve(SMALL if on_cpu else shape, options.device, dtype, min(options.repeats, 3))
    target.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
