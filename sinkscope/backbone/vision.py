"""How pictures enter a decoder, by the structure of the model and its config."""

import re
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from sinkscope.backbone.config_values import value_of

_PLACEHOLDER = re.compile(r"^(image|video)(_token|_patch)?_(id|index)$")
_WORDS = ("<image>", "<video>")
_PICTURES = ("vision_config", "vq_config", "vision_tower", "image_token_id")
_LEARNED_QUERY = re.compile(r"^(latent_?)?(query|queries)(_tokens?|_embeds?|_embeddings?|_\d+\w*)?$|^latents?$")


def sees_pictures(config: PreTrainedConfig) -> bool:
    """Whether a model's whole config describes pictures or videos beside the text."""
    return bool(placeholder_ids(config)) or any(value_of(config, name) is not None for name in _PICTURES)


def placeholder_ids(config: PreTrainedConfig) -> tuple[int, ...]:
    """Token ids whose positions carry one visual embedding each."""
    names = {name for name in (*vars(config), *dir(type(config))) if _PLACEHOLDER.match(name)}
    values: list[Any] = [value_of(config, name) for name in names]
    words = value_of(config, "vocabulary_map")
    if isinstance(words, dict):
        values += [words.get(word) for word in _WORDS]
    return tuple(sorted({value for value in values if isinstance(value, int) and not isinstance(value, bool)}))


def has_resampler(model: nn.Module, decoder_path: str) -> bool:
    """Whether learned queries read the pictures before the decoder does: then its visual tokens are no patches."""
    for path, module in model.named_modules():
        if path == decoder_path or path.startswith(f"{decoder_path}."):
            continue
        learned = [name for name, _ in module.named_parameters(recurse=False)]
        learned += [name for name, child in module.named_children() if isinstance(child, nn.Embedding)]
        if any(_LEARNED_QUERY.match(name) for name in learned):
            return True
    return False


def has_cross_attention(decoder: nn.Module) -> bool:
    """Whether a decoder attends to something else than its own tokens."""
    names = {name.rsplit(".", 1)[-1] for name, _ in decoder.named_modules()}
    return any("cross_att" in name or "crossattention" in name for name in names)
