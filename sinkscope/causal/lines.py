"""Reading the lines of a causal check: which comparison, how much of the attention it takes, and its name in words."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

CONTROLS = ("random", "next largest")


def joint_line(layer: dict[str, Any], dims: Sequence[int]) -> dict[str, Any]:
    """The exchange of all of a band's dimensions."""
    return next(
        line
        for line in layer["comparisons"]
        if line["group"] == "found" and line["edit"] == "exchange" and line["dims"] == list(dims)
    )


def single_line(layer: dict[str, Any], dim: int) -> dict[str, Any]:
    """The exchange of one of them; of a band with one dimension, the same."""
    return joint_line(layer, [dim])


def find_line(layer: dict[str, Any], dims: Sequence[int], edit: str) -> dict[str, Any] | None:
    """The line of an edit of these dimensions, where the attention was measured."""
    lines = (line for line in layer["comparisons"] if line["edit"] == edit and line["dims"] == list(dims))
    return next((line for line in lines if fall_of(line) is not None), None)


def control_lines(layer: dict[str, Any]) -> list[dict[str, Any]]:
    """The exchanges that should change little, where the attention was measured."""
    return [line for line in exchanged(layer, CONTROLS) if fall_of(line) is not None]


def exchanged(layer: dict[str, Any], groups: Collection[str]) -> list[dict[str, Any]]:
    """The exchanges of some groups."""
    return [line for line in layer["comparisons"] if line["group"] in groups and line["edit"] == "exchange"]


def fall_of(line: dict[str, Any], part: str = "band") -> Any:
    """The relative fall of the attention drawn over the band or the network, None where it was not measured."""
    return None if line[part] is None else line[part]["fall"]


def percent(line: dict[str, Any], part: str = "band") -> str:
    """The fall with its interval."""
    low, high = line[part]["fall_interval"]
    return f"{fall_of(line, part):.0%} ({low:.0%} to {high:.0%})"


def title(line: dict[str, Any], listed: Mapping[int, str]) -> str:
    """What a control exchanges, with what the profile calls it."""
    if line["dims"] is None:
        return "a random dimension" if line["count"] == 1 else f"{line['count']} random dimensions"
    names = [f"{dim} ({listed[dim]})" if dim in listed else str(dim) for dim in line["dims"]]
    return f"the next largest, {_listing(names)},"


def names_of(dims: Sequence[int]) -> str:
    """Dimensions in words."""
    return _listing([str(dim) for dim in dims])


def _listing(names: Sequence[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"
