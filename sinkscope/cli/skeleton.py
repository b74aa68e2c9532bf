"""What a model is made of from its config alone: its modules are made on the meta device, without weights."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sinkscope.backbone.anatomy import Anatomy, find_anatomy
from sinkscope.backbone.loading import locate
from sinkscope.backbone.skeleton import build_skeleton, read_config
from sinkscope.backbone.trial import TRIAL_TOKENS, try_text
from sinkscope.errors import SinkscopeError, UnsupportedModelError
from sinkscope.pipeline import resolve
from sinkscope.weights import Checkpoint, open_checkpoint, predict_checkpoint
from sinkscope.weights.dataflow import WithoutValues


@dataclass(frozen=True)
class Look:
    """What a model tells without being loaded.

    Attributes
    ----------
    anatomy : Anatomy
    profile_refusal : str or None
        Why it cannot be profiled; None where it can, or where only its values tell.
    by_weights : dict or None
        What its weights say, ready for JSON, or why they say nothing; None where they were not asked.
    """

    anatomy: Anatomy
    profile_refusal: str | None
    by_weights: dict[str, Any] | None


def look_at(model: str, revision: str | None, trust_remote_code: bool, weights: bool) -> Look:
    """Look at the model called `model`, and at its weights where `weights` says so.

    Raises
    ------
    InputError
        If the config cannot be found or read.
    UnsupportedModelError
        If it is not a decoder model.
    """
    if not weights:
        return _look(named_skeleton(model, revision, trust_remote_code), None)
    try:
        checkpoint = open_checkpoint(
            resolve(model), revision=revision, trust_remote_code=trust_remote_code, reuse_memory=True
        )
    except SinkscopeError as error:
        # Weights that cannot be read are no failure: the config may be there all the same.
        return _look(named_skeleton(model, revision, trust_remote_code), {"unavailable": str(error)})
    with checkpoint:
        return _look(checkpoint.model, _said(checkpoint))


def _look(skeleton: nn.Module, by_weights: dict[str, Any] | None) -> Look:
    anatomy = find_anatomy(skeleton)
    return Look(anatomy, stream_refusal(skeleton, anatomy), by_weights)


def _said(checkpoint: Checkpoint) -> dict[str, Any]:
    try:
        return predict_checkpoint(checkpoint).to_dict()
    except SinkscopeError as error:
        return {"unavailable": str(error)}


def named_skeleton(model: str, revision: str | None = None, trust_remote_code: bool = False) -> nn.Module:
    """The modules of the model called `model`, on the meta device.

    Parameters
    ----------
    model : str
        Hub id, local folder, ``.gguf`` file, ``demo:llm`` or ``demo:lmm``.
    revision : str, optional
        Hub revision.
    trust_remote_code : bool
        Run code that the model's repository ships.

    Raises
    ------
    InputError
        If the config cannot be found or read.
    UnsupportedModelError
        If it is not a decoder model.
    """
    source, options = locate(resolve(model))
    options |= {"trust_remote_code": trust_remote_code} | ({"revision": revision} if revision else {})
    return build_skeleton(model, read_config(model, source, **options), trust_remote_code)


def stream_refusal(skeleton: nn.Module, anatomy: Anatomy) -> str | None:
    """Why the hidden states of a model on the meta device cannot be seen; None where they can or only values tell."""
    device = torch.device("meta")
    try:
        with WithoutValues():
            try_text(skeleton, anatomy, torch.ones(TRIAL_TOKENS, dtype=torch.int64, device=device), device=device)
    except UnsupportedModelError as error:
        return str(error)
    except Exception:  # Whatever a model's code does without values.
        return None
    return None
