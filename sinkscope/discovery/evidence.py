"""What supports a profile: who draws the attention, which tokens trigger the sinks, what was rejected."""

import unicodedata
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sinkscope.discovery.find import Findings
from sinkscope.discovery.split import auroc, average_precision
from sinkscope.store.layout import KIND_SPECIAL, KIND_VISUAL
from sinkscope.store.tokens import TokenTable

TRIGGER_SHARE = 0.02
"""A kind of token is named as a trigger where it makes up at least this part of the sink tokens."""
NAMED_TOKENS = 12


def attention_evidence(found: Findings) -> dict[str, Any]:
    """How well the flagged tokens are those that draw attention, layer by layer.

    Returns
    -------
    dict
        Ready for JSON. F1, AUROC and average precision compare flagged tokens and scores with attention sinks, tokens
        whose mean attention from later queries is above the threshold; attention is the mean over heads. Share of mass
        is what the flagged tokens draw of all attention; the value norm ratio is theirs over the others'.
    """
    bands, link, magnitudes, settings = found.bands, found.link, found.magnitudes, found.settings
    assert link is not None
    rows = []
    for entry in bands:
        for layer, mask in entry.flagged.items():
            if not link.measured(layer):
                continue
            flagged, drawn, sink = mask[link.token], link.drawn[:, layer], link.sink[:, layer]
            score = magnitudes.judged_joint(layer, entry.band.dims)
            both = int((flagged & sink).sum())
            total = int(flagged.sum() + sink.sum())
            rows.append(
                {
                    "layer": layer,
                    "flagged": int(flagged.sum()),
                    "attention_sinks": int(sink.sum()),
                    "f1": _number(2 * both / total if total else float("nan")),
                    "auroc": _number(auroc(score, sink)),
                    "average_precision": _number(average_precision(score, sink)),
                    "drawn_by_flagged": _number(_mean(drawn[flagged])),
                    "drawn_by_others": _number(_mean(drawn[~flagged])),
                    "share_of_mass": _number(drawn[flagged].sum() / max(drawn.sum(), 1e-12)),
                    "value_norm_ratio": _number(
                        _mean(link.value_norm[flagged, layer]) / max(_mean(link.value_norm[~flagged, layer]), 1e-12)
                    ),
                }
            )
    return {
        "threshold": settings.attention_sink,
        "minimum_later_queries": settings.minimum_later_queries,
        "tokens": len(link.token),
        "mean_f1": _number(_mean_of(rows, "f1")),
        "mean_average_precision": _number(_mean_of(rows, "average_precision")),
        "mean_drawn_by_flagged": _number(_mean_of(rows, "drawn_by_flagged")),
        "mean_drawn_by_others": _number(_mean_of(rows, "drawn_by_others")),
        "layers": rows,
    }


def sinks_by_kind(found: Findings) -> list[dict[str, Any]]:
    """Sink tokens of every band by where they come from.

    Returns
    -------
    list of dict
        Ready for JSON, one entry for each band and each kind that it has: `kind` is "text", "visual" (a visual token
        that becomes a sink inside the decoder) or "propagated" (a visual token that holds the band's dimensions when
        it enters layer 0 already: its massive activation comes from the vision encoder); with the number of tokens
        and of samples that have them, and the mean attention that they draw, null where it was not measured.
    """
    tokens = found.run.tokens
    entries = []
    for entry in found.bands:
        union = np.zeros(len(tokens), bool)
        judged: dict[int, NDArray[np.bool_]] = {}
        for layer, flagged in entry.flagged.items():
            union |= flagged
            if found.link is not None and found.link.measured(layer):
                judged[layer] = flagged[found.link.token]
        energy = found.magnitudes.joint(0, entry.band.dims) ** 2
        share = energy / (found.width * np.maximum(found.magnitudes.rms(0), np.finfo(np.float32).tiny) ** 2)
        visual = tokens.kind == KIND_VISUAL
        propagated = visual & (share >= found.effect_share)
        for kind, members in (("text", ~visual), ("visual", visual & ~propagated), ("propagated", propagated)):
            mask = union & members
            if not mask.any():
                continue
            drawn: list[float] = []
            for layer, flagged in judged.items():
                assert found.link is not None
                drawn += found.link.drawn[flagged & mask[found.link.token], layer].tolist()
            entries.append(
                {
                    "first_layer": entry.band.first_layer,
                    "last_layer": entry.band.last_layer,
                    "kind": kind,
                    "tokens": int(mask.sum()),
                    "samples": len(np.unique(tokens.sample[mask])),
                    "attention_drawn": _number(_mean(drawn)),
                }
            )
    return entries


def triggers(
    mask: NDArray[np.bool_], tokens: TokenTable, text: dict[int, str]
) -> tuple[list[str], list[dict[str, Any]], int]:
    """Which kinds of token are sinks.

    Parameters
    ----------
    mask : bool [N]
        The sink tokens.
    tokens : TokenTable
        All tokens.
    text : dict of int to str
        Text of token ids.

    Returns
    -------
    kinds : list of str
        Of "bos" (a special token in first place), "first" (any other token in first place), "special", "delimiter",
        "text" and "visual", most frequent first.
    examples : list of dict
        The most frequent sink tokens: text, kind, how many are sinks, and how many there are.
    visual : int
        Number of visual sink tokens.
    """
    rows = np.flatnonzero(mask)
    named = Counter(
        (
            _kind(int(tokens.position[row]), int(tokens.kind[row]), text.get(int(tokens.id[row]), "")),
            int(tokens.id[row]),
        )
        for row in rows
    )
    kinds: Counter[str] = Counter()
    for (kind, _), count in named.items():
        kinds[kind] += count
    least = max(1.0, TRIGGER_SHARE * len(rows))
    listed = [kind for kind, count in kinds.most_common() if count >= least]
    examples = [
        {
            "text": text.get(identifier, ""),
            "kind": kind,
            "sinks": count,
            "occurrences": int((tokens.id == identifier).sum()),
        }
        for (kind, identifier), count in named.most_common(NAMED_TOKENS)
    ]
    return listed, examples, kinds["visual"]


def is_delimiter(text: str) -> bool:
    """Whether a token's text is only white space and punctuation or symbols."""
    return bool(text) and all(character.isspace() or unicodedata.category(character)[0] in "PSZ" for character in text)


def _kind(position: int, kind: int, text: str) -> str:
    if kind == KIND_VISUAL:
        return "visual"
    if position == 0:
        return "bos" if kind == KIND_SPECIAL else "first"
    if kind == KIND_SPECIAL:
        return "special"
    return "delimiter" if is_delimiter(text) else "text"


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _mean_of(rows: list[dict[str, Any]], name: str) -> float:
    return _mean([row[name] for row in rows if row[name] is not None])


def _number(value: float) -> float | None:
    """JSON has no NaN: what cannot be computed is null. Rounded, so that a profile is stable across platforms."""
    return None if not np.isfinite(value) else float(f"{value:.6g}")
