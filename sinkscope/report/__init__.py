"""Pictures and summaries. Names are imported when first used; the pictures need matplotlib, the summary does not."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sinkscope.report.attention import attention_on_picture
    from sinkscope.report.layers import layer_profile
    from sinkscope.report.magnitudes import magnitude_map
    from sinkscope.report.pictures import write_pictures
    from sinkscope.report.run_data import band_scores, layer_series
    from sinkscope.report.scores import score_histogram
    from sinkscope.report.style import require_matplotlib
    from sinkscope.report.summary import profile_summary

_HOMES = {
    "attention_on_picture": "sinkscope.report.attention",
    "band_scores": "sinkscope.report.run_data",
    "layer_profile": "sinkscope.report.layers",
    "layer_series": "sinkscope.report.run_data",
    "magnitude_map": "sinkscope.report.magnitudes",
    "profile_summary": "sinkscope.report.summary",
    "require_matplotlib": "sinkscope.report.style",
    "score_histogram": "sinkscope.report.scores",
    "write_pictures": "sinkscope.report.pictures",
}

__all__ = [
    "attention_on_picture",
    "band_scores",
    "layer_profile",
    "layer_series",
    "magnitude_map",
    "profile_summary",
    "require_matplotlib",
    "score_histogram",
    "write_pictures",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sinkscope.report' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
