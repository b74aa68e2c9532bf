"""Which tokens a forward pass carries, and which cache they go to.

    the model, and the modules around its decoder layers ──> hooks ──> the outermost one called opens a Step
    cache object ──> Sequence     held weakly: it goes when the cache goes; a prompt on an empty cache starts afresh
    cache.reorder_cache, .batch_select_indices, .batch_repeat_interleave ──> Sequence.select

State follows the cache object because that is what decoding strategies reorder, crop and copy.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from sinkscope.backbone.anatomy import Anatomy
from sinkscope.backbone.visual import visual_mask
from sinkscope.errors import InputError, UnsupportedModelError
from sinkscope.redistribution.state import NEVER, Queries, Sequence, Step

_ELSEWHERE = "run the whole prompt inside var(), so that its sink tokens are known"
_OF_TEXT = ("inputs_embeds", "attention_mask", "past_key_values", "position_ids", "labels")
_PAGED = ("cache", "block_table", "cu_seq_lens_q", "read_index")
_FOLLOWED = ("reorder_cache", "batch_select_indices", "batch_repeat_interleave")


class Tracker:
    """Follows the forward passes of one model.

    Attributes
    ----------
    step : Step or None
        The forward pass under way.
    sequence : Sequence or None
        The tokens of its cache.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, queries: Queries) -> None:
        self.step: Step | None = None
        self.sequence: Sequence | None = None
        self._anatomy = anatomy
        self._queries = queries
        self._model: Any = model
        self._prompt_length: int | None = None
        self._owner: nn.Module | None = None
        self._cache: Any = None
        self._sequences: WeakKeyDictionary[Any, Sequence] = WeakKeyDictionary()
        self._names: dict[Any, list[str]] = {}
        path = anatomy.layers_path.split(".")[:-1]
        for depth in range(len(path) + 1):
            module = model.get_submodule(".".join(path[:depth]))
            names = list(inspect.signature(type(module).forward).parameters)[1:]
            if "input_ids" in names:
                self._names[module] = names

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Follow the model inside the context; forget everything after it."""
        try:
            with ExitStack() as stack:
                if self._queries == "generated":
                    stack.enter_context(self._counting_prompts())
                for module in self._names:
                    stack.callback(module.register_forward_pre_hook(self._before, with_kwargs=True).remove)
                    # Called after an exception too, so that the next pass starts clean.
                    stack.callback(module.register_forward_hook(self._after, always_call=True).remove)
                yield
        finally:
            for cache in list(self._sequences):
                for name in _FOLLOWED:
                    vars(cache).pop(name, None)
            self._sequences.clear()
            self._close()

    def _before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._owner is not None and self._owner is not module:
            return None
        given, kept = kwargs, kwargs.get("logits_to_keep")
        if args:
            kwargs = dict(zip(self._names[module], args, strict=False)) | kwargs
        self._owner = module
        if any(kwargs.get(name) is not None for name in _PAGED):
            raise UnsupportedModelError("VAR cannot tell requests apart in continuous batching; use generate")
        self._open(
            kwargs.get("input_ids"),
            kwargs.get("inputs_embeds"),
            kwargs.get("attention_mask"),
            kwargs.get("past_key_values"),
            pictures=any(_may_be_pictures(name, value) for name, value in kwargs.items()),
        )
        count = self.step.count if self.step is not None else 1
        if not isinstance(kept, int) or kept < 1 or count == 1:
            return None
        # Told a number, some models drop all other positions in the layers that share keys with those below.
        return args, given | {"logits_to_keep": torch.arange(-min(kept, count), 0)}

    def _open(self, ids: Tensor | None, embeddings: Tensor | None, mask: Any, cache: Any, *, pictures: bool) -> None:
        if cache is not None and not hasattr(cache, "get_seq_length"):
            raise InputError(f"VAR cannot follow a {type(cache).__name__} cache; pass a transformers Cache")
        offset = 0 if cache is None else int(cache.get_seq_length())
        given = ids if ids is not None else embeddings
        if given is None or (ids is None and offset == 0):
            raise InputError("VAR finds visual tokens by their ids; pass input_ids, not inputs_embeds")
        batch, count = given.shape[:2]
        self._cache = cache
        if offset == 0:
            self.sequence = Sequence.empty(batch, given.device)
        else:
            self.sequence = self._known(cache, offset, batch)
            if count == 1 and not pictures:
                self.step = self.sequence.one_token(edited=offset >= self._start(count))
                return
        valid = torch.ones(batch, count, dtype=torch.bool, device=given.device)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            valid = mask[:, : offset + count][:, -count:].to(given.device, torch.bool)
        visual = torch.zeros_like(valid)
        # Without pictures, an id of theirs on a filled cache was generated, and stands for none.
        if ids is not None and (pictures or offset == 0):
            visual = visual_mask(self._anatomy, ids)
        self.step = self.sequence.several_tokens(
            visual, valid, visual_too=self._queries == "all", start=self._start(count)
        )

    @contextmanager
    def _counting_prompts(self) -> Iterator[None]:
        """Note the length of the prompt that the model's `generate` is given."""
        generate = getattr(self._model, "generate", None)
        if generate is None:
            yield
            return
        own = vars(self._model).get("generate")

        @wraps(generate)
        def counting(*args: Any, **kwargs: Any) -> Any:
            ids = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
            self._prompt_length = ids.shape[1] if isinstance(ids, Tensor) else None
            try:
                return generate(*args, **kwargs)
            finally:
                self._prompt_length = None

        self._model.generate = counting
        try:
            yield
        finally:
            if own is None:
                del self._model.generate
            else:
                self._model.generate = own

    def _start(self, count: int) -> int:
        """Position from which rows may be edited: 0, or that of the first generated token where these alone are.

        Without `generate`, a pass of one token on a filled cache adds one.
        """
        if self._queries != "generated":
            return 0
        if self._prompt_length is not None:
            return self._prompt_length
        return 0 if count == 1 else NEVER

    def _known(self, cache: Any, offset: int, batch: int) -> Sequence:
        sequence = self._sequences.get(cache)
        if sequence is None or sequence.length < offset:
            raise InputError(f"the cache holds {offset} tokens that VAR has not seen; {_ELSEWHERE}")
        if sequence.batch != batch:
            raise InputError(
                f"the cache held {sequence.batch} samples and now {batch}, by no way that VAR can follow; {_ELSEWHERE}"
            )
        if sequence.length > offset:
            sequence.truncate(offset)
        return sequence

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._owner is not module:
            return
        if output is not None and self.sequence is not None and self.step is not None:
            self.sequence.length = self.step.offset + self.step.count
            cache = self._cache
            if cache is None:
                parts = output if isinstance(output, tuple) else [getattr(output, "past_key_values", None)]
                cache = next((part for part in parts if hasattr(part, "get_seq_length")), None)
            if hasattr(cache, "get_seq_length") and self._sequences.get(cache) is not self.sequence:
                self._sequences[cache] = self.sequence
                for name in _FOLLOWED:
                    if hasattr(type(cache), name):
                        setattr(cache, name, _Followed(cache, name, self._sequences))
        self._close()

    def _close(self) -> None:
        self._owner = self._cache = self.step = self.sequence = None


