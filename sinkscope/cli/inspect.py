"""``sinkscope inspect``: what a model is made of, from its config alone."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sinkscope.cli.output import json_option, print_json, print_rich, quiet_libraries, quiet_stdout
from sinkscope.errors import SinkscopeError

if TYPE_CHECKING:
    from sinkscope.backbone.anatomy import Anatomy

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
    anatomy = anatomy_of(model, revision, trust_remote_code)
    facts = describe(model, anatomy)
    if not no_weights and (Path(model).exists() or model.startswith("demo:")):
        facts["by_weights"] = _prediction(model, revision, trust_remote_code)
    if as_json:
        print_json(facts)
    else:
        print_rich(*_lines(facts))


def anatomy_of(model: str, revision: str | None = None, trust_remote_code: bool = False) -> "Anatomy":
    """The anatomy of the model called `model`, from its config, without its weights.

    Raises
    ------
    InputError
        If the config cannot be found or read.
    UnsupportedModelError
        If it is not a decoder model.
    """
    with quiet_stdout(), quiet_libraries():
        from sinkscope.cli.skeleton import find_skeleton_anatomy

        return find_skeleton_anatomy(model, revision, trust_remote_code)


def describe(model: str, anatomy: "Anatomy") -> dict[str, Any]:
    """The anatomy, and what can be done with the model, ready for JSON."""
    attention = None
    if not anatomy.attention_interface:
        attention = f"the attention of {anatomy.model_type} does not go through transformers' attention interface"
    elif not any(anatomy.attention_layers):
        attention = f"{anatomy.model_type} has no softmax attention"
    return {
        "model": model,
        **anatomy.to_dict(),
        "attention_layers": list(anatomy.attention_layers),
        "placeholder_ids": list(anatomy.placeholder_ids),
        "attention_kinds": [vars(kind) | {"features": list(kind.features)} for kind in anatomy.attention_kinds],
        "can": {
            "profile": True,
            "measure_attention": attention is None,
            "measure_attention_refusal": attention,
            "var": anatomy.var_refusal is None,
            "var_refusal": anatomy.var_refusal,
        },
    }


def _prediction(model: str, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """What the weights say, or why they say nothing: weights that cannot be read are no failure of `inspect`."""
    with quiet_stdout(), quiet_libraries():
        from sinkscope.pipeline import resolve
        from sinkscope.weights import predict

        try:
            return predict(resolve(model), revision=revision, trust_remote_code=trust_remote_code).to_dict()
        except SinkscopeError as error:
            return {"unavailable": str(error)}


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
        "profile        yes"
        + ("" if can["measure_attention"] else f", with --no-attention: {facts['can']['measure_attention_refusal']}"),
        "VAR            " + ("yes" if can["var"] else f"no: {can['var_refusal']}"),
        *([f"by weights     {said.get('reason') or said['unavailable']}"] if said else []),
    ]
