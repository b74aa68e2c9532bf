"""A tap on the softmax attention of a text decoder, through transformers' own attention interface.

    with attention_tap(model, anatomy, handler):     the text config names our attention function in place of the kernel
        model(...)                                   attention layer ──> AttentionCall ──> handler ──> output

The kernel stays the model's own: `AttentionCall.base` runs it unchanged, on the mask that the model makes for it (an
attention function that is registered without its mask function gets no mask, and silently loses causality). Only the
config of the text decoder is touched, so vision towers never see the tap; everything is restored on the way out.

Compiled models run uncompiled inside. Not guaranteed: attention that bypasses transformers' interface. There the
handler is not called, so a caller that depends on it counts its calls.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sinkscope.backbone.anatomy import Anatomy, decoder_layers, text_config
from sinkscope.backbone.attention_kinds import interface_caller
from sinkscope.backbone.compiled import uncompiled
from sinkscope.errors import UnsupportedModelError

Kernel = Callable[..., tuple[Tensor, Tensor | None]]


@dataclass
class AttentionCall:
    """One call of a layer's attention kernel.

    Attributes
    ----------
    layer : int
        Index of the decoder layer.
    module : nn.Module
        The attention module.
    query : Tensor [B, H, Q, Dh]
        After rotary embedding.
    key, value : Tensor [B, Hkv, K, Dh], Tensor [B, Hkv, K, Dv]
        With what the cache holds; query head h reads key-value head h // (H / Hkv).
    attention_mask : Tensor [B or 1, 1 or H, Q, >= K] or [B, <= K], BlockMask, or None
        As the model made it for its kernel: bool (may attend) or float (added), the padding mask of flash attention, or
        None, which means what the kernel takes it for.
    scaling : float
        Factor of the logits.
    kernel : str
        Name of the model's kernel, e.g. "sdpa".
    kwargs : dict
        What else the kernel is given: dropout, softcap, sliding_window, s_aux.
    weights : Tensor [B, H, Q, K] or None
        What the kernel gives back as attention weights once `base` has run (only eager kernels do). A handler may
        replace it; the model gets what stands here.
    """

    layer: int
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    attention_mask: Any
    scaling: float
    kernel: str
    kwargs: dict[str, Any]
    weights: Tensor | None = None
    _run: Kernel = field(repr=False, kw_only=True)
    _below: tuple["Handler", ...] = field(default=(), repr=False, kw_only=True)

    @cached_property
    def exact_key(self) -> Tensor:
        """The key in float32, made once however many chunks of rows are computed."""
        return self.key.float()

    @property
    def direct(self) -> bool:
        """Whether `base` runs the kernel and no other tap, so that a handler may also compute the output itself."""
        return not self._below

    def base(self) -> Tensor:
        """The output of the model's own kernel, Tensor [B, Q, H, Dv]; taps set earlier see the call first."""
        if self._below:
            call = replace(self, _below=self._below[:-1])
            output = self._below[-1](call)
            self.weights = call.weights
            return output
        output, self.weights = self._run(
            self.module, self.query, self.key, self.value, self.attention_mask, **self.kwargs
        )
        return output


Handler = Callable[[AttentionCall], Tensor]


class _TapName(str):
    """The name under which a tapped kernel is registered.

    Model code asks its config for the kernel in two ways: it looks the name up, and it compares it with known names
    ("sdpa" takes this mask, the others that index). So the name is looked up as our own, and compares equal to the
    kernel's, which is the kernel that runs. Copies and pickles of a config hold the plain name.
    """

    base: str
    users: int

    def __new__(cls, base: str) -> "_TapName":
        name = super().__new__(cls, f"sinkscope_{base}")
        name.base, name.users = base, 0
        return name

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) is True or self.base == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (self.base,)


@dataclass
class _Site:
    """A tapped attention module: its layer, its own kernel, and the handlers set on it, the earliest first."""

    layer: int
    kernel: Kernel
    handlers: list[Handler] = field(default_factory=list)


_SITES: WeakKeyDictionary[nn.Module, _Site] = WeakKeyDictionary()


