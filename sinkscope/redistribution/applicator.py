"""Apply VAR to a model, without code for any model in particular.

hidden state entering layer l ──> SinkRule ──> Sequence (parts of the cached tokens) ─┐
input ids, mask, cache ──> Tracker ──> Step (queries) ───────────────────────────────┤
attention call of layer l ──> the model's own kernel ──> edit of the query rows  <────┘
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self, get_args
from weakref import WeakSet

import torch
from torch import Tensor, nn

from sinkscope.backbone.anatomy import Anatomy, decoder_layers, find_anatomy
from sinkscope.backbone.attention import AttentionCall, attention_tap
from sinkscope.backbone.hooks import entering_states
from sinkscope.errors import InputError, ProfileError, UnsupportedModelError
from sinkscope.profile.schema import Profile
from sinkscope.profile.score import ScoreName
from sinkscope.redistribution.edit import edit_generated, edit_rows, lower_limits
from sinkscope.redistribution.equations import Donors, Receivers, VarConfig
from sinkscope.redistribution.rules import SinkRule, rule_at
from sinkscope.redistribution.state import Queries
from sinkscope.redistribution.summary import LayerStatistics, LayerSummary
from sinkscope.redistribution.tracker import Tracker

_EDITED: WeakSet[nn.Module] = WeakSet()
"""The decoder layers that some VAR edits now."""


def var(
    model: nn.Module,
    profile: Profile,
    *,
    p: float | None = None,
    rho: float | None = None,
    attention_floor: float | None = None,
    score: ScoreName = "auto",
    tau: float | None = None,
    layers: Iterable[int] | None = None,
    donors: Donors = "all",
    receivers: Receivers = "visual",
    head_selection: bool = True,
    queries: Queries = "text",
) -> "Var":
    """Visual Attention Redistribution as a context manager (Kang et al., ICLR 2025, https://arxiv.org/abs/2503.03321).

    >>> with var(model, profile, p=0.6, rho=0.8) as run:
    ...     output = model.generate(**inputs)
    >>> run.summary()

    Parameters
    ----------
    model : nn.Module
        A transformers model whose visual tokens enter its text decoder.
    profile : Profile
        Of its backbone.
    p : float, optional
        Recycled fraction of a sink token's attention, in [0, 1]; the profile's by default.
    rho : float, optional
        Lower bound on the visual non-sink ratio of an image-centric head, in [0, 1]; the profile's by default.
    attention_floor : float, optional
        Least attention on visual tokens of an image-centric head, in [0, 1]; the profile's by default.
    score : "auto", "phi" or "calibrated"
        What decides sink tokens: "phi" is the paper's; "auto" takes the profile's calibrated score where it has one.
    tau : float, optional
        Threshold on the score, in place of the profile's.
    layers : iterable of int, optional
        Layers to edit. By default all but the profile's excluded ones and the last, which the paper leaves alone.
    donors, receivers, head_selection
        As in `VarConfig`; the defaults are the paper's, the rest its ablations.
    queries : "text", "generated" or "all"
        Rows to edit: text tokens after the sample's first visual token, and generated tokens (paper); generated tokens
        alone; or visual tokens after the first as well. Generated are the tokens that `generate` adds to the prompt it
        is given; without it, those that come one at a time to a filled cache.

    Returns
    -------
    Var
        Not attached yet: enter it, or call `attach`.

    Raises
    ------
    InputError
        On values outside their ranges.
    ProfileError
        If the profile is another backbone's, or has no sinks.
    UnsupportedModelError
        If VAR cannot apply to the model; the message says why.
    """
    defaults = profile.var
    config = VarConfig(
        p=defaults.p if p is None else p,
        rho=defaults.rho if rho is None else rho,
        attention_floor=defaults.attention_floor if attention_floor is None else attention_floor,
        donors=donors,
        receivers=receivers,
        head_selection=head_selection,
    )
    if score not in get_args(ScoreName):
        raise InputError(f"score is {score!r}; choose one of {', '.join(get_args(ScoreName))}")
    if queries not in get_args(Queries):
        raise InputError(f"queries is {queries!r}; choose one of {', '.join(get_args(Queries))}")
    if tau is not None and not (math.isfinite(tau) and tau > 0):
        raise InputError(f"tau is {tau!r}; give a positive number")
    anatomy = find_anatomy(model)
    _check_fit(anatomy, profile)
    rules = {
        layer: rule
        for layer in _chosen_layers(anatomy, profile, layers)
        if (rule := rule_at(profile, layer, score=score, tau=tau)) is not None
    }
    if not rules:
        raise ProfileError(
            f"profile {profile.name} has no sink tokens in any of the layers to edit; choose other layers"
        )
    return Var(model, anatomy, config, rules, queries)


class Var:
    """VAR on one model: a context manager, or `attach` and `detach`.

    After `detach`, also after an exception, the model is exactly as before. Compiled models run uncompiled meanwhile.
    Not guaranteed: several threads in one model at a time.

    Attributes
    ----------
    config : VarConfig
        The settings.
    layers : tuple of int
        The layers that are edited where they hold sink tokens.
    """

    def __init__(
        self, model: nn.Module, anatomy: Anatomy, config: VarConfig, rules: dict[int, SinkRule], queries: Queries
    ) -> None:
        self.config = config
        self.layers = tuple(sorted(rules))
        self._model = model
        self._anatomy = anatomy
        self._rules = rules
        self._tracker = Tracker(model, anatomy, queries)
        self._statistics = {layer: LayerStatistics() for layer in self.layers}
        self._checked: set[int] = set()
        self._awaited: int | None = None
        self._limits_on: dict[torch.device, Tensor] = {}
        self._stack: ExitStack | None = None
        self._blocks = list(decoder_layers(model, anatomy))

    def attach(self) -> Self:
        """Start editing. Nothing at all is attached at p = 0."""
        if self._stack is not None:
            raise InputError("this VAR is attached already; call var() again for another")
        with ExitStack() as stack:
            if self.config.p > 0:
                stack.enter_context(self._claimed())
                stack.enter_context(self._tracker.attached())
                stack.enter_context(entering_states(self._model, self._anatomy, self._see_state))
                stack.enter_context(attention_tap(self._model, self._anatomy, self._edit, self.layers))
            self._stack = stack.pop_all()
        return self

    @contextmanager
    def _claimed(self) -> Iterator[None]:
        """Two corrections of one layer would each be made from the weights that it had without the other."""
        for layer in self.layers:
            if self._blocks[layer] in _EDITED:
                raise InputError(f"another VAR edits layer {layer} already; detach it first, or choose other layers")
        claimed = [self._blocks[layer] for layer in self.layers]
        _EDITED.update(claimed)
        try:
            yield
        finally:
            _EDITED.difference_update(claimed)

    def detach(self) -> None:
        """Stop editing and remove every hook. Does nothing where nothing is attached."""
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def summary(self) -> list[LayerSummary]:
        """What happened so far in each edited layer."""
        return [self._statistics[layer].summary(layer) for layer in self.layers]

    def _see_state(self, layer: int, hidden_state: Tensor) -> None:
        if self._awaited is not None and layer > self._awaited:
            raise UnsupportedModelError(
                f"VAR did not see the attention of layer {self._awaited}: it bypasses transformers' attention interface"
            )
        self._awaited = None
        rule = self._rules.get(layer)
        if rule is None:
            return
        self._awaited = layer
        block = self._blocks[layer]
        if block.training and getattr(block, "gradient_checkpointing", False) and torch.is_grad_enabled():
            raise UnsupportedModelError(
                "gradient checkpointing computes layers again when VAR no longer knows their tokens; call "
                "gradient_checkpointing_disable() on the model"
            )
        step, sequence = self._tracker.step, self._tracker.sequence
        if step is None or sequence is None:
            raise InputError("inside var(), call the model itself: its decoder layers alone do not know the prompt")
        if hidden_state.shape[:2] != (sequence.batch, step.count):
            raise UnsupportedModelError(
                f"{self._anatomy.model_type} makes {list(hidden_state.shape[:2])} states of "
                f"{[sequence.batch, step.count]} ids, so visual positions are unknown; use its newer processor"
            )
        statistics = self._statistics[layer]
        if step.visual is None and not reading_waits(hidden_state.device):
            flags = rule.of_one_token(hidden_state)
            statistics.count_sinks(*sequence.record_generated(layer, flags, step, self.config))
            return
        sinks = rule(hidden_state)
        counts = sequence.record(layer, sinks, step, self.config)
        if counts is None:
            statistics.count_sinks_later(sinks)
        else:
            statistics.count_sinks(*counts)

    def _edit(self, call: AttentionCall) -> Tensor:
        layer = call.layer
        self._awaited = None
        step, sequence = self._tracker.step, self._tracker.sequence
        if step is None or sequence is None or not step.pairs:
            return call.base()
        statistics = self._statistics[layer]
        statistics.pairs += step.pairs * call.query.shape[1]
        if not sequence.donors.get(layer):
            return call.base()
        device = call.query.device
        table = sequence.table(layer, call.key.shape[2], step.offset + step.count, device)
        if step.rows is None:
            queries = None if step.pairs == sequence.batch else step.queries.to(device)
            output, moved = edit_generated(call, table, queries, self._limits(device), checked=layer in self._checked)
            statistics.add_moved([moved])
            return output
        rows, queries = step.rows.to(device), step.queries.to(device)
        output, several = edit_rows(call, table, queries, rows, self._limits(device), checked=layer in self._checked)
        self._checked.add(layer)
        statistics.add_moved(several)
        return output

    def _limits(self, device: torch.device) -> Tensor:
        limits = self._limits_on.get(device)
        if limits is None:
            limits = self._limits_on[device] = lower_limits(self.config).to(device)
        return limits


def reading_waits(device: torch.device) -> bool:
    """Whether to read a number back from `device` would wait for all the work that is queued there."""
    return device.type != "cpu"


def _check_fit(anatomy: Anatomy, profile: Profile) -> None:
    if profile.verdict == "none":
        raise ProfileError(f"profile {profile.name} found no sink dimensions ({profile.reason}), so VAR has no sinks")
    if anatomy.var_refusal is not None:
        raise UnsupportedModelError(anatomy.var_refusal)
    backbone = profile.backbone
    if (backbone.hidden_size, backbone.num_layers) != (anatomy.hidden_size, anatomy.num_layers):
        raise ProfileError(
            f"profile {profile.name} is for hidden size {backbone.hidden_size} and {backbone.num_layers} layers, the "
            f"model has {anatomy.hidden_size} and {anatomy.num_layers}; use the profile of this backbone"
        )


def _chosen_layers(anatomy: Anatomy, profile: Profile, layers: Iterable[int] | None) -> list[int]:
    last = anatomy.num_layers - 1
    if layers is None:
        excluded = set(profile.var.excluded_layers)
        return [layer for layer in range(last) if layer not in excluded and anatomy.attention_layers[layer]]
    chosen = sorted(set(layers))
    for layer in chosen:
        if not 0 <= layer < last:
            raise InputError(f"layer {layer} cannot be edited; choose from 0 to {last - 1} (the last is left alone)")
        if not anatomy.attention_layers[layer]:
            raise InputError(f"layer {layer} holds no softmax attention; choose other layers")
    return chosen
