"""VAR by the letter of the paper, one attention row at a time, on full recomputation: the oracle of every mode.

Nothing of the package's is used. In a layer l, for the weights a of one (sample, head, query) over the keys it may see:

    S   keys whose hidden state entering l has phi >= tau, phi(x) = max over sink dimensions of |x_d| / RMS(x)
    V   visual tokens
    the row is edited iff   its query is a text token after the first visual token of its sample,
                            sum_V a >= floor   and   sum_(V \\ S) a / sum_V a >= rho
    then    a_j <- (1 - p) a_j                            for j in S,  Omega = p * sum_S a
            a_j <- a_j + Omega * a_j / sum_(V \\ S) a     for j in V \\ S
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

NEAR_A_BOUND = 2e-6


@dataclass(frozen=True)
class Paper:
    """The paper's numbers for one layer."""

    p: float = 0.6
    rho: float = 0.7
    floor: float = 0.2


@dataclass
class Evidence:
    """What the oracle did, so that a test can tell that it did anything."""

    edited: int = 0
    passed_over: int = 0
    sinks: dict[int, Tensor] = field(default_factory=dict)


def phi(state: Tensor, dims: tuple[int, ...]) -> Tensor:
    """phi of every token: state [B, T, D] to [B, T]."""
    largest = torch.stack([state[..., dim].float().abs() for dim in dims]).amax(0)
    return largest / state.float().square().mean(-1).sqrt()


def edited_row(row: Tensor, sinks: list[bool], visual: list[bool], paper: Paper, evidence: Evidence) -> Tensor:
    """One row a [K] after VAR."""
    keys = range(len(row))
    donors = [j for j in keys if sinks[j]]
    receivers = [j for j in keys if visual[j] and not sinks[j]]
    on_rest = row[receivers].sum()
    omega = paper.p * row[donors].sum()
    seen, rest = float(row[[j for j in keys if visual[j]]].sum().detach()), float(on_rest.detach())
    if seen == 0 or rest == 0 or float(omega.detach()) == 0:
        return row
    # A row this near to a bound may fall on either side of it by rounding, and would make the test a coin toss.
    assert abs(seen - paper.floor) > NEAR_A_BOUND, "choose another seed"
    assert abs(rest / seen - paper.rho) > NEAR_A_BOUND, "choose another seed"
    if seen < paper.floor or rest / seen < paper.rho:
        evidence.passed_over += 1
        return row
    evidence.edited += 1
    after = row.clone()
    after[donors] = (1 - paper.p) * row[donors]
    after[receivers] = row[receivers] + omega * row[receivers] / on_rest
    return after


def edited_map(
    weights: Tensor, sinks: Tensor, visual: Tensor, queries: Tensor, paper: Paper, evidence: Evidence
) -> Tensor:
    """Attention weights [B, H, Q, K] after VAR; sinks, visual [B, K]; queries [B, Q]."""
    samples = []
    for sample in range(weights.shape[0]):
        heads = []
        for head in range(weights.shape[1]):
            rows = []
            for query in range(weights.shape[2]):
                row = weights[sample, head, query]
                if queries[sample, query]:
                    row = edited_row(row, sinks[sample].tolist(), visual[sample].tolist(), paper, evidence)
                rows.append(row)
            heads.append(torch.stack(rows))
        samples.append(torch.stack(heads))
    return torch.stack(samples)


@contextmanager
def paper_var(
    model: nn.Module,
    inputs: dict[str, Any],
    layers: dict[int, list[Paper]],
    *,
    visual_ids: tuple[int, ...] = (50, 51),
    generated_from: int | None = None,
    cached: bool = False,
    dims: tuple[int, ...] = (5,),
    tau: float = 4.5,
) -> Iterator[Evidence]:
    """Make passes over the whole of `inputs`, without a cache, compute VAR by definition.

    layers: the settings of each edited layer; several are several VARs at once, each of which changes the output by
    what it would change alone. generated_from: tokens from this position on are generated, so never visual. cached:
    one pass after the other over parts of `inputs`, for caches that do not give back what they were given.
    """
    ids, valid = inputs["input_ids"], inputs["attention_mask"].bool()
    visual = torch.zeros_like(valid)
    for visual_id in visual_ids:
        visual |= (ids == visual_id) & valid
    visual[:, generated_from if generated_from is not None else ids.shape[1] :] = False
    queries = torch.zeros_like(valid)
    for sample in range(len(ids)):
        for position in range(ids.shape[1]):
            after_image = bool(visual[sample, :position].any())
            queries[sample, position] = after_image and valid[sample, position] and not visual[sample, position]
    evidence, scores = Evidence(), dict[int, Tensor]()
    decoder = model.model.language_model

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        logits = query @ key.transpose(2, 3) * kwargs["scaling"] + mask[..., : key.shape[2]]
        weights = before = logits.float().softmax(-1)
        for paper in layers.get(module.layer_idx, ()):
            sinks = evidence.sinks[module.layer_idx]
            seen, rows = sinks.shape[1], query.shape[2]
            sinks = sinks & valid[:, :seen]
            after = edited_map(before, sinks, visual[:, :seen], queries[:, seen - rows : seen], paper, evidence)
            weights = weights + (after - before)
        return (weights.to(value.dtype) @ value).transpose(1, 2), weights

    def see(layer: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            score = phi(args[0] if args else kwargs["hidden_states"], dims).detach()
            if cached and layer in scores:
                score = torch.cat([scores[layer], score], 1)
            scores[layer] = score
            near = (score - tau).abs()[valid[:, : score.shape[1]]] < 1e-4
            assert layer not in layers or not bool(near.any()), "choose another seed"
            evidence.sinks[layer] = score >= tau

        return hook

    AttentionInterface.register("paper_var", attend)
    AttentionMaskInterface.register("paper_var", eager_mask)
    before_name = decoder.config._attn_implementation
    handles = [
        layer.register_forward_pre_hook(see(index), with_kwargs=True) for index, layer in enumerate(decoder.layers)
    ]
    decoder.config._attn_implementation = {"": "paper_var"}
    try:
        yield evidence
    finally:
        decoder.config._attn_implementation = {"": before_name}
        for handle in handles:
            handle.remove()
