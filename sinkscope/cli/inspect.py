"""``sinkscope inspect``: what a model is made of, from its config alone."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sinkscope.cli.output import json_option, print_json, print_rich, quiet_libraries, quiet_stdout

if TYPE_CHECKING:
    from sinkscope.backbone.anatomy import Anatomy
    from sinkscope.cli.skeleton import Look

EXAMPLES = """\b
Examples:
  sinkscope inspect llava-hf/llava-1.5-7b-hf
  sinkscope inspect ./model.gguf --json
"""


@click.command("inspect", short_help="Show what sinkscope sees in a model.", epilog=EXAMPLES)
@click.argument("model", metavar="MODEL")
@click.option("--revision", metavar="R", help="Revision on the hub: a branch, tag or commit.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that the model's repository ships. Read it first.")
@click.option("--no-weights", is_flag=True, help="Read the config alone, also where the weights are on this machine.")
@json_option
def command(model: str, revision: str | None, trust_remote_code: bool, no_weights: bool, as_json: bool) -> None:
    """Show what sinkscope sees in a model: its layers, attention and visual tokens, and what can be done with it.

    Reads the config, and where the weights are on this machine also the matrices that name the sink dimensions (see
    `sinkscope predict`). The model itself is never loaded.
    """
    weights = not no_weights and (Path(model).exists() or model.startswith("demo:"))
    with quiet_stdout(), quiet_libraries():
        from sinkscope.cli.skeleton import look_at

        look = look_at(model, revision, trust_remote_code, weights)
    facts = describe(model, look)
    if as_json:
        print_json(facts)
    else:
        print_rich(*_lines(facts))


def anatomy_of(model: str) -> "Anatomy":
    """The anatomy of the model called `model`, from its config, without its weights.

    Raises
    ------
    InputError
        If the config cannot be found or read.
    UnsupportedModelError
        If it is not a decoder model.
    """
    with quiet_stdout(), quiet_libraries():
        from sinkscope.backbone.anatomy import find_anatomy
        from sinkscope.cli.skeleton import named_skeleton

        return find_anatomy(named_skeleton(model))


def describe(model: str, look: "Look") -> dict[str, Any]:
    """The anatomy, and what can be done with the model, ready for JSON."""
    anatomy = look.anatomy
    profile, attention = look.profile_refusal, look.profile_refusal or anatomy.attention_refusal
    var = anatomy.var_refusal or profile
    facts = {
        "model": model,
        **anatomy.to_dict(),
        "attention_layers": list(anatomy.attention_layers),
        "placeholder_ids": list(anatomy.placeholder_ids),
        "attention_kinds": [vars(kind) | {"features": list(kind.features)} for kind in anatomy.attention_kinds],
        "can": {
            "profile": profile is None,
            "profile_refusal": profile,
            "measure_attention": attention is None,
            "measure_attention_refusal": attention,
            "var": var is None,
            "var_refusal": var,
        },
    }
    return facts if look.by_weights is None else facts | {"by_weights": look.by_weights}


def _kinds(kinds: list[dict[str, Any]]) -> str:
    """How far the layers see, and what else their attention does."""
    spans = Counter((kind["span"], kind["window"]) for kind in kinds if kind["span"] != "none")
    said = [
        f"{span}{f' ({window})' if window else ''} in {'all' if len(spans) == 1 else count}"
        for (span, window), count in spans.items()
        if span != "full" or len(spans) > 1
    ]
    said += list(dict.fromkeys(feature for kind in kinds for feature in kind["features"]))
    return "".join(f"; {part}" for part in said)


def _profiles(can: dict[str, Any]) -> str:
    if not can["profile"]:
        return f"no: {can['profile_refusal']}"
    return "yes" if can["measure_attention"] else f"yes, with --no-attention: {can['measure_attention_refusal']}"


def _lines(facts: dict[str, Any]) -> list[str]:
    layers, can, said = facts["attention_layers"], facts["can"], facts.get("by_weights")
    visual = "none: a text model"
    if facts["multimodal"]:
        ids = ", ".join(map(str, facts["placeholder_ids"]))
        visual = f"told by placeholder id {ids}" if ids else "not told by the config"
    missing = [str(index) for index, softmax in enumerate(layers) if not softmax]
    return [
        f"{facts['model']}: {facts['model_type']}",
        f"layers         {facts['num_layers']} at {facts['layers_path']}",
        f"hidden size    {facts['hidden_size']} (phi is at most {facts['hidden_size'] ** 0.5:.1f})",
        f"heads          {facts['num_heads']}, {facts['num_kv_heads']} for keys and values",
        f"vocabulary     {facts['vocab_size']}",
        f"attention      softmax in {sum(layers)} of {len(layers)} layers"
        + (f" (not in {', '.join(missing)})" if 0 < len(missing) <= 12 else "")
        + _kinds(facts["attention_kinds"]),
        f"visual tokens  {visual}",
        "profile        " + _profiles(can),
        "VAR            " + ("yes" if can["var"] else f"no: {can['var_refusal']}"),
        *([f"by weights     {said.get('reason') or said['unavailable']}"] if said else []),
    ]
