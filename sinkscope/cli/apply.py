"""``sinkscope apply``: answer a question about a picture with VAR."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sinkscope.cli.batch import answer_batch, prepare_batch, print_totals
from sinkscope.cli.main import FAILED, Session
from sinkscope.cli.options import Fraction, Integer, model_options
from sinkscope.cli.output import ProgressBar, json_option, note, print_json, print_rich, quiet_libraries, quiet_stdout
from sinkscope.cli.pictures import check_drawing, draw_attention, edited_beside
from sinkscope.cli.places import check_writable, refuse_same

if TYPE_CHECKING:
    from rich.table import Table

    from sinkscope.answering import Answers

EXAMPLES = """\b
Examples:
  sinkscope apply demo:lmm --image demo-output/picture.png --prompt "How many objects are there?" --compare
  sinkscope apply llava-hf/llava-1.5-7b-hf --image cat.jpg --prompt "What is on the sofa?" --profile llava-1.5-7b
  sinkscope apply ./my-lmm --image a.png --prompt "What is this?" --profile my.json --p 0.6 --rho 0.5 --compare
  sinkscope apply demo:lmm --batch questions.jsonl --out answers.jsonl --compare
  sinkscope apply demo:lmm --batch questions.jsonl --out answers.jsonl --compare --resume --keep-going
