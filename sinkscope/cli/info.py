"""``sinkscope info``: what a run file holds, how far it is, and how to go on with it."""

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sinkscope.cli.output import Measure, json_option, print_json, print_rich, readable_bytes
from sinkscope.cli.places import bytes_on_disk
from sinkscope.processes import Process

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
    """Show what a run file holds: finished, interrupted, or while another process writes it.

    For an unfinished one, also how fast it was written, as far as that is known, and the command that goes on with it.
    """
    show_run(run, as_json)


def show_run(run: Path, as_json: bool) -> None:
    """Print what the run file holds, for a person or as JSON."""
    from sinkscope.store.reader import RunReader

    with RunReader(run) as reader:
        facts = describe(reader)
    if as_json:
        print_json(facts)
    else:
        print_rich(*_lines(facts))


def describe(reader: "RunReader") -> dict[str, Any]:
    """The contents of a run file in numbers, ready for JSON. Reads none of its row data, however many there are."""
    import numpy as np

    from sinkscope.store.layout import KIND_NAMES, STATUS_COMPLETE

    attributes, plan = reader.attributes, reader.plan
    done, total = reader.progress

    def committed(rows: Any) -> int:
        return int(reader.committed[plan.tokens.sample_of(rows)].sum())

    kinds = np.bincount(reader.tokens.kind, minlength=len(KIND_NAMES)).tolist()
    return {
        "path": str(reader.path),
        "bytes": reader.path.stat().st_size,
        "bytes_on_disk": bytes_on_disk(reader.path),
        "schema_version": attributes.schema_version,
        "status": attributes.status,
        "samples": {"done": done, "total": total},
        "tokens": {
            "done": len(reader.tokens),
            "total": len(plan.tokens),
            **dict(zip(KIND_NAMES, kinds, strict=True)),
        },
        "hidden_states_sampled": committed(plan.sampled_tokens),
        "attention": {"status": attributes.attention, "tokens": committed(plan.attention_tokens)},
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
        **(_finished() if attributes.status == STATUS_COMPLETE else _unfinished(reader)),
    }


def _finished() -> dict[str, Any]:
    return {"writer": None, "rate": None, "resume": None}


def _unfinished(reader: "RunReader") -> dict[str, Any]:
    """Who writes the file or was killed while it did, its tokens a second, and the command to go on."""
    from sinkscope.store.lock import last_writer

    owner = last_writer(reader.path)
    if owner is None:
        return {"writer": None, "rate": None, "resume": _resume(reader)}
    before = reader.plan.tokens.lengths[reader.plan.order[: owner.samples_done]]
    seconds = reader.path.stat().st_mtime - owner.began
    tokens = len(reader.tokens) - int(before.sum())
    began = datetime.fromtimestamp(owner.began, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return {
        "writer": {"process": owner.process, "host": owner.host, "began": began, "alive": owner.alive},
        "rate": tokens / seconds if tokens > 0 and seconds > 0 else None,
        "resume": None if owner.alive else _resume(reader),
    }


def _resume(reader: "RunReader") -> str:
    """The command that goes on with an interrupted run. The file does not know where its data were."""
    attributes, settings, path = reader.attributes, reader.attributes.settings, reader.path
    process, part = Process(), attributes.calibration.get("part")
    if part is not None:
        process = Process(size=part["ranks"], local_size=part["ranks"])
        path = path.with_name("".join(path.name.rsplit(f".rank{part['rank']}", 1)))
    options: dict[str, Any] = {
        "--revision": attributes.revision,
        "--samples": settings.get("max_samples"),
        "--tokens": settings.get("max_tokens"),
        "--keep": None if settings.get("keep") == "sample" else settings.get("keep"),
        "--max-store": settings.get("max_store"),
        "--seed": attributes.seed or None,
    }
    command = [*process.launcher(), "profile", attributes.model_id, "--run", str(path)]
    command += [word for option, value in options.items() if value is not None for word in (option, str(value))]
    if not settings.get("attention", True):
        command.append("--no-attention")
    template = settings.get("chat_template")
    if template is not None:
        command.append("--chat-template" if template else "--no-chat-template")
    return shlex.join([*command, "--resume"])


def _lines(facts: dict[str, Any]) -> list[str]:
    samples, tokens, backbone = facts["samples"], facts["tokens"], facts["backbone"]
    calibration, part = facts["calibration"], facts["calibration"].get("part")
    lines = [
        f"{facts['path']}  ({readable_bytes(facts['bytes'])}, schema {facts['schema_version']})",
        f"status         {_state(facts)}",
        f"pieces         {samples['done']:,} of {samples['total']:,}"
        + (f", part {part['rank']} of a run of {part['ranks']} processes" if part else ""),
        f"tokens         {tokens['done']:,} of {tokens['total']:,}: {tokens['text']:,} text, {tokens['special']:,} "
        f"special, {tokens['visual']:,} visual",
    ]
    if facts["rate"] is not None:
        lines.append(
            f"progress       {Measure('tokens', 'tokens', tokens['done'], tokens['total'], facts['rate']).told()}"
        )
    if facts["bytes_on_disk"] < facts["bytes"]:
        lines.append(f"on the disk    {readable_bytes(facts['bytes_on_disk'])} so far")
    lines += [
        f"model          {facts['model_id']}" + (f" at {facts['revision']}" if facts["revision"] else ""),
        f"backbone       {backbone.get('model_type', 'unknown')}, {facts['num_layers']} layers, "
        f"hidden size {facts['hidden_size']}, {facts['dtype']}",
        f"data           {calibration.get('source', 'unknown')}; fingerprint "
        f"{str(calibration.get('fingerprint', 'unknown'))[:12]}, seed {facts['seed']}",
        f"hidden states  {facts['hidden_states_sampled']:,} tokens sampled",
        f"attention      {facts['attention']['status']}"
        + (f", {facts['attention']['tokens']:,} tokens" if facts["attention"]["tokens"] else ""),
        "versions       " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    ]
    if facts["resume"] is not None:
        local = facts["model_id"].startswith(".") or facts["model_id"].endswith(".gguf")
        where = ", where the run was begun" if local and not Path(facts["model_id"]).is_absolute() else ""
        lines += ["go on with     " + facts["resume"], f"               and the same data, --dtype and --device{where}"]
    return lines


def _state(facts: dict[str, Any]) -> str:
    writer = facts["writer"]
    if writer is None and facts["resume"] is None:
        return str(facts["status"])
    if writer is None or writer["alive"] is False:
        return "interrupted" if writer is None else "interrupted: its process was killed"
    where = f"process {writer['process']} on {writer['host']} since {writer['began']}"
    return f"being written by {where}" if writer["alive"] else f"unfinished; written, if it still runs, by {where}"
