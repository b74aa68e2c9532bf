"""Inputs with pictures for any multimodal model: pixel tensors in the layout that its own image encoder takes.

A few layouts occur in transformers. Each is offered to `get_image_features`; the first that the model takes is used,
and what comes back says how many visual tokens a picture has.
"""

import inspect
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.building import forward
from benchmarks.coverage.layouts import Pixels, layouts
from benchmarks.coverage.shrinking import VOCABULARY
from benchmarks.coverage.words import BOS_ID, PAD_ID, some_ids, tokenizer


class NoPicturesError(Exception):
    """Inputs with pictures cannot be made; the message says why."""


class PictureMaker:
    """Makes the inputs of one model.

    Also stands in for a processor, so that a capture run can be given pictures: called with images and a text it makes
    a prompt with as many pictures, whatever they show; without images a text beside a blank picture that no token sees.
    """

    chat_template = None

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = model
        config: Any = model.config
        image_id = getattr(config, "image_token_id", None)
        image_id = image_id if image_id is not None else getattr(config, "image_token_index", None)
        words = getattr(config, "vocabulary_map", None) or {}
        image_id = image_id if image_id is not None else words.get("<image>")
        self.image_id = -1 if image_id is None else int(image_id)
        self._fixed = getattr(config, "latent_query_num", None)
        if self._fixed:
            self.image_id = VOCABULARY - 1
        self.around = [getattr(config, f"{name}_token_id", None) for name in ("vision_start", "vision_end")]
        self.layout, self.each = self._first_that_fits()
        self.tokenizer = tokenizer()
        self.image_token = "<image>"

    def _first_that_fits(self) -> tuple[Callable[[int], Pixels], int]:
        problems = []
        for layout in layouts(self._model):
            try:
                with torch.no_grad():
                    counts = [self._visual_tokens(layout, pictures) for pictures in (1, 2)]
                    self.layout, self.each = layout, counts[0]
                    if counts[0] == 0:
                        self.each = self._missed()
                        counts = [self.each, 2 * self.each]
                    forward(self._model, **self.inputs([1]))
            except Exception as error:
                problems.append(" ".join(str(error).split())[:80])
                continue
            if counts[1] == 2 * counts[0]:
                return layout, counts[0]
            problems.append(f"one picture gives {counts[0]} visual tokens, two {counts[1]}")
        raise NoPicturesError(f"no layout of pixels fits ({'; '.join(dict.fromkeys(problems))})"[:300])

    def _visual_tokens(self, layout: Callable[[int], Pixels], pictures: int) -> int:
        """How many visual tokens so many pictures give; none where no token stands for an image."""
        # The outer model's method often only passes its arguments on, so the inner one's names are the better ones.
        owners = (getattr(self._model, "model", None), self._model)
        encode = next((owner.get_image_features for owner in owners if hasattr(owner, "get_image_features")), None)
        if self._fixed:
            return pictures * self._fixed
        if self.image_id < 0 or encode is None:
            return 0
        accepted = inspect.signature(encode).parameters
        words = {"qformer_input_ids": some_ids(pictures, 4)}
        output = encode(**{name: value for name, value in (layout(pictures) | words).items() if name in accepted})
        output = getattr(output, "pooler_output", output)
        parts = output if isinstance(output, (list, tuple)) else [output]
        return sum(part.shape[:-1].numel() for part in parts if isinstance(part, Tensor))

    def _missed(self) -> int:
        """How many visual tokens the model misses, as its own complaint says, in a prompt that holds none."""
        try:
            forward(self._model, **self.inputs([1]))
        except Exception as error:
            said = re.search(r"features:? (\d+)", str(error))
            if said is None:
                raise
            return int(said[1])
        return 0

    def inputs(self, pictures: list[int], text: int = 8, seed: int = 0) -> dict[str, Tensor]:
        """A left-padded batch: sample i has pictures[i] pictures between words, and the longer text the later it is."""
        rows = []
        for place, number in enumerate(pictures):
            words = iter(some_ids(64, seed=seed + place).tolist())
            row = [BOS_ID, *itertools.islice(words, 2)]
            for _ in range(number):
                row += [id for id in self._picture() if id is not None] + list(itertools.islice(words, 3))
            rows.append(row + list(itertools.islice(words, text + 3 * place)))
        return self._batch(rows, sum(pictures))

    def _picture(self) -> list[int | None]:
        return [self.around[0], *[self.image_id] * self.each, self.around[1]]

    def _batch(self, rows: list[list[int]], pictures: int) -> dict[str, Tensor]:
        longest = max(map(len, rows))
        ids = torch.tensor([[PAD_ID] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        inputs = {"input_ids": ids, "attention_mask": mask}
        accepted = inspect.signature(self._model.forward).parameters
        for name in ("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids"):
            if name in accepted:
                inputs[name] = (ids == self.image_id).long()
        pixels = self.layout(max(pictures, 1))
        inputs |= (pixels if pictures else {name: torch.zeros_like(value) for name, value in pixels.items()}) | {
            "qformer_input_ids": some_ids(pictures, 4),
            "image_embeds_position_mask": (ids == self.image_id).long(),
            "image_attention_mask": torch.full((*ids.shape, max(pictures, 1)), int(pictures > 0)),
            "cross_attention_mask": torch.ones(*ids.shape, pictures, 4, dtype=torch.long),
        }
        return {name: value for name, value in inputs.items() if name in accepted or name == "attention_mask"}

    def __call__(self, text: str, return_tensors: str, images: Sequence[Any] = ()) -> dict[str, Tensor]:
        words = self.tokenizer(text.replace(self.image_token, ""), add_special_tokens=False)["input_ids"]
        row: list[int] = [BOS_ID]
        for _ in images:
            row += [id for id in self._picture() if id is not None]
        return self._batch([[*row, *words]], len(images))
