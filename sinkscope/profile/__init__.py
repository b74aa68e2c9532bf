"""The profile: one JSON file with what is known about the sinks of a backbone, and the scores that it defines."""

from sinkscope.profile.schema import (
    SCHEMA_VERSION,
    Backbone,
    Band,
    Evidence,
    LayerScale,
    Profile,
    Provenance,
    RejectedDimension,
    SinkDimension,
    Tau,
    VarDefaults,
    json_schema,
    parse_profile,
    read_profile,
)

__all__ = [
    "SCHEMA_VERSION",
    "Backbone",
    "Band",
    "Evidence",
    "LayerScale",
    "Profile",
    "Provenance",
    "RejectedDimension",
    "SinkDimension",
    "Tau",
    "VarDefaults",
    "json_schema",
    "parse_profile",
    "read_profile",
]
