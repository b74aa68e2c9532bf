"""First training stage: a small CLIP vision tower learns what each patch of a picture shows."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from sinkscope.demo.pictures import CELLS, COLORS, SHAPES, Scene
from sinkscope.demo.recipe import PIXEL_MEAN, PIXEL_SPREAD, VISION_CONFIG, VISION_WIDTH


def pixel_values(scenes: Sequence[Scene]) -> torch.Tensor:
    """Return the pictures as the image processor gives them: float32 [n, 3, 48, 48], about -1 to 1."""
    pixels = torch.from_numpy(np.stack([np.asarray(scene.image) for scene in scenes]))
    return (pixels.permute(0, 3, 1, 2).float() / 255 - PIXEL_MEAN) / PIXEL_SPREAD


def patch_labels(scenes: Sequence[Scene]) -> torch.Tensor:
    """Return what each patch shows: int64 [n, 36, 3] of colour, shape and cell, counted from 1; 0 is background."""
    labels = []
    for scene in scenes:
        of_thing = [
            (1 + list(COLORS).index(thing.color), 1 + SHAPES.index(thing.shape), 1 + thing.cell)
            for thing in scene.things
        ]
        table = np.asarray([*of_thing, (0, 0, 0)], dtype=np.int64)
        labels.append(table[scene.patch_owners()])
    return torch.from_numpy(np.stack(labels))


def patch_features(tower: CLIPVisionModel, pixels: torch.Tensor) -> torch.Tensor:
    """Return the features that the projector reads.

    Parameters
    ----------
    tower : CLIPVisionModel
    pixels : torch.Tensor
        float32 [n, 3, 48, 48].

    Returns
    -------
    torch.Tensor
        float32 [n, 36, 64], the last layer's output without the class token.
    """
    return tower(pixel_values=pixels).last_hidden_state[:, 1:]


def train_tower(scenes: Sequence[Scene], held_out: Sequence[Scene], steps: int, seed: int) -> CLIPVisionModel:
    """Train the vision tower on per-patch labels, and print its held-out accuracy.

    Parameters
    ----------
    scenes, held_out : sequence of Scene
    steps : int
        Optimiser steps of 32 pictures each.
    seed : int

    Returns
    -------
    CLIPVisionModel
        Frozen, in evaluation mode.
    """
    torch.manual_seed(seed)
    tower = CLIPVisionModel(CLIPVisionConfig(**VISION_CONFIG))  # type: ignore[arg-type]
    sizes = (1 + len(COLORS), 1 + len(SHAPES), 1 + len(CELLS))
    # The labels are read through the normalised features, because their scale is free until the projector sets it.
    heads = nn.ModuleList(nn.Sequential(nn.LayerNorm(VISION_WIDTH), nn.Linear(VISION_WIDTH, size)) for size in sizes)
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.05)
    pixels, labels = pixel_values(scenes), patch_labels(scenes)
    random = np.random.default_rng([seed, 1])
    for step in range(steps):
        chosen = torch.from_numpy(random.integers(len(scenes), size=32))
        features = patch_features(tower, pixels[chosen])
        losses = [
            nn.functional.cross_entropy(head(features).flatten(0, 1), labels[chosen][..., index].flatten())
            for index, head in enumerate(heads)
        ]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == steps - 1:
            print(f"vision {step + 1}/{steps} loss {loss.item():.4f}", flush=True)
    tower.eval().requires_grad_(False)
    with torch.no_grad():
        features = patch_features(tower, pixel_values(held_out))
        truth = patch_labels(held_out)
        right = torch.stack([head(features).argmax(-1) == truth[..., i] for i, head in enumerate(heads)])
    accuracy = right.float().mean(dim=(1, 2)).tolist()
    print("vision held-out patch accuracy (color, shape, cell):", [f"{value:.4f}" for value in accuracy], flush=True)
    return tower
