"""``sinkscope profile``: from a model to its profile."""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sinkscope import __version__
from sinkscope.cli.events import EventLog
from sinkscope.cli.info import show_run
from sinkscope.cli.main import Session
from sinkscope.cli.options import ByteSize, Integer, ProfileName, model_options
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
from sinkscope.cli.places import (
    bytes_on_disk,
    check_present,
    check_profile,
    check_writable,
    make_folder,
    refuse_same,
    short_name,
)
from sinkscope.errors import InputError, NonFiniteActivationError, UnsupportedModelError
from sinkscope.processes import refuse_uneven_teams, share_devices, team_file, this_process
from sinkscope.store.lock import last_writer

if TYPE_CHECKING:
    from sinkscope.profile import Profile

EXAMPLES = """\b
Examples:
  sinkscope profile demo:llm --causal
  sinkscope profile llava-hf/llava-1.5-7b-hf -o llava.json --plots figures
  sinkscope profile ./model.gguf --texts my-corpus.txt --samples 64
  sinkscope profile ./my-model --dataset HuggingFaceFW/fineweb:sample-10BT --tokens 200000 --chat-template
  sinkscope profile ./my-lmm --images photos/ --run my-lmm.run.h5 --resume --events events.jsonl
  torchrun --nproc-per-node 4 -m sinkscope -- profile ./my-model --tensor-parallel 2
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
    help="Your own texts: a .txt, .jsonl or .parquet file, or a folder of them. Default: embedded texts.",
)
@click.option(
    "--images",
    metavar="P",
    type=click.Path(path_type=Path),
    help="Your own pictures: a file or a folder, with prompts in prompts.jsonl or metadata.jsonl. Default: generated "
    "ones.",
)
@click.option(
    "--dataset",
    metavar="ID[@REV][:CONFIG[:SPLIT]]",
    help="Texts or pictures of a dataset on the hub or a local one, streamed; 128 rows, or see --samples, --tokens.",
)
@click.option("--samples", metavar="N", type=Integer(min=1), help="Use at most so many samples.")
@click.option("--tokens", metavar="N", type=Integer(min=1), help="Use at most so many tokens.")
@click.option(
    "--chat-template/--no-chat-template",
    default=None,
    help="Put texts and prompts of pictures into the chat template, or neither. Default: prompts, not texts.",
)
@click.option("--resume", is_flag=True, help="Go on with the run file of an interrupted run.")
@click.option(
    "--keep",
    type=click.Choice(["sample", "topk", "all", "none"]),
    default="sample",
    show_default=True,
    help="Whose hidden states the run file keeps: of a seeded choice of tokens; also of every sample's tokens with the "
    "highest peaks; of all tokens; of none, which leaves no profile to be made.",
)
@click.option(
    "--max-store",
    metavar="SIZE",
    type=ByteSize(),
    help="Most bytes of the run file, such as 2GB: fewer hidden states are kept where they would not fit.",
)
@click.option(
    "--compress",
    type=click.Choice(["blosc2", "gzip"]),
    help="Compress the finished run file; Blosc2 needs hdf5plugin to write and to read.",
)
@click.option("--no-attention", is_flag=True, help="Do not measure attention; every massive dimension is then listed.")
@click.option("--causal", is_flag=True, help="Check by exchange that the dimensions found draw the attention.")
@click.option("--seed", metavar="N", type=Integer(min=0), default=0, show_default=True, help="Of every random choice.")
@click.option("--name", metavar="NAME", type=ProfileName(), help="Name of the profile; default: made from MODEL.")
@click.option(
    "--events", metavar="FILE|-", help="Append progress, errors and the end as JSON lines to this file; -: to stderr."
)
@click.option(
    "--tensor-parallel",
    metavar="N",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Under torchrun: so many processes hold one model together, each on its own device; the others hold further "
    "ones, which share the data.",
)
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
    dataset: str | None,
    samples: int | None,
    tokens: int | None,
    chat_template: bool | None,
    resume: bool,
    keep: str,
    max_store: int | None,
    compress: str | None,
    no_attention: bool,
    causal: bool,
    seed: int,
    name: str | None,
    events: str | None,
    tensor_parallel: int,
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
    if keep == "none" and (causal or plots is not None):
        raise click.UsageError("--keep none leaves no profile for --causal and --plots; leave them out")
    process = this_process()
    stem = short_name(model)
    output = output or Path(f"{stem}.profile.json")
    run = run or Path(f"{stem}.run.h5")
    mine = team_file(run, process, tensor_parallel)
    refuse_same(
        [("-o", output), ("--run", run), ("--events", None if events in (None, "-") else Path(events))],
        [
            ("--texts", texts),
            ("--images", images),
            ("--dataset", Path(dataset) if dataset else None),
            ("MODEL", Path(model)),
        ],
    )
    if events is not None:
        session.events = EventLog(events)
        session.events.started(
            sinkscope=__version__,
            model=model,
            run=str(run),
            profile=None if keep == "none" else str(output),
            resumed=os.path.exists(mine),
        )
    refuse_uneven_teams(process, tensor_parallel)
    check_profile(output, "-o")
    check_writable(run, "--run")
    for option, path in (("--texts", texts), ("--images", images)):
        if path is not None:
            check_present(path, option)
    if run.exists() and not resume:
        owner = last_writer(run)
        busy = f" and is being written (process {owner.process})" if owner is not None and owner.alive else ""
        raise InputError(f"{run} exists already{busy}; go on with it: --resume, or keep it and choose another: --run")
    if plots is not None:
        make_folder(plots, "--plots")
        check_drawing()
    session.run = mine

    with quiet_stdout(), ProgressBar(session.events) as bar:
        from sinkscope.calibration import gather

        # Before the model, whose loading takes longer than to find out that a line of the texts is malformed.
        with bar.waiting("reading the calibration data"):
            calibration = gather(texts, images, dataset, samples=samples, tokens=tokens, seed=seed)

    with quiet_stdout(), quiet_libraries(), ProgressBar(session.events) as bar, contextlib.ExitStack() as stack:
        from sinkscope.capture.ranks import joined
        from sinkscope.capture.settings import CaptureSettings
        from sinkscope.pipeline import load, measure_model, profile_model
        from sinkscope.report import profile_summary

        if device in ("auto", "cuda") and tensor_parallel == 1:
            share_devices(process)
        ranks = stack.enter_context(joined(process))
        with bar.waiting(f"loading {model}"):
            loaded = load(
                model,
                revision=revision,
                dtype=dtype,
                device_map=device,
                trust_remote_code=trust_remote_code,
                tensor_parallel=tensor_parallel,
            )
        if loaded.note and process.is_first:
            note(loaded.note)
        made_here = not mine.exists()
        measured = bar.stage(
            "capture", "tokens", lambda: {"layers": loaded.anatomy.num_layers, "bytes": bytes_on_disk(mine)}
        )
        settings: dict[str, Any] = {
            "seed": seed,
            "chat_template": chat_template,
            "keep": keep,
            "max_store": max_store,
            "attention": not no_attention,
        }
        work: dict[str, Any] = {"resume": resume, "compress": compress, "progress": measured, "ranks": ranks}
        profile: Profile | None = None
        try:
            if keep == "none":
                capture = CaptureSettings(max_samples=samples, max_tokens=tokens, **settings)
                measure_model(loaded, calibration, run, capture, **work)
            else:
                profile = profile_model(
                    loaded,
                    calibration=calibration,
                    samples=samples,
                    tokens=tokens,
                    run=run,
                    name=name,
                    causal=causal,
                    causal_progress=bar.stage("causal check", "edits"),
                    **settings,
                    **work,
                )
        except (NonFiniteActivationError, UnsupportedModelError):
            # A run that can never be finished is of no use to --resume.
            if made_here:
                mine.unlink(missing_ok=True)
            raise
    if not process.is_first:
        return
    if profile is not None:
        profile.save(output)
    if session.events is not None:
        session.events.result(
            verdict=None if profile is None else profile.verdict,
            dims=[] if profile is None else list(profile.dims),
            run=str(run),
            profile=None if profile is None else str(output),
            bytes=bytes_on_disk(run),
        )
    if profile is None:
        show_run(run, as_json)
        note(f"run file: {run}\nprofile:  none can be made, because --keep none kept no hidden states")
        return
    if as_json:
        print_json(profile.to_json())
    else:
        print_rich(profile_summary(profile))
    note(f"profile:  {output}\nrun file: {run}")
    if plots is not None:
        for picture in draw_run(run, profile, plots):
            note(f"picture:  {picture}")
