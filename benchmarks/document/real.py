"""The part of the document on real models."""

from typing import Any

from benchmarks.document import causal, misses
from benchmarks.document.words import (
    NOTHING,
    braces,
    clean,
    extent,
    folded,
    join,
    number,
    paragraph,
    plural,
    spans,
    table,
    with_interval,
)
from benchmarks.real_models.judging import ORACLE, OWN, OWN_PHI, PUBLISHED

OWN_METHODS = (OWN, OWN_PHI, PUBLISHED, ORACLE)


def section(results: dict[str, Any], images: dict[str, str]) -> str:
    """The whole part.

    Parameters
    ----------
    results : dict
        Of ``real_models.json``.
    images : dict of str to str
        Markdown for the figures by name.
    """
    settings = results["settings"]
    names = [model["name"] for model in results["models"]]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    tokens = f", at most {settings['tokens']} tokens" if settings["tokens"] else ""
    parts = [
        "## Real models",
        paragraph(
            f"`python -m benchmarks.real_models` profiled {join(names)} on the calibration data that sinkscope ships. "
            f"Then texts that calibration does not contain went through them ({', '.join(settings['texts'])}; pieces "
            f"of {settings['piece_tokens']} tokens, with and without BOS{tokens}). An *attention sink* of a layer is a "
            f"token whose attention, averaged over heads and over at least {settings['later_queries']} later queries, "
            f"is above {settings['thresholds'][0]:g}. Counts are pooled over pieces within a layer; F1, precision, "
            "recall and average precision (AP) are means over the layers of the profile's bands that have attention "
            f"sinks. Intervals are 95 %, from {settings['bootstraps']} bootstraps over pieces. It took "
            f"{results['seconds'] / 60:.0f} minutes; {versions}."
        ),
        paragraph(
            "The rules look for their dimensions on the held-out tokens themselves, where sinkscope knows only its "
            "calibration data. The best threshold in hindsight is a single one a layer on sinkscope's score, chosen "
            "with the answers in hand: no threshold on that score can do better."
        ),
        "### Dimensions",
        dimensions(results),
    ]
    parts += [
        paragraph(f"{skipped['name']} was skipped: {clean(skipped['reason'])}.") for skipped in results["skipped"]
    ]
    with_bands = [model for model in results["models"] if model["bands"]]
    if with_bands:
        parts += ["### Sink tokens on text that calibration did not see", overview(with_bands)]
        parts += [images[name] for name in ("f1_layers", "precision_recall") if name in images]
        parts += [tokens_of(model) for model in with_bands]
    parts += ["### Where the profile and attention disagree", paragraph(misses.DISAGREE)]
    parts += [misses.disagreements(model) for model in results["models"] if model["disagreements"]["causes"]]
    checked = [model for model in results["models"] if model["causal"] and model["causal"]["bands"]]
    if checked:
        parts += ["### The causal check", paragraph(causal.CAUSAL), *(causal.causal_table(model) for model in checked)]
    parts += ["### The rules", rules(results)]
    return "\n\n".join(parts)


def dimensions(results: dict[str, Any]) -> str:
    """Who names which dimensions, model by model."""
    rules_ = list(results["models"][0]["rules"]) if results["models"] else []
    rows = []
    for model in results["models"]:
        expected = model["expected"]
        known = " or ".join(braces(dims) for dims in expected) if expected is not None else NOTHING
        found = [braces(model["rules"][name]["dims"], 4) for name in rules_]
        rows.append([model["name"], known, f"**{braces(model['dims'])}**", *found])
    return table(["model", "known", OWN, *rules_], rows, left=len(rules_) + 3)


def overview(models: list[dict[str, Any]]) -> str:
    """One row a model and variant."""
    rows = []
    for model in models:
        for variant, entry in model["variants"].items():
            main, second = entry["thresholds"].values()
            own, published = main["methods"].get(OWN), main["methods"].get(PUBLISHED)
            if not main["layers_with_sinks"] or own is None:
                continue
            default = " (as its tokenizer begins a text)" if variant == model["default_variant"] else ""
            rows.append(
                [
                    model["name"],
                    variant + default,
                    with_interval(own["f1"], own["f1_interval"]),
                    number(main["methods"][ORACLE]["f1"]),
                    number(published["f1"]),
                    with_interval(own["average_precision"], own["average_precision_interval"]),
                    number(published["average_precision"]),
                    number(second["methods"][OWN]["f1"]),
                    coverage(entry),
                ]
            )
    header = ["model", "text", "F1", "best in hindsight", "F1 of tau = 20", "AP", "AP of phi", "F1 at 0.05"]
    return table([*header, "layers covered"], rows, left=2)


def coverage(entry: dict[str, Any]) -> str:
    """Layers in which the first token draws more than 0.10, and how many of them the bands cover."""
    layers, missing = entry["first_token_layers"], entry["uncovered_layers"]
    if not layers:
        return "no such layer"
    return f"{len(layers) - len(missing)} of {len(layers)}" + (f" (not {spans(missing)})" if missing else "")


def tokens_of(model: dict[str, Any]) -> str:
    """All methods on one model, a table a variant; only that of the text as its tokenizer begins it is unfolded."""
    bands = join([f"{extent(band)} {braces(band['dims'])}" for band in model["bands"]])
    parts = [paragraph(f"**{model['name']}**: bands {bands}. {sentence(model)}")]
    for variant, entry in model["variants"].items():
        main = next(iter(entry["thresholds"].values()))
        if not main["layers_with_sinks"]:
            parts.append(f"{variant}: no attention sinks in these layers.")
            continue
        head = (
            f"{variant}: {plural(entry['pieces'], 'piece')}, {plural(entry['judged'], 'judged token')}, "
            f"{plural(sum(main['sinks']), 'attention sink')} (once a layer) in {main['layers_with_sinks']} layers"
        )
        if variant == model["default_variant"]:
            parts += [head[0].upper() + head[1:] + ":", methods_table(main["methods"])]
        else:
            parts.append(folded(head[0].upper() + head[1:], methods_table(main["methods"])))
    return "\n\n".join(parts)


def methods_table(methods: dict[str, Any]) -> str:
    """Precision, recall, F1 and average precision of all methods."""
    rows = [
        [
            f"**{name}**" if name == OWN else name,
            number(methods[name]["precision"]),
            number(methods[name]["recall"]),
            with_interval(methods[name]["f1"], methods[name]["f1_interval"]),
            number(methods[name]["average_precision"]),
        ]
        for name in [name for name in OWN_METHODS if name in methods]
        + [name for name in methods if name not in OWN_METHODS]
    ]
    return table(["method", "precision", "recall", "F1", "AP"], rows)


def sentence(model: dict[str, Any]) -> str:
    """The notes of the profile, in one line."""
    notes = [clean(note).rstrip(".") for note in model["notes"]]
    return " ".join(note[:1].upper() + note[1:] + "." for note in notes)


def rules(results: dict[str, Any]) -> str:
    """What the rules are."""
    rows = [[name, clean(rule["definition"]), rule["source"]] for name, rule in results["rules"].items()]
    text = "Re-implemented from their definitions in `benchmarks/rules`; they take no part in sinkscope."
    return text + "\n\n" + table(["rule", "definition", "source"], rows, left=3)