def _may_be_pictures(name: str, value: Any) -> bool:
    """Whether an argument of a forward pass holds what visual tokens are made of: pixels, patches or their features."""
    if name in _OF_TEXT or value is None:
        return False
    if isinstance(value, Tensor):
        return value.ndim >= 2 and (value.is_floating_point() or value.dtype == torch.uint8)
    if isinstance(value, Mapping):
        return any(_may_be_pictures("", part) for part in value.values())
    return isinstance(value, (list, tuple)) and any(_may_be_pictures("", part) for part in value)


class _Followed:
    """A method of one cache that also tells the cache's sequence. Copied with the cache, it copies the sequence."""

    def __init__(self, cache: Any, name: str, sequences: WeakKeyDictionary[Any, Sequence]) -> None:
        # A strong reference would be a cycle, and keep the cache's memory until the garbage collector runs.
        self._cache = ref(cache)
        self._name = name
        self._sequences = sequences

    def __call__(self, argument: Any) -> Any:
        cache = self._cache()
        sequence = self._sequences.get(cache)
        if sequence is not None:
            if isinstance(argument, int):
                samples = torch.arange(sequence.batch).repeat_interleave(argument)
            else:
                samples = torch.as_tensor(argument)
                samples = samples.nonzero()[:, 0] if samples.dtype == torch.bool else samples
            sequence.select(samples)
        return getattr(type(cache), self._name)(cache, argument)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Followed":
        original = self._cache()
        copy = memo.get(id(original))
        sequence = self._sequences.get(original)
        if copy is not None and sequence is not None and copy not in self._sequences:
            self._sequences[copy] = sequence.copy()
        return _Followed(copy if copy is not None else original, self._name, self._sequences)
