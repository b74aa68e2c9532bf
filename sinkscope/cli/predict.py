"""``sinkscope predict``: the sink dimensions named from the weights alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sinkscope.cli.output import (
    ProgressBar,
    json_option,
    note,
    print_json,
    print_rich,
    quiet_libraries,
    quiet_stdout,
)

if TYPE_CHECKING:
    from sinkscope.weights import Prediction

EXAMPLES = """\b
Examples:
  sinkscope predict demo:llm
  sinkscope predict mistralai/Mistral-7B-v0.1 --json     (reads the wanted byte ranges only)
  sinkscope predict ./my-model --adapter ./my-lora
"""
MEGABYTE = 10**6


@click.command("predict", short_help="Name the sink dimensions from the weights alone.", epilog=EXAMPLES)
@click.argument("model", metavar="MODEL")
@click.option("--adapter", metavar="DIR", type=click.Path(path_type=Path), help="A LoRA adapter to add first.")
@click.option("--revision", metavar="R", help="Revision on the hub: a branch, tag or commit.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that the model's repository ships. Read it first.")
@json_option
def command(model: str, adapter: Path | None, revision: str | None, trust_remote_code: bool, as_json: bool) -> None:
    """Name the sink dimensions of a model from its weights alone: no data, no forward pass, any size.

    Reads the matrices that write into the residual stream, a few at a time, straight from safetensors files, a GGUF
    file or the hub, and looks for rows that single neurons write into with unusual force.
    """
    with quiet_stdout(), quiet_libraries(), ProgressBar() as bar:
        from sinkscope.pipeline import resolve
        from sinkscope.weights import predict

        prediction = predict(
            resolve(model),
            revision=revision,
            trust_remote_code=trust_remote_code,
            adapter=adapter,
            progress=bar.stage("read", unit="bytes"),
        )
    if as_json:
        print_json(prediction.to_dict())
    else:
        print_rich(*_summary(model, prediction))
    read = prediction.bytes_read / MEGABYTE
    seconds = max(prediction.seconds, 1e-3)
    note(f"{prediction.matrices} matrices, {read:,.0f} MB in {seconds:.1f} s ({read / seconds:,.0f} MB/s)")


def _summary(model: str, prediction: "Prediction") -> list[Any]:
    from rich.table import Table

    lines: list[Any] = [f"{model}: {'has sinks' if prediction.dims else 'no sinks'}, by its weights", prediction.reason]
    if not prediction.dims:
        return lines
    table = Table(box=None, pad_edge=False)
    for name in (
        "dim",
        "created at",
        "reinforced at",
        "removed at",
        "expected in layers",
        "largest entry",
        "share",
        "p",
        "input norm",
    ):
        table.add_column(name, justify="right")
    for entry in prediction.sink_dimensions:
        table.add_row(
            str(entry.dim),
            _spans(entry.created_layers),
            _spans(entry.reinforced_layers),
            _spans(entry.removed_layers),
            ", ".join(f"{first}-{last}" for first, last in entry.bands),
            f"{entry.ratio:.1f}x",
            f"{entry.share:.0%}",
            f"{entry.p_value:.0e}",
            "-" if entry.input_norm is None else f"{entry.input_norm:.2f}x",
        )
    return [*lines, "", table]


def _spans(layers: tuple[int, ...]) -> str:
    """[1, 2, 9, 10, 11] as "1-2, 9-11"."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
