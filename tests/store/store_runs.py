"""Small plans and rows for tests of the store; no PyTorch, so that child processes start fast."""

from typing import Any

import numpy as np

from sinkscope.store.layout import (
    RunAttributes,
    RunPlan,
    SampleRows,
    Statistics,
    empty_statistics,
    row_layout,
)
from sinkscope.store.tokens import TokenTable


def make_plan(samples: int = 6, length: int = 10, layers: int = 3, width: int = 16, **changes: Any) -> RunPlan:
    """A plan with attention on the even samples, computed in reversed order."""
    count = samples * length
    values: dict[str, Any] = {
        "model_id": "tiny",
        "revision": None,
        "backbone": {"model_type": "tiny", "hidden_size": width},
        "dtype": "float32",
        "settings": {"seed": 0, "levels": (0.1, 0.5)},
        "calibration": {"fingerprint": "abc", "tokens": count},
        "seed": 0,
        "versions": {"torch": "1"},
        "num_layers": layers,
        "hidden_size": width,
        "attention": "measured",
    }
    sample = np.repeat(np.arange(samples), length)
    tokens = TokenTable(
        np.arange(count, dtype=np.int32) % 7, np.zeros(count, np.uint8), np.full(samples, length, np.int32)
    )
    return RunPlan(
        RunAttributes(**{**values, **changes}),
        tokens,
        {identifier: f"text {identifier}" for identifier in range(6)} | {6: "zero\0byte é 中"},
        np.arange(samples, dtype=np.int32)[::-1],
        np.arange(0, count, 3),
        np.flatnonzero(sample % 2 == 0),
        top_tokens=4,
        largest=3,
        levels=(0.1, 0.5),
        peak_states=2,
        fingerprints=np.arange(samples, dtype=np.uint64) + 100,
    )


def make_rows(plan: RunPlan, sample: int) -> SampleRows:
    """Rows of one sample, the same whenever it is asked for."""
    generator = np.random.default_rng(sample)
    arrays: dict[str, Any] = {}
    for name, (shape, dtype) in row_layout(plan).items():
        start, stop = plan.spans(name)[sample]
        values = generator.normal(0, 50, size=(stop - start, *shape[1:])).astype(dtype)
        if name == "largest/dim":
            values %= plan.attributes.hidden_size
        # Places in the sample, of which every plan here has at least so many.
        arrays[name] = values.clip(-1, 4) if name == "peaks/place" else values
    return SampleRows.of(sample, arrays)


def make_statistics(plan: RunPlan, done: int) -> Statistics:
    """Statistics that depend on how many samples are done."""
    arrays = empty_statistics(plan).arrays()
    generator = np.random.default_rng(1000 + done)
    filled = {
        name: (generator.integers(0, 60, size=array.shape) + 0.25).astype(array.dtype) for name, array in arrays.items()
    }
    filled["count"] = np.int64(done * 10)
    return Statistics(levels=plan.levels, **filled)
