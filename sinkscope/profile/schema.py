"""The profile: what is known about the attention sinks of one backbone, as a validated JSON document.

Readers may count on every field that `docs/architecture.md` lists; later versions only add fields. A profile is data:
nothing in it is ever executed, and every number is checked against its limits when it is loaded.
"""

import contextlib
import json
import math
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticSerializationError

from sinkscope.errors import FULL_DISK, DiskError, ProfileError, first_problem
from sinkscope.files import check_readable

SCHEMA_VERSION = "1.0"
MAXIMUM_PROFILE_BYTES = 16 * 2**20

Index = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=4096)]


class _Part(BaseModel):
    """Unknown fields are kept, so that a reader never destroys what a newer minor version wrote."""

    model_config = ConfigDict(extra="allow", validate_assignment=True)


class Backbone(_Part):
    """The fingerprint of a text decoder. Unknown fields of literature profiles are null."""

    model_type: Annotated[str, Field(max_length=128)]
    hidden_size: Annotated[int, Field(ge=1, lt=2**24)]
    num_layers: Annotated[int, Field(ge=1, lt=2**16)]
    num_heads: Annotated[int, Field(ge=1, lt=2**16)] | None = None
    num_kv_heads: Annotated[int, Field(ge=1, lt=2**16)] | None = None
    vocab_size: Annotated[int, Field(ge=1, lt=2**31)] | None = None


class SinkDimension(_Part):
    """A dimension that is massive on few tokens which draw attention.

    `typical_value` is signed, in the units of the hidden state: the median over its sink tokens. `phi` and
    `energy_share` are medians over the same tokens at the layer where the share is highest. `first_layer` and
    `last_layer` are indices of the hidden state entering a layer. `p_value` is adjusted for all dimensions and layers.
    """

    dim: Index
    sign: Literal[-1, 0, 1] | None = None
    typical_value: Finite | None = None
    phi: NonNegative | None = None
    energy_share: Share | None = None
    p_value: Share | None = None
    stability: Share | None = None
    first_layer: Index | None = None
    last_layer: Index | None = None
    triggers: Annotated[list[Text], Field(max_length=64)] = []
    contrast: NonNegative | None = None
    attention_drawn: Share | None = None
    fires_on_visual: bool | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_span(self.first_layer, self.last_layer)
        return self


class RejectedDimension(_Part):
    """A dimension that was considered and is not a sink dimension, with the reason in `reason`."""

    dim: Index
    reason: Text | None = None
    first_layer: Index | None = None
    last_layer: Index | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_span(self.first_layer, self.last_layer)
        return self


class Tau(_Part):
    """Threshold on phi for the whole backbone, with the interval in which every choice gives the same tokens.

    `phi_bootstrap` is its 95 % interval over resamplings of the calibration samples.
    """

    phi: NonNegative | None = None
    phi_interval: tuple[NonNegative, NonNegative] | None = None
    phi_bootstrap: tuple[NonNegative, NonNegative] | None = None
    energy_share: Share | None = None
    quality: Literal["separated", "overlapping", "unknown"] = "unknown"

    @model_validator(mode="after")
    def _inside(self) -> Self:
        _check_interval(self.phi, self.phi_interval)
        return self


class LayerScale(_Part):
    """One layer of a band: the score there is the joint magnitude over `scale`, and its threshold `tau_score`."""

    layer: Index
    scale: Positive
    tau_score: Positive | None = None
    tau_score_bootstrap: tuple[Positive, Positive] | None = None


