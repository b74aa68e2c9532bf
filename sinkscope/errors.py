"""The errors that users meet.

Every message is one line that says what is wrong and what to do about it. The command line prints it after
``sinkscope: error:`` and exits with the class's ``exit_code``.
"""

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Of an OSError: there is no room, on the disk, in what the user may take of it, or in a file."""


class SinkscopeError(Exception):
    """A run or a check that failed."""

    exit_code = 1


class InputError(SinkscopeError, ValueError):
    """Wrong use, or an input that cannot be used: a missing file, a malformed value."""

    exit_code = 2


class UnsupportedModelError(InputError):
    """The model's structure does not allow what was asked; the message says why."""


class ProfileError(InputError):
    """A profile that cannot be read, is not valid, or belongs to another backbone."""


class StoreError(InputError):
    """A run file that cannot be read, is damaged, or belongs to another run."""


class DiskError(StoreError, ProfileError):
    """A file that cannot be written because the disk is full or fails, where the wish for it was right."""

    exit_code = 1


class NonFiniteActivationError(SinkscopeError, ArithmeticError):
    """A hidden state holds NaN or infinity; the message names the layer, the sample and the dtype."""


def first_problem(error: "ValidationError", *within: str) -> str:
    """The first thing that pydantic found wrong, after the names of what it is in, on one line."""
    problem = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in (*within, *problem["loc"]))[:100]
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a device or the host; told without importing torch, which has no class for both."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"}:
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
