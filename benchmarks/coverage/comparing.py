"""VAR on one small model, against `sinkscope.redistribute` on the full attention maps of the model's eager kernel."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import sinkscope
from benchmarks.coverage.planting import DIMS, FIRST_LAYER, Planted, spike_size
from benchmarks.coverage.words import stops
from sinkscope.backbone.anatomy import Anatomy, decoder_layers
from sinkscope.profile import Profile

SETTINGS = {"p": 0.6, "rho": 0.6, "attention_floor": 0.1}
STEPS = 4
WITHIN = 1e-5
RULED_OUT = 1e30
LEAST_EFFECT = 1e-4
"""VAR must change the logits by at least this part of the largest, or nothing was tested."""


def hand_made_profile(anatomy: Anatomy) -> Profile:
    """A profile of the planted dimensions."""
    depth, tau = anatomy.num_layers, 0.5 * anatomy.hidden_size**0.5
    return Profile.model_validate(
        {
            "name": "planted",
            "verdict": "sinks",
            "reason": "planted",
            "backbone": {"model_type": anatomy.model_type, "hidden_size": anatomy.hidden_size, "num_layers": depth},
            "sink_dimensions": [{"dim": dim} for dim in DIMS],
            "tau": {"phi": tau},
            "bands": [{"first_layer": FIRST_LAYER, "last_layer": depth, "dims": list(DIMS), "tau_phi": tau}],
            "var": SETTINGS | {"excluded_layers": [depth - 1]},
            "provenance": {"kind": "measured"},
        }
    )


def compare(model: Any, anatomy: Anatomy, inputs: dict[str, Tensor], image_id: int) -> dict[str, Any]:
    """Prefill of a left-padded batch and cached decoding, by sinkscope and by definition, ready for JSON.

    On the model's own kernel. Where that is further from the eager kernel than the bar allows, VAR or no VAR, the eager
    kernel is compared with itself.
    """
    profile = hand_made_profile(anatomy)

    def fast() -> list[Tensor]:
        with sinkscope.var(model, profile, score="phi"):
            return _passes(model, inputs)

    with torch.no_grad():
        planted = Planted(model, anatomy, stops(), spike_size(model, anatomy, lambda: model(**inputs)))
        try:
            with by_definition(model, anatomy, image_id) as definition:
                eager = _passes(model, inputs)
            plain = _passes(model, inputs)
            result = {"error": _apart(fast(), eager), "effect": _apart(plain, eager), "edited": definition.edited}
            if result["error"] > WITHIN:
                with eager_kernel(model):
                    result["kernels_apart"] = _apart(plain, _passes(model, inputs))
                    on_eager = _apart(fast(), eager)
                if result["kernels_apart"] > WITHIN / 2:
                    result |= {"error": on_eager, "error_own_kernel": result["error"]}
        finally:
            planted.remove()
    if result["error"] > WITHIN:
        reason = f"differs from the definition by {result['error']:.1e} of the largest logit"
        return result | {"status": "failed", "reason": reason}
    if result["effect"] < LEAST_EFFECT or not definition.edited:
        reason = f"VAR changes the logits by {result['effect']:.1e} only, so nothing was tested"
        return result | {"status": "failed", "reason": reason}
    return result | {"status": "works"}


def _apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference, as a part of the largest logit of `theirs`; words that a model rules out do not count."""
    largest = difference = 0.0
    for one, other in zip(ours, theirs, strict=True):
        possible = other.abs() < RULED_OUT
        largest = max(largest, float(other[possible].abs().max()))
        difference = max(difference, float((one - other)[possible].abs().max()))
    return difference / largest


