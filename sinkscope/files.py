"""Input files: what is there is looked at before it is opened."""

import errno
import os
import stat
from pathlib import Path


def check_readable(path: str | os.PathLike[str]) -> None:
    """Raise an `OSError` where reading `path` could wait or go on for ever: at a pipe, a device or a socket.

    A folder passes: opening it fails by itself. So do links to files.
    """
    mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", os.fspath(path))
