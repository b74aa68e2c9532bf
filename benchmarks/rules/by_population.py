"""Rules that go by populations of tokens or by attention: attention-first, LTPO, Omni; Gu, who finds tokens only."""

from collections import Counter

import numpy as np

from benchmarks.rules.activations import Activations, Mask, phi_tokens, root_mean_square, strongest_first

# Attention-first

ATTENTION_SHARE, ATTENTION_TOP, ATTENTION_DIMS, ATTENTION_FIRST_LAYER = 0.1, 100, 2, 2


def attention_first_dims(activations: Activations) -> list[int]:
    """Two dimensions, largest on the tenth of the (visual) tokens with the most attention, layer by layer.

    Per sample and layer, from layer 2 on: abs(x) / RMS(x), its maximum over those tokens, the 100 largest dimensions.
    Dimensions are ordered by the number of layers in which they appear, then by their mean score, and must appear in
    max(3, L // 4) layers, or in all where a model has fewer. A token's total attention is its mean from later queries
    times their number. Samples without visual tokens take part with all their tokens where no sample has any.
    """
    if activations.drawn is None:
        return []
    any_visual = bool(activations.visual.any())
    frequency: Counter[int] = Counter()
    means: dict[int, list[float]] = {}
    looked_at = 0
    for layer in range(ATTENTION_FIRST_LAYER, activations.num_layers):
        drawn = activations.drawn[:, layer]
        if np.isnan(drawn).all():
            continue
        looked_at += 1
        states = activations.states[layer]
        total = np.zeros(states.shape[1])
        count = np.zeros(states.shape[1])
        for span in activations.spans():
            rows = np.arange(span.start, span.stop)
            received = np.nan_to_num(drawn[rows]) * np.arange(len(rows))[::-1]
            keep = activations.visual[rows] if any_visual else np.ones(len(rows), bool)
            rows, received = rows[keep], received[keep]
            if not len(rows):
                continue
            number = max(1, int(len(rows) * ATTENTION_SHARE))
            chosen = rows[np.argsort(-received, kind="stable")[:number]]
            score = (np.abs(states[chosen]) / root_mean_square(states[chosen])[:, None]).max(axis=0)
            top = np.argsort(-score, kind="stable")[:ATTENTION_TOP]
            total[top] += score[top]
            count[top] += 1
        for dim in np.flatnonzero(count).tolist():
            frequency[dim] += 1
            means.setdefault(dim, []).append(float(total[dim] / count[dim]))
    least = min(max(3, activations.num_layers // 4), looked_at)
    ranked = sorted(
        ((-number, -float(np.mean(means[dim])), dim) for dim, number in frequency.items() if number >= least),
    )
    return [dim for _, _, dim in ranked[:ATTENTION_DIMS]]


# LTPO

LTPO_DIMS = 2


def ltpo_dims(activations: Activations) -> list[int]:
    """The two dimensions with the largest median over tokens of abs(x) / RMS(x) entering layer L // 2.

    The median is taken in every sample and averaged over samples.
    """
    states = activations.states[activations.num_layers // 2]
    normed = np.abs(states) / root_mean_square(states)[:, None]
    score = np.mean([np.median(normed[span], axis=0) for span in activations.spans()], axis=0)
    return [int(dim) for dim in np.argsort(-score, kind="stable")[:LTPO_DIMS]]


# Omni finder

OMNI_MEDIANS, OMNI_LAYERS, OMNI_DISTINCT, OMNI_ACTIVE = 20.0, 0.5, 1.5, 3.0


def omni_dims(activations: Activations) -> list[int]:
    """Dimensions large on average in most hidden states, and larger on sink tokens than on the others.

    First: mean over tokens of abs(x) / RMS(x) above 20 times its median over dimensions, in more than half of the
    hidden states 0..L. Then the contrast between token populations that took the content dimension out: sink tokens
    are those with phi >= 20 in the dimensions so far; the dimension's median on them must exceed 3, and 1.5 times its
    median on the other tokens. The original looks at three layers of its model; here a dimension must be distinctive
    in most of the hidden states where both populations occur. Without sink tokens there is none.
    """
    depth = activations.num_layers + 1
    flagged: Counter[int] = Counter()
    for layer in range(depth):
        states = activations.states[layer]
        mean = (np.abs(states) / root_mean_square(states)[:, None]).mean(axis=0)
        flagged.update(np.flatnonzero(mean > OMNI_MEDIANS * np.median(mean)).tolist())
    first = [dim for dim, count in flagged.items() if count > OMNI_LAYERS * depth]
    distinctive: Counter[int] = Counter()
    both = 0
    for layer in range(depth) if first else ():
        sinks = phi_tokens(activations, layer, first)
        if not sinks.any() or sinks.all():
            continue
        both += 1
        states = activations.states[layer]
        phi = np.abs(states[:, first]) / root_mean_square(states)[:, None]
        own, others = np.median(phi[sinks], axis=0), np.median(phi[~sinks], axis=0)
        distinctive.update(np.array(first)[(own > OMNI_ACTIVE) & (own > OMNI_DISTINCT * others)].tolist())
    return strongest_first({dim: float(flagged[dim]) for dim in first if both and distinctive[dim] > both / 2})


# Gu et al.

GU_ATTENTION = 0.3


def gu_tokens(activations: Activations, layer: int, dims: list[int]) -> Mask:
    """Tokens that draw more than 0.3 of the attention, on average over heads; the paper counts heads one by one."""
    if activations.drawn is None or layer >= activations.drawn.shape[1]:
        return np.zeros(len(activations.sample), bool)
    return np.nan_to_num(activations.drawn[:, layer]) > GU_ATTENTION
