"""The attention of one layer in a prefill, on plain tensors: the kernel, sinkscope's correction, and eager forms."""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

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
    times: dict[str, list[float]] = {form: [] for form in forms}
    for turn in range(repeats + 1):
        for form, work in forms.items():
            found = _seconds(device, work)
            if turn:
                times[form].append(found)
    result: dict[str, Any] = {
        "plain_seconds": statistics.median(times["plain"]),
        "largest_difference": float(error),
        "sinkscope_against_by_head": statistics.median(times["by head"]) / statistics.median(times["sinkscope"]),
    }
    for form in tuple(forms)[1:]:
        ratios = [own / kernel for own, kernel in zip(times[form], times["plain"], strict=True)]
        result[form] = {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    print("attention", json.dumps(result), flush=True)
    return result


def _seconds(device: str, work: Callable[[], Any]) -> float:
    if device == "cpu":
        began = time.process_time()
        work()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began
