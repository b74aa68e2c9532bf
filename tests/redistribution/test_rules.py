"""The rule of one token on the host is the rule."""

import math

import pytest
import torch

from sinkscope.redistribution.rules import SinkRule


@pytest.mark.parametrize("dims", [(3,), (3, 17, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("calibrated", [True, False])
def test_one_token_is_judged_as_in_a_prompt(dims: tuple[int, ...], dtype: torch.dtype, calibrated: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(400, 1, 64, generator=generator)
    states[::3, :, list(dims)] *= 20 * torch.rand(134, 1, 1, generator=generator)
    states[5] = 0
    states = states.to(dtype)
    rule = SinkRule(dims, 9.0, None) if calibrated else SinkRule(dims, None, 5.0)
    expected = rule(states)[:, 0].tolist()
    assert rule.of_one_token(states) == expected
    by_hand = [
        bool(x[list(dims)].norm() >= 9)
        if calibrated
        else bool(x.norm() > 0 and x[list(dims)].abs().max() / (x.norm() / math.sqrt(64)) >= 5)
        for x in states[:, 0].double()
    ]
    assert expected == by_hand
    assert 20 < sum(by_hand) < 200
