"""A run file within so many bytes: it keeps fewer hidden states where those of the settings would not fit."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sinkscope.capture.settings import CaptureSettings
from sinkscope.errors import InputError
from sinkscope.store.choices import choose_tokens, kept_budget
from sinkscope.store.layout import RunPlan, file_bytes

LEAST_STATES = 128
"""Tokens whose hidden states must fit: with fewer, discovery would have little to go by."""


def within_budget(plan: RunPlan, settings: CaptureSettings) -> RunPlan:
    """The plan, with a smaller seeded choice of hidden states where its file would pass `max_store`.

    Raises
    ------
    InputError
        With the bytes that the file would take and what to lower, where that is not enough.
    """
    limit, states, needed = settings.max_store, plan.sampled_tokens, file_bytes(plan)
    if limit is None or needed <= limit:
        return plan
    least = file_bytes(replace(plan, sampled_tokens=states[:0]))
    each = (needed - least) / max(1, len(states))
    most = int((limit - least) / each) if each else 0
    # A budget is met up to a few tokens, so that the first one may be too much.
    budget = min(most, kept_budget(settings.to_json()))
    while budget >= LEAST_STATES:
        chosen = choose_tokens(plan.tokens, plan.fingerprints, budget, settings.seed)
        if len(chosen) <= most:
            return _keeping(plan, settings, budget, chosen)
        budget -= len(chosen) - most
    keep = ", or keep less than --keep topk does" if settings.keep == "topk" else ""
    raise InputError(
        f"the run file would take {least + int(LEAST_STATES * each):,} bytes, and --max-store allows {limit:,}; give "
        f"fewer --tokens than {len(plan.tokens):,}{keep}"
    )


def _keeping(plan: RunPlan, settings: CaptureSettings, budget: int, chosen: NDArray[np.int64]) -> RunPlan:
    """The plan with the chosen states, and settings that tell of them."""
    if budget < settings.sampled_tokens:
        told: dict[str, Any] = {"sampled_tokens": budget, "keep": "sample" if settings.keep == "all" else settings.keep}
    else:
        told = {"kept_states": budget}
    # For those who go on with the run: without it, they would ask for more states.
    told["max_store"] = settings.max_store
    attributes = replace(plan.attributes, settings={**plan.attributes.settings, **told})
    return replace(plan, sampled_tokens=chosen, attributes=attributes)
