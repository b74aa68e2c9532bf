"""Whether a refusal for the structure of a model is true of it: seen in the model itself, not through sinkscope.

words of the refusal ──> what to look at: the calls of the layers in a pass over two texts, words seen by earlier
ones, or the config
"""

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from benchmarks.coverage.building import forward
from benchmarks.coverage.shrinking import WIDTH
from benchmarks.coverage.words import some_ids

BATCH, TOKENS = 2, 23


def confirmed(model: Any, reason: str) -> bool:
    """Whether `reason` is a refusal that the structure of a model alone explains, and holds."""
    try:
        return any(words in reason and holds(model) for words, holds in STRUCTURAL.items())
    except Exception:  # A pass of the model's own; what cannot be seen is not confirmed.
        return False


@dataclass
class _Calls:
    """The calls of one entry of a list of modules: states taken and given in each, the first ones first."""

    taken: list[list[Tensor]] = field(default_factory=list)
    given: list[list[Tensor]] = field(default_factory=list)


def _lists(model: Any) -> list[list[_Calls]]:
    """The calls of all lists of modules that took part in a pass over two texts, those of most parameters first."""
    lists = [entry for entry in model.modules() if isinstance(entry, nn.ModuleList) and len(entry) > 1]
    lists.sort(key=lambda entry: -sum(parameter.numel() for parameter in entry.parameters()))
    calls = [[_Calls() for _ in entry] for entry in lists]
    handles = []
    for entry, records in zip(lists, calls, strict=True):
        for module, record in zip(entry, records, strict=True):

            def note(module: Any, args: Any, kwargs: Any, output: Any, record: _Calls = record) -> None:
                record.taken.append(list(_states((args, kwargs))))
                record.given.append(list(_states(output)))

            handles.append(module.register_forward_hook(note, with_kwargs=True))
    ids = some_ids(BATCH, TOKENS)
    try:
        forward(model, input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        for handle in handles:
            handle.remove()
    return [records for records in calls if all(record.taken and record.taken[0] for record in records)]


def _states(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor) and values.is_floating_point():
        yield values
    elif isinstance(values, Mapping):
        yield from _states(tuple(values.values()))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _states(value)


def _keeps_several_streams(model: Any) -> bool:
    """More axes, widths or positions than one stream has, or several states in and out."""
    first = _lists(model)[0][0]
    taken, given = first.taken[0], first.given[0]
    several = [sum(each.shape == taken[0].shape for each in states) for states in (taken, given)]
    shape = taken[0].shape
    wider = shape[-1] > WIDTH and shape[-1] % WIDTH == 0
    longer = shape[0] == BATCH and shape[1] > TOKENS and shape[1] % TOKENS == 0
    return len(shape) > 3 or wider or longer or min(several) > 1


def _changes_its_width(model: Any) -> bool:
    return len({record.taken[0][0].shape[-1] for record in _lists(model)[0]}) > 1


def _adds_positions(model: Any) -> bool:
    shape = _lists(model)[0][0].taken[0][0].shape
    return shape[0] == BATCH and shape[1] != TOKENS


def _runs_layers_again(model: Any) -> bool:
    return all(len(record.taken) > 1 for record in _lists(model)[0])


def _no_list_passes_its_state_on(model: Any) -> bool:
    def passes(records: list[_Calls]) -> bool:
        pairs = itertools.pairwise(records)
        return all(any(torch.equal(given, two.taken[0][0]) for given in one.given[0]) for one, two in pairs)

    return not any(passes(records) for records in _lists(model))


def _lets_words_see_later_ones(model: Any) -> bool:
    ids = some_ids(1, 16)
    other = ids.clone()
    other[0, -1] = ids[0, -1] + 1
    before, after = (forward(model, input_ids=each).logits[0, -16:-1] for each in (ids, other))
    return not torch.allclose(before, after, atol=1e-5 * float(before.abs().max()))


def _reads_and_writes_apart(model: Any) -> bool:
    return "decoder_input_ids" in inspect.signature(model.forward).parameters


def _is_made_of_several_models(model: Any) -> bool:
    parts = [part for part in vars(model.config).values() if isinstance(part, PreTrainedConfig)]
    return len(parts) > 1 and not hasattr(model.config, "hidden_size")


STRUCTURAL: dict[str, Callable[[Any], bool]] = {
    "is an encoder (": _lets_words_see_later_ones,
    "is an encoder-decoder": _reads_and_writes_apart,
    "no single hidden size": _is_made_of_several_models,
    "not constant over depth": _changes_its_width,
    "residual streams": _keeps_several_streams,
    "positions on the way": _adds_positions,
    "run more than once": _runs_layers_again,
    "parallel lists": _no_list_passes_its_state_on,
}
"""Words of the refusals that the structure alone explains, and what must be true of the model then."""