@contextmanager
def attention_tap(
    model: nn.Module, anatomy: Anatomy, handler: Handler, layers: Collection[int] | None = None
) -> Iterator[None]:
    """Route the attention of the text decoder through `handler`.

    Taps nest, also on one model: the one set last is called first, and its `base` calls the one before.

    Parameters
    ----------
    model : nn.Module
        The model that `anatomy` describes.
    handler : callable
        Takes an `AttentionCall` and returns the output, Tensor [B, Q, H, Dv]: `call.base()` or a change of it.
    layers : collection of int, optional
        The decoder layers to tap; all by default. The others run their kernel directly.

    Raises
    ------
    UnsupportedModelError
        If the model's attention does not go through transformers' attention interface.
    """
    modules = _attention_modules(model, anatomy, layers)
    configs = _configs(model, modules)
    # Every tap counts separately, even when one handler is set twice.
    own: Handler = lambda call: handler(call)  # noqa: E731
    sites: list[tuple[nn.Module, _Site]] = []
    names: list[tuple[PreTrainedConfig, _TapName]] = []
    try:
        for module, layer in modules.items():
            site = _SITES.get(module)
            if site is None:
                site = _Site(layer, _kernel(module, _plain(module.config._attn_implementation)))
                _SITES[module] = site
            site.handlers.append(own)
            sites.append((module, site))
        for config in configs:
            names.append((config, _enter_name(config)))
        with uncompiled():
            yield
    finally:
        for config, name in names:
            _leave_name(config, name)
        for module, site in sites:
            site.handlers.remove(own)
            if not site.handlers:
                _SITES.pop(module, None)


def _attention_modules(model: nn.Module, anatomy: Anatomy, layers: Collection[int] | None) -> dict[Any, int]:
    """The modules of the decoder layers that call transformers' attention interface, with their layer."""
    found: dict[Any, int] = {}
    for index, layer in enumerate(decoder_layers(model, anatomy)):
        if layers is not None and index not in layers:
            continue
        for module in layer.modules():
            if interface_caller(type(module)) is None or not hasattr(module, "config"):
                continue
            if module in found:
                raise UnsupportedModelError(
                    f"layers {found[module]} and {index} of {anatomy.model_type} share one attention module, so its "
                    "calls cannot be told apart"
                )
            found[module] = index
    if not found and (layers is None or layers):
        reason = anatomy.attention_refusal or f"no layer chosen of {anatomy.model_type} calls the attention interface"
        raise UnsupportedModelError(
            f"{reason}, so it cannot be read or changed; profile it without attention (--no-attention)"
        )
    return found


def _kernel(module: nn.Module, base: str) -> Kernel:
    """The function that `module` calls under the plain kernel name `base`."""
    caller = interface_caller(type(module))
    names = getattr(caller, "__globals__", {})
    interface = names.get("ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
    if base in interface:
        return interface[base]
    # The eager kernel is not registered: it is the default that the modeling file passes to the interface.
    eager = [name for name in caller.__code__.co_names if "eager_attention_forward" in name] if caller else []
    if len(eager) != 1 or not callable(names.get(eager[0])):
        raise UnsupportedModelError(
            f"the {base} attention of {type(module).__name__} is not to be found; load the model with "
            "attn_implementation='sdpa'"
        )
    return names[eager[0]]


def _configs(model: nn.Module, modules: dict[Any, int]) -> list[PreTrainedConfig]:
    """The text config, where masks are made, and those that the attention modules hold: mostly one object."""
    configs = [text_config(model), *(module.config for module in modules)]
    return list({id(config): config for config in configs}.values())


def _plain(name: str) -> str:
    return name.base if isinstance(name, _TapName) else name


def _enter_name(config: PreTrainedConfig) -> _TapName:
    current = config._attn_implementation
    if isinstance(current, _TapName):
        current.users += 1
        return current
    name = _TapName(current)
    name.users = 1
    AttentionInterface.register(str(name), _tapped(current))
    if current in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(str(name), ALL_MASK_ATTENTION_FUNCTIONS[current])
    # The empty key sets this config alone; its sub-configs keep what they have.
    config._attn_implementation = {"": name}
    return name


def _leave_name(config: PreTrainedConfig, name: _TapName) -> None:
    name.users -= 1
    # Whoever chose another kernel inside the context keeps it.
    if name.users == 0 and config._attn_implementation is name:
        config._attn_implementation = {"": name.base}


def _tapped(base: str) -> Kernel:
    """The attention function registered for the kernel `base`: hands each call to the handlers of its module."""

    def sinkscope_attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        site = _SITES.get(module)
        if site is None:
            return _kernel(module, base)(module, query, key, value, attention_mask, **kwargs)
        scaling = kwargs.get("scaling")
        call = AttentionCall(
            site.layer,
            module,
            query,
            key,
            value,
            attention_mask,
            query.shape[-1] ** -0.5 if scaling is None else scaling,
            base,
            kwargs,
            _run=site.kernel,
            _below=tuple(site.handlers[:-1]),
        )
        output = site.handlers[-1](call)
        return output, call.weights

    return sinkscope_attention
