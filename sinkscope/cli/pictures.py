"""What `sinkscope.report` draws, put into files: the pictures of a run, and where an answer looks."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sinkscope.cli.output import quiet_stdout

if TYPE_CHECKING:
    from PIL.Image import Image

    from sinkscope.answering import Answers
    from sinkscope.backbone.loading import LoadedModel
    from sinkscope.profile import Profile


def check_drawing() -> None:
    """Raise `InputError` where matplotlib is missing, before any work is done."""
    from sinkscope.report import require_matplotlib

    require_matplotlib()


def draw_run(run: Path, profile: "Profile", folder: Path) -> list[Path]:
    """Draw what a run file and its profile show into `folder`; files of the same names in it are replaced."""
    from sinkscope.report import write_pictures
    from sinkscope.store.reader import RunReader

    with quiet_stdout(), RunReader(run) as reader:
        return write_pictures(reader, profile, folder)


def edited_beside(path: Path) -> Path:
    """Where `draw_attention` draws the edited rows: ``NAME-edited`` beside the picture of all heads."""
    return path.with_name(f"{path.stem}-edited{path.suffix}")


def draw_attention(
    path: Path, loaded: "LoadedModel", profile: "Profile", answers: "Answers", picture: "Image", prompt: str
) -> list[Path]:
    """Draw where an answer looks on its picture, before and after VAR.

    Returns
    -------
    list of Path
        `path`, over all heads; and where VAR edited anything, `edited_beside` it, over the edited rows alone.
    """
    from sinkscope.answering import look
    from sinkscope.report import attention_on_picture

    with quiet_stdout():
        seen = look(loaded, profile, answers)
        maps = [(path, seen.before, seen.after, f"all heads of {named_layers(seen.layers)}")]
        if seen.chosen_before is not None and seen.chosen_after is not None:
            maps.append((edited_beside(path), seen.chosen_before, seen.chosen_after, "the rows that VAR edits"))
        return [
            attention_on_picture(
                place,
                picture,
                seen.grid,
                before.numpy(),
                after.numpy(),
                seen.sinks.numpy(),
                prompt=prompt,
                answers=(answers.plain or "", answers.var),
                name=f"{profile.name}, {rows}",
            )
            for place, before, after, rows in maps
        ]


def named_layers(layers: Sequence[int]) -> str:
    """``layers 3-10 and 12-28`` for people: runs of consecutive layers."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    names = [str(first) if first == last else f"{first}-{last}" for first, last in spans]
    joined = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)
    return ("layer " if len(layers) == 1 else "layers ") + (joined or "none")
