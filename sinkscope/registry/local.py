"""Profiles on this machine: the user's folder first, then the registry that comes with sinkscope."""

import difflib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs

from sinkscope.errors import InputError, ProfileError
from sinkscope.profile import Profile, read_profile

USER_FOLDER_VARIABLE = "SINKSCOPE_PROFILES"
SCHEMA_FILE = "schema.json"

Origin = Literal["user", "packaged"]


@dataclass(frozen=True)
class Entry:
    """One profile file of the registry.

    Attributes
    ----------
    name : str
        The profile's name; the file name without ``.json`` where the file cannot be read.
    path : Path
    origin : "user" or "packaged"
    profile : Profile or None
        None where the file is not a valid profile.
    error : ProfileError or None
        Why it is not.
    """

    name: str
    path: Path
    origin: Origin
    profile: Profile | None = None
    error: ProfileError | None = None

    def read(self) -> Profile:
        """The profile.

        Raises
        ------
        ProfileError
            If the file is not a valid profile.
        """
        if self.profile is None:
            raise self.error or ProfileError(f"cannot read profile {self.path}")
        return self.profile


def user_folder() -> Path:
    """Where the user keeps profiles: $SINKSCOPE_PROFILES, or the platform's data folder. It need not exist."""
    chosen = os.environ.get(USER_FOLDER_VARIABLE)
    return Path(chosen).expanduser() if chosen else platformdirs.user_data_path("sinkscope") / "profiles"


def packaged_folder() -> Path:
    """Where the profiles that come with sinkscope are: inside the wheel, or next to the package in a checkout."""
    inside = Path(__file__).parent / "profiles"
    root = Path(__file__).parents[2]
    # Without the project file the neighbour is not a checkout but whatever lies beside an installed package.
    return inside if inside.is_dir() or not (root / "pyproject.toml").is_file() else root / "profiles"


def list_profiles() -> list[Entry]:
    """All profiles, the user's first, by name. A file that is no valid profile is listed with its error."""
    return _read_folder(user_folder(), "user") + _read_folder(packaged_folder(), "packaged")


def load_profile(name_or_path: str | os.PathLike[str]) -> Profile:
    """Find and read a profile.

    Parameters
    ----------
    name_or_path : str or path
        A path (anything with a path separator, or ending ``.json``), the name of a profile, or the id of a model
        that a profile is known to fit. The user's profiles come before those that come with sinkscope, names before
        model ids.

    Raises
    ------
    InputError
        If there is no such profile, or several.
    ProfileError
        If it cannot be read or is not valid.
    """
    wanted = os.fspath(name_or_path)
    looks_like_path = isinstance(name_or_path, os.PathLike) or _is_path(wanted)
    if looks_like_path and Path(wanted).expanduser().is_file():
        return read_profile(Path(wanted).expanduser())
    # Ids such as "meta-llama/Llama-2-7b-hf" hold a separator too, so that a path which is no file may still be one.
    entries = list_profiles()
    found = _find(wanted, entries, lambda entry: [entry.name]) or _find(wanted, entries, _models)
    if found is not None:
        return found.read()
    if looks_like_path and wanted.endswith(".json"):
        raise ProfileError(
            f"cannot read profile {wanted}: there is no such file; `sinkscope registry list` names others"
        )
    raise InputError(_unknown(wanted, entries))


def _is_path(text: str) -> bool:
    separators = {"/", os.sep, os.altsep} - {None}
    return text.endswith(".json") or any(separator in text for separator in separators if separator)


def _read_folder(folder: Path, origin: Origin) -> list[Entry]:
    entries = []
    for path in folder.glob("*.json"):
        if path.name == SCHEMA_FILE or path.name.startswith("."):
            continue
        try:
            profile = read_profile(path)
            entries.append(Entry(profile.name, path, origin, profile))
        except ProfileError as error:
            entries.append(Entry(path.stem, path, origin, error=error))
    return sorted(entries, key=lambda entry: (entry.name, str(entry.path)))


def _models(entry: Entry) -> list[str]:
    return entry.profile.models if entry.profile is not None else []


def _find(wanted: str, entries: list[Entry], labels: Callable[[Entry], Iterable[str]]) -> Entry | None:
    """The entry that carries the label `wanted`: the user's before packaged ones, exact before ignoring case."""
    for origin in ("user", "packaged"):
        for fold in (str, str.casefold):
            found = [
                entry
                for entry in entries
                if entry.origin == origin and fold(wanted) in {fold(label) for label in labels(entry)}
            ]
            if len(found) > 1:
                candidates = ", ".join(f"{entry.name} ({entry.path})" for entry in found)
                raise InputError(f"{wanted!r} fits several profiles: {candidates}; give the path of one")
            if found:
                return found[0]
    return None


def _unknown(wanted: str, entries: list[Entry]) -> str:
    names = sorted({entry.name for entry in entries})
    folded = {label.casefold(): label for label in [*names, *(model for entry in entries for model in _models(entry))]}
    close = difflib.get_close_matches(wanted.casefold(), folded, n=3, cutoff=0.6)
    close = close or [label for label in folded if wanted and wanted.casefold() in label][:3]
    hint = f"did you mean {' or '.join(folded[label] for label in close)}? " if close else ""
    return f"no profile named {wanted!r}; {hint}available: {', '.join(names) or 'none'}"
