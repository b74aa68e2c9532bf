"""Batches are dealt as the definition says, for any number of processes."""

import itertools
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from sinkscope.capture.shares import deal


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), max_size=40), st.integers(1, 70))
def test_each_batch_goes_to_the_process_with_the_fewest_tokens(lengths: list[list[int]], ranks: int) -> None:
    numbers = itertools.count()
    batches = tuple(tuple(next(numbers) for _ in batch) for batch in lengths)
    sizes = dict(zip(batches, (len(own) * max(own) for own in lengths), strict=True))
    plan: Any = SimpleNamespace(batches=batches, positions=sizes.get)
    dealt: list[list[tuple[int, ...]]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for batch, own in zip(batches, lengths, strict=True):
        rank = tokens.index(min(tokens))  # Of equals the first.
        dealt[rank].append(batch)
        tokens[rank] += len(own) * max(own)
    assert deal(plan, ranks) == dealt
