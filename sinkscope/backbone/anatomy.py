"""What a model is made of, found by its structure and transformers' own interfaces, never by its name.

    model (PreTrainedModel)
      config.get_text_config() ──> the text decoder's config: width, depth, heads
      the PreTrainedModel inside that holds this config ──> its one ModuleList with `depth` entries: decoder layers
      the config's image / video token ids ──> visual positions
      modules with `is_causal` in a layer ──> softmax attention

Works on the meta device, so that looking at a model costs nothing. Not guaranteed: that a layer really passes a
residual stream of the hidden size on. Capture checks it on the first batch.
"""

import inspect
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from sinkscope.backbone.attention_kinds import (
    AttentionKind,
    holds_attention,
    holds_softmax_attention,
    interface_caller,
    key_value_heads,
    kind_of,
)
from sinkscope.backbone.config_values import count_of, value_of
from sinkscope.backbone.vision import has_cross_attention, has_resampler, placeholder_ids, sees_pictures
from sinkscope.errors import UnsupportedModelError

_DEPTHS = ("decoder_layers", "num_decoder_layers", "num_hidden_layers", "num_layers")
"""What configs call the number of decoder layers; one that has an encoder too calls that the first two."""


@dataclass(frozen=True)
class Anatomy:
    """The parts of a model that sinkscope works with.

    Attributes
    ----------
    model_type : str
        Of the text decoder's config.
    layers_path : str
        Path of the decoder layers' ModuleList, e.g. ``model.language_model.layers``.
    hidden_size, num_layers : int
        Width of the residual stream, and number of decoder layers.
    num_heads, num_kv_heads, vocab_size : int or None
        As the config states them.
    attention_layers : tuple of bool
        Which decoder layers hold softmax attention.
    attention_interface : bool
        Whether attention goes through transformers' attention interface.
    multimodal : bool
        Whether images or videos enter the decoder as visual tokens.
    placeholder_ids : tuple of int
        Token ids whose positions carry one visual embedding each.
    var_refusal : str or None
        Why VAR cannot apply; None where it can.
    attention_kinds : tuple of AttentionKind
        What each decoder layer's attention sees.
    """

    model_type: str
    layers_path: str
    hidden_size: int
    num_layers: int
    num_heads: int | None
    num_kv_heads: int | None
    vocab_size: int | None
    attention_layers: tuple[bool, ...]
    attention_interface: bool
    multimodal: bool
    placeholder_ids: tuple[int, ...]
    var_refusal: str | None
    attention_kinds: tuple[AttentionKind, ...] = ()

    def fingerprint(self) -> dict[str, Any]:
        """The fields that name a backbone, as a profile carries them."""
        return {
            "model_type": self.model_type,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "vocab_size": self.vocab_size,
        }

    @property
    def attention_refusal(self) -> str | None:
        """Why attention can be neither read nor changed; None where it can."""
        if not any(self.attention_layers):
            return f"{self.model_type} has no softmax attention"
        if not self.attention_interface:
            return f"the attention of {self.model_type} does not go through transformers' attention interface"
        return None

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


def text_config(model: nn.Module) -> PreTrainedConfig:
    """The config of the text decoder inside `model`; the same object that its modules hold."""
    config = getattr(model, "config", None)
    if not isinstance(config, PreTrainedConfig):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no transformers config; give a transformers model (or a path of one)"
        )
    return config.get_text_config(decoder=True)


def decoder_layers(model: nn.Module, anatomy: Anatomy) -> nn.ModuleList:
    """The decoder layers of `model`, in order."""
    layers = model.get_submodule(anatomy.layers_path)
    if not isinstance(layers, nn.ModuleList):
        raise UnsupportedModelError(f"{anatomy.layers_path} of {type(model).__name__} is not a list of decoder layers")
    return layers


def decoder_holders(model: nn.Module, anatomy: Anatomy) -> Iterator[nn.Module]:
    """The model, then the pretrained models inside that hold the decoder layers, from the outside in."""
    yield model
    parts = anatomy.layers_path.split(".")
    for depth in range(1, len(parts)):
        module = model.get_submodule(".".join(parts[:depth]))
        if isinstance(module, PreTrainedModel):
            yield module


def find_anatomy(model: nn.Module) -> Anatomy:
    """Find the parts of `model`.

    Raises
    ------
    UnsupportedModelError
        If it is an encoder or encoder-decoder, or its decoder layers cannot be told.
    """
    config = text_config(model)
    kind = str(getattr(config, "model_type", type(model).__name__))
    if _is_encoder_decoder(model):
        whole = getattr(model.config, "model_type", kind)
        raise UnsupportedModelError(f"{whole} is an encoder-decoder model; sinkscope works on decoder-only models")
    depths = [depth for name in _DEPTHS if (depth := count_of(config, name)) is not None]
    width = count_of(config, "hidden_size")
    if not depths or width is None:
        raise UnsupportedModelError(
            f"the config of {kind} states no single hidden size and number of layers; sinkscope needs both"
        )
    holder_path, holder = _text_decoder(model, config)
    path = _layers_path(holder, config, depths, kind)
    layers_path = f"{holder_path}.{path}" if holder_path else path
    layers: Any = model.get_submodule(layers_path)
    whole_config: Any = model.config
    multimodal = sees_pictures(whole_config)
    causal = [module.is_causal for layer in layers for module in layer.modules() if hasattr(module, "is_causal")]
    # Multimodal decoders may attend both ways inside a picture, so their modules need not call themselves causal.
    if causal and not any(causal) and not multimodal and value_of(config, "is_decoder") is not True:
        raise UnsupportedModelError(f"{kind} is an encoder (its attention is not causal); sinkscope works on decoders")
    anatomy = Anatomy(
        model_type=kind,
        layers_path=layers_path,
        hidden_size=width,
        num_layers=len(layers),
        num_heads=count_of(config, "num_attention_heads"),
        num_kv_heads=key_value_heads(layers.modules(), config),
        vocab_size=count_of(config, "vocab_size"),
        attention_layers=tuple(holds_softmax_attention(layer, config, index) for index, layer in enumerate(layers)),
        attention_interface=any(interface_caller(type(module)) for layer in layers for module in layer.modules()),
        multimodal=multimodal,
        placeholder_ids=placeholder_ids(whole_config),
        var_refusal=None,
        attention_kinds=tuple(kind_of(layer, config, index) for index, layer in enumerate(layers)),
    )
    return replace(anatomy, var_refusal=_var_refusal(anatomy, model, holder_path or layers_path, holder))


