"""The attention of one layer in a prefill, on plain tensors: the kernel, sinkscope's correction, and eager forms."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.timing import by_turns, seconds
from benchmarks.var.eager import FLOOR, RHO, Eager, P, Way
from benchmarks.var.models import IMAGE_TOKENS, Shape
from sinkscope.backbone.attention import AttentionCall
from sinkscope.redistribution import VarConfig
from sinkscope.redistribution.edit import edit_rows, lower_limits, token_parts
from sinkscope.redistribution.equations import roles

BEFORE, AFTER = 35, 21


def attention(shape: Shape, device: str, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """Seconds of the kernel, and the ratio of each form to it."""
    torch.manual_seed(0)
    tokens = BEFORE + IMAGE_TOKENS + AFTER
    size = (1, shape.heads, tokens, shape.hidden // shape.heads)
    query, key, value = (torch.randn(size, device=device, dtype=dtype) for _ in range(3))
    visual = torch.zeros(1, tokens, dtype=torch.bool, device=device)
    visual[:, BEFORE : BEFORE + IMAGE_TOKENS] = True
    queries, sinks = (visual.cumsum(1) > 0) & ~visual, torch.rand(1, tokens, device=device) < 0.03
    mask = torch.full((tokens, tokens), -torch.inf, device=device, dtype=dtype).triu(1)[None, None]
    module: Any = nn.Identity()
    module.layer_idx = 0

    def plain() -> Tensor:
        return scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)

    config = VarConfig(P, RHO, FLOOR)
    table = token_parts(sinks, visual, *roles(sinks, visual, torch.ones_like(sinks), "all", "visual"), config)
    rows, limits = queries.any(0).nonzero()[:, 0], lower_limits(config).to(device)

    def sinkscope() -> Tensor:
        call = AttentionCall(
            0, module, query, key, value, None, size[-1] ** -0.5, "sdpa", {}, _run=lambda *_, **__: (plain(), None)
        )
        return edit_rows(call, table, queries, rows, limits, checked=True)[0]

    def eager(way: Way) -> Callable[[], Tensor]:
        state = Eager(way)
        state.visual, state.queries, state.sinks, state.edited = visual, queries, {0: sinks}, frozenset({0})
        return lambda: state.attend(module, query, key, value, mask, size[-1] ** -0.5)[0]

    forms = {"plain": plain, "sinkscope": sinkscope} | {way: eager(way) for way in get_args(Way)}
    error = (sinkscope().float() - eager("eager")().float()).abs().max()
    result = by_turns({form: partial(seconds, device, work) for form, work in forms.items()}, repeats)
    result["largest_difference"] = float(error)
    result["sinkscope_against_by_head"] = result["by head"]["median_seconds"] / result["sinkscope"]["median_seconds"]
    print("attention", json.dumps(result), flush=True)
    return result
