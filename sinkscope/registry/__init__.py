"""The registry: find a profile by name, path or model id, match it to a backbone, check what is shipped."""

from sinkscope.registry.local import Entry, list_profiles, load_profile, packaged_folder, user_folder
from sinkscope.registry.matching import Problem, check_backbone, check_registry, match, only_match

__all__ = [
    "Entry",
    "Problem",
    "check_backbone",
    "check_registry",
    "list_profiles",
    "load_profile",
    "match",
    "only_match",
    "packaged_folder",
    "user_folder",
]
