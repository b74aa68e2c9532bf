"""From the names and layouts of a checkpoint to those of the model, as transformers itself converts them.

Checkpoints keep the layout of the code that they were trained with; transformers renames and regroups their tensors
when it loads them (experts stored one by one become one stacked parameter). The same rules are asked here for single
parameters. All that is used of transformers' machinery is in this module; where a version of it lacks something, names
are taken as they are, with the base model's prefix added or removed.
"""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sinkscope.errors import InputError, UnsupportedModelError
from sinkscope.weights.files import first_line

# Operations that treat every entry of the first axis alike, so that one expert can be converted alone. The others see
# the stacked parameter as a whole.
_PER_PART = frozenset({"MergeModulelist", "Concatenate", "ConcatenateRows", "Interleave", "Transpose", "Cast"})
_NO_CHANGE = frozenset({"Force16BytesAlignment", "_IdentityOp"})


@dataclass
class Recipe:
    """How one parameter is made from tensors of the checkpoint.

    Attributes
    ----------
    target : str
        The parameter for which transformers names the conversion; the first of several that come from one tensor.
    sources : dict of str to list of str
        By the converter's pattern: names in the checkpoint, in the order in which they are put together.
    converter : WeightConverter or None
        None where the tensor is the parameter as it is.
    """

    target: str
    sources: dict[str, list[str]] = field(default_factory=dict)
    converter: Any = None

    @property
    def names(self) -> list[str]:
        """All names in the checkpoint."""
        return [name for names in self.sources.values() for name in names]


def find_recipes(model: nn.Module, names: Iterable[str], mapping: list[Any] | None = None) -> dict[str, Recipe]:
    """For every parameter and buffer of the model that the checkpoint holds, how it is made.

    Parameters
    ----------
    model : nn.Module
        On the meta device.
    names : iterable of str
        The tensors of the checkpoint.
    mapping : list of WeightTransform, optional
        Rules in place of those that transformers has for the model.
    """
    known = dict.fromkeys(model.state_dict(), True)
    prefix = str(getattr(model, "base_model_prefix", "") or "")
    rename, order, converters = _renamer(model, prefix, known, mapping)
    recipes: dict[str, Recipe] = {}
    for name in sorted(names, key=order):
        target, pattern = rename(name)
        if target not in known:
            continue
        converter = converters.get(pattern) if pattern is not None else None
        recipe = recipes.setdefault(target, Recipe(target, converter=converter))
        if (recipe.converter is None) != (converter is None):
            continue
        if converter is None:
            # Two tensors that claim one parameter: the one that has its name is meant.
            if not recipe.sources or name == target:
                recipe.sources = {target: [name]}
        else:
            recipe.sources.setdefault(str(pattern), []).append(name)
    for recipe in list(recipes.values()):
        for sibling in _siblings(recipe, known):
            recipes.setdefault(sibling, recipe)
    return recipes


def _siblings(recipe: Recipe, known: dict[str, bool]) -> list[str]:
    """The other parameters that one converter makes, such as the keys and values of a fused projection."""
    targets = getattr(recipe.converter, "target_patterns", [])
    if len(targets) < 2 or targets[0] not in recipe.target:
        return []
    others = (recipe.target.replace(targets[0], target, 1) for target in targets[1:])
    return [other for other in others if other in known]


def _renamer(
    model: nn.Module, prefix: str, known: dict[str, bool], mapping: list[Any] | None
) -> tuple[Callable[[str], tuple[str, str | None]], Callable[[str], Any], dict[str, Any]]:
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        rules: Any = get_model_conversion_mapping(model) if mapping is None else mapping  # type: ignore[arg-type]
        rules = copy.deepcopy(rules)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    except (ImportError, AttributeError, TypeError):
        return (lambda name: (plain_name(name, prefix, known), None)), natural_key, {}

    def rename(name: str) -> tuple[str, str | None]:
        target, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if target not in known:
            # Already in the model's own layout, up to the prefix.
            plain = plain_name(name, prefix, known)
            return (plain, None) if plain in known else (target, pattern)
        return target, pattern

    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    return rename, dot_natural_key, by_pattern


def plain_name(name: str, prefix: str, known: dict[str, bool]) -> str:
    """`name` as the model has it, with the base model's prefix removed or added where that makes it known."""
    if name in known or not prefix:
        return name
    if name.removeprefix(f"{prefix}.") in known:
        return name.removeprefix(f"{prefix}.")
    return f"{prefix}.{name}" if f"{prefix}.{name}" in known else name


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts numbers between dots by their value."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]


def in_parts(recipe: Recipe, shape: tuple[int, ...], stored: Callable[[str], tuple[int, ...] | None]) -> bool:
    """Whether the parameter can be converted one entry of its first axis at a time.

    Parameters
    ----------
    recipe : Recipe
        Its recipe.
    shape : tuple of int
        The parameter's.
    stored : callable
        The shape of a tensor in the checkpoint, None where it shows only when it is read.
    """
    if recipe.converter is None:
        return True
    kinds = [type(operation).__name__ for operation in recipe.converter.operations]
    if "ErnieFuseAndSplitTextVisionExperts" in kinds:
        return len(kinds) == 1 and len(recipe.sources) == 1
    if not set(kinds) <= _PER_PART | _NO_CHANGE or len(recipe.converter.target_patterns) != 1:
        return False
    merged = kinds[0] == "MergeModulelist"
    if merged and getattr(recipe.converter.operations[0], "dim", 0) != 0:
        return False
    if "MergeModulelist" in kinds[1:]:
        return False
    for operation in recipe.converter.operations[1 if merged else 0 :]:
        axes = [getattr(operation, name, 1) for name in ("dim", "dim0", "dim1")]
        if min(axes) < 1:
            return False
    if merged:
        return all(len(names) == shape[0] for names in recipe.sources.values())
    shapes = [stored(name) for name in recipe.names]
    return all(len(names) == 1 for names in recipe.sources.values()) and all(
        found is not None and len(found) == len(shape) and found[0] == shape[0] for found in shapes
    )


