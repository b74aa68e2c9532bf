"""What a mode gives, and whether the definition gives the same."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from mode_models import PLACEHOLDERS, Family, Prompt
from oracle import Evidence, Paper, paper_var
from torch import Tensor, nn
from var_models import IMAGE_ID, WIDTH, profile_of

from sinkscope.redistribution import var

EDITED = {1: [Paper()], 2: [Paper()]}
"""The layers that `profile_of` lets be edited, with its settings."""

STEPS = 6
"""Tokens that `write` has written."""


def write(
    family: Family,
    model: nn.Module,
    samples: Sequence[Prompt],
    *,
    p: float | None = None,
    seed: int = 0,
    **options: Any,
) -> Any:
    """What `generate` gives, under VAR; p = 0 for the plain model."""
    torch.manual_seed(seed)
    with torch.no_grad(), var(model, profile_of(), score="phi", p=p):
        return model.generate(
            **family.batch(samples),
            **{
                "max_new_tokens": STEPS,
                "do_sample": False,
                "suppress_tokens": PLACEHOLDERS,
                "output_logits": True,
                "return_dict_in_generate": True,
            }
            | options,
        )


def assert_by_definition(family: Family, model: nn.Module, samples: Sequence[Prompt], result: Any) -> None:
    """Every logit that led to a written token is the definition's, and VAR had a say in each step."""
    start = family.batch(samples)["input_ids"].shape[1]
    new = result.sequences[:, start:]
    each = len(new) // len(samples)
    repeated = [prompt for prompt in samples for _ in range(each)]
    expected, evidence = definition(family, model, repeated, new[:, :-1])
    plain, _ = definition(family, model, repeated, new[:, :-1], layers={})
    assert len(result.logits) >= new.shape[1] == STEPS
    assert evidence.edited > 0
    assert evidence.passed_over > 0
    beams = getattr(result, "beam_indices", None)
    for step in range(STEPS):
        rows = torch.arange(len(new)) if beams is None else beams[:, step]
        assert_near(result.logits[step][rows], expected[:, start - 1 + step])
        size = float(expected.abs().max())
        assert float((plain - expected)[:, start - 1 + step].abs().max()) > 1e-4 * size


def definition(
    family: Family,
    model: nn.Module,
    samples: Sequence[Prompt],
    extra: Tensor | None = None,
    *,
    pad: str = "left",
    layers: dict[int, list[Paper]] = EDITED,
) -> tuple[Tensor, Evidence]:
    """Logits [B, T, vocabulary] of prompts and `extra` tokens by the definition, and what the oracle did."""
    inputs = family.batch(samples, pad, extra)
    start = inputs["input_ids"].shape[1] - (0 if extra is None else extra.shape[1])
    with torch.no_grad(), paper_var(model, inputs, layers, generated_from=start) as evidence:
        return model(**family.positions(inputs), use_cache=False).logits, evidence


def assert_near(mine: Tensor, theirs: Tensor, within: float = 1e-5) -> None:
    """Equal within a part of the largest logit."""
    assert mine.shape == theirs.shape
    difference = float((mine.detach().float() - theirs.detach().float()).abs().max())
    size = float(theirs.detach().abs().max())
    assert difference <= within * size, f"differs by {difference / size:.2e} of the largest value"


def in_passes(
    family: Family,
    model: nn.Module,
    inputs: dict[str, Any],
    cuts: Sequence[int],
    cache: Any,
    *,
    generated_from: int | None = None,
) -> Tensor:
    """Logits [B, T, vocabulary] of `inputs` in passes that begin at `cuts`, through one cache; for LLaVA's kind.

    Features of the pictures are sliced as `generate` slices them: each pass gets those of its placeholders.
    """
    ids = inputs["input_ids"]
    inputs = family.positions(inputs)
    rows = torch.zeros(0, WIDTH)
    if "pixel_values" in inputs:
        rows = torch.cat(list(model.model.get_image_features(inputs["pixel_values"]).pooler_output))
    placeholder = ids == IMAGE_ID
    placeholder[:, generated_from if generated_from is not None else ids.shape[1] :] = False
    numbers = (placeholder.flatten().cumsum(0) - 1).view_as(ids)
    parts = []
    for start, stop in zip(cuts, [*cuts[1:], ids.shape[1]], strict=True):
        here = slice(start, stop)
        chosen = numbers[:, here][placeholder[:, here]]
        features: dict[str, Any] = {}
        if len(chosen):
            output = transformers.modeling_outputs.BaseModelOutputWithPooling(pooler_output=[rows[chosen][None][0]])
            features["mm_encoder_outputs"] = {"image": output}
        out = model(
            input_ids=ids[:, here],
            attention_mask=inputs["attention_mask"][:, :stop],
            position_ids=inputs["position_ids"][:, here],
            past_key_values=cache,
            use_cache=True,
            **features,
        )
        parts.append(out.logits)
    return torch.cat(parts, 1)
