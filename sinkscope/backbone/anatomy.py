"""What a model is made of, found by its structure and transformers' own interfaces, never by its name.

    model (PreTrainedModel)
      config.get_text_config() ──> the text decoder's config: width, depth, heads
      the PreTrainedModel inside that holds this config ──> its one ModuleList with `depth` entries: decoder layers
      the config's image / video token ids ──> visual positions
      modules with `is_causal` in a layer ──> softmax attention

Works on the meta device, so that looking at a model costs nothing. Not guaranteed: that a layer really passes a
residual stream of the hidden size on. Capture checks it on the first batch.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from sinkscope.backbone.attention_kinds import AttentionKind, holds_softmax_attention, interface_caller, kind_of
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
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{kind} is an encoder-decoder model; sinkscope works on decoder-only models")
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
    whole: Any = model.config
    placeholders, multimodal = placeholder_ids(whole), sees_pictures(whole)
    causal = [module.is_causal for layer in layers for module in layer.modules() if hasattr(module, "is_causal")]
    # Multimodal decoders may attend both ways inside a picture, so their modules need not call themselves causal.
    if causal and not any(causal) and not multimodal and value_of(config, "is_decoder") is not True:
        raise UnsupportedModelError(f"{kind} is an encoder (its attention is not causal); sinkscope works on decoders")
    attention_layers = tuple(holds_softmax_attention(layer, config, index) for index, layer in enumerate(layers))
    interface = any(interface_caller(type(module)) for layer in layers for module in layer.modules())
    refusal = None
    if not multimodal:
        refusal = f"{kind} has no visual tokens: VAR moves attention to an image, and this model sees none"
    elif has_cross_attention(holder):
        refusal = f"{kind} reads images through cross-attention layers: no visual tokens in the decoder to recycle to"
    elif has_resampler(model, holder_path or layers_path):
        refusal = f"{kind} compresses images with a resampler (learned queries): its visual tokens are not patches"
    elif not placeholders:
        refusal = f"the config of {kind} names no image token, so visual positions are unknown"
    elif not any(attention_layers):
        refusal = f"{kind} has no softmax attention"
    elif not interface:
        refusal = f"the attention of {kind} does not go through transformers' attention interface"
    return Anatomy(
        model_type=kind,
        layers_path=layers_path,
        hidden_size=width,
        num_layers=len(layers),
        num_heads=count_of(config, "num_attention_heads"),
        num_kv_heads=count_of(config, "num_key_value_heads") or count_of(config, "num_attention_heads"),
        vocab_size=count_of(config, "vocab_size"),
        attention_layers=attention_layers,
        attention_interface=interface,
        multimodal=multimodal,
        placeholder_ids=placeholders,
        var_refusal=refusal,
        attention_kinds=tuple(kind_of(layer, config, index) for index, layer in enumerate(layers)),
    )


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
    stacks = [
        (path, module)
        for path, module in holder.named_modules()
        if isinstance(module, nn.ModuleList) and not path.startswith(towers)
    ]
    lists = next((found for depth in depths if (found := [entry for entry in stacks if len(entry[1]) == depth])), [])
    # A list inside another candidate's entries (experts, say) belongs to a layer; it is not the list of layers.
    paths = {path for path, _ in lists}
    outer = [(path, module) for path, module in lists if not any(path.startswith(f"{other}.") for other in paths)]
    if not outer:
        raise UnsupportedModelError(
            f"no list of {depths[0]} decoder layers found in {type(holder).__name__} ({kind}); it is no plain stack of "
            "layers, each run once"
        )
    # Parallel lists occur (norms beside layers); the decoder layers hold most of the parameters.
    return max(outer, key=lambda entry: sum(parameter.numel() for parameter in entry[1].parameters()))[0]