class Band(_Part):
    """Consecutive layers that share the same sink behaviour.

    The calibrated score of a token is sqrt(sum over `dims` of x[d]^2) / scale, where scale is the layer's typical
    (median) value of that joint magnitude. A token is a sink where score >= `tau_score`. A layer's entry in `layers`
    refines both; a reader that ignores it uses the band's own `scale` and `tau_score`. Without a calibrated score a
    token is a sink where phi >= `tau_phi`. Inside an `_interval` every threshold flags the same calibration tokens; a
    `_bootstrap` is the threshold's 95 % interval over resamplings of the calibration samples.
    """

    first_layer: Index
    last_layer: Index
    dims: Annotated[list[Index], Field(min_length=1, max_length=64)]
    tau_phi: NonNegative | None = None
    tau_phi_interval: tuple[NonNegative, NonNegative] | None = None
    tau_phi_bootstrap: tuple[NonNegative, NonNegative] | None = None
    scale: Positive | None = None
    tau_score: Positive | None = None
    tau_score_interval: tuple[Positive, Positive] | None = None
    tau_score_bootstrap: tuple[Positive, Positive] | None = None
    quality: Literal["separated", "overlapping", "unknown"] = "unknown"
    layers: Annotated[list[LayerScale], Field(max_length=2**16)] = []

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_span(self.first_layer, self.last_layer)
        _check_interval(self.tau_phi, self.tau_phi_interval)
        _check_interval(self.tau_score, self.tau_score_interval)
        return self

    def calibration_at(self, layer: int) -> tuple[float, float] | None:
        """Scale and threshold of the score entering `layer`, or None where the band has no calibrated score."""
        if self.tau_score is None:
            return None
        entry = next((entry for entry in self.layers if entry.layer == layer), None)
        if entry is not None:
            return entry.scale, entry.tau_score or self.tau_score
        return None if self.scale is None else (self.scale, self.tau_score)


class VarDefaults(_Part):
    """VAR's defaults as the paper defines them: `p` is recycled, `rho` bounds the visual non-sink ratio from below."""

    p: Share = 0.6
    rho: Share = 0.8
    attention_floor: Share = 0.2
    excluded_layers: Annotated[list[Index], Field(max_length=2**16)] = []


class Evidence(_Part):
    """What supports the profile. `attention` is null where attention was not measured."""

    attention: dict[str, Any] | None = None
    causal: dict[str, Any] | None = None
    weights: dict[str, Any] | None = None
    notes: Annotated[list[Text], Field(max_length=256)] = []


class Provenance(_Part):
    """Where the numbers come from. Measured and published values are never mixed in one profile."""

    kind: Literal["measured", "literature"]
    source: Text | None = None
    revision: Text | None = None
    calibration: dict[str, Any] | None = None
    versions: dict[str, Any] | None = None
    date: Text | None = None


