"""The tokens on which the profile and attention disagree, so that a figure below a bar can be shown for what it is."""

from collections import Counter, defaultdict
from typing import Any

import numpy as np

from benchmarks.real_models.agreement import LATER_QUERIES, THRESHOLDS
from benchmarks.real_models.captured import Captured
from benchmarks.real_models.judging import OWN, Judged, number
from sinkscope.backbone.loading import LoadedModel

LISTED = 20
NEIGHBOURS = 8
QUARTER = 0.25
MISSED, FALSE = "missed", "false"

CAUSES = {
    "threshold": "the profile's threshold is misplaced: the layer's best threshold in hindsight decides it rightly",
    "no massive activation": "an attention sink without massive activation: its score is below a quarter of the "
    "threshold, or its largest coordinate is not a sink dimension",
    "weaker activation": "an attention sink whose massive activation is weaker than those of tokens that draw less",
    "shares the attention": "a massive token that draws 0.05 to 0.10, beside other sinks of its piece",
    "draws little": "a massive token that draws less than 0.05 here",
}


def collect(data: Captured, judged: Judged, loaded: LoadedModel) -> dict[str, Any]:
    """Counts of the disagreements by variant and cause, and the tokens that lie furthest off.

    The distance of a token in a layer is abs(log(drawn / 0.10)) + abs(log(score / threshold)): how far it is on the
    wrong side of both lines. A token is listed once, with the layer where it is furthest off.

    Returns
    -------
    dict
        `causes` {variant: {kind: {cause: tokens, once a layer}}} and `tokens`, at most 20.
    """
    causes: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: {MISSED: Counter(), FALSE: Counter()})
    worst: dict[tuple[int, str], dict[str, Any]] = {}
    layers: dict[tuple[int, str], list[int]] = defaultdict(list)
    for view in judged.views:
        drawn = np.nan_to_num(data.drawn[:, view.layer])
        sinks, flagged = drawn > THRESHOLDS[0], view.flagged[OWN]
        for row in np.flatnonzero((sinks != flagged) & data.judged).tolist():
            kind = MISSED if sinks[row] else FALSE
            variant = data.pieces[data.piece[row]].variant
            relative = float(view.score[OWN][row] / view.threshold) if view.threshold else 0.0
            best = judged.oracle.get((variant, view.layer))
            right = best is not None and (bool(view.score[OWN][row] >= best) == bool(sinks[row]))
            cause = _cause(kind, relative, float(drawn[row]), bool(view.massive[row]), right)
            causes[variant][kind][cause] += 1
            layers[row, kind].append(view.layer)
            distance = abs(np.log(max(drawn[row], 1e-4) / THRESHOLDS[0])) + abs(np.log(max(relative, 1e-4)))
            if (row, kind) not in worst or distance > worst[row, kind]["distance"]:
                beside = flagged & (data.piece == data.piece[row]) & (data.position <= data.position[row])
                worst[row, kind] = {
                    "kind": kind,
                    "cause": cause,
                    "variant": variant,
                    "source": data.pieces[data.piece[row]].source,
                    "layer": view.layer,
                    "position": int(data.position[row]),
                    "drawn": number(float(drawn[row])),
                    "score_over_threshold": number(relative),
                    "earlier_flagged": int(beside.sum()) - int(beside[row]),
                    "distance": float(distance),
                }
    chosen = sorted(worst.items(), key=lambda item: -item[1]["distance"])[:LISTED]
    twins = _twins(data)
    for (row, kind), entry in chosen:
        entry["layers"] = layers[row, kind]
        entry["distance"] = number(entry["distance"])
        entry |= _words(data, loaded, row)
        twin = twins.get(row)
        entry["drawn_in_other_variant"] = None if twin is None else number(float(data.drawn[twin, entry["layer"]]))
    return {
        "causes": {
            variant: {kind: dict(counter) for kind, counter in by_kind.items()} for variant, by_kind in causes.items()
        },
        "tokens": [entry for _, entry in chosen],
    }


def _cause(kind: str, relative: float, drawn: float, massive: bool, right: bool) -> str:
    if right:
        return "threshold"
    if kind == MISSED:
        return "weaker activation" if massive and relative >= QUARTER else "no massive activation"
    return "shares the attention" if drawn > THRESHOLDS[1] else "draws little"


def _words(data: Captured, loaded: LoadedModel, row: int) -> dict[str, str]:
    """The token's text with its neighbours in the same piece."""
    same = np.flatnonzero(data.piece == data.piece[row])
    place = int(row - same[0])

    def text(rows: Any) -> str:
        return str(loaded.tokenizer.decode(data.ids[rows].tolist(), clean_up_tokenization_spaces=False))

    return {
        "before": text(same[max(0, place - NEIGHBOURS) : place]) if place else "",
        "token": text(same[place : place + 1]),
        "after": text(same[place + 1 : place + 1 + NEIGHBOURS]) if place + 1 < len(same) else "",
    }


def _twins(data: Captured) -> dict[int, int]:
    """The same token of the same piece with and without BOS, both ways."""
    pieces: dict[tuple[Any, ...], list[tuple[str, int]]] = defaultdict(list)
    starts = np.flatnonzero(np.diff(data.piece, prepend=-1))
    ends = np.append(starts[1:], len(data.piece))
    for number_, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        tail = tuple(data.ids[start:end][-LATER_QUERIES:].tolist())
        pieces[(data.pieces[number_].source, tail)].append((data.pieces[number_].variant, number_))
    found = {}
    for members in pieces.values():
        for _, one in members:
            for _, other in members:
                if one != other:
                    # Both are counted from the end, because BOS stands at the start.
                    for back in range(1, min(ends[one] - starts[one], ends[other] - starts[other]) + 1):
                        found[int(ends[one] - back)] = int(ends[other] - back)
    return found
