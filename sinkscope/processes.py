"""Which of several processes this one is, as torchrun says in the environment. Importing this imports no torch."""

import glob
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sinkscope.errors import InputError

ANSWER_SECONDS = 3


@dataclass(frozen=True)
class Process:
    """One of the processes of a command.

    Attributes
    ----------
    rank, size : int
        Its number among all processes, and how many there are.
    local_rank, local_size : int
        The same on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    def launcher(self) -> list[str]:
        """The beginning of the command line that started this process."""
        if self.is_alone:
            return ["sinkscope"]
        # After the two dashes torchrun leaves all options alone; it would take --run for one of its own.
        return ["torchrun", "--nproc-per-node", str(self.local_size), "-m", "sinkscope", "--"]


def this_process() -> Process:
    """What torchrun, or a launcher that sets the same variables, says about this process; alone without one."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    values = [os.environ.get(name, "") for name in names]
    if not all(value.isdecimal() for value in values) or "MASTER_PORT" not in os.environ:
        return Process()
    return Process(*map(int, values))


def refuse_uneven_teams(process: Process, team_size: int) -> None:
    """Refuse processes that cannot hold models together, `team_size` of them one model.

    Raises
    ------
    InputError
        With how to start them.
    """
    if team_size < 1:
        raise InputError(f"{team_size} processes cannot hold a model; give 1 or more to --tensor-parallel")
    if process.is_alone and team_size > 1:
        raise InputError(
            f"a model in {team_size} processes needs that many; start with `torchrun --nproc-per-node {team_size} -m "
            "sinkscope -- profile ...`"
        )
    if process.size % team_size:
        raise InputError(
            f"{process.size} processes cannot be split into teams of {team_size}; start a multiple of {team_size}, or "
            "choose another --tensor-parallel"
        )


def share_path(run_path: Path, share: int) -> Path:
    """The run file of one of several shares of a run: ``RUN.rank0.h5`` beside ``RUN.h5``."""
    return run_path.with_name(f"{run_path.stem}.rank{share}{run_path.suffix}")


def share_paths(run_path: Path) -> list[Path]:
    """The run files of single processes that are there beside a run file."""
    pattern = f"{glob.escape(run_path.stem)}.rank[0-9]*{glob.escape(run_path.suffix)}"
    return sorted(run_path.parent.glob(pattern))


def first_to_fail() -> bool:
    """Whether no other process has failed before this one, so that it is the one to say why.

    One mistake, such as a file that is missing, mostly stops all processes at once: one line about it is enough.
    """
    if this_process().is_alone:
        return True
    import torch.distributed as distributed

    try:
        store = distributed.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=ANSWER_SECONDS),
        )
        # Processes that are started again after a failure may fail again.
        return store.add(f"sinkscope/failures/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    except (RuntimeError, ValueError, KeyError):  # Nobody there to ask, so nobody else may have said it.
        return True


def team_file(run_path: Path, process: Process, team_size: int = 1) -> Path:
    """The run file that the team of a process writes: `run_path` itself where there is one team."""
    return run_path if process.size == team_size else share_path(run_path, process.rank // team_size)


def share_devices(process: Process) -> None:
    """Let this process see only its part of the machine's CUDA devices, so that "auto" and "cuda" mean these.

    With as many devices as processes each has one; with more, the next ones too, over which a large model is spread.
    Must be called before CUDA is used.
    """
    import torch

    # Counted by the driver's own library; whether CUDA is available is not asked, for that would use it.
    count = torch.cuda.device_count()
    if process.local_size == 1 or not count:
        return
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = named.split(",") if named else [str(number) for number in range(count)]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(device_share(devices, process.local_rank, process.local_size))


def device_share(devices: list[str], local_rank: int, local_size: int) -> list[str]:
    """The devices of one of `local_size` processes: neighbours, none of them shared where there are enough."""
    if len(devices) < local_size:
        return [devices[local_rank % len(devices)]]
    return devices[local_rank * len(devices) // local_size : (local_rank + 1) * len(devices) // local_size]
