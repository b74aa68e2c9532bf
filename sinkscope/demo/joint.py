"""Third training stage: the projector and the low-rank updates of the text model learn to answer.

Each picture is encoded once: its two captions' turn and its five questions follow the shared visual tokens as
branches of one sequence that cannot see each other, each with positions as if it stood alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from sinkscope.demo.alignment import Projector
from sinkscope.demo.lora import LoraLinear
from sinkscope.demo.pictures import Question, Scene
from sinkscope.demo.recipe import IMAGE_TOKEN_ID, VISUAL_TOKENS, Schedule, prompt

PICTURES_PER_STEP = 4
# Scenes with one object teach little about which attribute belongs to which object.
SCENE_WEIGHTS = {1: 0.4, 2: 1.0, 3: 1.2}


@dataclass(frozen=True)
class Packed:
    """One picture's branches as one sequence of T tokens.

    Attributes
    ----------
    tokens, positions, branches : ndarray of int64, shape [T]
        Branch 0 is the shared prefix, which ends with the visual tokens.
    predicts : ndarray of bool, shape [T]
        True where the next token of the sequence belongs to an answer.
    """

    tokens: np.ndarray
    positions: np.ndarray
    branches: np.ndarray
    predicts: np.ndarray


def pack(questions: Sequence[Question], tokenize: Callable[[str], list[int]]) -> Packed:
    """Put a picture's questions behind its shared prefix."""
    tokens: list[int] = []
    positions: list[int] = []
    branches: list[int] = []
    predicts: list[bool] = []
    for index, question in enumerate(questions, start=1):
        asked = tokenize(prompt(question.text))
        answer = tokenize(f"{question.answer}<|im_end|>")
        length = VISUAL_TOKENS + asked.index(IMAGE_TOKEN_ID)
        if not tokens:
            tokens, positions = asked[:length], list(range(length))
            branches, predicts = [0] * length, [False] * length
        branch = asked[length:] + answer
        tokens += branch
        positions += range(length, length + len(branch))
        branches += [index] * len(branch)
        # The last token before the answer predicts its first token; the end token itself predicts nothing.
        predicts += [False] * (len(asked) - length - 1) + [True] * len(answer) + [False]
    return Packed(np.asarray(tokens), np.asarray(positions), np.asarray(branches), np.asarray(predicts))


def collate(packed: Sequence[Packed]) -> dict[str, torch.Tensor]:
    """Pad sequences on the right and build their masks.

    Returns
    -------
    dict
        "tokens", "positions" int64 [B, T]; "mask" bool [B, 1, T, T], True where attention is allowed; "predicts"
        bool [B, T].
    """
    length = max(len(one.tokens) for one in packed)

    def padded(arrays: Sequence[np.ndarray], fill: int) -> torch.Tensor:
        return torch.from_numpy(
            np.stack([np.pad(array, (0, length - len(array)), constant_values=fill) for array in arrays])
        )

    branches = padded([one.branches for one in packed], -1)
    same = branches[:, :, None] == branches[:, None, :]
    prefix = (branches == 0)[:, None, :] & (branches >= 0)[:, :, None]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return {
        "tokens": padded([one.tokens for one in packed], 0),
        "positions": padded([one.positions for one in packed], 0),
        "mask": ((same | prefix) & causal)[:, None],
        "predicts": padded([one.predicts for one in packed], 0).bool(),
    }


def learning_rate_share(step: int, steps: int) -> float:
    """Return the learning rate of a step as a share of its peak: 20 steps of warm-up, decay over the last 35 %."""
    decay_start = int(0.65 * steps)
    warm = min(1.0, (step + 1) / 20)
    return warm if step < decay_start else warm * max(0.02, (steps - step) / (steps - decay_start))


def train_joint(
    text_model: Any,
    tokenize: Callable[[str], list[int]],
    projector: Projector,
    wrapped: Mapping[str, LoraLinear],
    scenes: Sequence[Scene],
    features: torch.Tensor,
    schedule: Schedule,
    seed: int,
) -> Iterator[int]:
    """Train the projector and the low-rank updates in place, one optimiser step at a time.

    Parameters
    ----------
    text_model : LlamaForCausalLM
        Float32, frozen but for ``wrapped``.
    tokenize : callable
        Text to token ids; knows the image token.
    projector : Projector
    wrapped : mapping
        The low-rank layers inside ``text_model``.
    scenes : sequence of Scene
    features : torch.Tensor
        Vision features [n, 36, 64] of the scenes.
    schedule : Schedule
        Its ``joint_steps`` are optimiser steps of four pictures, six branches each; the first ``bfloat16_steps`` of
        them multiply matrices in bfloat16.
    seed : int

    Yields
    ------
    int
        The number of steps done.
    """
    steps = schedule.joint_steps
    parameters = [*projector.parameters()]
    for layer in wrapped.values():
        parameters += [layer.down, layer.up]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(step, steps))
    random = np.random.default_rng([seed, 4])
    weights = np.asarray([SCENE_WEIGHTS[len(scene.things)] for scene in scenes])
    weights /= weights.sum()
    decoder, head = text_model.model, text_model.lm_head
    embeddings = decoder.embed_tokens.weight
    smooth = None
    for step in range(steps):
        chosen = random.choice(len(scenes), size=PICTURES_PER_STEP, p=weights)
        batch = collate(
            [pack((scenes[i].captions[(step + j) % 2], *scenes[i].questions), tokenize) for j, i in enumerate(chosen)]
        )
        tokens = batch["tokens"]
        inputs = embeddings[tokens]
        visual = projector(features[torch.from_numpy(chosen)]).flatten(0, 1)
        inputs = inputs.masked_scatter((tokens == IMAGE_TOKEN_ID)[..., None], visual)
        predicts = batch["predicts"]
        with torch.autocast("cpu", torch.bfloat16, enabled=step < schedule.bfloat16_steps):
            hidden = decoder(
                inputs_embeds=inputs, attention_mask=batch["mask"], position_ids=batch["positions"], use_cache=False
            ).last_hidden_state
            # Only the answers' rows go through the output matrix, which is the costliest one.
            logits = head(hidden[predicts])
        loss = nn.functional.cross_entropy(logits.float(), tokens.roll(-1, dims=1)[predicts])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rates.step()
        smooth = loss.item() if smooth is None else 0.9 * smooth + 0.1 * loss.item()
        if step % 10 == 0 or step == steps - 1:
            print(f"joint {step + 1}/{steps} loss {smooth:.4f}", flush=True)
        yield step + 1
