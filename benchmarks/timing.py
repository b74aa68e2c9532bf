"""Times of several ways of doing one thing, taken by turns, so that a machine that slows down slows all."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
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


def steps_by_turns(device: str, forms: Mapping[str, Callable[[], Iterator[None]]], repeats: int) -> dict[str, Any]:
    """As `by_turns`, for forms that go step by step and take turns after each, so that less can change in between.

    A form is timed from its beginning to its end, with what it does before the first step and after the last. Its ratio
    is that of the sums of the steps' medians over the repeats.
    """
    times: dict[str, list[list[float]]] = {form: [] for form in forms}
    for turn in range(repeats + 1):
        going = {form: begin() for form, begin in forms.items()}
        found: dict[str, list[float]] = {form: [] for form in forms}
        while going:
            for form, steps in list(going.items()):
                over: list[bool] = []
                found[form].append(seconds(device, lambda: over.append(next(steps, True) is True)))  # noqa: B023
                if over[0]:
                    del going[form]
        if turn:
            for form, taken in found.items():
                times[form].append(taken)

    def total(form: str, of_repeats: Callable[[list[float]], float]) -> float:
        return sum(of_repeats(list(step)) for step in zip(*times[form], strict=True))

    plain = next(iter(forms))
    result: dict[str, Any] = {"plain_seconds": total(plain, statistics.median)}
    for form in tuple(forms)[1:]:
        ratios = [sum(own) / sum(beside) for own, beside in zip(times[form], times[plain], strict=True)]
        result[form] = {
            "ratio": total(form, statistics.median) / total(plain, statistics.median),
            "least": min(ratios),
            "most": max(ratios),
            "fastest_to_fastest": total(form, min) / total(plain, min),
            "median_seconds": total(form, statistics.median),
        }
    return result
