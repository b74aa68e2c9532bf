"""Text files and JSON lines, read line by line with messages that name the file and the line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sinkscope.errors import InputError
from sinkscope.files import check_readable

LONGEST_LINE = 2**24
"""Most bytes of a line: a longer one is no text of a person, and would be in memory several times over."""


def read_lines(path: Path, what: str = "") -> Iterator[tuple[int, str]]:
    """Number and text of every line of a UTF-8 file, with its line end and without a byte order mark.

    Parameters
    ----------
    path : Path
    what : str
        Named before the path where the file cannot be read, such as "the texts ".

    Raises
    ------
    InputError
        If the file cannot be read, is not UTF-8, holds zero bytes, or has a line of more than `LONGEST_LINE` bytes.
    """
    number = offset = 0
    try:
        check_readable(path)
        with path.open("rb") as file:
            while raw := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(raw) > LONGEST_LINE:
                    raise InputError(
                        f"line {number} of {path} has more than {LONGEST_LINE >> 20} MiB; write shorter lines"
                    )
                if b"\0" in raw:
                    raise InputError(
                        f"{path} is no text: it has a zero byte in line {number}; give a text file in UTF-8"
                    )
                line = raw.decode("utf-8")
                yield number, line.removeprefix("\ufeff") if number == 1 else line
                offset += len(raw)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {offset + error.start}); convert it, say with iconv") from error
    except OSError as error:
        raise InputError(f"cannot read {what}{path}: {error.strerror}") from error


def parse_objects(path: Path, what: str = "") -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of every line that is not blank; what is no object counts as an empty one.

    Raises
    ------
    InputError
        As `read_lines`, and at a line that is not valid JSON, or holds a lone surrogate.
    """
    for number, line in read_lines(path, what):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if "\\u" in line:
                # Escapes can write half a character, such as that of a text that was cut there. No tokenizer takes it.
                json.dumps(entry, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"line {number} of {path} holds half a character (the surrogate {error.object[error.start]!a}); "
                "write whole ones"
            ) from error
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"line {number} of {path} is not valid JSON ({error}); write one object per line"
            ) from error
        yield number, entry if isinstance(entry, dict) else {}
