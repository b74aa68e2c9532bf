"""VAR by the letter of the paper for decoders of any structure: one row at a time, on a pass over everything.

Nothing of the package's is used for it, nor any mask of transformers': what a query may see is worked out here, from
the kind of its layer. In a layer l, for the weights a of one (sample, head, query) over the keys that it may see:

    S   keys whose hidden state entering l has phi >= tau
    V   visual tokens
    the row is edited iff   its query is a text token after the first visual token of its sample,
                            sum_V a >= floor   and   sum_(V \\ S) a / sum_V a >= rho
    then    a_j <- (1 - p) a_j                            for j in S,  Omega = p * sum_S a
            a_j <- a_j + Omega * a_j / sum_(V \\ S) a     for j in V \\ S

Some layers pick the few keys that a query sees, and say which. A learned sink logit takes its part in the softmax and
is no key: it neither gives nor receives.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from structure_models import IMAGE_ID, SINK_DIM, layers_of
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from sinkscope.profile import Profile

P, RHO, FLOOR, TAU = 0.6, 0.7, 0.1, 4.5
NEAR_A_BOUND = 2e-6


@dataclass
class Evidence:
    """What the oracle did, so that a test can tell that it did anything.

    sums: the least and the largest sum of a row that it edited. out_of_sight: edited rows with a sink of their sample
    before them that they cannot see.
    """

    edited: dict[int, int] = field(default_factory=dict)
    passed_over: int = 0
    out_of_sight: int = 0
    sums: list[float] = field(default_factory=list)
    sinks: dict[int, Tensor] = field(default_factory=dict)


def visible(kind: str, window: int | None, valid: Tensor) -> Tensor:
    """Which keys a query sees, bool [B, Q, K], in a layer that is "full", "sliding" or "chunked"; valid [B, T].

    Chunks are counted from the first token of the sample on.
    """
    place = torch.arange(valid.shape[1])
    seen = place[None, :] <= place[:, None]
    if kind == "sliding":
        seen = seen & (place[None, :] > place[:, None] - window)
    seen = seen[None] & valid[:, None, :]
    if kind == "chunked":
        chunk = (valid.long().cumsum(1) - 1).clamp_min(0) // window
        seen = seen & (chunk[:, None, :] == chunk[:, :, None])
    return seen


def edited_row(row: Tensor, sinks: list[bool], visual: list[bool]) -> Tensor | None:
    """One row a [K] after VAR; None where the paper leaves it alone."""
    keys = range(len(row))
    donors = [j for j in keys if sinks[j]]
    receivers = [j for j in keys if visual[j] and not sinks[j]]
    omega, on_rest = P * row[donors].sum(), row[receivers].sum()
    seen = row[[j for j in keys if visual[j]]].sum()
    if float(on_rest) == 0 or float(omega) == 0:
        return None
    # A row this near to a bound may fall on either side of it by rounding, and would make the test a coin toss.
    assert abs(float(seen) - FLOOR) > NEAR_A_BOUND, "choose another seed"
    assert abs(float(on_rest / seen) - RHO) > NEAR_A_BOUND, "choose another seed"
    if seen < FLOOR or on_rest / seen < RHO:
        return None
    after = row.clone()
    after[donors] = (1 - P) * row[donors]
    after[receivers] = row[receivers] + omega * row[receivers] / on_rest
    return after


@contextmanager
def paper_var(
    model: Any,
    inputs: dict[str, Any],
    layers: dict[int, tuple[str, int | None]],
    edited: list[int],
    generated_from: int | None = None,
) -> Iterator[Evidence]:
    """Make a pass over the whole of `inputs`, without a cache, compute VAR by definition in the layers `edited`.

    layers: kind and window of each layer that holds softmax attention. generated_from: the tokens from this position on
    are generated, so never visual.
    """
    ids, valid = inputs["input_ids"], inputs["attention_mask"].bool()
    visual = (ids == IMAGE_ID) & valid
    visual[:, generated_from if generated_from is not None else ids.shape[1] :] = False
    queries = (visual.cumsum(1) > 0) & ~visual & valid
    evidence = Evidence(edited=dict.fromkeys(edited, 0))
    decoder = model.model.language_model

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        layer = module.layer_idx
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        logits = query @ key.mT * (kwargs["scaling"] if kwargs.get("scaling") else query.shape[-1] ** -0.5)
        if kwargs.get("softcap"):
            logits = kwargs["softcap"] * torch.tanh(logits / kwargs["softcap"])
        seen = visible(*layers[layer], valid)
        if kwargs.get("indices") is not None:
            seen = seen & torch.zeros_like(seen).scatter(-1, kwargs["indices"].long(), True)
        exponentials = torch.exp(logits) * seen[:, None]
        total = exponentials.sum(-1, keepdim=True)
        if kwargs.get("s_aux") is not None:
            total = total + torch.exp(kwargs["s_aux"])[None, :, None, None]
        weights = exponentials / total.clamp_min(1e-30)
        if layer in edited:
            sinks = evidence.sinks[layer] & valid
            for sample, head, row in torch.cartesian_prod(*map(torch.arange, weights.shape[:3])).tolist():
                if not queries[sample, row]:
                    continue
                before = weights[sample, head, row].clone()
                after = edited_row(before, sinks[sample].tolist(), visual[sample].tolist())
                if after is None:
                    evidence.passed_over += 1
                    continue
                weights[sample, head, row] = after
                assert abs(float(after.sum() - before.sum())) < 1e-6
                evidence.edited[layer] += 1
                evidence.sums.append(float(before.sum()))
                evidence.out_of_sight += bool((sinks[sample, :row] & ~seen[sample, row, :row]).any())
        return (weights @ value).transpose(1, 2).contiguous(), weights

    def see(layer: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            state = args[0] if args else kwargs["hidden_states"]
            score = state[..., SINK_DIM].abs() / state.square().mean(-1).sqrt()
            assert layer not in edited or float((score - TAU).abs()[valid].min()) > 1e-4, "choose another seed"
            evidence.sinks[layer] = score >= TAU

        return hook

    AttentionInterface.register("by_the_paper", attend)
    AttentionMaskInterface.register("by_the_paper", eager_mask)
    handles = [
        layer.register_forward_pre_hook(see(index), with_kwargs=True) for index, layer in enumerate(layers_of(decoder))
    ]
    before_name = decoder.config._attn_implementation
    decoder.config._attn_implementation = {"": "by_the_paper"}
    try:
        yield evidence
    finally:
        decoder.config._attn_implementation = {"": before_name}
        for handle in handles:
            handle.remove()


def profile_of(model: Any) -> Profile:
    """The settings above as a profile: sinks from the second layer on."""
    text = model.config.text_config
    width, depth = text.hidden_size, text.num_hidden_layers
    data = {
        "name": "planted",
        "verdict": "sinks",
        "reason": "planted",
        "backbone": {"model_type": text.model_type, "hidden_size": width, "num_layers": depth},
        "sink_dimensions": [{"dim": SINK_DIM}],
        "tau": {"phi": TAU},
        "bands": [{"first_layer": 1, "last_layer": depth, "dims": [SINK_DIM], "tau_phi": TAU}],
        "var": {"p": P, "rho": RHO, "attention_floor": FLOOR, "excluded_layers": [depth - 1]},
        "provenance": {"kind": "measured"},
    }
    return Profile.model_validate(data)
