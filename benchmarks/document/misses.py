"""Tokens on which the profile and attention disagree, and why bars on sink tokens are not met."""

from typing import Any

from benchmarks.document.words import NOTHING, code, folded, join, number, plural, spans, table
from benchmarks.real_models.disagreements import CAUSES, FALSE, MISSED
from benchmarks.real_models.judging import ORACLE

SHOWN_TOKENS = 12
DISAGREE = (
    "Tokens are counted once a layer. A *missed* token is an attention sink that the profile does not flag; a *false* "
    "one is flagged and draws less. A token listed below is shown at the layer where it is furthest on the wrong side "
    "of both lines, attention 0.10 and the profile's threshold."
)


def reasons(results: dict[str, Any]) -> list[str]:
    """Why a bar on sink tokens is not met, one sentence or two for each model and text where one is not."""
    models = {model["name"]: model for model in results["models"]}
    missed: dict[tuple[str, str], list[str]] = {}
    for bar in results["bars"]:
        if bar["met"] is False and bar["variant"] and bar["what"] in ("f1", "average_precision"):
            missed.setdefault((bar["model"], bar["variant"]), []).append(bar["what"].replace("_", " "))
    return [reason(models[name], variant, what, results) for (name, variant), what in missed.items()]


def reason(model: dict[str, Any], variant: str, what: list[str], results: dict[str, Any]) -> str:
    """What stands between a model's figures and the bars on one kind of text."""
    entry = next(iter(model["variants"][variant]["thresholds"].values()))
    best = entry["methods"][ORACLE]["f1"]
    bound = next(float(bar["bound"].split()[-1]) for bar in results["bars"] if bar["what"] == "f1")
    text = f"{model['name']}, {variant} ({join(what)}): the best threshold in hindsight has F1 {number(best)}, "
    text += "so no threshold meets the bar. " if best < bound else "so a better threshold would meet the bar on F1. "
    causes = model["disagreements"]["causes"].get(variant, {MISSED: {}, FALSE: {}})
    counts = [
        (causes[MISSED].get("no massive activation", 0), "attention sinks without massive activation"),
        (causes[MISSED].get("weaker activation", 0), "attention sinks with a weaker one than tokens that draw less"),
        (causes[FALSE].get("shares the attention", 0), "massive tokens that draw 0.05 to 0.10"),
        (causes[FALSE].get("draws little", 0), "massive tokens that draw less"),
        (
            causes[MISSED].get("threshold", 0) + causes[FALSE].get("threshold", 0),
            "tokens that the best threshold in hindsight would decide rightly",
        ),
    ]
    text += "The disagreements, once a layer: " + join([f"{words} ({count})" for count, words in counts if count])
    shown = [token for token in model["disagreements"]["tokens"] if token["variant"] == variant][:3]
    examples = [
        f"{code(token['token'], 16)} after {code(token['before'], 20, end=True)} (layer {token['layer']}, draws "
        f"{number(token['drawn'])}, score {number(token['score_over_threshold'], 2)} of the threshold)"
        for token in shown
    ]
    return text + (f". For example {join(examples)}." if examples else ".")


def disagreements(model: dict[str, Any]) -> str:
    """Counts by cause, and the tokens furthest off."""
    found = model["disagreements"]
    variants = [variant for variant in model["variants"] if variant in found["causes"]]
    rows = []
    for kind, title in ((MISSED, "missed"), (FALSE, "flagged, no attention sink")):
        for cause, meaning in CAUSES.items():
            counts = [found["causes"][variant][kind].get(cause, 0) for variant in variants]
            if any(counts):
                rows.append([title, f"{cause}: {meaning}", *counts])
    parts = [f"**{model['name']}**", table(["disagreement", "cause", *variants], rows, left=2)]
    if found["tokens"]:
        shown = found["tokens"][:SHOWN_TOKENS]
        parts.append(folded(f"The {plural(len(shown), 'token')} furthest off", token_table(shown)))
    return "\n\n".join(parts)


def in_its_place(token: dict[str, Any]) -> str:
    """The token in bold between its neighbours."""
    parts = [code(token["before"], 24, end=True), f"**{code(token['token'] or '?', 16)}**", code(token["after"], 16)]
    return " ".join(part for part in parts if part)


def token_table(tokens: list[dict[str, Any]]) -> str:
    """Tokens with their neighbours and figures."""
    rows = []
    for token in tokens:
        other = token["drawn_in_other_variant"]
        rows.append(
            [
                f"{token['kind']}: {token['cause']}",
                f"{token['source']}, {token['variant']}",
                in_its_place(token),
                token["position"],
                f"{token['layer']} ({spans(token['layers'])})",
                number(token["drawn"]),
                number(token["score_over_threshold"], 2),
                NOTHING if other is None else number(other),
            ]
        )
    header = [
        "what",
        "text",
        "token",
        "place",
        "layer (all)",
        "draws",
        "score / threshold",
        "draws in the other variant",
    ]
    return table(header, rows, left=3)
