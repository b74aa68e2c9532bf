"""The share of one process in a run of several: whole batches of the plan, computed as one process alone would."""

import heapq
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sinkscope.capture.planning import CapturePlan


def share_of(plan: CapturePlan, rank: int, ranks: int) -> CapturePlan | None:
    """The part of a plan that the process `rank` of `ranks` computes; None where there is no batch left for it.

    Its samples are numbered anew, in their old order. Where they are in the whole is `RunPlan.part`.
    """
    batches = deal(plan, ranks)[rank]
    if not batches:
        return None
    run = plan.run
    numbers = np.sort(np.concatenate([np.array(batch, np.int64) for batch in batches]))
    renumbered = {int(number): place for place, number in enumerate(numbers)}
    turns = np.argsort(run.order)[numbers]
    chosen = np.isin(np.arange(run.num_samples), numbers)
    samples = plan.samples.take(numbers.tolist())
    texts = {identifier: run.token_text[identifier] for identifier in samples.tokens.distinct_ids().tolist()}
    used = min(ranks, len(plan.batches))
    calibration = {**run.attributes.calibration, "part": {"rank": rank, "ranks": used}}
    return CapturePlan(
        replace(
            run,
            attributes=replace(run.attributes, calibration=calibration),
            tokens=samples.tokens,
            token_text=texts,
            order=np.array([renumbered[number] for batch in batches for number in batch], np.int32),
            sampled_tokens=_own(run.tokens.taken(chosen, run.sampled_tokens)),
            attention_tokens=_own(run.tokens.taken(chosen, run.attention_tokens)),
            fingerprints=samples.fingerprints,
            part=np.stack([numbers, turns]).astype(np.int32),
        ),
        samples,
        tuple(tuple(renumbered[number] for number in batch) for batch in batches),
        frozenset(renumbered[number] for number in plan.attended if number in renumbered),
    )


def _own(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows[rows >= 0]


def deal(plan: CapturePlan, ranks: int) -> list[list[tuple[int, ...]]]:
    """The batches of every process, in their order: each batch goes to the one with the fewest tokens so far."""
    dealt: list[list[tuple[int, ...]]] = [[] for _ in range(ranks)]
    waiting = [(0, rank) for rank in range(ranks)]
    for batch in plan.batches:
        tokens, rank = waiting[0]
        dealt[rank].append(batch)
        heapq.heapreplace(waiting, (tokens + plan.positions(batch), rank))
    return dealt
