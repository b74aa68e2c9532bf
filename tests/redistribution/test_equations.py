"""The equations against a definition in plain Python loops, written from the paper and nothing else."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sinkscope.errors import InputError
from sinkscope.redistribution import VarConfig, redistribute
from sinkscope.redistribution.edit import lower_limits, relative_changes, token_parts
from sinkscope.redistribution.equations import roles


def by_hand(
    attention: Tensor,
    sinks: Tensor,
    visual: Tensor,
    queries: Tensor,
    *,
    p: float,
    rho: float,
    attention_floor: float = 0.2,
    donors: str = "all",
    receivers: str = "visual",
    head_selection: bool = True,
) -> Tensor:
    """VAR one number at a time, in double precision."""
    result = attention.clone()
    batch, heads, rows, columns = attention.shape
    for b in range(batch):
        sink, image = sinks[b].tolist(), visual[b].tolist()
        give = [j for j in range(columns) if sink[j] and (donors == "all" or image[j])]
        receive = [j for j in range(columns) if not sink[j] and receivers in ("all", "visual" if image[j] else "text")]
        for h in range(heads):
            for q in range(rows):
                a = attention[b, h, q].tolist()
                on_visual = math.fsum(a[j] for j in range(columns) if image[j])
                on_rest = math.fsum(a[j] for j in range(columns) if image[j] and not sink[j])
                centric = on_visual >= attention_floor and on_visual > 0 and on_rest / on_visual >= rho
                received = math.fsum(a[j] for j in receive)
                omega = p * math.fsum(a[j] for j in give)
                if not queries[b, q] or (head_selection and not centric) or received == 0 or omega == 0:
                    continue
                for j in give:
                    result[b, h, q, j] = (1 - p) * a[j]
                for j in receive:
                    result[b, h, q, j] = a[j] + omega * a[j] / received
    return result


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
    batch, heads, rows = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    columns = draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    attention = torch.rand(batch, heads, rows, columns, generator=generator, dtype=torch.float64)
    attention = attention * (torch.rand(attention.shape, generator=generator) > draw(st.sampled_from([0, 0.5])))
    attention[..., 0] += attention.sum(-1) == 0
    attention = attention / attention.sum(-1, keepdim=True)

    def mask(size: int) -> Tensor:
        return torch.rand(batch, size, generator=generator) < draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))

    options = {
        "p": draw(st.sampled_from([0.0, 0.3, 0.6, 1.0])),
        "rho": draw(st.sampled_from([0.0, 0.5, 0.8, 1.0])),
        "attention_floor": draw(st.sampled_from([0.0, 0.2, 0.9, 1.0])),
        "donors": draw(st.sampled_from(["all", "visual"])),
        "receivers": draw(st.sampled_from(["visual", "text", "all"])),
        "head_selection": draw(st.booleans()),
    }
    return attention, mask(columns), mask(columns), mask(rows), options


def near_a_threshold(
    attention: Tensor, sinks: Tensor, visual: Tensor, options: dict[str, Any], distance: float = 1e-12
) -> bool:
    """Whether rounding could decide a head: then two correct sums may differ."""
    image = (attention * visual[:, None, None]).sum(-1)
    rest = (attention * (visual & ~sinks)[:, None, None]).sum(-1)
    on_floor = ((image - options["attention_floor"]).abs() < distance) & (image > 0)
    on_rho = ((rest - options["rho"] * image).abs() < distance) & (rest > 0) & (rest != image)
    return bool((on_floor | on_rho).any())


@settings(max_examples=300, deadline=None)
@given(cases())
def test_equals_the_definition(case: tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]) -> None:
    attention, sinks, visual, queries, options = case
    result = redistribute(attention, sinks, visual, queries, **options)
    torch.testing.assert_close(result.sum(-1), attention.sum(-1), rtol=0, atol=1e-12)
    assert torch.equal(
        result[~queries[:, None].expand(result.shape[:3])], attention[~queries[:, None].expand(result.shape[:3])]
    )
    if options["p"] == 0:
        assert torch.equal(result, attention)
    if near_a_threshold(attention, sinks, visual, options):
        return
    expected = by_hand(attention, sinks, visual, queries, **options)
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_fast_changes_equal_the_definition(case: tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]) -> None:
    attention, sinks, visual, queries, options = case
    if near_a_threshold(attention, sinks, visual, options, 1e-6):
        return
    give, receive = roles(sinks, visual, torch.ones_like(sinks), options["donors"], options["receivers"])
    config = VarConfig(**options)
    table = token_parts(sinks, visual, give, receive, config).double()
    rows = attention.flatten(1, 2)
    changes, (chosen, negative_omega) = relative_changes(rows, table, queries, lower_limits(config))
    assert bool(changes.isfinite().all())
    expected = redistribute(attention, sinks, visual, queries, **options).flatten(1, 2)
    result = torch.where(chosen, rows + rows * changes, rows)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-7)
    moved = (rows - expected).clamp_min(0).sum(-1, keepdim=True)
    torch.testing.assert_close(-negative_omega * chosen, moved, rtol=1e-6, atol=1e-7)


def row(*weights: float) -> Tensor:
    return torch.tensor(weights).view(1, 1, 1, -1)


def flags(*values: int) -> Tensor:
    return torch.tensor([values], dtype=torch.bool)


ANY = flags(1)


def test_a_row_worked_out_by_hand() -> None:
    # A text sink (0.5), a visual sink (0.1), two visual tokens (0.1, 0.2), a text token (0.1); Omega = 0.5 * 0.6 = 0.3.
    attention = row(0.5, 0.1, 0.1, 0.2, 0.1)
    result = redistribute(attention, flags(1, 1, 0, 0, 0), flags(0, 1, 1, 1, 0), ANY, p=0.5, rho=0.7)
    torch.testing.assert_close(result, row(0.25, 0.05, 0.2, 0.4, 0.1))


def test_thresholds_are_inclusive() -> None:
    attention, sinks = row(0.5, 0.125, 0.125, 0.25), flags(1, 1, 0, 0)
    visual = flags(0, 1, 1, 0)
    at_the_edge = redistribute(attention, sinks, visual, ANY, p=1, rho=0.5, attention_floor=0.25)
    torch.testing.assert_close(at_the_edge, row(0, 0, 0.75, 0.25))
    for rho, floor in ((0.5001, 0.25), (0.5, 0.2501)):
        assert torch.equal(redistribute(attention, sinks, visual, ANY, p=1, rho=rho, attention_floor=floor), attention)


def test_rho_of_one_takes_rows_without_visual_sinks() -> None:
    attention = torch.rand(1, 8, 1, 50).softmax(-1)
    sinks, visual = torch.zeros(1, 50, dtype=torch.bool), torch.ones(1, 50, dtype=torch.bool)
    sinks[0, 0], visual[0, 0] = True, False
    result = redistribute(attention, sinks, visual, ANY, p=1, rho=1)
    assert bool((result[..., 0] == 0).all())


@pytest.mark.parametrize(
    ("sinks", "visual"),
    [((0, 0, 0), (0, 1, 1)), ((1, 1, 1), (0, 1, 1)), ((1, 0, 0), (0, 0, 0))],
    ids=["no sinks", "all visual tokens are sinks", "no visual tokens"],
)
def test_nothing_to_move(sinks: tuple[int, ...], visual: tuple[int, ...]) -> None:
    attention = row(0.3, 0.3, 0.4)
    result = redistribute(attention, flags(*sinks), flags(*visual), ANY, p=1, rho=0, attention_floor=0)
    assert torch.equal(result, attention)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_p_of_zero_changes_no_bit(dtype: torch.dtype) -> None:
    attention = torch.rand(2, 3, 4, 7).softmax(-1).to(dtype)
    sinks, visual = torch.rand(2, 7) < 0.3, torch.rand(2, 7) < 0.5
    result = redistribute(attention, sinks, visual, torch.ones(2, 4, dtype=torch.bool), p=0, rho=0, attention_floor=0)
    assert result.dtype == dtype
    assert torch.equal(result, attention)


def test_it_is_the_softmax_with_a_bias() -> None:
    """The identity of docs/var.md: log(1 - p) on donors, log(1 + Omega / sum_N a) on receivers, no renormalisation."""
    logits = torch.randn(1, 1, 1, 12, dtype=torch.float64)
    attention = logits.softmax(-1)
    sinks, visual = flags(*[1, 0, 1] * 4), flags(*[0] * 4, *[1] * 8)
    omega = 0.6 * attention[..., sinks[0]].sum()
    bias = torch.zeros(12, dtype=torch.float64)
    bias[sinks[0]] = math.log(1 - 0.6)
    bias[(visual & ~sinks)[0]] = torch.log1p(omega / attention[..., (visual & ~sinks)[0]].sum())
    result = redistribute(attention, sinks, visual, ANY, p=0.6, rho=0, attention_floor=0)
    torch.testing.assert_close(result, (logits + bias).softmax(-1))
    assert float((logits + bias).logsumexp(-1)) == pytest.approx(float(logits.logsumexp(-1)))


@pytest.mark.parametrize(
    "changes",
    [
        {"p": 1.1},
        {"p": -0.1},
        {"p": float("nan")},
        {"rho": 2},
        {"attention_floor": -1},
        {"donors": "text"},
        {"receivers": "none"},
        {"sinks": torch.zeros(1, 4, dtype=torch.bool)},
        {"sinks": torch.zeros(1, 3)},
        {"visual": torch.zeros(2, 3, dtype=torch.bool)},
        {"queries": torch.zeros(1, 2, dtype=torch.bool)},
        {"attention": torch.zeros(1, 1, 3)},
        {"attention": torch.zeros(1, 1, 1, 3, dtype=torch.long)},
    ],
)
def test_wrong_use_is_one_clear_line(changes: dict[str, Any]) -> None:
    fitting = {"attention": row(0.3, 0.3, 0.4), "sinks": flags(1, 0, 0), "visual": flags(0, 1, 1), "queries": ANY}
    with pytest.raises(InputError) as caught:
        redistribute(**(fitting | {"p": 0.5, "rho": 0.5} | changes))
    assert "\n" not in str(caught.value)


def test_conventions_of_the_reference_code() -> None:
    config = VarConfig.from_reference_code(rho=0.2, p=0.6)
    assert config.p == pytest.approx(0.4)
    assert config.rho == pytest.approx(0.8)