def _passes(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Logits of the prompt at its tokens [n, V], then of every generated token [B, V]."""
    prompt = model(**inputs).logits[inputs["attention_mask"].bool()]
    made = model.generate(
        **inputs,
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        suppress_tokens=list(range(600, 640)),
        pad_token_id=0,
    )
    return [prompt, *made.logits]


class Definition:
    """VAR as the equations say it, over the passes of one prompt."""

    def __init__(self, image_id: int) -> None:
        self.edited = 0
        self._image_id = image_id
        self._visual = self._valid = self._queries = torch.zeros(0, 0, dtype=torch.bool)
        self._sinks: dict[int, Tensor] = {}

    def begin(self, ids: Tensor, mask: Tensor | None) -> None:
        """A pass over `ids`; several ids open a prompt."""
        visual = ids == self._image_id
        if ids.shape[1] > 1:
            self._sinks.clear()
            self._visual = self._valid = torch.zeros(len(ids), 0, dtype=torch.bool)
        valid = torch.ones_like(visual) if mask is None else mask[:, -ids.shape[1] :].bool()
        self._visual = torch.cat([self._visual, visual], 1)
        self._valid = torch.cat([self._valid, valid], 1)
        self._queries = ((self._visual.cumsum(1) > 0) & ~self._visual & self._valid)[:, -ids.shape[1] :]

    def see(self, layer: int, state: Tensor) -> None:
        """The hidden state entering a layer: phi decides its sinks."""
        rms = state.float().square().mean(-1).sqrt()
        phi = state[..., list(DIMS)].float().abs().amax(-1) / rms
        sinks = phi >= 0.5 * state.shape[-1] ** 0.5
        known = self._sinks.get(layer)
        self._sinks[layer] = sinks if known is None else torch.cat([known, sinks], 1)

    def edit(self, layer: int, weights: Tensor) -> Tensor:
        """Attention weights [B, H, Q, K] after VAR; K may be a window on the last keys."""
        keys = weights.shape[-1]
        sinks, visual = (self._sinks[layer] & self._valid)[:, -keys:], (self._visual & self._valid)[:, -keys:]
        after = sinkscope.redistribute(weights, sinks, visual, self._queries, **SETTINGS)
        self.edited += int((after != weights).any(-1).sum())
        return after


@contextmanager
def by_definition(model: Any, anatomy: Anatomy, image_id: int) -> Iterator[Definition]:
    """Inside, the eager kernel of the decoder's layers hands its weights to `Definition.edit`."""
    definition = Definition(image_id)
    layers = decoder_layers(model, anatomy)
    edited = range(FIRST_LAYER, anatomy.num_layers - 1)
    place = {id(module): index for index, layer in enumerate(layers) for module in layer.modules()}

    def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        definition.begin(kwargs["input_ids"], kwargs.get("attention_mask"))

    def see(layer: int) -> Any:
        return lambda module, args, kwargs: definition.see(layer, args[0] if args else kwargs["hidden_states"])

    def patched(kernel: Any) -> Any:
        def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
            output, weights = kernel(module, query, key, value, *args, **kwargs)
            layer = place.get(id(module))
            if layer not in edited:
                return output, weights
            weights = definition.edit(layer, weights)
            value = value.repeat_interleave(weights.shape[1] // value.shape[1], 1)
            return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), weights

        return attend

    kernels = {}
    for layer in layers:
        for module in layer.modules():
            names = getattr(type(module).forward, "__globals__", {})
            if "eager_attention_forward" in names:
                kernels[id(names)] = (names, names["eager_attention_forward"])
    handles = [model.register_forward_pre_hook(begin, with_kwargs=True)]
    handles += [layer.register_forward_pre_hook(see(index), with_kwargs=True) for index, layer in enumerate(layers)]
    try:
        for names, kernel in kernels.values():
            names["eager_attention_forward"] = patched(kernel)
        with eager_kernel(model):
            yield definition
    finally:
        for names, kernel in kernels.values():
            names["eager_attention_forward"] = kernel
        for handle in handles:
            handle.remove()


@contextmanager
def eager_kernel(model: Any) -> Iterator[None]:
    """The whole model on its eager attention kernel."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
