"""Does a check separate a band's dimensions from all others, and in words where it does not?"""

from collections.abc import Mapping, Sequence
from typing import Any

from sinkscope.causal.lines import control_lines, fall_of, joint_line, names_of, percent, single_line, title
from sinkscope.causal.sentences import alone, doubts, elsewhere, formed_again, kinds, landing, losses, transplants
from sinkscope.causal.settings import CausalSettings


def judge(
    dims: Sequence[int],
    layers: Sequence[dict[str, Any]],
    settings: CausalSettings,
    listed: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """The verdict on one band.

    Parameters
    ----------
    dims : sequence of int
        The band's sink dimensions.
    layers : sequence of dict
        Its edited layers, each with `layer` and `comparisons` as `causal_check` describes them.
    settings : CausalSettings
    listed : mapping of int to str, optional
        What the profile calls other dimensions that it names.

    Returns
    -------
    dict
        `separates`: at every layer the joint exchange takes at least `settings.fall` of the attention drawn, and every
        control less than `settings.control_fall`; null where attention was not measured. `confident`: the intervals say
        the same. `stands_out`: at every layer the interval of the joint exchange lies above that of every control.
        `place_decides`: at every layer, of what the values draw in an ordinary token, moving them to other places takes
        at least `settings.fall`. `matters`: for each dimension the layers where its exchange alone is enough, and where
        it takes a part. `sentences`.
    """
    joint = [joint_line(entry, dims) for entry in layers]
    if not layers or any(fall_of(line) is None for line in joint):
        reason = "attention was not measured" if layers else "no sample has a sink token with enough later queries"
        sentences = [f"not judged: {reason}", *losses(dims, layers)]
        unknown = dict.fromkeys(("separates", "confident", "stands_out", "place_decides"))
        return unknown | {"matters": [], "sentences": sentences}
    failures = _failures(dims, layers, settings, listed or {})
    controls = [line for entry in layers for line in control_lines(entry)]
    highest = max((line["band"]["fall_interval"][1] for line in controls), default=0.0)
    lowest = min(line["band"]["fall_interval"][0] for line in joint)
    stands_out = all(
        line["band"]["fall_interval"][0] > control["band"]["fall_interval"][1]
        for entry, line in zip(layers, joint, strict=True)
        for control in control_lines(entry)
    )
    confident = not failures and lowest >= settings.fall and highest < settings.control_fall
    by_layer = [f"{percent(line)} at layer {entry['layer']}" for entry, line in zip(layers, joint, strict=True)]
    largest = max([0.0, *(fall_of(line) for line in controls)])
    sentences = failures or [
        f"the exchange of {names_of(dims)} lowers the attention drawn by {' and '.join(by_layer)}; random and "
        f"next-largest dimensions lower it by at most {largest:.0%}"
    ]
    if not failures and not confident:
        sentences.append("the intervals are too wide to be sure of it: check with more samples")
    if failures and stands_out:
        sentences.append(
            f"yet {names_of(dims)} {'stands' if len(dims) == 1 else 'stand'} out: {' and '.join(by_layer)}, more than "
            f"any control (at most {largest:.0%})"
        )
    matters = _matters(dims, layers, settings)
    sentences += losses(dims, layers) if failures else []
    sentences += doubts(dims, layers, settings) + transplants(dims, layers)
    sentences += alone(dims, layers, matters) + elsewhere(layers, settings) + formed_again(layers, joint, settings)
    sentences += kinds(dims, layers)
    return {
        "separates": not failures,
        "confident": confident,
        "stands_out": stands_out,
        "place_decides": _place_decides(layers, settings),
        "matters": matters,
        "sentences": sentences,
    }


def _failures(
    dims: Sequence[int], layers: Sequence[dict[str, Any]], settings: CausalSettings, listed: Mapping[int, str]
) -> list[str]:
    """Which edits keep the band from being separated."""
    sentences = []
    for entry in layers:
        line = joint_line(entry, dims)
        if fall_of(line) < settings.fall:
            sentences.append(
                f"does not separate: at layer {entry['layer']} the exchange of {names_of(dims)} lowers the attention "
                f"drawn by {percent(line)}, less than {settings.fall:.0%}"
            )
        sentences += [
            f"does not separate: at layer {entry['layer']} the exchange of {title(control, listed)} lowers the "
            f"attention drawn by {percent(control)}, not less than {settings.control_fall:.0%}"
            f"{landing(entry, control, settings)}"
            for control in control_lines(entry)
            if fall_of(control) >= settings.control_fall
        ]
    return sentences


def _place_decides(layers: Sequence[dict[str, Any]], settings: CausalSettings) -> bool | None:
    """An exchange in an ordinary token, where nothing else of the sink token can help or disturb."""
    verdicts = []
    for layer in layers:
        lines = {line["edit"]: line["band"] for line in layer["comparisons"] if line["group"] == "found"}
        own, moved = lines.get("transplant"), lines.get("transplant elsewhere")
        if own is None or moved is None:
            return None
        verdicts.append(moved["after"] <= (1 - settings.fall) * own["after"])
    return all(verdicts)


def _matters(dims: Sequence[int], layers: Sequence[dict[str, Any]], settings: CausalSettings) -> list[dict[str, Any]]:
    found = []
    for dim in dims:
        falls = [(entry["layer"], fall_of(single_line(entry, dim))) for entry in layers]
        found.append(
            {
                "dim": dim,
                "sufficient_at": [layer for layer, fall in falls if fall >= settings.fall],
                "partly_at": [layer for layer, fall in falls if settings.control_fall <= fall < settings.fall],
            }
        )
    return found
