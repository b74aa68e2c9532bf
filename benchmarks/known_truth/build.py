"""From a case to a store: ordinary activations, sinks, decoys, attention, rounding."""

import numpy as np

from benchmarks.known_truth.attention import attention_drawn
from benchmarks.known_truth.case import Case, Truth
from benchmarks.known_truth.decoys import plant_decoys
from benchmarks.known_truth.ordinary import ordinary_states, round_bfloat16
from benchmarks.known_truth.sinks import attention_layers, plant_sinks
from benchmarks.known_truth.tokens import make_tokens
from benchmarks.known_truth.truth import is_separable, measure


def build(case: Case) -> Truth:
    """Build the store of a case; the same arrays every time.

    Where the first hidden state has another scale it is set before sinks are planted, so that they are measured on it.
    """
    generator = np.random.default_rng(case.seed)
    tokens = make_tokens(generator, case)
    attended = attention_layers(case, generator)
    states = ordinary_states(generator, case, tokens)
    planted = plant_sinks(generator, case, tokens, states, attended)
    plant_decoys(generator, case, tokens, states, planted, attended)
    drawn = None
    if case.attention:
        drawn = attention_drawn(generator, case, tokens, planted.strength, attended)
    if case.bfloat16:
        round_bfloat16(states)
    measures = None if case.free else measure(case, tokens, states, planted, drawn)
    unsure = planted.unsure.copy()
    unsure[:-1] |= ~attended
    return Truth(
        case=case,
        states=states,
        tokens=tokens,
        drawn=drawn,
        dims=tuple(sorted(planted.acting)),
        acting=planted.acting,
        sinks=planted.sinks,
        unsure=unsure,
        companions=tuple(planted.companions),
        decoys=tuple(planted.decoys),
        separable=is_separable(case, tokens, measures),
        measures=measures,
    )
