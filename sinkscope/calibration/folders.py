"""The files of a folder that calibration data are read from."""

from collections.abc import Sequence
from pathlib import Path


def files_in(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """What is directly in `folder` with one of the endings, by name; without folders and hidden files, such as those
    that some systems put beside others (``._a.txt``)."""
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in suffixes and not entry.name.startswith(".") and not entry.is_dir()
    )
