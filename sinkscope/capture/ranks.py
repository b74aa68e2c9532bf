"""The processes of a run, and what they tell each other: small facts, over gloo, whatever the devices are."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as distributed

from sinkscope.backbone.tensor_parallel import Team
from sinkscope.errors import SinkscopeError
from sinkscope.processes import Process, this_process

Result = TypeVar("Result")

ENDED = "another process of the run has ended; what all have measured is kept, start them again with --resume"

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
            raise SinkscopeError(ENDED) from error
        return values

    def from_first(self, function: Callable[[], Result], team: Team | None = None) -> Result:
        """What `function` gives in the first process, in all of them; the others do not call it.

        Parameters
        ----------
        function : callable
        team : Team, optional
            This process's, where the function runs the model or reads its weights: then all of the first team call it.
        """
        found = function() if self.process.is_first or (team is not None and 0 in team.ranks) else None
        result: Result = self.gather(found if self.process.is_first else None)[0]
        return result


@contextlib.contextmanager
def joined(process: Process | None = None) -> Iterator[Ranks]:
    """The processes that torchrun has started, connected inside the block; just this one without torchrun.

    Models that several processes hold together are loaded inside: there the processes' accelerators are connected, too.
    """
    process = process or this_process()
    if process.is_alone:
        yield Ranks(process)
        return
    begun_here = not distributed.is_initialized()
    if begun_here:
        distributed.init_process_group(_backends(), timeout=PATIENCE)
    group = distributed.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield Ranks(process, group)
    finally:
        distributed.destroy_process_group(None if begun_here else group)


def _backends() -> str:
    """gloo, and beside it NCCL for CUDA devices; that connects nothing before a model needs it."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
