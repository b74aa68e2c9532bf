"""One model type: built, profiled and redistributed, with one verdict.

    build ──> forward of its own ──> anatomy ──> profile on texts ──> pictures ──> profile on pictures ──> VAR
      └ not built      └ not built      └ refused

"works": all that the type should do. "refused": sinkscope says in a sentence why it cannot profile. "failed": the rest.
"""

import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.building import NotBuiltError, build, forward, one_line
from benchmarks.coverage.comparing import compare
from benchmarks.coverage.connectors import connector
from benchmarks.coverage.pictures import NoPicturesError, PictureMaker
from benchmarks.coverage.planting import spike_size
from benchmarks.coverage.profiling import profile_planted, states_agree
from benchmarks.coverage.structure import confirmed
from benchmarks.coverage.words import some_ids
from sinkscope.backbone.anatomy import Anatomy, find_anatomy
from sinkscope.calibration import default_images
from sinkscope.errors import SinkscopeError

SEEING = "image-text-to-text"
PICTURES, MANY_TOKENS = 12, 200
"""Pictures to profile on; half as many where each has many visual tokens."""


def judge(kind: str, mapping: str) -> dict[str, Any]:
    """The verdict on one model type, ready for JSON."""
    start = time.monotonic()
    result = described(kind, mapping)
    try:
        result |= _judged(kind, mapping)
        result |= overall(result)
    except NotBuiltError as error:
        result |= {"verdict": "not built", "reason": str(error)}
    return result | {"seconds": round(time.monotonic() - start, 1)}


def described(kind: str, mapping: str) -> dict[str, Any]:
    """What is known of a type before it is built."""
    return {"type": kind, "mapping": mapping} | ({"connector": connector(kind)} if mapping == SEEING else {})


def _judged(kind: str, mapping: str) -> dict[str, Any]:
    """What every step gave."""
    model = build(kind, mapping)
    result: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    sees = mapping == SEEING
    maker, why_none = _maker(model) if sees else (None, "")
    inputs, problem = _inputs_that_run(model, maker)
    try:
        anatomy = find_anatomy(model)
    except SinkscopeError as error:
        return result | {"refusal": str(error), "structural": confirmed(model, str(error))}
    except Exception as error:
        result["crash"] = f"looking at its structure: {one_line(error)}"
    if inputs is None:
        raise NotBuiltError(f"its own forward fails: {problem}")
    if "crash" in result:
        return result
    result["states_agree"] = states_agree(model, anatomy, inputs)
    try:
        size = spike_size(model, anatomy, lambda: forward(model, **inputs))
    except SinkscopeError as error:
        return result | {"refusal": str(error), "structural": confirmed(model, str(error))}
    result["profile"] = profile_planted(model, anatomy, size, maker)
    if result["profile"]["status"] == "refused":
        reason = result["profile"]["reason"]
        return result | {"refusal": reason, "structural": confirmed(model, reason)}
    if sees:
        result["pictures"] = _pictures(model, anatomy, size, maker, why_none)
        result["var"] = _var(model, anatomy, maker, why_none)
    return result


def _maker(model: nn.Module) -> tuple[PictureMaker | None, str]:
    try:
        return PictureMaker(model), ""
    except NoPicturesError as error:
        return None, str(error)


def _inputs_that_run(model: Any, maker: PictureMaker | None) -> tuple[dict[str, Tensor] | None, str | None]:
    """Words, or a picture, that the model runs on by itself; else why it does not."""
    ids = some_ids(2, 24)
    problem = None
    for inputs in ({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, maker and maker.inputs([1])):
        if inputs is None:
            continue
        try:
            output = forward(model, **inputs)
        except Exception as error:
            problem = problem or one_line(error)
            continue
        logits = getattr(output, "logits", None)
        if isinstance(logits, Tensor) and not torch.isfinite(logits).all():
            return None, "its logits are not finite"
        return inputs, None
    return None, problem


def _pictures(
    model: nn.Module, anatomy: Anatomy, size: float, maker: PictureMaker | None, why_none: str
) -> dict[str, Any]:
    if maker is None:
        return {"status": "not run", "reason": why_none}
    try:
        # Visual tokens are often larger than words, and the planted entries must stand out from both.
        size = max(size, spike_size(model, anatomy, lambda: forward(model, **maker.inputs([1]))))
    except SinkscopeError as error:
        return {"status": "refused", "reason": str(error)}
    images = default_images()[: PICTURES // 2 if maker.each >= MANY_TOKENS else PICTURES]
    return profile_planted(model, anatomy, size, maker, images)


def _var(model: nn.Module, anatomy: Anatomy, maker: PictureMaker | None, why_none: str) -> dict[str, Any]:
    if anatomy.var_refusal is not None:
        return {"status": "refused", "reason": anatomy.var_refusal}
    if maker is None:
        return {"status": "not run", "reason": why_none}
    try:
        return compare(model, anatomy, maker.inputs([1, 2]), maker.image_id)
    except SinkscopeError as error:
        return {"status": "refused", "reason": str(error)}
    except Exception as error:
        return {"status": "failed", "reason": one_line(error)}


def overall(result: dict[str, Any]) -> dict[str, Any]:
    """The verdict on the steps, and the reason where it is not "works"."""
    if "refusal" in result:
        return {"verdict": "refused", "reason": result["refusal"]}
    if "crash" in result:
        return {"verdict": "failed", "reason": result["crash"]}
    reasons = [f"{name}: {step['reason']}" for name, step in _steps(result) if step["status"] != "works"]
    if result["states_agree"] is False:
        reasons.append("the states seen are not transformers' hidden_states")
    return {"verdict": "failed", "reason": "; ".join(reasons)} if reasons else {"verdict": "works", "reason": ""}


def _steps(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The steps that should work: VAR only where the model has a projector; elsewhere it should be refused."""
    steps = [(name, result[name]) for name in ("profile", "pictures", "var") if name in result]
    if "var" not in result or result["connector"] == "projector":
        return steps
    if result["connector"] in ("no images", "no placeholders"):
        steps = [(name, step) for name, step in steps if name != "pictures"]
    status = result["var"]["status"]
    var = {"status": "works"} if status == "refused" else {"status": "failed", "reason": f"{status}, not refused"}
    return [(name, var if name == "var" else step) for name, step in steps]
