"""Which profile belongs to which backbone, and whether the registry is in order."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinkscope.errors import InputError, ProfileError
from sinkscope.files import check_readable
from sinkscope.profile import Backbone, Profile, json_schema, parse_profile, read_profile
from sinkscope.registry.local import SCHEMA_FILE, packaged_folder

FINGERPRINT_FIELDS = ("hidden_size", "num_layers", "model_type", "num_heads", "num_kv_heads", "vocab_size")
REQUIRED_FIELDS = ("hidden_size", "num_layers")

Fingerprint = Mapping[str, Any] | Backbone


@dataclass(frozen=True)
class Problem:
    """Something wrong with the registry: the file, and one sentence on what and why."""

    path: Path
    message: str

    def __str__(self) -> str:
        return f"{self.path.name}: {self.message}"


def match(fingerprint: Fingerprint, profiles: Iterable[Profile]) -> list[Profile]:
    """The profiles that fit a backbone, best first.

    Width and depth must agree; model type, heads, key-value heads and vocabulary agree wherever both sides know them.
    Profiles that agree in more fields come first, then measured before literature ones, then by name.

    Parameters
    ----------
    fingerprint : mapping or Backbone
        As `Anatomy.fingerprint()` gives it.
    profiles : iterable of Profile
    """
    wanted = _fields(fingerprint)
    fitting = [profile for profile in profiles if _first_difference(_fields(profile.backbone), wanted) is None]

    def rank(profile: Profile) -> tuple[int, bool, str]:
        known = _fields(profile.backbone)
        agreeing = sum(known[name] is not None and known[name] == wanted[name] for name in FINGERPRINT_FIELDS)
        return -agreeing, profile.provenance.kind != "measured", profile.name

    return sorted(fitting, key=rank)


def only_match(fingerprint: Fingerprint, profiles: Iterable[Profile]) -> Profile:
    """The one profile that fits a backbone.

    Raises
    ------
    InputError
        If none fits, or several do: the message names them.
    """
    found = match(fingerprint, profiles)
    wanted = _fields(fingerprint)
    shape = ", ".join(f"{name} {wanted[name]}" for name in FINGERPRINT_FIELDS if wanted[name] is not None)
    if not found:
        raise InputError(f"no profile fits this backbone ({shape}); make one with `sinkscope profile`")
    if len(found) > 1:
        names = ", ".join(profile.name for profile in found)
        raise InputError(f"several profiles fit this backbone ({shape}): {names}; choose one with --profile")
    return found[0]


def check_backbone(profile: Profile, fingerprint: Fingerprint) -> None:
    """Refuse a profile that belongs to another backbone.

    Raises
    ------
    ProfileError
        Names the first field that differs, with both values.
    """
    wanted = _fields(fingerprint)
    known = _fields(profile.backbone)
    name = _first_difference(known, wanted)
    if name is not None:
        raise ProfileError(
            f"profile {profile.name} is for another backbone: its {name} is {known[name]}, the model's is "
            f"{wanted[name]}; choose a profile that fits, or make one with `sinkscope profile`"
        )


def check_registry(folder: Path | None = None) -> list[Problem]:
    """Check every profile that comes with sinkscope, and the schema beside them.

    Each file must be a valid profile that survives a JSON round trip and is named as its file; no two share a name;
    a literature profile states its source; `schema.json` is what this version exports. Whether the numbers are true
    is not checked.

    Parameters
    ----------
    folder : Path, optional
        Another folder of profiles to check.
    """
    folder = packaged_folder() if folder is None else folder
    problems = [] if folder.is_dir() else [Problem(folder, "there is no such folder; install sinkscope anew")]
    names: Counter[str] = Counter()
    for path in sorted(folder.glob("*.json")):
        if path.name == SCHEMA_FILE:
            continue
        try:
            profile = read_profile(path)
            again = parse_profile(profile.to_json(), str(path))
        except ProfileError as error:
            problems.append(Problem(path, str(error)))
            continue
        names[profile.name] += 1
        if profile.name != path.stem:
            problems.append(Problem(path, f"holds the profile {profile.name!r}; name the file after it"))
        if names[profile.name] > 1:
            problems.append(Problem(path, f"a second profile with the name {profile.name!r}; rename one"))
        if again != profile:
            problems.append(Problem(path, "changes in a JSON round trip; save it anew with `Profile.save`"))
        if profile.provenance.kind == "literature" and not (profile.provenance.source or "").strip():
            problems.append(Problem(path, "a literature profile must name its source in provenance.source"))
    return problems + _check_schema(folder / SCHEMA_FILE)


def _check_schema(path: Path) -> list[Problem]:
    remedy = "write it with `python -m sinkscope.registry.export_schema`"
    try:
        check_readable(path)
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return [Problem(path, f"missing or unreadable; {remedy}")]
    return [] if stored == json_schema() else [Problem(path, f"differs from this version's schema; {remedy}")]


def _fields(fingerprint: Fingerprint) -> dict[str, Any]:
    if isinstance(fingerprint, Backbone):
        fingerprint = fingerprint.model_dump()
    missing = [name for name in REQUIRED_FIELDS if fingerprint.get(name) is None]
    if missing:
        raise InputError(f"a backbone's fingerprint needs {' and '.join(missing)}; see `sinkscope inspect`")
    return {name: fingerprint.get(name) for name in FINGERPRINT_FIELDS}


def _first_difference(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    return next(
        (
            name
            for name in FINGERPRINT_FIELDS
            if known[name] is not None and wanted[name] is not None and known[name] != wanted[name]
        ),
        None,
    )
