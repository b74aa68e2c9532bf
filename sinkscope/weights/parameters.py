"""The parameters of a model from the tensors of its checkpoint, one matrix at a time.

parameter ──recipe──> tensors of the checkpoint ──conversion──> the parameter, or one expert's part of it
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from sinkscope.errors import InputError
from sinkscope.weights.conversion import Recipe, check_experts, convert, find_recipes, in_parts, part_sources
from sinkscope.weights.files import Memory

# A change of a stored tensor before conversion, such as an adapter's; given its name in the checkpoint.
Change = Callable[[str, Tensor], Tensor]


class Tensors(Protocol):
    """Tensors of a checkpoint by name, as numbers; what is read lies in `memory` where there is one."""

    memory: Memory | None

    @property
    def names(self) -> Iterable[str]:
        """All names."""

    @property
    def bytes_read(self) -> int:
        """Bytes read from files so far."""

    @property
    def method(self) -> str | None:
        """How the checkpoint says that it is quantised."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Of a tensor, None where it shows only when it is read."""

    def nbytes(self, name: str, index: int | None = None) -> int:
        """Bytes that `read` takes from the file."""

    def read(self, name: str, index: int | None = None) -> Tensor:
        """A tensor, or its slice along the first axis."""

    def file_of(self, name: str) -> str:
        """What messages call its file."""

    def close(self) -> None:
        """Close the files."""


@dataclass(frozen=True)
class Piece:
    """One matrix that can be read: a parameter, or the part of it at `part` along its first axis."""

    name: str
    part: int | None
    shape: tuple[int, ...]
    nbytes: int
    file: str
    load: Callable[[], Tensor]


class Weights:
    """The parameters of a model, from the tensors of a checkpoint.

    Parameters
    ----------
    model : nn.Module
        On the meta device.
    tensors : Tensors
        Of the checkpoint.
    label : str
        What messages call the checkpoint.
    mapping : list of WeightTransform, optional
        Rules of conversion in place of transformers' own for the model.
    recipes : dict of str to Recipe, optional
        By parameter, where they are known already.
    """

    def __init__(
        self,
        model: nn.Module,
        tensors: Tensors,
        label: str,
        mapping: list[Any] | None = None,
        recipes: dict[str, Recipe] | None = None,
    ) -> None:
        self.model = model
        self.tensors = tensors
        self.label = label
        self.recipes = find_recipes(model, tensors.names, mapping) if recipes is None else recipes
        self.change: Change | None = None

    def pieces(self, parameter: str) -> list[Piece]:
        """What a parameter is read from, nothing where the checkpoint does not hold it.

        Raises
        ------
        InputError
            If some of its parts are missing, or if it does not have the model's shape.
        """
        recipe = self.recipes.get(parameter)
        if recipe is None:
            return []
        shape = tuple(self.model.get_parameter(parameter).shape)
        if _is_stacked(self.model, parameter, shape):
            check_experts(recipe, parameter, shape[0], self.label)
            whole = recipe.converter is None and self.tensors.shape(recipe.names[0]) is None
            if not whole and in_parts(recipe, shape, self.tensors.shape):
                return [self._piece(recipe, parameter, shape, part) for part in range(shape[0])]
        return [self._piece(recipe, parameter, shape, None)]

    def _piece(self, recipe: Recipe, parameter: str, shape: tuple[int, ...], part: int | None) -> Piece:
        if part is None:
            sources: list[tuple[str, str, int | None]] = [
                (pattern, name, None) for pattern, names in recipe.sources.items() for name in names
            ]
        else:
            sources = part_sources(recipe, parameter, part, shape[0])
        expected = shape if part is None else shape[1:]
        first = sources[0][1]
        file = self.tensors.file_of(first)
        if recipe.converter is None:
            stored = self.tensors.shape(first)
            if stored is not None and stored != shape:
                raise InputError(
                    f"{file}: {first} has shape {stored}, the model's {parameter} {shape}; not the same model?"
                )
        return Piece(
            name=first,
            part=part,
            shape=expected,
            nbytes=sum(self.tensors.nbytes(name, index) for _, name, index in sources),
            file=file,
            load=lambda: self._load(recipe, parameter, sources, part),
        )

    def _load(
        self, recipe: Recipe, parameter: str, sources: list[tuple[str, str, int | None]], part: int | None
    ) -> Tensor:
        collected: dict[str, list[Tensor]] = {}
        for pattern, name, index in sources:
            tensor = self.tensors.read(name, index)
            if self.change is not None and index is None:
                tensor = self.change(name, tensor)
            collected.setdefault(pattern, []).append(tensor)
        return convert(recipe, parameter, collected, self.model, part)


def _is_stacked(model: nn.Module, parameter: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is a stack of matrices; the kernels of convolutions look alike and are not."""
    if len(shape) != 3:
        return False
    module = model.get_submodule(parameter.rpartition(".")[0])
    return not isinstance(module, nn.modules.conv._ConvNd)
