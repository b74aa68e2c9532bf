"""Discovery: which dimensions of a run are sink dimensions, with error control, and the thresholds of each band."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sinkscope.discovery.assemble import discover, profile_name
    from sinkscope.discovery.settings import DiscoverySettings

_EXPORTS = {
    "DiscoverySettings": "sinkscope.discovery.settings",
    "discover": "sinkscope.discovery.assemble",
    "profile_name": "sinkscope.discovery.assemble",
}

__all__ = ["DiscoverySettings", "discover", "profile_name"]


# Imported when first used, so that the command line can show the thresholds without reading a run file.
def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
