"""Which edits are compared at one layer, and the seeded choice of partners and random dimensions.

    found             the band's dimensions: each alone, and all together
    found elsewhere   sink dimensions of the profile's other bands: each alone; told apart, because they are no controls
    random            ordinary dimensions: one, and as many as the band has
    next largest      the largest of the others on the same tokens: each alone, and as many as the band has together

Exchanges decide. Every exchange of dimensions with a name has a control of its own, a copy of the values to the same
partners that leaves them in their place too. Beside that, the band's dimensions are set to zero and to their typical
value (which shrinks the token, so that a norm layer scales all the rest up); and their values are transplanted into the
state of an ordinary token, once in their own place and once in that of the partners.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sinkscope.causal.edits import copy, exchange, neutralise, transplant
from sinkscope.causal.settings import CausalSettings
from sinkscope.profile import Profile

Group = Literal["found", "found elsewhere", "random", "next largest", "ordinary"]
Kind = Literal["exchange", "copy", "zero", "typical", "transplant", "transplant elsewhere"]

MAXIMUM_ELSEWHERE = 4
LEAST_LARGEST, LARGEST_PART = 4, 32
"""Not ordinary on a token: its 4 largest dimensions, or a 32nd of all where that is more."""


@dataclass(frozen=True)
class Comparison:
    """What is edited how: one line of the result.

    Attributes
    ----------
    group, kind
        Whose dimensions, and the edit. The group "ordinary" is a transplant of nothing: an ordinary token's state.
    dims : tuple of int, or None
        None for random dimensions, which every edit draws anew.
    count : int
        How many dimensions are edited together.
    """

    group: Group
    kind: Kind
    dims: tuple[int, ...] | None
    count: int


@dataclass(frozen=True)
class Edit:
    """One edit of the sink tokens of one sample.

    Attributes
    ----------
    kind, dims
    partners : tuple of int
        Where the values of `dims` go, in an exchange, a copy, or a transplant elsewhere.
    values : tuple of float
        What `dims` are set to.
    donor : int
        The ordinary token whose state a transplant starts from.
    """

    kind: Kind
    dims: tuple[int, ...]
    partners: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    donor: int = 0

    def apply(self, states: Tensor, rows: Sequence[int]) -> Tensor:
        """The edited states [T, D]."""
        match self.kind:
            case "exchange":
                return exchange(states, rows, self.dims, self.partners)
            case "copy":
                return copy(states, rows, self.dims, self.partners)
            case "transplant" | "transplant elsewhere":
                transplanted = transplant(states, rows, self.dims, self.donor)
                return exchange(transplanted, rows, self.dims, self.partners) if self.partners else transplanted
            case _:
                return neutralise(states, rows, self.dims, self.values)


NO_EDIT = Edit("zero", ())


def compare(profile: Profile, dims: Sequence[int], next_largest: Sequence[int]) -> list[Comparison]:
    """The comparisons at a layer of a band.

    Parameters
    ----------
    profile : Profile
    dims : sequence of int
        The band's sink dimensions.
    next_largest : sequence of int
        The largest other dimensions on its sink tokens, largest first.
    """
    found, count = tuple(dims), len(dims)
    elsewhere = [dim for dim in profile.dims if dim not in found][:MAXIMUM_ELSEWHERE]
    lines = [Comparison("found", "exchange", found, count)]
    lines += [Comparison("found", "exchange", (dim,), 1) for dim in found if count > 1]
    lines += [Comparison("found elsewhere", "exchange", (dim,), 1) for dim in elsewhere]
    lines += [Comparison("random", "exchange", None, number) for number in sorted({1, count})]
    lines += [Comparison("next largest", "exchange", (dim,), 1) for dim in next_largest]
    if 1 < count <= len(next_largest):
        lines.append(Comparison("next largest", "exchange", tuple(next_largest[:count]), count))
    lines += [replace(line, kind="copy") for line in lines if line.dims is not None]
    others = tuple(next_largest[:count])
    return [
        *lines,
        Comparison("found", "zero", found, count),
        Comparison("found", "typical", found, count),
        Comparison("found", "transplant", found, count),
        Comparison("found", "transplant elsewhere", found, count),
        Comparison("next largest", "transplant", others, len(others)),
        Comparison("ordinary", "transplant", (), 0),
    ]


@dataclass(frozen=True)
class Choice:
    """What edits may choose from in one sample.

    Attributes
    ----------
    ordinary : int64 [m]
        Dimensions that may be partners, see `ordinary_dims`.
    donors : int64 [n]
        Ordinary tokens, at least one.
    typical : dict of int to float
        Typical value of the band's dimensions.
    seed : tuple of int
        Of the random numbers.
    """

    ordinary: NDArray[np.int64]
    donors: NDArray[np.int64]
    typical: dict[int, float]
    seed: tuple[int, ...]

    def draw(self, line: Comparison, number: int) -> list[Edit]:
        """The edits of one comparison: `number` exchanges, one edit of the other kinds.

        All edits of the same dimensions take the same partners, and all transplants the same donor, so that they differ
        in what is done alone.
        """
        dims = line.dims or ()
        if line.kind in ("zero", "typical"):
            return [Edit(line.kind, dims, values=tuple(self.typical[dim] * (line.kind == "typical") for dim in dims))]
        donor = int(np.random.default_rng(self.seed).choice(self.donors))
        if line.kind == "transplant":
            return [Edit(line.kind, dims, donor=donor)]
        generator = np.random.default_rng([*self.seed, line.count, *dims])
        pool = self.ordinary[~np.isin(self.ordinary, dims)]
        edits = []
        for _ in range(number if line.kind == "exchange" else 1):
            size = line.count * (2 if line.dims is None else 1)
            chosen = [int(dim) for dim in generator.choice(pool, size=size, replace=False)]
            partners, drawn = tuple(chosen[: line.count]), tuple(chosen[line.count :])
            edits.append(Edit(line.kind, drawn or dims, partners, donor=donor))
        return edits


def edited_layers(first: int, last: int, depth: int, settings: CausalSettings) -> list[int]:
    """The layers at which a band is edited: the first, and those that cut the band into `settings.layers` equal parts.

    `depth` is the number of decoder layers: the state that leaves the last one has no attention behind it.
    """
    last = min(last, depth - 1)
    length = last - first + 1
    if length < 1:
        return []
    return sorted({first + place * length // settings.layers for place in range(settings.layers)})
