"""Where an answer looks: attention on the visual tokens, before and after VAR, for a picture of it."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sinkscope.answering.answers import Answers
from sinkscope.backbone.attention import AttentionCall, attention_tap
from sinkscope.backbone.attention_weights import attention_weights
from sinkscope.backbone.hooks import entering_states
from sinkscope.backbone.loading import LoadedModel
from sinkscope.backbone.visual import visual_mask
from sinkscope.errors import InputError
from sinkscope.profile.schema import Profile
from sinkscope.profile.score import sink_mask


@dataclass(frozen=True)
class Look:
    """Attention of the answer's tokens on the visual tokens of one picture.

    Attributes
    ----------
    grid : (int, int)
        Rows and columns of the visual tokens.
    before, after : float32 Tensor [visual tokens]
        Mean over the layers that VAR edits, all heads and the answer's tokens; without VAR and with it.
    chosen_before, chosen_after : float32 Tensor [visual tokens], or None
        The same in the rows alone that VAR edits: those of image-centric heads with attention on sinks. Both are of the
        pass with VAR, just before and after each edit. None where there are none.
    sinks : BoolTensor [visual tokens]
        Tokens that are sinks in at least half of those layers that hold visual sink tokens.
    layers : tuple of int
        The layers that VAR edits.
    """

    grid: tuple[int, int]
    before: Tensor
    after: Tensor
    chosen_before: Tensor | None
    chosen_after: Tensor | None
    sinks: Tensor
    layers: tuple[int, ...]


def look(loaded: LoadedModel, profile: Profile, answers: Answers) -> Look:
    """Read one answer of VAR again, without VAR and with it, and see where its tokens look.

    Both passes read the same tokens, so that the two maps differ by VAR alone. The edited weights are those of the
    definition, `sinkscope.redistribute`, on the attention of a pass in which VAR is at work.

    Raises
    ------
    InputError
        If the visual tokens are no grid that can be told.
    """
    from sinkscope.redistribution.applicator import var

    inputs = _continued(answers.inputs, answers.var_ids)
    visual = visual_mask(loaded.anatomy, inputs["input_ids"])
    grid = picture_grid(inputs, int(visual.sum()))
    run = var(loaded.model, profile, p=answers.p, rho=answers.rho)
    plain = _Reader(loaded, profile, visual, answers, edited=())
    plain.read(inputs)
    with run:
        edited = _Reader(loaded, profile, visual, answers, edited=run.layers)
        edited.read(inputs)
    sinks = torch.stack([plain.sinks[layer][0][visual[0].cpu()] for layer in run.layers]).float()
    holding = sinks[sinks.any(1)]
    rows = edited.chosen_rows
    return Look(
        grid,
        torch.stack([plain.attention[layer] for layer in run.layers]).mean(0),
        torch.stack([edited.attention[layer] for layer in run.layers]).mean(0),
        edited.chosen_before / rows if rows else None,
        edited.chosen_after / rows if rows else None,
        holding.mean(0) >= 0.5 if len(holding) else torch.zeros_like(sinks[0], dtype=torch.bool),
        run.layers,
    )


def picture_grid(inputs: Any, count: int) -> tuple[int, int]:
    """Rows and columns of the `count` visual tokens of one picture.

    Raises
    ------
    InputError
        If the inputs do not tell them and they are no square.
    """
    sizes = inputs.get("image_grid_thw")
    if sizes is not None and len(sizes) == 1:
        _, height, width = (int(size) for size in sizes[0])
        merged = math.isqrt(max(height * width // max(count, 1), 1))
        if height * width == count * merged**2:
            return height // merged, width // merged
    side = math.isqrt(count)
    if count == 0 or side * side != count:
        raise InputError(
            f"{count} visual tokens are no grid that can be told from the inputs, so there is no map to draw"
        )
    return side, side


class _Reader:
    """One pass that keeps, per layer, the sink tokens and the mean attention of the answer's tokens on the picture."""

    def __init__(
        self, loaded: LoadedModel, profile: Profile, visual: Tensor, answers: Answers, *, edited: tuple[int, ...]
    ) -> None:
        self.attention: dict[int, Tensor] = {}
        self.sinks: dict[int, Tensor] = {}
        self.chosen_rows = 0
        self.chosen_before = torch.zeros(int(visual.sum()))
        self.chosen_after = torch.zeros(int(visual.sum()))
        self._loaded, self._profile, self._visual = loaded, profile, visual
        self._answers, self._edited = answers, frozenset(edited)

    def read(self, inputs: Any) -> None:
        model, anatomy = self._loaded.model, self._loaded.anatomy
        with (
            torch.inference_mode(),
            entering_states(model, anatomy, self._see),
            attention_tap(model, anatomy, self._attend),
        ):
            model(**inputs, use_cache=False)

    def _see(self, layer: int, hidden_state: Tensor) -> None:
        self.sinks[layer] = sink_mask(hidden_state, self._profile, layer).cpu()

    def _attend(self, call: AttentionCall) -> Tensor:
        from sinkscope.redistribution.equations import redistribute

        # The token before the answer asks for its first token; the last token of the answer asks for nothing more.
        first, last = self._answers.prompt_tokens - 1, call.query.shape[2] - 1
        rows = torch.arange(first, max(last, first + 1), device=call.query.device)
        weights = attention_weights(call, queries=rows)
        visual = self._visual.to(weights.device)
        if call.layer in self._edited:
            before = weights
            weights = redistribute(
                before,
                self.sinks[call.layer].to(weights.device),
                visual,
                torch.ones(1, len(rows), dtype=torch.bool, device=weights.device),
                p=self._answers.p,
                rho=self._answers.rho,
                attention_floor=self._profile.var.attention_floor,
            )
            chosen = (weights != before).any(-1)
            self.chosen_rows += int(chosen.sum())
            self.chosen_before += before[chosen].sum(0)[visual[0]].cpu()
            self.chosen_after += weights[chosen].sum(0)[visual[0]].cpu()
        self.attention[call.layer] = weights[0].mean((0, 1))[visual[0]].cpu()
        return call.base()


def _continued(inputs: Any, ids: Tensor) -> dict[str, Any]:
    """The inputs of a prompt, continued to `ids` [1, T]: what goes along with each token grows with them."""
    prompt = inputs["input_ids"]
    extra = ids.shape[1] - prompt.shape[1]
    continued = dict(inputs)
    for name, value in continued.items():
        if isinstance(value, Tensor) and value.shape == prompt.shape:
            # New tokens are text, which every kind of token type marks with 0, and are never padding.
            filled = torch.full(
                (1, extra), 1 if name == "attention_mask" else 0, dtype=value.dtype, device=value.device
            )
            continued[name] = torch.cat([value, filled], dim=1)
    return continued | {"input_ids": ids}
