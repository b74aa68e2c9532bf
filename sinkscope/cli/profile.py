"""``sinkscope profile``: from a model to its profile."""

from collections.abc import Callable
from pathlib import Path

import click

from sinkscope.cli.main import Session
from sinkscope.cli.options import model_options
from sinkscope.cli.output import (
    ProgressBar,
    json_option,
    note,
    print_json,
    print_rich,
    quiet_libraries,
    quiet_stdout,
)
from sinkscope.cli.pictures import check_drawing, draw_run
from sinkscope.cli.places import check_writable, make_folder, short_name
from sinkscope.errors import InputError, NonFiniteActivationError, UnsupportedModelError

EXAMPLES = """\b
Examples:
  sinkscope profile demo:llm --causal
  sinkscope profile llava-hf/llava-1.5-7b-hf -o llava.json --plots figures
  sinkscope profile ./model.gguf --texts my-corpus.txt --samples 64
  sinkscope profile ./my-lmm --images photos/ --run my-lmm.run.h5 --resume
"""


@click.command("profile", short_help="Find a model's sink dimensions and save its profile.", epilog=EXAMPLES)
@click.argument("model", metavar="MODEL")
@click.option(
    "-o",
    "--output",
    metavar="PROFILE.json",
    type=click.Path(path_type=Path),
    help="Default: NAME.profile.json in the current folder.",
)
@click.option(
    "--run",
    metavar="RUN.h5",
    type=click.Path(path_type=Path),
    help="The run file with all measurements; default: NAME.run.h5.",
)
@click.option(
    "--texts",
    metavar="P",
    type=click.Path(path_type=Path),
    help="Your own texts: a file or a folder. Default: embedded texts.",
)
@click.option(
    "--images",
    metavar="P",
    type=click.Path(path_type=Path),
    help="Your own pictures: a file or a folder. Default: generated ones.",
)
@click.option("--samples", metavar="N", type=click.IntRange(min=1), help="Use at most so many samples.")
@click.option("--tokens", metavar="N", type=click.IntRange(min=1), help="Use at most so many tokens.")
@click.option("--resume", is_flag=True, help="Go on with the run file of an interrupted run.")
@click.option("--no-attention", is_flag=True, help="Do not measure attention; every massive dimension is then listed.")
@click.option("--causal", is_flag=True, help="Check by exchange that the dimensions found draw the attention.")
@click.option(
    "--seed", metavar="N", type=click.IntRange(min=0), default=0, show_default=True, help="Of every random choice."
)
@click.option("--name", metavar="NAME", help="Name of the profile; default: made from MODEL.")
@click.option("--plots", metavar="DIR", type=click.Path(path_type=Path), help="Draw the pictures into this folder.")
@model_options
@json_option
@click.pass_obj
def command(
    session: Session,
    model: str,
    output: Path | None,
    run: Path | None,
    texts: Path | None,
    images: Path | None,
    samples: int | None,
    tokens: int | None,
    resume: bool,
    no_attention: bool,
    causal: bool,
    seed: int,
    name: str | None,
    plots: Path | None,
    device: str,
    dtype: str,
    revision: str | None,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Find the attention-sink dimensions of a model, and save them as a profile.

    Runs calibration data through MODEL (a hub id, a local folder, a .gguf file, demo:llm or demo:lmm), measures the
    hidden state entering every decoder layer into one run file, and finds the dimensions, layers and thresholds of its
    sinks. A model without sinks gets a profile that says so.
    """
    stem = short_name(model)
    output = output or Path(f"{stem}.profile.json")
    run = run or Path(f"{stem}.run.h5")
    check_writable(output, "-o")
    check_writable(run, "--run")
    for option, path in (("--texts", texts), ("--images", images)):
        if path is not None and not path.exists():
            raise InputError(f"there is nothing at {path}; check {option}")
    if run.exists() and not resume:
        raise InputError(f"{run} exists already; go on with it: --resume, or keep it and choose another: --run")
    if plots is not None:
        make_folder(plots, "--plots")
        check_drawing()

    with quiet_stdout(), quiet_libraries(), ProgressBar() as bar:
        from sinkscope.pipeline import load, profile_model
        from sinkscope.report import profile_summary

        with bar.waiting(f"loading {model}"):
            loaded = load(model, revision=revision, dtype=dtype, device_map=device, trust_remote_code=trust_remote_code)
        session.run = run
        made_here = not run.exists()
        checking: list[Callable[[int, int], None]] = []

        def show_check(done: int, total: int) -> None:
            # Its bar appears when the check begins, not beside that of the capture run.
            if not checking:
                checking.append(bar.stage("causal check"))
            checking[0](done, total)

        try:
            profile = profile_model(
                loaded,
                texts=texts,
                images=images,
                samples=samples,
                tokens=tokens,
                run=run,
                resume=resume,
                attention=not no_attention,
                seed=seed,
                progress=bar.stage("tokens"),
                causal=causal,
                causal_progress=show_check,
            )
        except (NonFiniteActivationError, UnsupportedModelError):
            # A run that can never be finished is of no use to --resume.
            if made_here:
                run.unlink(missing_ok=True)
            raise
    profile.save(output)
    if as_json:
        print_json(profile.to_json())
    else:
        print_rich(profile_summary(profile))
    note(f"profile:  {output}\nrun file: {run}")
    if plots is not None:
        for picture in draw_run(run, profile, plots):
            note(f"picture:  {picture}")
