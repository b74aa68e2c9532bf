"""The correction of a kernel's output, on plain tensors."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from sinkscope.backbone.attention import AttentionCall
from sinkscope.redistribution import VarConfig, redistribute
from sinkscope.redistribution.edit import edit_rows, lower_limits, token_parts
from sinkscope.redistribution.equations import roles

HEADS, TOKENS, WIDTH = 4, 40, 8


def call_of(query: Tensor, key: Tensor, value: Tensor) -> tuple[AttentionCall, Tensor]:
    base = scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    run: Any = lambda *_, **__: (base.clone(), None)  # noqa: E731
    return AttentionCall(0, nn.Identity(), query, key, value, None, WIDTH**-0.5, "sdpa", {}, _run=run), base


@pytest.mark.parametrize("at_once", [1, 10**9])
@pytest.mark.parametrize("receivers", ["visual", "text", "all"])
def test_rows_are_corrected_to_the_definition(monkeypatch: Any, receivers: Any, at_once: int) -> None:
    monkeypatch.setattr("sinkscope.redistribution.edit.WEIGHTS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, HEADS, TOKENS, WIDTH, generator=generator) for _ in range(3))
    visual = torch.zeros(2, TOKENS, dtype=torch.bool)
    visual[0, 5:20], visual[1, 9:30] = True, True
    sinks = torch.zeros_like(visual)
    sinks[0, [3, 7, 33]], sinks[1, [9, 12]] = True, True
    queries = (visual.cumsum(1) > 0) & ~visual
    config = VarConfig(0.6, 0.7, 0.2, receivers=receivers)
    table = token_parts(sinks, visual, *roles(sinks, visual, torch.ones_like(sinks), "all", receivers), config)
    call, base = call_of(query, key, value)
    output, moved = edit_rows(call, table, queries, queries.any(0).nonzero()[:, 0], lower_limits(config), checked=False)
    hidden = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
    weights = (query @ key.mT * WIDTH**-0.5).masked_fill(hidden, -torch.inf).softmax(-1)
    expected = redistribute(weights, sinks, visual, queries, p=0.6, rho=0.7, receivers=receivers) @ value
    torch.testing.assert_close(output, expected.transpose(1, 2), rtol=0, atol=1e-5)
    assert any(bool(chosen.any()) for chosen, _ in moved)
    assert not torch.equal(output, base)


def test_keys_that_take_no_part_leave_the_output_alone() -> None:
    """As in a sliding window that has left the picture behind."""
    query, key, value = (torch.randn(1, HEADS, TOKENS, WIDTH) for _ in range(3))
    call, base = call_of(query, key, value)
    queries = torch.ones(1, TOKENS, dtype=torch.bool)
    output, moved = edit_rows(
        call, torch.zeros(1, 4, TOKENS), queries, torch.arange(TOKENS), lower_limits(VarConfig()), checked=True
    )
    assert torch.equal(output, base)
    assert moved == []
