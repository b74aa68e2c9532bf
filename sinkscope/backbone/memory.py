"""How much memory is free: on the machine, in the process's control groups, and under the limits set on the process."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from sinkscope.processes import this_process


@dataclass(frozen=True)
class GroupFiles:
    """Where one version of Linux' control groups keeps the numbers of a group.

    Attributes
    ----------
    root : Path
        The outermost group that is seen from here.
    limit, used : str
        Names of files, in bytes.
    cached : str
        The entry of ``memory.stat`` that counts files which are kept only while there is room.
    """

    root: Path
    limit: str
    used: str
    cached: str


UNIFIED = GroupFiles(Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file")
LEGACY = GroupFiles(
    Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
)


def free_memory() -> int:
    """Bytes of main memory that this process may still take; several of one run share what the machine has."""
    together = min([psutil.virtual_memory().available, *_in_groups()])
    return max(0, min([together // this_process().local_size, *_under_limits()]))


def _under_limits() -> Iterator[int]:
    """What ``ulimit -v`` and ``ulimit -d`` leave to this process."""
    with contextlib.suppress(ImportError):  # Windows has no such limits.
        import resource

        used = psutil.Process().memory_info()
        for limit, size in ((resource.RLIMIT_AS, used.vms), (resource.RLIMIT_DATA, getattr(used, "data", 0))):
            allowed, _ = resource.getrlimit(limit)
            if allowed != resource.RLIM_INFINITY:
                yield allowed - size


def _in_groups() -> Iterator[int]:
    """What the control groups around this process (of a container, a batch system) leave to it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            if not controllers or "memory" in controllers.split(","):
                yield from group_rooms(LEGACY if controllers else UNIFIED, own)


def group_rooms(files: GroupFiles, own: str) -> Iterator[int]:
    """What the group at the path `own` and those around it leave. A container sees its own group as the root."""
    group = files.root / own.lstrip("/")
    for place in {files.root, group, *(parent for parent in group.parents if files.root in parent.parents)}:
        # A group without a limit says "max".
        with contextlib.suppress(OSError, ValueError, KeyError):
            counts = dict(entry.split() for entry in (place / "memory.stat").read_text().splitlines())
            used = int((place / files.used).read_text()) - int(counts[files.cached])
            yield int((place / files.limit).read_text()) - used
