"""The profile as a document: round trips, limits, and what a malformed one does."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from profile_document import DOCUMENT
from pydantic import ValidationError

from sinkscope.errors import ProfileError
from sinkscope.profile import SCHEMA_VERSION, Profile, json_schema, parse_profile, read_profile

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**30), max_value=10**30)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["1.0", "sinks", "none", "9", "²", "\ud800", -1, 2**40, 1e308, 10**400]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything inside a JSON document."""
    if isinstance(value, dict):
        return [path, *(place for key in value for place in places(value[key], (*path, key)))]
    if isinstance(value, list):
        return [path, *(place for index in range(len(value)) for place in places(value[index], (*path, index)))]
    return [path]


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    document = copy.copy(document)
    document[path[0]] = replaced(document[path[0]], path[1:], value)
    return document


def refuse_or_accept(text: str | bytes) -> None:
    """A document is refused with a ProfileError, or accepted and then survives a round trip."""
    try:
        profile = parse_profile(text)
    except ProfileError:
        return
    assert parse_profile(profile.to_json()) == profile


def test_round_trip_keeps_everything(document: dict[str, Any], profile: Profile) -> None:
    again = parse_profile(profile.to_json())
    assert again == profile
    assert again.to_json() == profile.to_json()
    assert json.loads(profile.to_json())["sink_dimensions"][0]["energy_share"] == 0.95
    assert profile.dims == (5, 7)


def test_unknown_fields_survive(document: dict[str, Any]) -> None:
    document["weights"] = {"leader": 5}
    document["bands"][0]["later_field"] = [1, 2]
    again = parse_profile(parse_profile(json.dumps(document)).to_json())
    stored = json.loads(again.to_json())
    assert stored["weights"] == {"leader": 5}
    assert stored["bands"][0]["later_field"] == [1, 2]


def test_save_and_read(tmp_path: Path, profile: Profile) -> None:
    path = profile.save(tmp_path / "toy.json")
    assert read_profile(path) == profile
    assert [entry.name for entry in tmp_path.iterdir()] == ["toy.json"]
    with pytest.raises(ProfileError, match="cannot write"):
        profile.save(tmp_path / "missing" / "toy.json")
    with pytest.raises(ProfileError, match="cannot read profile"):
        read_profile(tmp_path / "none.json")
    with pytest.raises(ProfileError, match="cannot read profile"):
        read_profile(tmp_path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["typical_value", "phi", "unheard_of"])
def test_numbers_must_be_finite(document: dict[str, Any], number: str, field: str) -> None:
    document["sink_dimensions"][0][field] = 123.25
    with pytest.raises(ProfileError, match="not a finite number"):
        parse_profile(json.dumps(document).replace("123.25", number))


@pytest.mark.parametrize("version", ["2.0", "17.3", "2", "9" * 6000])
def test_newer_major_version_is_refused_with_the_upgrade(document: dict[str, Any], version: str) -> None:
    document["schema_version"] = version
    with pytest.raises(ProfileError, match="pip install --upgrade sinkscope"):
        parse_profile(json.dumps(document))


def test_newer_minor_version_is_read(document: dict[str, Any]) -> None:
    document["schema_version"] = SCHEMA_VERSION.split(".")[0] + ".99"
    document["new_field"] = True
    assert parse_profile(json.dumps(document)).dims == (5, 7)


