"""Times of several ways of doing one thing, taken by turns, so that a machine that slows down slows all."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def seconds(device: str, work: Callable[[], object]) -> float:
    """Of the process on the CPU, which other work on the machine disturbs least; of the clock on a device."""
    if device == "cpu":
        began = time.process_time()
        work()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def by_turns(forms: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, Any]:
    """Seconds of the first form (its median, as "plain_seconds"), and every other form's ratio to the one beside it.

    The forms give their own seconds. A first turn warms up and is not counted.
    """
    times: dict[str, list[float]] = {form: [] for form in forms}
    for turn in range(repeats + 1):
        for form, once in forms.items():
            found = once()
            if turn:
                times[form].append(found)
    plain = next(iter(times.values()))
    result: dict[str, Any] = {"plain_seconds": statistics.median(plain)}
    for form in tuple(forms)[1:]:
        ratios = [own / beside for own, beside in zip(times[form], plain, strict=True)]
        result[form] = {
            "ratio": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
            "fastest_to_fastest": min(times[form]) / min(plain),
            "median_seconds": statistics.median(times[form]),
        }
    return result
