"""Memory at most, of a process that does nothing else."""

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.process_memory import memory, reset_peak
from benchmarks.profile.forms import store
from benchmarks.profile.subjects import load, prepared, texts
from sinkscope.backbone.running import forward
from sinkscope.capture.encode import encode_each, model_inputs
from sinkscope.capture.encoded import EncodedSamples
from sinkscope.capture.planning import make_batches
from sinkscope.capture.settings import CaptureSettings

EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Whatever is freed goes back at once, so that the mark is that of the arrays and not of the heap."""


def extra(subject: str, tokens: int | None, repeats: int) -> dict[str, Any]:
    """Bytes that a run takes at most above the plain model on the same texts: median, least and most of the repeats."""
    peaks = [[peak(form, subject, tokens) for form in ("plain", "default store")] for _ in range(repeats)]
    plain = median(alone for alone, _ in peaks)
    more = sorted(stored - alone for alone, stored in peaks)
    return {
        "tokens": tokens,
        "plain_mib": plain / 2**20,
        "extra_mib": median(more) / 2**20,
        "least_mib": more[0] / 2**20,
        "most_mib": more[-1] / 2**20,
        "share": median(more) / plain,
    }


def peak(form: str, subject: str, tokens: int | None) -> float:
    """Bytes that a process takes at most, the loading of the model aside."""
    code = f"from benchmarks.profile.memory import print_peak; print_peak({form!r}, {subject!r}, {tokens!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | EXACT
    )
    return float(done.stdout)


def print_peak(form: str, name: str, tokens: int | None) -> None:
    """What `peak` reads."""
    torch.set_num_threads(1)
    loaded, samples = load(name), texts(tokens)

    def alone() -> None:
        encoded = EncodedSamples.gather(encode_each(loaded, samples, CaptureSettings().max_length))
        for batch in make_batches(encoded, frozenset(), CaptureSettings()):
            forward(loaded.model, model_inputs(loaded, [encoded[sample] for sample in batch])[0])

    work: Callable[[], None] = (
        alone if form == "plain" else lambda: deque(store(prepared(loaded, samples, attention=False)), 0)
    )
    # The highest mark begins anew, so that loading does not count (Linux).
    reset_peak()
    with torch.inference_mode():
        work()
    print(memory("VmHWM"))