@pytest.mark.parametrize("version", ["one", "²", "", None, 1.0, [], "1.0.0"])
def test_senseless_version_is_refused(document: dict[str, Any], version: Any) -> None:
    document["schema_version"] = version
    with pytest.raises(ProfileError, match="schema_version"):
        parse_profile(json.dumps(document))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("verdict",), "none", "sink_dimensions must be empty"),
        (("sink_dimensions",), [], "sink_dimensions must be empty"),
        (("sink_dimensions", 0, "dim"), 16, "hidden size 16"),
        (("sink_dimensions", 1, "dim"), 5, "twice"),
        (("sink_dimensions", 0, "energy_share"), 1.5, "energy_share"),
        (("sink_dimensions", 0, "sign"), 2, "sign"),
        (("sink_dimensions", 0, "dim"), -1, "dim"),
        (("bands", 0, "dims"), [6], "not in sink_dimensions"),
        (("bands", 0, "dims"), [], "dims"),
        (("bands", 0, "first_layer"), 3, "before it starts"),
        (("bands", 0, "last_layer"), 4, "overlap"),
        (("bands", 1, "last_layer"), 7, "after the last hidden state"),
        (("bands", 1, "scale"), 0.0, "scale"),
        (("tau", "phi"), 4.5, "interval"),
        (("tau",), {"phi": 4.5}, "sqrt"),
        (("tau", "quality"), "good", "quality"),
        (("backbone", "hidden_size"), 0, "hidden_size"),
        (("backbone", "num_layers"), None, "num_layers"),
        (("var", "p"), 1.2, "var.p"),
        (("name",), "", "name"),
        (("reason",), "x" * 5000, "reason"),
        (("provenance", "kind"), "guessed", "provenance.kind"),
    ],
)
def test_values_outside_their_limits(document: dict[str, Any], path: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(ProfileError, match=message) as caught:
        parse_profile(json.dumps(replaced(document, path, value)), "toy.json")
    assert str(caught.value).startswith("toy.json is not a valid profile: ")


def test_assignment_is_checked_too(profile: Profile) -> None:
    with pytest.raises(ValidationError):
        profile.backbone.hidden_size = -1


@pytest.mark.parametrize("text", [b"\xff\xfe{", "", "[]", "3", '"name"', "null", "{", "[" * 100_000, '{"a":' * 100_000])
def test_what_is_no_document(text: str | bytes) -> None:
    with pytest.raises(ProfileError):
        parse_profile(text)


def test_a_file_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(ProfileError, match="larger than"):
        read_profile(path)


def test_depth_and_text_that_cannot_be_written(document: dict[str, Any]) -> None:
    deep: list[Any] = []
    for _ in range(900):
        deep = [deep]
    for value in (deep, "\ud800", {"\ud800": 1}):
        with pytest.raises(ProfileError):
            parse_profile(json.dumps({**document, "extra": value}))


@settings(max_examples=400, deadline=None)
@given(place=st.sampled_from(places(DOCUMENT)), value=JSON_VALUES)
def test_one_field_replaced_by_anything(place: tuple[Any, ...], value: Any) -> None:
    refuse_or_accept(json.dumps(replaced(DOCUMENT, place, value)))


@settings(max_examples=150, deadline=None)
@given(value=JSON_VALUES)
def test_any_json(value: Any) -> None:
    refuse_or_accept(json.dumps(value))


@settings(max_examples=150, deadline=None)
@given(text=st.text() | st.binary())
def test_any_bytes(text: str | bytes) -> None:
    refuse_or_accept(text)


@settings(max_examples=150, deadline=None)
@given(cut=st.integers(min_value=0, max_value=len(json.dumps(DOCUMENT)) - 1))
def test_cut_documents(cut: int) -> None:
    with pytest.raises(ProfileError):
        parse_profile(json.dumps(DOCUMENT)[:cut])


def test_a_profile_without_sinks(document: dict[str, Any]) -> None:
    document |= {"verdict": "none", "sink_dimensions": [], "bands": [], "tau": None}
    profile = parse_profile(json.dumps(document))
    assert profile.dims == ()
    assert profile.band_at(3) is None


def test_bands_and_scales(profile: Profile) -> None:
    assert [profile.band_at(layer) is not None for layer in range(7)] == [False, True, True, False, True, True, False]
    band = profile.bands[1]
    # Layer 5 has its own scale and threshold; layer 4 uses the band's.
    assert (band.calibration_at(4), band.calibration_at(5)) == ((2.0, 10.0), (4.0, 8.0))
    assert profile.bands[0].calibration_at(1) is None


def test_schema_describes_the_document() -> None:
    schema = json_schema()
    assert set(DOCUMENT) <= set(schema["properties"])
    assert {"name", "verdict", "backbone", "provenance"} <= set(schema["required"])
