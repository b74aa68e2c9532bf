"""Lines through what was measured, and the two things that are measured: process time and memory."""

import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

from scipy import stats


def line(points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Least squares through (x, y): slope, its standard error, intercept, and r squared."""
    x, y = zip(*points, strict=True)
    found = stats.linregress(x, y)
    return {
        "slope": float(found.slope),
        "error": float(found.stderr),
        "intercept": float(found.intercept),
        "r2": float(found.rvalue**2),
        "points": [[float(a), float(b)] for a, b in points],
    }


def least_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Process time of the fastest of some calls: what others do on the machine only adds."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def traced(work: Callable[[], object]) -> tuple[int, int]:
    """Bytes of Python and NumPy that the result holds, and that the call took at most."""
    tracemalloc.start()
    result = work()
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del result
    return held, most
