"""Train the demo models: ``python -m sinkscope.demo.train``.

Three stages on generated pictures: a small vision tower learns what each patch shows; the projector is aligned to
text embeddings; projector and low-rank updates of the frozen text model learn to answer questions. The negative
control is a second projector, aligned with another word for the background. Every length is a step count, so that a
run can be repeated. On a machine with other work, set OMP_WAIT_POLICY=PASSIVE: threads that wait actively take most
of the time there.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sinkscope.demo.alignment import Projector, align, alignment_targets
from sinkscope.demo.backbone import smollm2_path
from sinkscope.demo.joint import train_joint
from sinkscope.demo.lora import add_lora, lora_state
from sinkscope.demo.pictures import CELLS, COLORS, SHAPES, generate
from sinkscope.demo.recipe import (
    BACKGROUND_TEXT,
    CONTROL_BACKGROUND_TEXT,
    FIRST_HELD_OUT_SEED,
    IMAGE_TOKEN,
    IMAGE_TOKEN_ID,
    LORA_ALPHA,
    LORA_RANK,
    REPLACED_TOKEN,
    VISION_CONFIG,
    Schedule,
)
from sinkscope.demo.shipped import CONTROL_FILE, DEMO_FILE, WEIGHTS_FOLDER, write_weights
from sinkscope.demo.vision import patch_features, patch_labels, pixel_values, train_tower


def prompt_tokenizer(path: Path) -> Callable[[str], list[int]]:
    """Return the backbone's tokenisation, with the demo's image token in place of an unused special token."""
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)

    def tokenize(text: str) -> list[int]:
        ids: list[int] = tokenizer(text.replace(IMAGE_TOKEN, REPLACED_TOKEN), add_special_tokens=False).input_ids
        return ids

    return tokenize


def phrase_embeddings(embeddings: torch.Tensor, tokenize: Callable[[str], list[int]]) -> dict[str, torch.Tensor]:
    """Return the embedding [576] of each name that a patch is aligned to; of several tokens, their mean."""
    named = {name: f" {name}" for name in (*COLORS, *SHAPES, *CELLS)}
    named |= {text: text for text in (BACKGROUND_TEXT, CONTROL_BACKGROUND_TEXT)}
    return {name: embeddings[tokenize(text)].mean(dim=0) for name, text in named.items()}


def train(out: Path, seed: int, schedule: Schedule) -> None:
    """Run all stages and write both weight files.

    Parameters
    ----------
    out : Path
        Folder of the weight files.
    seed : int
        Below ``FIRST_HELD_OUT_SEED``, so that held-out pictures stay unseen.
    schedule : Schedule
    """
    started = time.monotonic()
    scenes, held_out = generate(seed, schedule.pictures), generate(FIRST_HELD_OUT_SEED, 300)
    tower = train_tower(scenes, held_out, schedule.vision_steps, seed)
    with torch.no_grad():
        pixels = pixel_values(scenes)
        features = torch.cat([patch_features(tower, pixels[i : i + 200]) for i in range(0, len(pixels), 200)])
    labels = patch_labels(scenes)
    path = smollm2_path()
    tokenize = prompt_tokenizer(path)
    text_model: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    text_model.eval()
    embeddings = text_model.get_input_embeddings().weight.detach()
    names = phrase_embeddings(embeddings, tokenize)

    def aligned(background: str) -> Projector:
        targets = alignment_targets(labels, names, embeddings.mean(dim=0), background)
        return align(features, labels, embeddings, targets, schedule.alignment_steps, seed)

    metadata = {
        "backbone": "SmolLM2-135M-Instruct Q4_1",
        "image_token_id": IMAGE_TOKEN_ID,
        "vision_config": VISION_CONFIG,
        "seed": seed,
        "schedule": asdict(schedule),
        "torch": torch.__version__,
    }
    control = aligned(CONTROL_BACKGROUND_TEXT)
    write_weights(
        out / CONTROL_FILE, {"projector": control.folded()}, {**metadata, "background": CONTROL_BACKGROUND_TEXT}
    )
    projector = aligned(BACKGROUND_TEXT)
    print(f"stages before the joint one took {time.monotonic() - started:.0f} s", flush=True)
    text_model.requires_grad_(False)
    wrapped = add_lora(text_model.model.layers, seed + 5)
    steps = train_joint(text_model, tokenize, projector, wrapped, scenes, features, schedule, seed)
    for done in steps:
        # An interrupted run leaves what it had; the metadata says how far that was.
        if done % 100 == 0 or done == schedule.joint_steps:
            write_weights(
                out / DEMO_FILE,
                {"vision": tower.state_dict(), "projector": projector.folded(), "lora": lora_state(wrapped)},
                {
                    **metadata,
                    "background": BACKGROUND_TEXT,
                    "lora_rank": LORA_RANK,
                    "lora_alpha": LORA_ALPHA,
                    "joint_steps_done": done,
                },
            )
    print(f"wrote {out / DEMO_FILE} and {out / CONTROL_FILE} after {time.monotonic() - started:.0f} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and train."""
    default = Schedule()
    parser = argparse.ArgumentParser(description="Train the demo models (about 20 minutes on 2 CPU cores).")
    parser.add_argument("--out", type=Path, default=WEIGHTS_FOLDER, help="folder of the weight files")
    parser.add_argument("--seed", type=int, default=0, help=f"below {FIRST_HELD_OUT_SEED} (held-out pictures)")
    parser.add_argument("--steps", type=int, default=default.joint_steps, help="steps of the joint stage")
    parser.add_argument("--vision-steps", type=int, default=default.vision_steps)
    parser.add_argument("--alignment-steps", type=int, default=default.alignment_steps)
    parser.add_argument(
        "--bfloat16-steps", type=int, default=default.bfloat16_steps, help="first joint steps in bfloat16"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args(arguments)
    if not 0 <= options.seed < FIRST_HELD_OUT_SEED:
        parser.error(f"--seed must be between 0 and {FIRST_HELD_OUT_SEED - 1}")
    torch.set_num_threads(options.threads)
    schedule = replace(
        default,
        joint_steps=options.steps,
        vision_steps=options.vision_steps,
        alignment_steps=options.alignment_steps,
        bfloat16_steps=options.bfloat16_steps,
    )
    train(options.out, options.seed, schedule)


if __name__ == "__main__":
    main()
