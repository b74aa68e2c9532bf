"""A short text through a model before the work: how it is run on texts, and whether its layers can be seen.

two texts, apart in the last token ──> the model ──fails?──> the pretrained models inside that hold the layers
                                                 ──fail?───> the model, beside the processor's picture of nothing
every layer: run once, takes and gives one state [2, T, D], which no later token changes
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sinkscope.backbone.anatomy import Anatomy, decoder_holders, decoder_layers
from sinkscope.backbone.hooks import entering_states
from sinkscope.backbone.running import FAILURES, failed_pass, forward
from sinkscope.backbone.tensor_parallel import APART, Team, team_of
from sinkscope.errors import SinkscopeError, UnsupportedModelError

TRIAL_TOKENS = 19
"""A prime number, so that whole multiples of it are several streams, not positions that a model adds."""
SEEN_BY_EARLIER = 0.1
"""Part of a state's norm. A change of the last token moves most earlier states by several times as much where they
attend to it, and by nothing but rounding where they do not."""


@dataclass(frozen=True)
class TextEntry:
    """How a model is run on texts alone.

    Attributes
    ----------
    module : nn.Module
        The model, or the outermost module inside it that runs on texts.
    beside : mapping of str to Tensor
        What is given beside a text of one sample and `tokens` tokens, where the model demands a picture for every text.
    tokens : int
    """

    module: nn.Module = field(repr=False)
    beside: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    tokens: int = 0

    def complete(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs of a batch of texts with what is given beside them."""
        batch, tokens = inputs["input_ids"].shape
        added = {}
        for name, value in self.beside.items():
            # What is said of each token is the same for all of them, for none has a picture.
            entry = value[:, :1].expand(-1, tokens, *value.shape[2:]) if value.shape[1:2] == (self.tokens,) else value
            added[name] = entry.expand(batch, *entry.shape[1:])
        return inputs | added


def try_text(
    model: nn.Module,
    anatomy: Anatomy,
    ids: Tensor,
    processor: Any = None,
    *,
    name: str | None = None,
    device: torch.device | None = None,
) -> TextEntry:
    """Run a short text, and find out how the model takes texts.

    Parameters
    ----------
    model : nn.Module
        The model that `anatomy` describes; on the meta device, what values tell is left open.
    ids : LongTensor [T]
        Token ids of a text, best `TRIAL_TOKENS` of them.
    processor : optional
        The processor of a multimodal model.
    name : str, optional
        Of the model, for errors.
    device : torch.device, optional
        Where inputs go.

    Raises
    ------
    UnsupportedModelError
        If the layers do not pass one residual stream on, or attend to later tokens; the message says which.
    SinkscopeError
        If the forward pass fails.
    """
    # The second text ends in its first token, which is hardly ever the last one.
    pair = torch.stack([ids, torch.cat([ids[:-1], ids[:1]])])
    failures: list[Exception] = []
    team = team_of(model)
    for entry in _entries(model, anatomy, processor):
        watch = _Watch(anatomy, (2, len(ids)), team)
        try:
            with torch.no_grad(), watch.watching(model):
                forward(entry.module, entry.complete({"input_ids": pair}), device)
        except SinkscopeError:
            raise
        except FAILURES as error:
            failures.append(error)
            continue
        watch.conclude()
        return entry
    raise failed_pass(name or anatomy.model_type, failures[0]) from failures[0]


def _entries(model: nn.Module, anatomy: Anatomy, processor: Any) -> Iterator[TextEntry]:
    """The ways to run texts, the model's own first; only models that see may want another one."""
    yield TextEntry(model)
    if not anatomy.multimodal:
        return
    for module in decoder_holders(model, anatomy):
        if module is not model:
            yield TextEntry(module)
    blank = _picture_of_nothing(processor)
    if blank is not None:
        tokens = blank.pop("input_ids").shape[1]
        blank.pop("attention_mask", None)
        yield TextEntry(model, blank, tokens)


