"""A capture run of several processes: each its share of the batches and its own run file, merged by the first.

::

    team 0   plan ── share 0 ──> RUN.rank0.h5 ─┐
    team 1   plan ── share 1 ──> RUN.rank1.h5 ─┼─ all done ──> rank 0: RUN.h5
    team 2   plan ── share 2 ──> RUN.rank2.h5 ─┘

A team is one process, or those that hold one model together (`sinkscope.backbone.tensor_parallel`): they run the same
passes, and the first of them writes. One team alone writes RUN.h5.

Every process makes the plan of the whole run, so nothing but small facts goes from one to another here: over gloo,
whatever the devices are. A process that is killed leaves its team's file; the next start with the same number of teams,
of whatever size, goes on with all of them.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch.distributed as distributed

from sinkscope.backbone.loading import LoadedModel
from sinkscope.backbone.tensor_parallel import Team, team_of
from sinkscope.backbone.trial import TextEntry
from sinkscope.calibration import Sample
from sinkscope.capture.batch_size import batch_tokens
from sinkscope.capture.following import follow
from sinkscope.capture.measuring import Progress, measure
from sinkscope.capture.planning import CapturePlan
from sinkscope.capture.ranks import ENDED, Ranks
from sinkscope.capture.runner import evaluating, open_run, prepare
from sinkscope.capture.runner import run as run_alone
from sinkscope.capture.settings import CaptureSettings
from sinkscope.capture.shares import share_of
from sinkscope.errors import SinkscopeError, StoreError
from sinkscope.processes import share_path, share_paths
from sinkscope.store.integrity import header_checksum
from sinkscope.store.lock import WriterLock
from sinkscope.store.merge import merge
from sinkscope.store.reader import RunReader
from sinkscope.store.structure import normalised
from sinkscope.store.writer import refuse_difference


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
        `progress` is told about this process's share, if it writes one.

    Raises
    ------
    SinkscopeError
        If the processes do not agree in model and data, or in who holds it, do not see the same folder, or one has
        died.
    """
    path = Path(run_path)
    chosen = settings or CaptureSettings()
    if ranks is None or ranks.process.is_alone:
        _refuse_other_size(path, 1)
        return run_alone(loaded, samples, path, chosen, resume, progress, source=source)
    team = team_of(loaded.model)
    teams = _agreed(ranks.gather(team.ranks))
    number, size = teams.index(team.ranks), len(teams)
    begun = next(iter([path] if path.exists() else share_paths(path)), None) if resume else None
    tokens = ranks.from_first(lambda: batch_tokens(loaded, chosen, begun))
    chosen = replace(chosen, batch_tokens=tokens)
    with evaluating(loaded.model):
        entry, plan = prepare(loaded, samples, chosen, source)
        _refuse_other_plans(ranks.gather(header_checksum(plan.run)))
        work = _Work(loaded, entry, chosen, resume, progress, ranks, team)
        if size == 1:
            ranks.from_first(lambda: _refuse_other_size(path, 1))
            work.measure(plan, path)
            return path
        with _held(path, ranks):
            if ranks.from_first(lambda: _is_done(path, plan, size, resume)):
                return path
            work.measure(share_of(plan, number, size), share_path(path, number))
        shares = [share_path(path, other) for other in range(min(size, len(plan.batches)))]
        ranks.from_first(lambda: merge(shares, path))
    return path


@dataclass(frozen=True)
class _Work:
    """What a process does on its team's share."""

    loaded: LoadedModel
    entry: TextEntry
    settings: CaptureSettings
    resume: bool
    progress: Progress | None
    ranks: Ranks
    team: Team

    def measure(self, share: CapturePlan | None, path: Path) -> None:
        """Compute a share together with the rest of the team, whose first process writes it to `path`."""
        first = self.team.ranks[0]
        with contextlib.ExitStack() as stack:
            writer = None
            if share is not None and self.ranks.process.rank == first:
                writer = stack.enter_context(open_run(path, share, self.resume))
            samples_done = self.ranks.gather(None if writer is None else writer.samples_done)[first]
            try:
                if share is not None and writer is not None:
                    measure(self.loaded, self.entry, share, writer, self.settings, self.progress)
                elif share is not None:
                    follow(self.loaded, self.entry, share, samples_done)
            except SinkscopeError as error:
                if self.team.size > 1 and _lost_another(error.__cause__):
                    raise SinkscopeError(ENDED) from error
                raise
        # All of the writers are closed when this returns, in every process.
        self.ranks.gather(None)


def _agreed(teams: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """All teams, the first process's first, of what each process says about its own.

    Raises
    ------
    SinkscopeError
        If they do not fit together.
    """
    for rank, team in enumerate(teams):
        if rank not in team or any(other >= len(teams) or teams[other] != team for other in team):
            raise SinkscopeError(
                f"process {rank} holds its model together with {list(team)}, which not all of these say of themselves; "
                "load the model in all processes in the same way"
            )
    return list(dict.fromkeys(teams))


def _lost_another(error: BaseException | None) -> bool:
    """Whether a pass failed because another process of the team is no longer there."""
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


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
        If it is there and may not be used, or the files of shares are of another number of them.
    """
    if path.exists():
        if not resume:
            raise StoreError(f"{path} exists already; go on with --resume, or delete it or choose another --run")
        with RunReader(path) as reader:
            done, total = reader.progress
            if done < total:
                raise StoreError(
                    f"{path} is the unfinished run of one process, or of one model in several; go on with it so, or "
                    "choose another --run"
                )
            refuse_difference(path, reader.plan, normalised(plan.run))
        return True
    _refuse_other_size(path, min(size, len(plan.batches)))
    return False


def _refuse_other_size(path: Path, size: int) -> None:
    """Refuse to go on with the files of another number of shares."""
    for found in [] if path.exists() else share_paths(path):
        with RunReader(found) as reader:
            ranks = reader.attributes.calibration.get("part", {}).get("ranks")
        if ranks != size:
            raise StoreError(
                f"{found} is one of {ranks} shares of a run, not of {size}; go on with as many processes, or models in "
                "several, delete the files of all shares, or choose another --run"
            )


def _refuse_other_plans(checksums: list[int]) -> None:
    for rank, value in enumerate(checksums):
        if value != checksums[0]:
            raise SinkscopeError(
                f"process {rank} has another model, other calibration data or other library versions than process 0; "
                "give all of them the same"
            )