def _var_refusal(anatomy: Anatomy, model: nn.Module, decoder_path: str, decoder: nn.Module) -> str | None:
    kind = anatomy.model_type
    if not anatomy.multimodal:
        return f"{kind} has no visual tokens: VAR moves attention to an image, and this model sees none"
    if has_cross_attention(decoder):
        return f"{kind} reads images through cross-attention layers: no visual tokens in the decoder to recycle to"
    if has_resampler(model, decoder_path):
        return f"{kind} compresses images with a resampler (learned queries): its visual tokens are not patches"
    if not anatomy.placeholder_ids:
        return f"the config of {kind} names no image token, so visual positions are unknown"
    return anatomy.attention_refusal


def _is_encoder_decoder(model: nn.Module) -> bool:
    """Whether one stack of layers reads the prompt and another one writes."""
    if getattr(model.config, "is_encoder_decoder", False):
        return True
    if not isinstance(model, PreTrainedModel) or "decoder_input_ids" not in inspect.signature(model.forward).parameters:
        return False
    encoder, decoder = model.get_encoder(), model.get_decoder()
    # A wrapper around any language model takes such ids too; around a decoder it gives the same stack for both.
    return all(one not in set(other.modules()) for one, other in ((encoder, decoder), (decoder, encoder)))


def _text_decoder(model: nn.Module, config: PreTrainedConfig) -> tuple[str, nn.Module]:
    """The innermost pretrained model that holds the text config: below it there is no vision or audio tower."""
    holders = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, PreTrainedModel) and module.config is config
    ]
    return holders[-1] if holders else ("", model)


def _layers_path(holder: nn.Module, config: PreTrainedConfig, depths: list[int], kind: str) -> str:
    # Towers for pictures and sound are models of their own, and may be as deep.
    towers = tuple(
        f"{path}."
        for path, module in holder.named_modules()
        if path and isinstance(module, PreTrainedModel) and module.config is not config
    )
    stacks = {
        path: module
        for path, module in holder.named_modules()
        if isinstance(module, nn.ModuleList) and not path.startswith(towers)
    }
    same_depth = ({path: module for path, module in stacks.items() if len(module) == depth} for depth in depths)
    lists = _outermost(next(filter(None, same_depth), {}))
    if not lists:
        raise UnsupportedModelError(_no_stack(holder, _outermost(stacks), depths[0], kind))
    # Those that transformers itself gives back as hidden states, where it says so; else most of the parameters.
    recorded = _recorded(holder)
    chosen = {path: each for path, each in lists.items() if any(isinstance(layer, recorded) for layer in each)} or lists
    path = max(chosen, key=lambda path: sum(parameter.numel() for parameter in chosen[path].parameters()))
    if not holds_attention(chosen[path]) and any(holds_attention(each) for each in lists.values()):
        raise UnsupportedModelError(
            f"the parts of a layer of {kind} stand in parallel lists ({', '.join(lists)}): no list of modules passes "
            "the residual stream on"
        )
    return path


def _outermost(lists: dict[str, nn.ModuleList]) -> dict[str, nn.ModuleList]:
    """Without the lists inside the entries of another one (experts, say): those belong to a layer."""
    return {path: entry for path, entry in lists.items() if not any(path.startswith(f"{other}.") for other in lists)}


def _recorded(holder: nn.Module) -> tuple[type, ...]:
    """The classes of modules whose outputs transformers calls hidden states; mostly one."""
    declared = (getattr(holder, "_can_record_outputs", None) or {}).get("hidden_states", ())
    entries = declared if isinstance(declared, (list, tuple)) else (declared,)
    classes = (getattr(entry, "target_class", entry) for entry in entries)
    return tuple(entry for entry in classes if isinstance(entry, type))


def _no_stack(holder: nn.Module, lists: dict[str, nn.ModuleList], depth: int, kind: str) -> str:
    """Why there is no list of the decoder layers."""
    held = sum(len(entry) for entry in lists.values())
    if held and depth > held and depth % held == 0:
        return (
            f"{kind} states {depth} layers and holds {held} ({', '.join(lists)}): they run more than once in a pass, "
            "so the state entering a layer is not one state"
        )
    return (
        f"no list of {depth} decoder layers found in {type(holder).__name__} ({kind}); it is no plain stack of layers"
    )
