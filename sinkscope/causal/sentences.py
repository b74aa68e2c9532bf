"""What a causal check shows beside its verdict, in words."""

from collections.abc import Sequence
from typing import Any

from sinkscope.causal.lines import CONTROLS, exchanged, fall_of, find_line, joint_line, names_of, percent, single_line
from sinkscope.causal.settings import CausalSettings


def losses(dims: Sequence[int], layers: Sequence[dict[str, Any]]) -> list[str]:
    """What the exchange costs, where the attention does not say enough."""
    known, highest = [], []
    for entry in layers:
        cost = joint_line(entry, dims)["loss_change"]
        others = [line["loss_change"] for line in exchanged(entry, CONTROLS) if line["loss_change"] is not None]
        if cost is not None and others:
            known.append(f"{cost:+.2g} nats at layer {entry['layer']}")
            highest.append(f"{max(others):+.2g}")
    if not known:
        return []
    return [
        f"the exchange of {names_of(dims)} changes the loss by {' and '.join(known)}, those of random and next-largest "
        f"dimensions by at most {' and '.join(highest)}"
    ]


def doubts(dims: Sequence[int], layers: Sequence[dict[str, Any]], settings: CausalSettings) -> list[str]:
    """Where the exchange may take attention because of where its values land, not because they leave their place."""
    copies = [(entry["layer"], find_line(entry, dims, "copy")) for entry in layers]
    words = [
        f"{percent(line)} at layer {layer}"
        for layer, line in copies
        if line is not None and fall_of(line) >= settings.fall
    ]
    if not words:
        return []
    return [
        f"a copy of the values of {names_of(dims)} to other dimensions, their own place kept, lowers the attention "
        f"drawn too: {' and '.join(words)}; the exchange does not tell their leaving from their landing there"
    ]


def transplants(dims: Sequence[int], layers: Sequence[dict[str, Any]]) -> list[str]:
    """What the values draw by themselves, in an ordinary token: in their own place, in others, and beside others."""
    names = {
        ("found", "transplant"): "in their own place",
        ("found", "transplant elsewhere"): "in other places",
        ("next largest", "transplant"): "with those of {} instead",
        ("ordinary", "transplant"): "without",
    }
    words = []
    for layer in layers:
        lines = {(line["group"], line["edit"]): line for line in layer["comparisons"] if fall_of(line) is not None}
        parts = [
            f"{1 - fall_of(lines[key]):.0%} {name.format(names_of(lines[key]['dims']))}{_cost(lines[key])}"
            for key, name in names.items()
            if key in lines
        ]
        if parts:
            words.append(f"at layer {layer['layer']} {', '.join(parts)}")
    if not words:
        return []
    return [
        f"an ordinary token in the same positions, with the values of {names_of(dims)}, draws of this attention "
        f"{'; '.join(words)}"
    ]


def kinds(dims: Sequence[int], layers: Sequence[dict[str, Any]]) -> list[str]:
    """Visual sinks apart from the others."""
    words = []
    for layer in layers:
        found = joint_line(layer, dims).get("kinds", {})
        parts = [f"{part['fall']:.0%} from {kind} tokens" for kind, part in found.items() if part is not None]
        if "visual" in found and parts:
            words.append(f"{', '.join(parts)} at layer {layer['layer']}")
    return [f"by kind of sink token, the exchange takes {'; '.join(words)}"] if words else []


def landing(layer: dict[str, Any], exchanged: dict[str, Any], settings: CausalSettings) -> str:
    """What a copy to the same partners says of an exchange, where it takes attention too."""
    copied = None if exchanged["dims"] is None else find_line(layer, exchanged["dims"], "copy")
    if copied is None or fall_of(copied) < settings.control_fall:
        return ""
    return f"; but a copy of its values elsewhere, their own place kept, takes {percent(copied)}"


def alone(dims: Sequence[int], layers: Sequence[dict[str, Any]], matters: list[dict[str, Any]]) -> list[str]:
    """Which dimensions of a larger set are enough by themselves."""
    if len(dims) < 2:
        return []
    sentences = []
    for entry in matters:
        words = [f"{percent(single_line(layer, entry['dim']))} at layer {layer['layer']}" for layer in layers]
        verdict = "is enough" if len(entry["sufficient_at"]) == len(layers) else "is not enough everywhere"
        if not entry["sufficient_at"]:
            verdict = "is not enough" if entry["partly_at"] else "does not matter"
        sentences.append(f"{entry['dim']} alone {verdict}: {', '.join(words)}")
    return sentences


def elsewhere(layers: Sequence[dict[str, Any]], settings: CausalSettings) -> list[str]:
    """Sink dimensions of other bands that act here too."""
    sentences = []
    for entry in layers:
        for line in exchanged(entry, ("found elsewhere",)):
            fall = fall_of(line)
            if fall is not None and fall >= settings.control_fall:
                sentences.append(
                    f"the exchange of {names_of(line['dims'])}, found in another band, takes {percent(line)} at layer "
                    f"{entry['layer']}{landing(entry, line, settings)}"
                )
    return sentences


def formed_again(
    layers: Sequence[dict[str, Any]], joint: Sequence[dict[str, Any]], settings: CausalSettings
) -> list[str]:
    """Sinks that come back once the band is over."""
    sentences = []
    for entry, line in zip(layers, joint, strict=True):
        network = fall_of(line, "network")
        if network is not None and network < settings.fall <= fall_of(line):
            sentences.append(
                f"after the exchange at layer {entry['layer']} sinks form again later: over the rest of the network "
                f"the attention drawn falls by {percent(line, 'network')}"
            )
    return sentences


def _cost(line: dict[str, Any]) -> str:
    return "" if line["loss_change"] is None else f" ({line['loss_change']:+.2g} nats)"
