"""Plans of runs whose tokens do not matter."""

import numpy as np

from sinkscope.store.layout import RunAttributes, RunPlan
from sinkscope.store.tokens import TokenTable


def bare_plan(length: int, width: int, layers: int, samples: int, *, keep_all: bool = False) -> RunPlan:
    """Samples of one length; no hidden states are kept, or those of all tokens."""
    count = length * samples
    table = TokenTable(np.zeros(count, np.int32), np.zeros(count, np.uint8), np.full(samples, length, np.int32))
    attributes = RunAttributes("m", None, {}, "float32", {}, {}, 0, {}, layers, width)
    nothing, order = np.zeros(0, np.int64), np.arange(samples, dtype=np.int32)
    kept = np.arange(count) if keep_all else nothing
    return RunPlan(attributes, table, {}, order, kept, nothing, fingerprints=np.arange(samples, dtype=np.uint64))
