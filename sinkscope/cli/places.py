"""Output files: their names, and whether they can be written, found out before any work is done."""

import json
import re
import tempfile
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path

from sinkscope.errors import InputError

ROOM_IN_NAME = 32
"""Locks and unfinished files beside an output have names that are longer by so much at most."""
PROFILE_FIELDS = {"name", "verdict", "backbone"}


def short_name(model: str) -> str:
    """A file name for what belongs to `model`: ``llava-hf/LLaVA-1.5-7b-hf`` gives ``llava-1.5-7b-hf``."""
    if model.startswith("demo:"):
        base = model.replace(":", "-")
    else:
        path = Path(model)
        base = (path if path.name else path.resolve()).name
        if base in {".", ".."}:
            base = path.resolve().name
        if base.lower().endswith(".gguf"):
            base = base[: -len(".gguf")]
    return re.sub(r"[^a-z0-9._-]+", "-", base.lower()).strip("-.") or "model"


def bytes_on_disk(path: Path) -> int:
    """The bytes that the file at `path` takes up so far, without space that is only reserved; 0 where there is none."""
    try:
        status = path.stat()
    except OSError:
        return 0
    blocks = getattr(status, "st_blocks", None)  # Windows has none.
    return status.st_size if blocks is None else min(status.st_size, blocks * 512)


def check_writable(path: Path, option: str) -> None:
    """Raise `InputError` if a file at `path` could not be made or replaced; `option` is what the user may change."""
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {folder}; make it first or change {option}")
    try:
        is_folder = path.is_dir()
        if not is_folder:
            path.with_name(path.name + "-" * ROOM_IN_NAME).exists()  # Raises where the name is too long.
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another name with {option}") from error
    if is_folder:
        raise InputError(f"cannot write {path}: it is a folder; name a file with {option}")
    _try_writing(folder, f"cannot write {path}", option)


def check_profile(path: Path, option: str) -> None:
    """Raise `InputError` if a profile could not be written to `path`, or would replace what is no profile."""
    check_writable(path, option)
    if path.is_file() and path.stat().st_size and not _is_profile(path):
        raise InputError(f"{path} is there and is no profile; keep it and choose another: {option}")


def check_present(path: Path, option: str) -> None:
    """Raise `InputError` if there is nothing at `path`, which `option` names."""
    try:
        present = path.exists()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; check {option}") from error
    if not present:
        raise InputError(f"there is nothing at {path}; check {option}")


def refuse_same(outputs: Sequence[tuple[str, Path | None]], inputs: Sequence[tuple[str, Path | None]] = ()) -> None:
    """Raise `InputError` where an output is also another file of the command, which it would destroy.

    Parameters
    ----------
    outputs, inputs : sequence of (str, Path or None)
        Files, each after the option that names it; None where it is not given. Those that do not exist are compared by
        their names, without links.
    """
    for (option, path), (other, place) in (*combinations(outputs, 2), *product(outputs, inputs)):
        if path is not None and place is not None and _same(path, place):
            raise InputError(f"{option} and {other} are one file, {path}; choose another {option}")


def _same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        pass
    try:
        return path.resolve() == other.resolve()
    except (OSError, RuntimeError):  # Names that are too long, and links in a circle: refused where they are opened.
        return False


def _is_profile(path: Path) -> bool:
    """Whether a file looks like a profile, of whatever version, valid or not."""
    try:
        with path.open("rb") as file:
            if not file.read(64).lstrip().startswith(b"{"):
                return False
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and data.keys() >= PROFILE_FIELDS


def make_folder(path: Path, option: str) -> Path:
    """Make the folder `path` where it does not exist, and check that files can be written into it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror}; choose another with {option}") from error
    _try_writing(path, f"cannot write into {path}", option)
    return path


def _try_writing(folder: Path, problem: str, option: str) -> None:
    """Make a file without a name, because permission bits do not tell about read-only and full file systems."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{problem}: {error.strerror}; choose another place with {option}") from error