def part_sources(recipe: Recipe, parameter: str, part: int, count: int) -> list[tuple[str, str, int | None]]:
    """(pattern, name, index along the first axis of that tensor or None for all of it) that make one part."""
    if recipe.converter is None:
        return [(pattern, name, part) for pattern, names in recipe.sources.items() for name in names]
    kinds = [type(operation).__name__ for operation in recipe.converter.operations]
    if kinds[0] == "MergeModulelist":
        return [(pattern, names[part], None) for pattern, names in recipe.sources.items()]
    if kinds[0] == "ErnieFuseAndSplitTextVisionExperts":
        # The experts of the first target come first in the list, then those of the second, each as many.
        (pattern, names) = next(iter(recipe.sources.items()))
        targets = recipe.converter.target_patterns
        made = [recipe.target.replace(targets[0], target, 1) for target in targets]
        place = made.index(parameter) if parameter in made else 0
        return [(pattern, names[place * math.ceil(len(names) / len(targets)) + part], None)]
    return [(pattern, names[0], part) for pattern, names in recipe.sources.items()]


def convert(
    recipe: Recipe, parameter: str, tensors: dict[str, list[Tensor]], model: nn.Module, part: int | None = None
) -> Tensor:
    """The parameter, or one part of it, from the tensors of the checkpoint.

    Parameters
    ----------
    recipe : Recipe
        Its recipe.
    parameter : str
        Its name.
    tensors : dict of str to list of Tensor
        By the converter's pattern.
    model : nn.Module
        On the meta device.
    part : int, optional
        Which entry of the first axis they make; None for the whole parameter.

    Raises
    ------
    UnsupportedModelError
        If the conversion fails.
    """
    if recipe.converter is None:
        return next(iter(tensors.values()))[0]
    try:
        if part is None:
            return _run(recipe, recipe.converter, tensors, model)[parameter]
        return _convert_part(recipe, tensors, model)
    except Exception as error:  # The operations are transformers' own and raise whatever their tensors make them.
        kinds = ", ".join(type(operation).__name__ for operation in recipe.converter.operations)
        raise UnsupportedModelError(
            f"{parameter} cannot be taken from {recipe.names[0]}: its conversion ({kinds}) fails: {first_line(error)}"
        ) from error


def _convert_part(recipe: Recipe, tensors: dict[str, list[Tensor]], model: nn.Module) -> Tensor:
    operations = recipe.converter.operations
    kinds = [type(operation).__name__ for operation in operations]
    if kinds == ["MergeModulelist"] or kinds[0] == "ErnieFuseAndSplitTextVisionExperts":
        return next(iter(tensors.values()))[0]
    converter = copy.deepcopy(recipe.converter)
    expected = tuple(model.get_parameter(recipe.target).shape)
    kept = [operation for operation in converter.operations if not _is_settled(operation, tensors, expected)]
    if not kept:
        return next(iter(tensors.values()))[0]
    converter.operations = kept
    if kinds[0] != "MergeModulelist":
        tensors = {pattern: [tensor.unsqueeze(0) for tensor in group] for pattern, group in tensors.items()}
    return next(iter(_run(recipe, converter, tensors, model).values())).squeeze(0)


def _is_settled(operation: Any, tensors: dict[str, list[Tensor]], expected: tuple[int, ...]) -> bool:
    """Whether an operation has nothing to do; one that asks the shape of the whole parameter is answered here."""
    if type(operation).__name__ in _NO_CHANGE:
        return True
    if getattr(operation, "check_dims", False):
        operation.check_dims = False
        return tuple(next(iter(tensors.values()))[0].shape) == expected[1:]
    return False


def _run(recipe: Recipe, converter: Any, tensors: dict[str, list[Tensor]], model: nn.Module) -> dict[str, Tensor]:
    converter = copy.deepcopy(converter)
    for pattern, group in tensors.items():
        for name, tensor in zip(recipe.sources[pattern], group, strict=False):
            converter.add_tensor(recipe.target, name, pattern, tensor)
    with torch.no_grad():
        result = converter.convert(recipe.target, model=model, config=getattr(model, "config", None))
    # The first versions of transformers 5 also return their errors.
    made = result[0] if isinstance(result, tuple) else result
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def check_experts(recipe: Recipe, parameter: str, count: int, label: str) -> None:
    """Refuse a stacked parameter of which the checkpoint lacks some parts.

    Raises
    ------
    InputError
        If it does.
    """
    if recipe.converter is None or type(recipe.converter.operations[0]).__name__ != "MergeModulelist":
        return
    for pattern in recipe.converter.source_patterns:
        found = len(recipe.sources.get(pattern, []))
        if found != count and "*" in pattern:
            raise InputError(f"{label} holds {found} of the {count} tensors {pattern} that make {parameter}")
