"""What a multimodal model takes for a question about pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sinkscope.backbone.anatomy import text_config
from sinkscope.backbone.loading import LoadedModel
from sinkscope.backbone.visual import visual_mask
from sinkscope.calibration.samples import open_picture, opened_picture
from sinkscope.errors import InputError, UnsupportedModelError


def read_picture(path: Path) -> Image.Image:
    """The picture at `path`, decoded, in RGB.

    Raises
    ------
    InputError
        If it is missing or cannot be read.
    """
    _check_file(path)
    return open_picture(path)


def check_picture(path: Path) -> None:
    """Raise `InputError` if there is no picture at `path`. Reads no more than tells its format and size."""
    _check_file(path)
    with opened_picture(path):
        pass


def _check_file(path: Path) -> None:
    try:
        found = path.is_file()
    except OSError as error:  # A name that is too long, or a folder that may not be looked into.
        raise InputError(f"cannot read the picture {path} ({error.strerror}); check the path") from error
    if not found:
        raise InputError(f"there is no picture at {path}; check the path")


def check_answerable(loaded: LoadedModel) -> None:
    """Raise `UnsupportedModelError` where VAR cannot apply to the model; the message says why."""
    if loaded.anatomy.var_refusal is not None:
        raise UnsupportedModelError(loaded.anatomy.var_refusal)
    if loaded.processor is None:
        reason = f" ({loaded.processor_error})" if loaded.processor_error else ""
        raise UnsupportedModelError(
            f"{loaded.model_id} comes without a usable processor, so pictures cannot be prepared for it{reason}"
        )


def build_inputs(loaded: LoadedModel, images: Sequence[Image.Image], prompt: str, *, raw: bool = False) -> Any:
    """What the model takes, for one question about some pictures.

    Parameters
    ----------
    images : sequence of PIL images
        In the order of their placeholders.
    prompt : str
        The question; the processor's chat template puts it into a user turn after the pictures.
    raw : bool
        The prompt is the whole text for the model, with one placeholder per picture. Needed where the processor has no
        chat template.

    Returns
    -------
    BatchFeature
        With a batch of one, on the model's device.

    Raises
    ------
    InputError
        If the prompt holds no image placeholder, or the processor refuses it.
    """
    processor = loaded.processor
    placeholder = getattr(processor, "image_token", None)
    named = f" {placeholder}" if placeholder else ""
    text = prompt
    if not raw:
        if not getattr(processor, "chat_template", None):
            raise InputError(
                f"{loaded.model_id} has no chat template: write the whole prompt, with the image placeholder{named} in "
                "it, and pass --raw"
            )
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    if placeholder and placeholder not in text:
        raise InputError(
            f"the prompt holds no image placeholder: put {placeholder} where the picture belongs"
            + ("" if raw else ", and pass --raw")
        )
    # A template may write the tokenizer's first token, which must not come twice.
    first = loaded.tokenizer.bos_token
    once = {"add_special_tokens": False} if not raw and first and text.startswith(first) else {}
    try:
        inputs = processor(text=[text], images=list(images), return_tensors="pt", **once)
    except (ValueError, TypeError, IndexError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{loaded.model_id} does not take this prompt with {len(images)} picture(s): {reason}"
        ) from error
    if not visual_mask(loaded.anatomy, inputs["input_ids"]).any():
        raise InputError(
            f"the prompt leads to no visual token in {loaded.model_id}; put{named or ' the placeholder'} in it"
        )
    return inputs.to(loaded.model.device, dtype=loaded.model.dtype)


def room_to_answer(loaded: LoadedModel, inputs: Any, max_new_tokens: int) -> int:
    """How many tokens, of at most `max_new_tokens`, the model can write after a prompt.

    Raises
    ------
    InputError
        If the prompt alone is longer than the model can read.
    """
    limit = getattr(text_config(loaded.model), "max_position_embeddings", None)
    if limit is None:
        return max_new_tokens
    prompt = int(inputs["input_ids"].shape[1])
    if prompt >= limit:
        raise InputError(
            f"the prompt has {prompt} tokens with its pictures, and {loaded.model_id} takes fewer than {limit}; "
            "shorten it"
        )
    return min(max_new_tokens, limit - prompt)
