"""``sinkscope discover``: a profile from a run file, without the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sinkscope.cli.options import ProfileName
from sinkscope.cli.output import json_option, note, print_json, print_rich, quiet_stdout
from sinkscope.cli.places import check_profile, refuse_same
from sinkscope.discovery.settings import DiscoverySettings

EXAMPLES = """\b
Examples:
  sinkscope discover llava-1.5-7b-hf.run.h5 -o llava.json
  sinkscope discover unfinished.run.h5 --json      (what the samples so far say)
  sinkscope discover llava-1.5-7b-hf.run.h5 --false-discovery-rate 0.001 --attention-sink 0.05
"""


def threshold_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """One option for every threshold of the method."""
    for name, (default, says) in reversed(DiscoverySettings.described().items()):
        option = click.option(
            f"--{name.replace('_', '-')}",
            metavar="N" if isinstance(default, int) else "X",
            type=type(default),
            help=f"{says}  [default: {default:.4g}]",
        )
        function = option(function)
    return function


@click.command("discover", short_help="Find the sink dimensions in a run file again.", epilog=EXAMPLES)
@click.argument("run", metavar="RUN.h5", type=click.Path(path_type=Path))
@click.option("-o", "--output", metavar="PROFILE.json", type=click.Path(path_type=Path), help="Save the profile here.")
@click.option(
    "--name", metavar="NAME", type=ProfileName(), help="Name of the profile; default: made from the model's id."
)
@json_option
@threshold_options
def command(run: Path, output: Path | None, name: str | None, as_json: bool, **thresholds: Any) -> None:
    """Find the sink dimensions in a run file again: a new profile from old measurements, without the model.

    Works on unfinished files too, with the samples that they hold. Every threshold of the method is an option; what
    they do, and why they are what they are, is in docs/method.md.
    """
    settings = DiscoverySettings(**{key: value for key, value in thresholds.items() if value is not None})
    if output is not None:
        refuse_same([("-o", output)], [("RUN.h5", run)])
        check_profile(output, "-o")

    from sinkscope.discovery import discover
    from sinkscope.report import profile_summary

    with quiet_stdout():
        profile = discover(run, settings, name=name)
    if output is not None:
        profile.save(output)
        note(f"profile: {output}")
    if as_json:
        print_json(profile.to_json())
    else:
        print_rich(profile_summary(profile))
