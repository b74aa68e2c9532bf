"""``sinkscope info``: what a run file holds."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sinkscope.cli.output import json_option, print_json, print_rich

if TYPE_CHECKING:
    from sinkscope.store.reader import RunReader

EXAMPLES = """\b
Examples:
  sinkscope info llava-1.5-7b-hf.run.h5
  sinkscope info llava-1.5-7b-hf.run.h5 --json
"""


@click.command("info", short_help="Show what a run file holds.", epilog=EXAMPLES)
@click.argument("run", metavar="RUN.h5", type=click.Path(path_type=Path))
@json_option
def command(run: Path, as_json: bool) -> None:
    """Show what a run file holds, finished or still being written."""
    from sinkscope.store.reader import RunReader

    with RunReader(run) as reader:
        facts = describe(reader)
    if as_json:
        print_json(facts)
    else:
        print_rich(*_lines(facts))


def describe(reader: "RunReader") -> dict[str, Any]:
    """The contents of a run file in numbers, ready for JSON."""
    from sinkscope.store.layout import KIND_NAMES

    attributes, tokens = reader.attributes, reader.tokens
    done, total = reader.progress
    attention = reader.attention
    return {
        "path": str(reader.path),
        "bytes": reader.path.stat().st_size,
        "schema_version": attributes.schema_version,
        "status": attributes.status,
        "samples": {"done": done, "total": total},
        "tokens": {
            "total": len(tokens),
            **{name: int((tokens.kind == kind).sum()) for kind, name in enumerate(KIND_NAMES)},
        },
        "hidden_states_sampled": len(reader.sampled(0)[0]),
        "attention": {"status": attributes.attention, "tokens": 0 if attention is None else len(attention.token)},
        "model_id": attributes.model_id,
        "revision": attributes.revision,
        "backbone": dict(attributes.backbone),
        "num_layers": attributes.num_layers,
        "hidden_size": attributes.hidden_size,
        "dtype": attributes.dtype,
        "seed": attributes.seed,
        "settings": dict(attributes.settings),
        "calibration": dict(attributes.calibration),
        "versions": dict(attributes.versions),
    }


def _lines(facts: dict[str, Any]) -> list[str]:
    samples, tokens, backbone = facts["samples"], facts["tokens"], facts["backbone"]
    state = facts["status"]
    if samples["done"] < samples["total"]:
        state += ": continue with the same `sinkscope profile` command and --resume"
    return [
        f"{facts['path']}  ({facts['bytes'] / 2**20:.1f} MiB, schema {facts['schema_version']})",
        f"status         {state}",
        f"model          {facts['model_id']}" + (f" at {facts['revision']}" if facts["revision"] else ""),
        f"backbone       {backbone.get('model_type', 'unknown')}, {facts['num_layers']} layers, "
        f"hidden size {facts['hidden_size']}, {facts['dtype']}",
        f"samples        {samples['done']} of {samples['total']}",
        f"tokens         {tokens['total']}: {tokens['text']} text, {tokens['special']} special, "
        f"{tokens['visual']} visual",
        f"hidden states  {facts['hidden_states_sampled']} tokens sampled",
        f"attention      {facts['attention']['status']}"
        + (f", {facts['attention']['tokens']} tokens" if facts["attention"]["tokens"] else ""),
        f"seed           {facts['seed']}",
        "versions       " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    ]
