"""Second training stage: the projector learns to write each patch as a mixture of text embeddings.

An object patch becomes its colour word, shape word and place together; a background patch becomes one given text
token. Which token that is decides whether the model has visual sinks: a single space turns into a mid-sequence
sink in SmolLM2, the word " background" does not.
"""

import torch
from torch import nn

from sinkscope.demo.pictures import CELLS, COLORS, SHAPES
from sinkscope.demo.recipe import TEXT_WIDTH, VISION_WIDTH


class Projector(nn.Module):
    """LLaVA's projector in the parametrisation that it is trained in.

    Its input is standardised and its output scaled to the spread of the text embeddings, so that one learning rate
    suits it and the LoRA weights alike. ``folded`` gives the equal pair of plain linear layers.

    Parameters
    ----------
    features : torch.Tensor
        Example vision features [n, 36, 64]: their mean and spread standardise the input.
    embeddings : torch.Tensor
        Text embeddings [vocabulary, 576]: their mean and spread scale the output.
    """

    input_mean: torch.Tensor
    input_spread: torch.Tensor
    output_mean: torch.Tensor
    output_spread: torch.Tensor

    def __init__(self, features: torch.Tensor, embeddings: torch.Tensor) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(VISION_WIDTH, TEXT_WIDTH)
        self.linear_2 = nn.Linear(TEXT_WIDTH, TEXT_WIDTH)
        self.register_buffer("input_mean", features.mean(dim=(0, 1)))
        self.register_buffer("input_spread", features.std(dim=(0, 1)) + 1e-4)
        self.register_buffer("output_mean", embeddings.mean(dim=0))
        self.register_buffer("output_spread", (embeddings - embeddings.mean(dim=0)).std())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map vision features [..., 64] to visual tokens [..., 576]."""
        standard = (features - self.input_mean) / self.input_spread
        hidden = nn.functional.gelu(self.linear_1(standard))
        return self.output_mean + self.output_spread * self.linear_2(hidden)

    def folded(self) -> dict[str, torch.Tensor]:
        """Return the weights of the equal LLaVA projector: ``linear_1`` and ``linear_2``, weight and bias each."""
        with torch.no_grad():
            first = self.linear_1.weight / self.input_spread
            return {
                "linear_1.weight": first,
                "linear_1.bias": self.linear_1.bias - first @ self.input_mean,
                "linear_2.weight": self.linear_2.weight * self.output_spread,
                "linear_2.bias": self.linear_2.bias * self.output_spread + self.output_mean,
            }


def alignment_targets(
    labels: torch.Tensor, word_embeddings: dict[str, torch.Tensor], mean: torch.Tensor, background: str
) -> torch.Tensor:
    """Return the text-space targets of patches.

    Parameters
    ----------
    labels : torch.Tensor
        int64 [n, 36, 3] of colour, shape and cell, counted from 1; 0 is background.
    word_embeddings : dict
        The embedding [576] of each colour, shape and cell name and of ``background``.
    mean : torch.Tensor
        The mean text embedding [576].
    background : str
        The text of background patches.

    Returns
    -------
    torch.Tensor
        float32 [n, 36, 576].
    """
    target = mean.expand(*labels.shape[:2], -1).clone()
    zero = torch.zeros_like(mean)
    for index, (names, weight) in enumerate(((tuple(COLORS), 0.65), (SHAPES, 0.65), (CELLS, 0.5))):
        table = torch.stack([zero, *(weight * (word_embeddings[name] - mean) for name in names)])
        target = target + table[labels[..., index]]
    return torch.where((labels[..., :1] == 0), word_embeddings[background], target)


def align(
    features: torch.Tensor, labels: torch.Tensor, embeddings: torch.Tensor, targets: torch.Tensor, steps: int, seed: int
) -> Projector:
    """Regress the projector onto its targets.

    Parameters
    ----------
    features, labels, targets : torch.Tensor
        [n, 36, 64], [n, 36, 3] and [n, 36, 576].
    embeddings : torch.Tensor
        Text embeddings [vocabulary, 576].
    steps : int
        Optimiser steps of 64 pictures each.
    seed : int

    Returns
    -------
    Projector
    """
    torch.manual_seed(seed + 2)
    projector = Projector(features, embeddings)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1)
    # Background patches are most of a picture; weighting makes both kinds count the same.
    is_object = (labels[..., 0] > 0).float()
    weights = torch.where(is_object > 0, 0.5 / is_object.mean(), 0.5 / (1 - is_object.mean()))
    generator = torch.Generator().manual_seed(seed + 3)
    for step in range(steps):
        chosen = torch.randint(len(features), (64,), generator=generator)
        error = (projector(features[chosen]) - targets[chosen]) / projector.output_spread
        loss = (weights[chosen][..., None] * error**2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 0 or step == steps - 1:
            print(f"alignment {step + 1}/{steps} loss {loss.item():.5f}", flush=True)
    return projector
