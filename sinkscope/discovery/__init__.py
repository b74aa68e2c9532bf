"""Discovery: which dimensions of a run are sink dimensions, with error control, and the thresholds of each band."""

from sinkscope.discovery.discover import discover, profile_name
from sinkscope.discovery.settings import DiscoverySettings

__all__ = ["DiscoverySettings", "discover", "profile_name"]
