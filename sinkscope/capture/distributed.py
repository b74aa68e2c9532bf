"""A capture run of several processes: each its share of the batches and its own run file, merged by the first.

::

    rank 0   plan ── share 0 ──> RUN.rank0.h5 ─┐
    rank 1   plan ── share 1 ──> RUN.rank1.h5 ─┼─ all done ──> rank 0: RUN.h5
    rank 2   plan ── share 2 ──> RUN.rank2.h5 ─┘

Every process makes the plan of the whole run, so nothing but small facts goes from one to another: over gloo, whatever
the devices are. A process that is killed leaves its file; the next start with the same number of processes goes on with
all of them.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as distributed

from sinkscope.backbone.loading import LoadedModel
from sinkscope.calibration import Sample
from sinkscope.capture.batch_size import batch_tokens
from sinkscope.capture.measuring import Progress, measure
from sinkscope.capture.planning import CapturePlan
from sinkscope.capture.runner import evaluating, open_run, prepare
from sinkscope.capture.runner import run as run_alone
from sinkscope.capture.settings import CaptureSettings
from sinkscope.capture.shares import share_of
from sinkscope.errors import SinkscopeError, StoreError
from sinkscope.processes import Process, share_path, share_paths, this_process
from sinkscope.store.integrity import header_checksum
from sinkscope.store.lock import WriterLock
from sinkscope.store.merge import merge
from sinkscope.store.reader import RunReader
from sinkscope.store.structure import normalised
from sinkscope.store.writer import refuse_difference

Result = TypeVar("Result")

PATIENCE = timedelta(days=365)
"""How long a process waits for others, whose shares may take days; those that died are noticed at once."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, and what they tell each other. Made by `joined`.

    Attributes
    ----------
    process : Process
        This one.
    group : process group or None
        None where it is alone.
    """

    process: Process
    group: Any = None

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank; waits for all of them.

        Raises
        ------
        SinkscopeError
            If another process has died.
        """
        if self.process.is_alone:
            return [value]
        values: list[Any] = [None] * self.process.size
        try:
            distributed.all_gather_object(values, value, group=self.group)
        except RuntimeError as error:
            raise SinkscopeError(
                "another process of the run has ended; what all have measured is kept, start them again with --resume"
            ) from error
        return values

    def from_first(self, function: Callable[[], Result]) -> Result:
        """What `function` gives in the first process, in all of them; the others do not call it."""
        result: Result = self.gather(function() if self.process.is_first else None)[0]
        return result


@contextlib.contextmanager
def joined(process: Process | None = None) -> Iterator[Ranks]:
    """The processes that torchrun has started, connected inside the block; just this one without torchrun."""
    process = process or this_process()
    if process.is_alone:
        yield Ranks(process)
        return
    begun_here = not distributed.is_initialized()
    if begun_here:
        distributed.init_process_group("gloo", timeout=PATIENCE)
    group = distributed.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield Ranks(process, group)
    finally:
        distributed.destroy_process_group(None if begun_here else group)


def run(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    run_path: str | os.PathLike[str],
    settings: CaptureSettings | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    *,
    source: str = "given samples",
    ranks: Ranks | None = None,
) -> Path:
    """Measure a model on calibration samples together with other processes, or alone, and write the run file.

    The parameters and errors are those of `sinkscope.capture.runner.run`; and:

    Parameters
    ----------
    ranks : Ranks, optional
        The processes; all of them must call this with the same arguments. The folder of `run_path` must be one for all.
        `progress` is told about this process's share.

    Raises
    ------
    SinkscopeError
        If the processes do not agree in model and data, do not see the same folder, or one has died.
    """
    path = Path(run_path)
    chosen = settings or CaptureSettings()
    if ranks is None or ranks.process.is_alone:
        _refuse_other_size(path, 1)
        return run_alone(loaded, samples, path, chosen, resume, progress, source=source)
    rank, size = ranks.process.rank, ranks.process.size
    begun = next(iter([path] if path.exists() else share_paths(path)), None) if resume else None
    tokens = ranks.from_first(lambda: batch_tokens(loaded, chosen, begun))
    chosen = replace(chosen, batch_tokens=tokens)
    with evaluating(loaded.model):
        entry, plan = prepare(loaded, samples, chosen, source)
        _refuse_other_plans(ranks.gather(header_checksum(plan.run)))
        with _held(path, ranks):
            if ranks.from_first(lambda: _is_done(path, plan, size, resume)):
                return path
            share = share_of(plan, rank, size)
            if share is not None:
                with open_run(share_path(path, rank), share, resume) as writer:
                    measure(loaded, entry, share, writer, chosen, progress)
            written = ranks.gather(share is not None)
        ranks.from_first(lambda: merge([share_path(path, other) for other in range(size) if written[other]], path))
    return path


@contextlib.contextmanager
def _held(path: Path, ranks: Ranks) -> Iterator[None]:
    """Keep other runs from `path` inside the block, which the first process does for all.

    Raises
    ------
    SinkscopeError
        If the others do not see its lock: the folder is another one there.
    """
    with contextlib.ExitStack() as stack:
        if ranks.process.is_first:
            stack.enter_context(WriterLock(path))
        ranks.gather(None)
        seen = ranks.gather(WriterLock.place(path).exists())
        if not all(seen):
            raise SinkscopeError(
                f"process {seen.index(False)} does not see what process 0 writes to {path.parent}; choose a folder for "
                "--run that all machines share"
            )
        yield


def _is_done(path: Path, plan: CapturePlan, size: int, resume: bool) -> bool:
    """Whether the run file is there already, complete.

    Raises
    ------
    StoreError
        If it is there and may not be used, or the files of single processes are of another number of them.
    """
    if path.exists():
        if not resume:
            raise StoreError(f"{path} exists already; go on with --resume, or delete it or choose another --run")
        with RunReader(path) as reader:
            done, total = reader.progress
            if done < total:
                raise StoreError(
                    f"{path} is the unfinished run of one process; go on with it without torchrun, or choose another "
                    "--run"
                )
            refuse_difference(path, reader.plan, normalised(plan.run))
        return True
    _refuse_other_size(path, min(size, len(plan.batches)))
    return False


def _refuse_other_size(path: Path, size: int) -> None:
    """Refuse to go on with the files of another number of processes, whose shares were others."""
    for found in [] if path.exists() else share_paths(path):
        with RunReader(found) as reader:
            ranks = reader.attributes.calibration.get("part", {}).get("ranks")
        if ranks != size:
            raise StoreError(
                f"{found} is part of a run of {ranks} processes, not {size}; go on with as many, delete the files of "
                "all ranks, or choose another --run"
            )


def _refuse_other_plans(checksums: list[int]) -> None:
    for rank, value in enumerate(checksums):
        if value != checksums[0]:
            raise SinkscopeError(
                f"process {rank} has another model, other calibration data or other library versions than process 0; "
                "give all of them the same"
            )
