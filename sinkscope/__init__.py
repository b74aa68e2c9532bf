"""sinkscope: find the attention-sink dimensions of any decoder LLM or LMM, and redistribute their attention.

    model ──> capture ──> store ──> discovery ──> profile ──> registry ──> redistribution (VAR)

Names are imported when first used, so that ``import sinkscope`` stays instant and never imports torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sinkscope.backbone.anatomy import find_anatomy
    from sinkscope.discovery import discover
    from sinkscope.errors import SinkscopeError
    from sinkscope.pipeline import load, profile_model
    from sinkscope.profile import Profile
    from sinkscope.profile.score import phi, sink_mask
    from sinkscope.redistribution.applicator import var
    from sinkscope.redistribution.equations import VarConfig, redistribute
    from sinkscope.registry.local import load_profile
    from sinkscope.weights import predict

_HOMES = {
    "Profile": "sinkscope.profile",
    "SinkscopeError": "sinkscope.errors",
    "VarConfig": "sinkscope.redistribution.equations",
    "discover": "sinkscope.discovery",
    "find_anatomy": "sinkscope.backbone.anatomy",
    "load": "sinkscope.pipeline",
    "load_profile": "sinkscope.registry.local",
    "phi": "sinkscope.profile.score",
    "predict": "sinkscope.weights",
    "profile_model": "sinkscope.pipeline",
    "redistribute": "sinkscope.redistribution.equations",
    "sink_mask": "sinkscope.profile.score",
    "var": "sinkscope.redistribution.applicator",
}

__all__ = [
    "Profile",
    "SinkscopeError",
    "VarConfig",
    "discover",
    "find_anatomy",
    "load",
    "load_profile",
    "phi",
    "predict",
    "profile_model",
    "redistribute",
    "sink_mask",
    "var",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sinkscope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
