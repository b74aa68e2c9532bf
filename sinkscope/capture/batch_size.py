"""How many tokens go through the model at a time."""

import os
from pathlib import Path

from torch import nn

from sinkscope.backbone.anatomy import decoder_layers, text_config
from sinkscope.backbone.config_values import count_of
from sinkscope.backbone.loading import LoadedModel
from sinkscope.backbone.placement import offloaded_bytes, room_for_a_pass
from sinkscope.backbone.running import model_dtype
from sinkscope.capture.settings import BATCH_TOKENS, CaptureSettings
from sinkscope.store.reader import RunReader

PASS_SHARE = 0.5
"""Part of the free memory that a batch may take, as it is estimated."""
STATE_COPIES = 6
"""Copies of a state in float32 that are alive together while it is read."""


def batch_tokens(loaded: LoadedModel, settings: CaptureSettings, begun: str | os.PathLike[str] | None = None) -> int:
    """Most tokens in a batch of texts, padding included.

    As the settings say; else as a run file that is begun says, whose batches must be repeated; else `BATCH_TOKENS`, or
    fewer where a model that does not fit into memory leaves too little room. Never more, although every batch brings
    the weights in anew: other batches would round otherwise, and the numbers would depend on the machine.

    Parameters
    ----------
    loaded : LoadedModel
    settings : CaptureSettings
    begun : path, optional
        A run file to go on with.

    Raises
    ------
    StoreError
        If the run file cannot be read.
    """
    if settings.batch_tokens is not None:
        return settings.batch_tokens
    if begun is not None and Path(begun).exists():
        with RunReader(begun) as reader:
            return int(reader.attributes.settings.get("batch_tokens") or BATCH_TOKENS)
    if not offloaded_bytes(loaded.model):
        return BATCH_TOKENS
    room = PASS_SHARE * room_for_a_pass(loaded.model)
    return min(BATCH_TOKENS, max(settings.max_length, int(room / token_bytes(loaded, settings))))


def token_bytes(loaded: LoadedModel, settings: CaptureSettings) -> int:
    """About what one token takes in a pass: as if a layer kept all that its matrices compute until its end."""
    anatomy, config = loaded.anatomy, text_config(loaded.model)
    experts = count_of(config, "num_experts_per_tok") or 1
    layer = max(layer_width(layer, experts) for layer in decoder_layers(loaded.model, anatomy))
    weights = settings.max_length * (anatomy.num_heads or 1) if config._attn_implementation == "eager" else 0
    states = STATE_COPIES * anatomy.hidden_size * 4
    kept = (anatomy.num_layers + 1) * settings.largest * 8
    return (layer + weights) * model_dtype(loaded.model).itemsize + states + kept


def layer_width(layer: nn.Module, experts: int) -> int:
    """Numbers that the matrices of a layer compute for a token; of stacked matrices, `experts` take part."""
    matrices = [parameter.shape for parameter in layer.parameters() if parameter.dim() > 1]
    return sum(max(shape[-2:]) * (experts if len(shape) == 3 else 1) for shape in matrices)
