"""Text files and JSON lines, read with messages that name the file and the line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sinkscope.errors import InputError


def read_utf8(path: Path, what: str = "") -> str:
    """The text of a file, without a byte order mark.

    Parameters
    ----------
    path : Path
    what : str
        Named before the path where the file cannot be read, such as "the texts ".

    Raises
    ------
    InputError
        If it cannot be read or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}); convert it, say with iconv") from error
    except OSError as error:
        raise InputError(f"cannot read {what}{path}: {error.strerror}") from error


def parse_objects(path: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every line of `content` that is not blank; what is no object counts as an empty one.

    Raises
    ------
    InputError
        At a line that is not valid JSON; `path` is named.
    """
    # Not splitlines: JSON strings may hold other line separators, such as U+2028.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"line {number} of {path} is not valid JSON ({error}); write one object per line"
            ) from error
        yield number, entry if isinstance(entry, dict) else {}
