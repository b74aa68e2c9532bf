"""The batches of a run through the model, one after another, into the run file."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from sinkscope.backbone.attention import attention_tap
from sinkscope.backbone.hooks import entering_states
from sinkscope.backbone.loading import LoadedModel
from sinkscope.backbone.running import FAILURES, failed_pass, forward
from sinkscope.backbone.tensor_parallel import team_of
from sinkscope.backbone.trial import TextEntry
from sinkscope.capture.attention import AttentionMeter, DrawnAttention
from sinkscope.capture.collected import CollectedBatch
from sinkscope.capture.collector import Collector
from sinkscope.capture.encode import model_inputs
from sinkscope.capture.planning import CapturePlan
from sinkscope.capture.settings import CaptureSettings
from sinkscope.errors import SinkscopeError, is_out_of_memory
from sinkscope.store.background import BackgroundWriter
from sinkscope.store.layout import SampleRows
from sinkscope.store.writer import RunWriter

Progress = Callable[[int, int], None]
"""Called after every batch with the tokens done and the tokens in all."""

RowsOf = Callable[[], list[SampleRows]]
"""Waits for the rows of a pass."""


def measure(
    loaded: LoadedModel,
    entry: TextEntry,
    plan: CapturePlan,
    writer: RunWriter,
    settings: CaptureSettings,
    progress: Progress | None,
) -> None:
    """All batches that the file does not hold yet; one that is too large for the memory goes in halves."""
    if writer.is_complete:
        return
    collector = Collector(plan.run)
    collector.restore(writer.statistics())
    passes = Passes(loaded, entry, plan, collector)
    with BackgroundWriter(writer, settings.commit_seconds) as background:
        for batch in batches_left(plan, writer.samples_done):
            parts = list(passes(batch))
            background.write(partial(all_rows, parts), collector.snapshot())
            if progress is not None:
                progress(collector.count, len(plan.run.tokens))
        background.complete(collector.snapshot())


def batches_left(plan: CapturePlan, samples_done: int) -> Iterator[tuple[int, ...]]:
    """The batches of which a file with so many samples does not hold all."""
    before = 0
    for batch in plan.batches:
        before += len(batch)
        if before > samples_done:
            yield batch


def all_rows(parts: Sequence[RowsOf]) -> Iterator[SampleRows]:
    """The rows of all parts of a batch, waiting for each."""
    for part in parts:
        yield from part()


class Passes:
    """Runs the model over batches.

    Parameters
    ----------
    loaded : LoadedModel
    entry : TextEntry
        How the model is run on texts.
    plan : CapturePlan
    collector : Collector
        Takes the hidden states.

    Attributes
    ----------
    most : int or None
        So many positions of a batch, padding included, are tried at most, once memory has run out.
    """

    def __init__(self, loaded: LoadedModel, entry: TextEntry, plan: CapturePlan, collector: Collector) -> None:
        self.loaded = loaded
        self.entry = entry
        self.plan = plan
        self.collector = collector
        self.team = team_of(loaded.model)
        self.meter = AttentionMeter(loaded.anatomy.num_layers, self.team)
        self.most: int | None = None

    def __call__(self, batch: tuple[int, ...]) -> Iterator[RowsOf]:
        """Run a batch, in halves where it does not fit; for each part, a function that waits for its rows."""
        positions = self.plan.positions(batch)
        fits = self.most is None or positions <= self.most or len(batch) == 1
        if fits and (rows := self._one(batch, positions)) is not None:
            yield rows
            return
        half = -(-len(batch) // 2)
        yield from self(batch[:half])
        yield from self(batch[half:])

    def _one(self, batch: tuple[int, ...], positions: int) -> RowsOf | None:
        """Run a batch at once; None where memory runs out and it can be halved."""
        try:
            return self._pass(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.collector.discard()
            if self.team.size > 1:
                # The others of the team wait inside of the pass for what this process will not compute.
                raise SinkscopeError(
                    f"out of memory in a batch of {positions} tokens, which processes that hold a model together "
                    "cannot halve; give each model more processes (--tensor-parallel), load it with --dtype bfloat16, "
                    "or give shorter texts or smaller pictures"
                ) from error
            if len(batch) == 1:
                raise SinkscopeError(
                    f"out of memory in one sample of {positions} tokens; load the model with --dtype bfloat16, use "
                    "another --device, or give shorter texts or smaller pictures"
                ) from error
        # Outside of the handler, so that its traceback holds no tensors any more.
        self.most = positions // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def _pass(self, batch: tuple[int, ...]) -> RowsOf:
        """One forward pass; a function that waits for the rows of its samples."""
        samples = [self.plan.samples[sample] for sample in batch]
        inputs, valid = model_inputs(self.loaded, samples)
        module = self.loaded.model
        if not samples[0].has_images:
            module, inputs = self.entry.module, self.entry.complete(inputs)
        attended = batch[0] in self.plan.attended
        self.collector.begin(batch, valid)
        with contextlib.ExitStack() as stack:
            if attended:
                self.meter.begin(valid)
                stack.enter_context(attention_tap(self.loaded.model, self.loaded.anatomy, self.meter))
            stack.enter_context(entering_states(self.loaded.model, self.loaded.anatomy, self.collector))
            try:
                forward(module, inputs)
            except SinkscopeError:
                raise
            except FAILURES as error:
                if is_out_of_memory(error):
                    raise
                raise failed_pass(self.loaded.model_id, error) from error
        collected = self.collector.close()
        if not attended:
            return collected.rows
        drawn = self.meter.finish()
        return lambda: with_attention(collected, drawn, valid)


def with_attention(collected: CollectedBatch, drawn: DrawnAttention, valid: NDArray[np.bool_]) -> list[SampleRows]:
    """The rows of a batch with what was measured of its attention."""
    return [
        replace(
            entry,
            drawn=drawn.drawn[place][valid[place]],
            expected=drawn.expected[place][valid[place]],
            value_norm=drawn.value_norm[place][valid[place]],
            later_queries=np.arange(valid[place].sum() - 1, -1, -1, dtype=np.int32),
        )
        for place, entry in enumerate(collected.rows())
    ]
