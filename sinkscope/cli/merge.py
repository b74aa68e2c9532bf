"""``sinkscope merge``: one run file from several over different data."""

from pathlib import Path

import click

from sinkscope.cli.output import json_option, note, print_json, print_rich
from sinkscope.cli.places import check_writable, refuse_same

EXAMPLES = """\b
Examples:
  sinkscope merge prose.run.h5 code.run.h5 -o merged.run.h5
  sinkscope discover merged.run.h5 -o merged.json
"""


@click.command("merge", short_help="Merge run files over different data into one.", epilog=EXAMPLES)
@click.argument("runs", metavar="RUN.h5...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", metavar="MERGED.h5", required=True, type=click.Path(path_type=Path), help="The file to write."
)
@json_option
def command(runs: tuple[Path, ...], output: Path, as_json: bool) -> None:
    """Merge complete run files of one model over different calibration data into one.

    The result is what one run over all the data would have measured, up to the rounding of the forward pass. The files
    must agree in model, revision, dtype and settings, and no sample may be in two of them.
    """
    refuse_same([("-o", output)], [("RUN.h5", run) for run in runs])
    check_writable(output, "-o")

    from sinkscope.cli.info import describe
    from sinkscope.store.merge import merge
    from sinkscope.store.reader import RunReader

    merge(runs, output)
    with RunReader(output) as reader:
        facts = describe(reader)
    if as_json:
        print_json(facts)
    else:
        print_rich(f"{len(runs)} files merged: {facts['samples']['total']} pieces, {facts['tokens']['total']} tokens")
    note(f"run file: {output}")
