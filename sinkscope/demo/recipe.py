"""The numbers that define the demo model: its shape, its prompt, and how long each training stage lasts."""

from dataclasses import dataclass

from sinkscope.demo.pictures import PATCH_SIZE, PATCHES_PER_SIDE, PICTURE_SIZE

IMAGE_TOKEN = "<image>"
# An unused special token of SmolLM2's vocabulary stands for the image, so that no embedding has to be added.
IMAGE_TOKEN_ID = 16
REPLACED_TOKEN = "<empty_output>"
VISUAL_TOKENS = PATCHES_PER_SIDE**2

PIXEL_MEAN = 0.5
PIXEL_SPREAD = 0.5
VISION_WIDTH = 64
TEXT_WIDTH = 576

LORA_RANK = 8
LORA_ALPHA = 16
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# The text that background patches are aligned to: in the demo model it makes visual sinks, in the control it doesn't.
BACKGROUND_TEXT = " "
CONTROL_BACKGROUND_TEXT = " background"

# Held-out pictures come from seeds at or above this one; training uses smaller seeds only.
FIRST_HELD_OUT_SEED = 10_000

VISION_CONFIG: dict[str, object] = {
    "hidden_size": VISION_WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "image_size": PICTURE_SIZE,
    "patch_size": PATCH_SIZE,
    "projection_dim": VISION_WIDTH,
}


@dataclass(frozen=True)
class Schedule:
    """Lengths of the training stages, in optimiser steps, and the number of training pictures.

    The first ``bfloat16_steps`` of the joint stage multiply matrices in bfloat16, which halves their time on
    processors that have it; the rest is float32, the precision that the model is used in.
    """

    pictures: int = 6000
    vision_steps: int = 2600
    alignment_steps: int = 600
    joint_steps: int = 460
    bfloat16_steps: int = 400


def prompt(question: str, image: bool = True) -> str:
    """Return the text of one user turn and the opening of the answer, with every visual token written out."""
    placeholder = IMAGE_TOKEN * VISUAL_TOKENS + "\n" if image else ""
    return f"<|im_start|>user\n{placeholder}{question}<|im_end|>\n<|im_start|>assistant\n"