"""


@click.command("apply", short_help="Answer a question about a picture with VAR.", epilog=EXAMPLES)
@click.argument("model", metavar="MODEL")
@click.option(
    "--image",
    "images",
    metavar="I",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Picture; repeat for several.",
)
@click.option("--prompt", metavar="P", help="Question about the picture.")
@click.option("--profile", "profile_name", metavar="NAME|PATH", help="Default: the one that fits the model.")
@click.option("--compare", is_flag=True, help="Also answer without VAR, and show both.")
@click.option("--p", type=Fraction(), help="Recycled fraction of a sink's attention; default: the profile's.")
@click.option("--rho", type=Fraction(), help="Least visual non-sink ratio of a head; default: the profile's.")
@click.option(
    "--attention", metavar="OUT.png", type=click.Path(path_type=Path), help="Draw the attention before and after."
)
@click.option(
    "--batch",
    metavar="IN.jsonl",
    type=click.Path(path_type=Path),
    help='Questions, one {"image": "...", "prompt": "...", "id": ...} a line.',
)
@click.option(
    "--out",
    metavar="OUT.jsonl",
    type=click.Path(path_type=Path),
    help="Answers to --batch: each line of it, with its answer.",
)
@click.option("--resume", is_flag=True, help="Go on with the answers of a --batch that was stopped.")
@click.option("--keep-going", is_flag=True, help="Skip lines of --batch that fail; the exit code is then 1.")
@click.option("--raw", is_flag=True, help="PROMPT is the whole text for the model, image placeholders included.")
@click.option("--max-new-tokens", metavar="N", type=Integer(min=1), default=64, show_default=True)
@model_options
@json_option
@click.pass_obj
def command(
    session: Session,
    model: str,
    images: tuple[Path, ...],
    prompt: str | None,
    profile_name: str | None,
    compare: bool,
    p: float | None,
    rho: float | None,
    attention: Path | None,
    batch: Path | None,
    out: Path | None,
    resume: bool,
    keep_going: bool,
    raw: bool,
    max_new_tokens: int,
    device: str,
    dtype: str,
    revision: str | None,
    trust_remote_code: bool,
    as_json: bool,
) -> int:
    """Answer a question about a picture with Visual Attention Redistribution (VAR).

    VAR recycles attention from sink tokens to the rest of the picture, in the heads that look at it. p and rho are the
    paper's: p is the recycled fraction; the authors' code calls 1 - p so.

    --batch answers a file of questions. "image" is a path relative to that file, or a list of paths; every other field
    of a line, such as a label, goes into the line of its answer. All lines are checked before MODEL is loaded.
    """
    _check_usage(images, prompt, batch, out, attention, resume=resume, keep_going=keep_going)
    read = [("--image", image) for image in images] + [("--batch", batch), ("MODEL", Path(model))]
    read.append(("--profile", None if profile_name is None else Path(profile_name)))
    drawn_beside = None if attention is None else edited_beside(attention)
    refuse_same([("--out", out), ("--attention", attention), ("--attention", drawn_beside)], read)

    from sinkscope.answering import answer, check_answerable, choose_profile, read_picture
    from sinkscope.registry import check_backbone, load_profile

    pictures = [read_picture(image) for image in images]
    profile = None if profile_name is None else load_profile(profile_name)
    settings: dict[str, Any] = {
        "p": p,
        "rho": rho,
        "max_new_tokens": max_new_tokens,
        "compare": compare,
        "raw": raw,
    }
    prepared = None
    if batch is not None and out is not None:
        prepared = prepare_batch(
            batch,
            out,
            settings,
            model=model,
            revision=revision,
            profile=profile,
            resume=resume,
            keep_going=keep_going,
        )
        session.run = prepared.target.partial
    with quiet_stdout(), quiet_libraries():
        from sinkscope.pipeline import load

        with ProgressBar() as bar, bar.waiting(f"loading {model}"):
            loaded = load(model, revision=revision, dtype=dtype, device_map=device, trust_remote_code=trust_remote_code)
        if loaded.note:
            note(loaded.note)
        check_answerable(loaded)
        if profile is None:
            profile = choose_profile(loaded)
            note(f"profile: {profile.name}")
        check_backbone(profile, loaded.anatomy.fingerprint())
        if prepared is not None:
            totals = answer_batch(prepared, loaded, profile)
        else:
            answers = answer(loaded, profile, pictures, str(prompt), **settings)
            drawn: list[Path] = []
            if attention is not None:
                drawn = draw_attention(attention, loaded, profile, answers, pictures[0], str(prompt))
    facts: dict[str, Any] = {"model": model, "profile": profile.name}
    if prepared is not None:
        print_json(facts | {"out": str(out)} | totals.to_dict()) if as_json else print_totals(
            totals, prepared.target.out
        )
        return FAILED if totals.skipped else 0
    facts |= {"images": [str(image) for image in images], "prompt": prompt}
    facts |= answers.to_dict() | {"attention": [str(path) for path in drawn]}
    print_json(facts) if as_json else print_rich(*describe(answers))
    for path in drawn:
        note(f"attention: {path}")
    return 0


def describe(answers: "Answers") -> list[Any]:
    """The answers, side by side where there are two, and what VAR did, for a person."""
    lines: list[Any] = [f"VAR    {answers.var}"] if answers.plain is None else [_side_by_side(answers)]
    edited = [layer for layer in answers.layers if layer.image_centric_share > 0]
    if not edited:
        lines.append(f"       p {answers.p:g}, rho {answers.rho:g}: no head qualified, so nothing was moved")
        return lines
    sinks = max(layer.visual_sink_tokens for layer in answers.layers)
    share = sum(layer.image_centric_share for layer in edited) / len(edited)
    moved = sum(layer.recycled_attention for layer in edited) / len(edited)
    lines.append(
        f"       p {answers.p:g}, rho {answers.rho:g}: {len(edited)} layers edited, up to {sinks} visual sink tokens "
        f"of {answers.visual_tokens}; {share:.1%} of (head, query) pairs, {moved:.3f} of their attention moved"
    )
    return lines


def _side_by_side(answers: "Answers") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(
        "plain", "VAR" if answers.changed else "VAR (the same)", box=None, pad_edge=False, padding=(0, 4, 0, 0)
    )
    # As texts, in which brackets are no markup.
    table.add_row(Text(answers.plain or ""), Text(answers.var))
    return table


def _check_usage(
    images: tuple[Path, ...],
    prompt: str | None,
    batch: Path | None,
    out: Path | None,
    attention: Path | None,
    *,
    resume: bool,
    keep_going: bool,
) -> None:
    """Refuse what cannot work before anything is loaded."""
    if batch is None:
        for option, given in (("--out", out is not None), ("--resume", resume), ("--keep-going", keep_going)):
            if given:
                raise click.UsageError(f"{option} belongs to --batch")
    if batch is not None:
        if images or prompt is not None or attention is not None:
            raise click.UsageError(
                "--batch brings its own pictures and prompts; leave --image, --prompt, --attention out"
            )
        if out is None:
            raise click.UsageError("--batch needs --out OUT.jsonl")
        check_writable(out, "--out")
        return
    if not images:
        raise click.UsageError("missing --image: VAR needs a picture to move attention to")
    if prompt is None or not prompt.strip():
        raise click.UsageError("missing --prompt: what should be answered about the picture?")
    if attention is not None:
        if len(images) > 1:
            raise click.UsageError("--attention draws one picture; give one --image")
        check_writable(attention, "--attention")
        check_drawing()
