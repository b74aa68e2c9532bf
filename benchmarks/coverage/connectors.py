"""How the models that see connect their images to the decoder, read from their code: what VAR is to make of them.

All that are not listed have a projector: visual tokens in the decoder that each stand for one patch of the image (or
for a fixed few neighbours), where VAR applies.
"""

CONNECTORS = {
    "aria": "resampler",
    "blip": "cross-attention",
    "blip-2": "resampler",
    "deepseek_ocr2": "resampler",
    "evolla": "resampler",
    "git": "no placeholders",
    "granite4_vision": "resampler",
    "idefics": "cross-attention",
    "idefics2": "resampler",
    "instructblip": "resampler",
    "instructblipvideo": "resampler",
    "kosmos-2": "resampler",
    "kosmos-2.5": "resampler",
    "mistral4": "no images",
    "mllama": "cross-attention",
    "pi0": "no images",
}


def connector(kind: str) -> str:
    """The connector of an image-text-to-text type."""
    return CONNECTORS.get(kind, "projector")