class Profile(_Part):
    """The sink profile of one backbone. `sink_dimensions` is empty exactly when the verdict is "none"."""

    schema_version: Annotated[str, Field(pattern=r"^\d+\.\d+$")] = SCHEMA_VERSION
    name: Annotated[str, Field(min_length=1, max_length=256)]
    verdict: Literal["sinks", "none", "uncertain"]
    reason: Text
    backbone: Backbone
    models: Annotated[list[Text], Field(max_length=1024)] = []
    sink_dimensions: Annotated[list[SinkDimension], Field(max_length=64)] = []
    companion_dimensions: Annotated[list[RejectedDimension], Field(max_length=4096)] = []
    all_token_outliers: Annotated[list[RejectedDimension], Field(max_length=4096)] = []
    content_dimensions: Annotated[list[RejectedDimension], Field(max_length=4096)] = []
    tau: Tau | None = None
    bands: Annotated[list[Band], Field(max_length=4096)] = []
    var: VarDefaults = VarDefaults()
    evidence: Evidence = Evidence()
    provenance: Provenance

    @property
    def dims(self) -> tuple[int, ...]:
        """The sink dimensions, most important first."""
        return tuple(entry.dim for entry in self.sink_dimensions)

    def band_at(self, layer: int) -> Band | None:
        """The band that holds the hidden state entering `layer`, or None."""
        return next((band for band in self.bands if band.first_layer <= layer <= band.last_layer), None)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.verdict == "none") != (not self.sink_dimensions):
            raise ValueError('sink_dimensions must be empty exactly when the verdict is "none"')
        width, depth = self.backbone.hidden_size, self.backbone.num_layers
        dims = [entry.dim for entry in self.sink_dimensions]
        if len(set(dims)) != len(dims):
            raise ValueError("sink_dimensions names a dimension twice")
        rejected = self.companion_dimensions + self.all_token_outliers + self.content_dimensions
        named = dims + [dim for band in self.bands for dim in band.dims] + [entry.dim for entry in rejected]
        if any(dim >= width for dim in named):
            raise ValueError(f"a dimension is not below the hidden size {width}")
        if any(dim not in dims for band in self.bands for dim in band.dims):
            raise ValueError("a band names a dimension that is not in sink_dimensions")
        spanning: list[Band | SinkDimension | RejectedDimension] = [*self.bands, *self.sink_dimensions, *rejected]
        if any((part.last_layer or 0) > depth for part in spanning):
            raise ValueError(f"a layer is after the last hidden state, {depth}")
        spans = sorted((band.first_layer, band.last_layer) for band in self.bands)
        if any(after[0] <= before[1] for before, after in pairwise(spans)):
            raise ValueError("two bands overlap")
        ceiling = math.sqrt(width) * (1 + 1e-6)
        if self.tau is not None and max(self.tau.phi or 0.0, *(self.tau.phi_interval or (0.0, 0.0))) > ceiling:
            raise ValueError("tau is above sqrt(hidden_size), which phi cannot pass")
        return self

    def to_json(self) -> str:
        """The profile as an indented JSON document that ends with a newline."""
        return self.model_dump_json(indent=2) + "\n"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the profile to `path`, whole or not at all.

        Raises
        ------
        DiskError
            If the folder does not exist or cannot be written, or the disk is full; a `ProfileError`, too.
        """
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            partial.write_text(self.to_json(), encoding="utf-8")
            os.replace(partial, path)
        except OSError as error:
            remedy = "free space there, or choose" if error.errno in FULL_DISK else "choose"
            raise DiskError(f"cannot write {path}: {error.strerror}; {remedy} another place with -o") from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
        return path


def parse_profile(text: str | bytes, origin: str = "profile") -> Profile:
    """Validate a JSON document as a `Profile`.

    Parameters
    ----------
    text : str or bytes
        The JSON document.
    origin : str
        Where it came from, for the messages.

    Raises
    ------
    ProfileError
        On malformed JSON, a newer schema version, or values outside their limits.
    """
    try:
        data = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{origin} is not valid JSON ({error}); write it anew with `sinkscope profile`") from error
    if not isinstance(data, dict):
        raise ProfileError(f"{origin} is not a profile: it should hold a JSON object, not {type(data).__name__}")
    version = str(data.get("schema_version", SCHEMA_VERSION))[:32]
    major = re.match(r"[0-9]+", version)
    if major is not None and int(major[0]) > int(SCHEMA_VERSION.split(".")[0]):
        raise ProfileError(
            f"{origin} has schema version {version}, newer than {SCHEMA_VERSION}; upgrade with "
            "`pip install --upgrade sinkscope`"
        )
    try:
        profile = Profile.model_validate(data)
        # Fields that this version does not know are kept as they are, so that they too must be fit to be written.
        profile.to_json()
    except (ValidationError, PydanticSerializationError, RecursionError) as error:
        raise ProfileError(f"{origin} is not a valid profile: {_reason(error)}") from error
    return profile


def read_profile(path: str | os.PathLike[str]) -> Profile:
    """Read and validate the profile at `path`.

    Raises
    ------
    ProfileError
        If the file is missing, too large, not JSON, or not a valid profile.
    """
    path = Path(path)
    try:
        check_readable(path)
        if path.stat().st_size > MAXIMUM_PROFILE_BYTES:
            raise ProfileError(f"{path} is larger than {MAXIMUM_PROFILE_BYTES} bytes: it is no profile")
        text = path.read_bytes()
    except OSError as error:
        raise ProfileError(f"cannot read profile {path}: {error.strerror}") from error
    return parse_profile(text, str(path))


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a profile, as committed at ``profiles/schema.json``."""
    return Profile.model_json_schema()


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse_constant(text)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name[:32]} is not a finite number")


def _check_span(first: int | None, last: int | None) -> None:
    if first is not None and last is not None and first > last:
        raise ValueError(f"it ends at layer {last}, before it starts at {first}")


def _check_interval(value: float | None, interval: tuple[float, float] | None) -> None:
    if interval is None:
        return
    low, high = interval
    if low > high or (value is not None and not low <= value <= high):
        raise ValueError(f"the threshold {value} is not inside its interval {low} to {high}")


def _reason(error: Exception) -> str:
    return first_problem(error) if isinstance(error, ValidationError) else str(error) or type(error).__name__
