"""Discovery: from a run file to a profile. Never touches a model."""

import datetime
import os
from pathlib import Path

from pydantic import ValidationError

from sinkscope.discovery.description import (
    LISTED,
    companions,
    content_dimensions,
    outlier_dimensions,
    sink_dimensions,
)
from sinkscope.discovery.evidence import attention_evidence, sinks_by_kind
from sinkscope.discovery.find import Findings, find
from sinkscope.discovery.notes import notes, verdict
from sinkscope.discovery.power import measure_power
from sinkscope.discovery.settings import DiscoverySettings
from sinkscope.discovery.threshold import overall_tau
from sinkscope.errors import StoreError, first_problem
from sinkscope.profile.schema import Backbone, Evidence, Profile, Provenance, VarDefaults
from sinkscope.store.reader import RunReader


def discover(
    run: str | os.PathLike[str] | RunReader, settings: DiscoverySettings | None = None, *, name: str | None = None
) -> Profile:
    """Find the sink dimensions, bands and thresholds in a run file.

    Parameters
    ----------
    run : path or RunReader
        A run file, finished or not: what is committed is used.
    settings : DiscoverySettings, optional
        Thresholds of the method.
    name : str, optional
        Name of the profile; by default made from the model id.

    Returns
    -------
    Profile
        Its verdict may be "none", with the reason.

    Raises
    ------
    StoreError
        If the run cannot be read, holds no tokens or no hidden states, or attributes that no profile can have.
    """
    if not isinstance(run, RunReader):
        with RunReader(run) as reader:
            return discover(reader, settings, name=name)
    settings = settings or DiscoverySettings()
    if not len(run.tokens):
        raise StoreError(f"{run.path} holds no tokens yet; resume the run with `sinkscope profile MODEL --resume`")
    if not len(run.sampled(0)[0]):
        raise StoreError(
            f"{run.path} keeps no hidden states, so what is ordinary in a dimension is not known; profile with "
            "--keep sample"
        )
    found = find(run, settings)
    try:
        return describe(found, name or profile_name(run.attributes.model_id))
    except ValidationError as error:
        raise StoreError(f"{run.path} holds what no profile can be made of: {first_problem(error)}") from error


def profile_name(model_id: str) -> str:
    """A file name for the profile of a model: the last part of its id, in lower case."""
    stem = Path(model_id.replace(":", "-")).name.removesuffix(".gguf")
    kept = "".join(character if character.isalnum() or character in "._-" else "-" for character in stem.lower())
    return kept.strip("-.") or "model"


def public_id(model_id: str) -> str:
    """The model id without the folders of this machine: the last part of a path, a hub id as it is."""
    path = Path(model_id)
    local = path.is_absolute() or model_id.startswith((".", "~")) or model_id.endswith(".gguf")
    return path.name if local else model_id


def describe(found: Findings, name: str) -> Profile:
    """The profile that says what was found."""
    attributes = found.run.attributes
    entries = sink_dimensions(found)
    power = measure_power(found)
    decision, reason = verdict(found, entries, power)
    return Profile(
        name=name,
        verdict=decision,
        reason=reason,
        backbone=Backbone.model_validate(dict(attributes.backbone)),
        models=[public_id(attributes.model_id)],
        sink_dimensions=entries,
        companion_dimensions=companions(found),
        all_token_outliers=outlier_dimensions(found),
        content_dimensions=content_dimensions(found),
        tau=overall_tau(found.bands, found.magnitudes, found.run.tokens.sample, found.weights, found.width),
        bands=[entry.band for entry in found.bands],
        var=VarDefaults(excluded_layers=[found.num_layers - 1]),
        evidence=Evidence.model_validate(
            {
                "attention": attention_evidence(found) if found.link is not None else None,
                "notes": notes(found, power),
                "sinks_by_kind": sinks_by_kind(found),
                "power": power,
                "fleeting_dimensions": found.fleeting[:LISTED],
                "settings": found.settings.to_dict(),
            }
        ),
        provenance=Provenance(
            kind="measured",
            source=public_id(attributes.model_id),
            revision=attributes.revision,
            calibration=dict(attributes.calibration) | {"seed": attributes.seed, "dtype": attributes.dtype},
            versions=dict(attributes.versions),
            date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        ),
    )
