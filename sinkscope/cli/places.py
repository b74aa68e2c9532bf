"""Output files: their names, and whether they can be written, found out before any work is done."""

import re
import tempfile
from pathlib import Path

from sinkscope.errors import InputError


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
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; name a file with {option}")
    _try_writing(folder, f"cannot write {path}", option)


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