def _picture_of_nothing(processor: Any) -> dict[str, Tensor] | None:
    """What a processor makes of a text without a picture, batch size 1, if it makes more of it than token ids."""
    if processor is None:
        return None
    try:
        features = dict(processor(text="A text without any picture.", return_tensors="pt"))
    except Exception:  # Processors raise what they like where no picture is given.
        return None
    tensors = {name: value for name, value in features.items() if isinstance(value, Tensor) and value.ndim >= 2}
    return tensors if "input_ids" in tensors else None


class _Watch:
    """What the layers do in one pass over [batch, tokens]."""

    def __init__(self, anatomy: Anatomy, shape: tuple[int, int], team: Team) -> None:
        self._anatomy = anatomy
        self._shape = shape
        self._team = team
        self._last_token: dict[int, Tensor] = {}
        self._seen: set[int] = set()
        self._tokens_first = False
        self._moved = 0.0

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for layer in decoder_layers(model, self._anatomy):
                stack.callback(layer.register_forward_hook(self._streams, with_kwargs=True).remove)
            stack.enter_context(entering_states(model, self._anatomy, self._see))
            yield

    def conclude(self) -> None:
        """Refuse what only the whole pass tells."""
        kind = self._anatomy.model_type
        if self._moved > SEEN_BY_EARLIER and not self._anatomy.multimodal:
            raise UnsupportedModelError(
                f"{kind} is an encoder (its attention is not causal); sinkscope works on decoders"
            )
        if self._tokens_first:
            raise UnsupportedModelError(
                f"the layers of {kind} pass on [tokens, batch, width], not [batch, tokens, width]"
            )
        if self._team.size > 1:
            apart = self._team.spread(torch.stack(list(self._last_token.values())))
            for layer, difference in zip(self._last_token, apart.tolist(), strict=True):
                if difference > APART:
                    raise self._in_parts(layer, f"it is another one in each, apart by {difference:.1%}")

    def _see(self, layer: int, state: Tensor) -> None:
        kind, (batch, tokens) = self._anatomy.model_type, self._shape
        if layer in self._seen:
            raise UnsupportedModelError(
                f"the layers of {kind} run more than once in a pass, so the state entering a layer is not one state"
            )
        self._seen.add(layer)
        if self._team.size > 1:
            if hasattr(state, "full_tensor"):
                raise self._in_parts(layer, "it is a DTensor")
            self._last_token[layer] = state.detach()[0, -1].float()
        found = tuple(state.shape[:2])
        if found == (tokens, batch) != self._shape:
            self._tokens_first = True
            state = state.transpose(0, 1)
        elif found != self._shape:
            if self._team.size > 1:
                raise self._in_parts(layer, f"a process has {list(found)} of {[batch, tokens]} samples and tokens")
            several = found[0] == batch and found[1] % tokens == 0
            reason = "it keeps several residual streams" if several else "it adds or drops positions on the way"
            raise UnsupportedModelError(
                f"decoder layer {layer} of {kind} passes on {list(found)} samples and positions for {[batch, tokens]} "
                f"tokens: {reason}"
            )
        if tokens > 1 and not state.is_meta:
            before, after = state[0, :-1].float(), state[1, :-1].float()
            moved = (after - before).norm(dim=-1) / before.norm(dim=-1)
            self._moved = max(self._moved, float(moved.median()))

    def _in_parts(self, layer: int, reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"the tensor-parallel plan of {self._anatomy.model_type} does not leave the whole state entering layer "
            f"{layer} to each of its {self._team.size} processes ({reason}); load it with tensor_parallel=1"
        )

    def _streams(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Layers that take several states and give as many back keep them side by side."""
        state = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(state, Tensor):
            return
        taken, given = (sum(_alike(entry, state) for entry in _tensors(each)) for each in ((args, kwargs), output))
        if taken > 1 and given > 1:
            raise UnsupportedModelError(
                f"the layers of {self._anatomy.model_type} take {taken} states and give {given} back: it keeps several "
                "residual streams"
            )


def _alike(entry: Tensor, state: Tensor) -> bool:
    return entry.shape == state.shape and entry.is_floating_point()


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from _tensors(tuple(values.values()))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)
