"""Whether two runs gave the same: every byte of their run files that counts, and their profiles but for the date."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from benchmarks.faults.subject import PROFILE, RUN
from sinkscope.errors import SinkscopeError
from sinkscope.store.layout import STATISTICS_GROUPS
from sinkscope.store.reader import RunReader

JOURNAL = ("progress/record", "progress/seal")
"""What a file says about how it was written. The accumulators that are not in force belong to it, too."""


def profile_document(path: Path) -> dict[str, Any]:
    """The profile without the date."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    document["provenance"].pop("date")
    return document


def contents(path: Path) -> dict[str, Any]:
    """All attributes and datasets of a complete run file, but for its journal."""
    found: dict[str, Any] = {}

    def take(name: str, entry: Any) -> None:
        if isinstance(entry, h5py.Dataset) and name not in JOURNAL and not name.startswith(f"{STATISTICS_GROUPS[1]}/"):
            values = np.asarray(entry[()])
            found[name] = values.tolist() if values.dtype == object else values.tobytes()

    with h5py.File(path, locking=False) as file:
        found |= {f"attribute {name}": str(value) for name, value in file.attrs.items()}
        file.visititems(take)
    return found


def differences(folder: Path, whole: Path) -> list[str]:
    """What is not the same after a run that was disturbed, in `folder`, as after one that was not, in `whole`."""
    try:
        found, wanted = (profile_document(place / PROFILE) for place in (folder, whole))
        problems = [f"profile: {name} differs" for name in wanted if found.get(name) != wanted[name]]
        ours, others = contents(folder / RUN), contents(whole / RUN)
    except (OSError, ValueError, KeyError) as error:
        return [f"a file cannot be read: {error}"]
    return problems + [f"run file: {name} differs" for name in {*ours, *others} if ours.get(name) != others.get(name)]


def leftovers(folder: Path, *wanted: str) -> list[str]:
    """Names in a folder that do not belong there."""
    return [f"{path.name} is left behind" for path in sorted(folder.iterdir()) if path.name not in wanted]


def state(folder: Path) -> tuple[str, list[str]]:
    """How far the run in a folder is, and what is wrong with its files; every byte that counts is checked."""
    if (folder / PROFILE).exists():
        profile_document(folder / PROFILE)
        return "profile saved", []
    if not (folder / RUN).exists():
        return "no file yet", []
    try:
        with RunReader(folder / RUN) as reader:
            reader.verify()
            done, total = reader.progress
            if reader.attributes.status == "complete":
                return "complete, no profile", []
            return ("begun, no sample" if done == 0 else "some samples" if done < total else "all samples"), []
    except SinkscopeError as error:
        return "unreadable", [f"the run file cannot be read: {error}"]
