"""File systems of one's own, which no other process sees: of a limited size, or read-only. Linux only.

Root needs nothing for it; others need user namespaces, which some machines forbid.
"""

import ctypes
import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

NEW_MOUNTS, NEW_USER = 0x00020000, 0x10000000
READ_ONLY, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 32, 4096, 16384, 1 << 18
DETACH = 2


class NotAllowed(Exception):
    """Raised where this machine lets nobody mount anything."""


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives in a process of its own that may mount file systems.

    Raises
    ------
    NotAllowed
        If it may not.
    """
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=_apart, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        result, error = ours.recv()
    except EOFError:
        result, error = None, RuntimeError("the process that mounts file systems has died")
    process.join()
    if error is not None:
        raise error
    return result


def mount_limited(folder: Path, size: int) -> None:
    """A file system in memory of `size` bytes at `folder`, for the processes of `apart` only."""
    _mount("tmpfs", folder, "tmpfs", 0, f"size={size}")


def limit(folder: Path, size: int) -> None:
    """Give it another size."""
    _mount("tmpfs", folder, "tmpfs", REMOUNT, f"size={size}")


def mount_read_only(folder: Path) -> None:
    """Let nothing in `folder` be changed, not even by root, until `unmount`."""
    _mount(folder, folder, "", BIND, "")
    _mount(folder, folder, "", BIND | REMOUNT | READ_ONLY, "")


def unmount(folder: Path) -> None:
    """Take a file system away."""
    _called("umount2", os.fsencode(folder), DETACH)


def _apart(pipe: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        _leave()
    except (OSError, AttributeError) as error:
        pipe.send((None, NotAllowed(f"no file system can be mounted here: {error}")))
        return
    try:
        pipe.send((function(*arguments), None))
    except BaseException:
        pipe.send((None, RuntimeError(traceback.format_exc())))


def _leave() -> None:
    """Into a mount namespace, and for others than root a user namespace in which this process is root."""
    user, group = os.getuid(), os.getgid()
    _called("unshare", NEW_MOUNTS | (NEW_USER if user else 0))
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount("none", Path("/"), "", RECURSIVE | PRIVATE, "")


def _mount(source: str | Path, target: Path, kind: str, flags: int, options: str) -> None:
    words = [os.fsencode(word) for word in (source, target, kind)]
    _called("mount", *words, ctypes.c_ulong(flags), os.fsencode(options))


def _called(name: str, *arguments: Any) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
