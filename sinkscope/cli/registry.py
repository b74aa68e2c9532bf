"""``sinkscope registry``: the profiles on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sinkscope.cli.output import json_option, note, print_json, print_rich, quiet_libraries, quiet_stdout
from sinkscope.errors import ProfileError, SinkscopeError

if TYPE_CHECKING:
    from sinkscope.profile import Profile
    from sinkscope.registry import Entry

EXAMPLES = """\b
Examples:
  sinkscope registry list
  sinkscope registry show llava-1.5-7b
  sinkscope registry check
  sinkscope registry check my-profile.json --model ./my-model
"""


@click.group("registry", short_help="List, show and check profiles.", epilog=EXAMPLES, invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List, show and check the profiles on this machine.

    Profiles come with sinkscope, or lie in your own folder (set SINKSCOPE_PROFILES to choose it).
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@command.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List all profiles: your own first, then those that come with sinkscope."""
    from sinkscope.registry import list_profiles, user_folder

    entries = list_profiles()
    if as_json:
        print_json({"profiles": [_row(entry) for entry in entries]})
        return
    from rich.table import Table

    table = Table("name", "verdict", "backbone", "sink dimensions", "kind", "from", box=None, pad_edge=False)
    for entry in entries:
        row = _row(entry)
        dims = ", ".join(map(str, row["dims"])) or "none"
        shape = f"{row['model_type']} {row['num_layers']} x {row['hidden_size']}"
        if entry.profile is None:
            table.add_row(entry.name, "cannot be read", "", "", "", entry.origin)
        else:
            table.add_row(entry.name, row["verdict"], shape, dims, row["kind"], entry.origin)
    print_rich(table)
    for entry in entries:
        if entry.error is not None:
            note(f"{entry.path}: {entry.error}")
    note(f"your own profiles: {user_folder()}")


@command.command("show")
@click.argument("name", metavar="NAME|PATH")
@json_option
def show_command(name: str, as_json: bool) -> None:
    """Show one profile: by name, by the id of a model that it fits, or by path."""
    from sinkscope.registry import load_profile

    profile = load_profile(name)
    if as_json:
        print_json(profile.to_json())
        return
    from sinkscope.report import profile_summary

    print_rich(profile_summary(profile))


@command.command("check")
@click.argument("names", metavar="[NAME|PATH]...", nargs=-1)
@click.option("--model", metavar="MODEL", help="Also check that the profiles are for the backbone of this model.")
@click.option("--weights", metavar="MODEL", help="Also hold the dimensions of NAME against the weights of this model.")
@json_option
def check_command(names: tuple[str, ...], model: str | None, weights: str | None, as_json: bool) -> None:
    """Check profiles: valid, consistent, unchanged by a JSON round trip, and for the backbone of --model.

    Without NAME it checks all that come with sinkscope, and your own. Whether the numbers are true is not checked, but
    for the dimensions, which --weights compares with what the weights say. Exit code 1 where there is a problem.
    """
    if weights is not None and not names:
        raise click.UsageError("--weights compares one or more profiles: name them")
    fingerprint = None
    if model is not None:
        from sinkscope.cli.inspect import anatomy_of

        fingerprint = anatomy_of(model).fingerprint()
    if names:
        checked, problems = len(names), [problem for name in names for problem in _problems(name, fingerprint)]
    else:
        checked, problems = _check_all(fingerprint)
    said: list[dict[str, Any]] = []
    if weights is not None and not problems:
        said, problems = _against_weights(names, weights)
    if as_json:
        document = {"ok": not problems, "checked": checked, "problems": problems}
        print_json(document | ({"weights": said} if weights is not None else {}))
    elif not problems:
        for entry in said:
            print_rich(f"{entry['profile']}: {entry['sentence']}")
        print_rich(f"{checked} profile{'' if checked == 1 else 's'}: no problem found")
    if problems:
        shown = "; ".join(f"{problem['profile']}: {problem['message']}" for problem in problems[:3])
        more = f"; and {len(problems) - 3} more (--json lists them)" if len(problems) > 3 else ""
        raise SinkscopeError(f"{len(problems)} problem{'' if len(problems) == 1 else 's'} found: {shown}{more}")


def _against_weights(names: tuple[str, ...], model: str) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """What the weights say of each profile, and where they disagree."""
    with quiet_stdout(), quiet_libraries():
        from sinkscope.pipeline import resolve
        from sinkscope.registry import load_profile
        from sinkscope.weights import compare, predict

        prediction = predict(resolve(model))
        said = [{"profile": name} | compare(load_profile(name), prediction) for name in names]
    return said, [{"profile": entry["profile"], "message": entry["sentence"]} for entry in said if not entry["agrees"]]


def _check_all(fingerprint: dict[str, Any] | None) -> tuple[int, list[dict[str, str]]]:
    from sinkscope.registry import check_registry, list_profiles

    problems = [{"profile": problem.path.name, "message": problem.message} for problem in check_registry()]
    entries = list_profiles()
    for entry in entries:
        if entry.error is not None and entry.origin == "user":
            problems.append({"profile": str(entry.path), "message": str(entry.error)})
        elif entry.profile is not None and fingerprint is not None:
            problems += _mismatch(entry.name, entry.profile, fingerprint)
    return len(entries), problems


def _problems(name: str, fingerprint: dict[str, Any] | None) -> list[dict[str, str]]:
    """The problems of one profile. One that does not exist is wrong use and raises; a broken one is a finding."""
    from sinkscope.profile import parse_profile
    from sinkscope.registry import check_registry, load_profile

    if Path(name).is_dir():
        return [{"profile": problem.path.name, "message": problem.message} for problem in check_registry(Path(name))]
    try:
        profile = load_profile(name)
        again = parse_profile(profile.to_json(), name)
    except ProfileError as error:
        if name.endswith(".json") and not Path(name).exists():
            raise
        return [{"profile": name, "message": str(error)}]
    problems = []
    if again != profile:
        problems.append({"profile": name, "message": "changes in a JSON round trip; save it anew with `Profile.save`"})
    if profile.provenance.kind == "literature" and not (profile.provenance.source or "").strip():
        problems.append({"profile": name, "message": "a literature profile must name its source in provenance.source"})
    if fingerprint is not None:
        problems += _mismatch(name, profile, fingerprint)
    return problems


def _mismatch(name: str, profile: "Profile", fingerprint: dict[str, Any]) -> list[dict[str, str]]:
    from sinkscope.registry import check_backbone

    try:
        check_backbone(profile, fingerprint)
    except ProfileError as error:
        return [{"profile": name, "message": str(error)}]
    return []


def _row(entry: "Entry") -> dict[str, Any]:
    profile = entry.profile
    return {
        "name": entry.name,
        "origin": entry.origin,
        "path": str(entry.path),
        "error": None if entry.error is None else str(entry.error),
        "verdict": None if profile is None else profile.verdict,
        "kind": None if profile is None else profile.provenance.kind,
        "model_type": None if profile is None else profile.backbone.model_type,
        "num_layers": None if profile is None else profile.backbone.num_layers,
        "hidden_size": None if profile is None else profile.backbone.hidden_size,
        "dims": [] if profile is None else list(profile.dims),
        "models": [] if profile is None else profile.models,
    }
