"""Whether the greedy answers are right, and the loss of the true answers, in one teacher-forced pass.

Greedy decoding gives the true answer exactly where, after every true beginning of it, the next true token is the most
likely one. So one pass over question and answer tells both, with VAR as without: it edits the same rows whether
answer tokens are read or generated. A picture's tokens are read once and shared by its questions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from sinkscope.backbone.loading import LoadedModel
from sinkscope.demo.pictures import QUESTION_TYPES, Scene
from sinkscope.demo.recipe import IMAGE_TOKEN_ID, prompt
from sinkscope.demo.vision import pixel_values

END = "<|im_end|>"
BATCH = 20
NOTHING = -100


@dataclass(frozen=True)
class Scores:
    """One row per picture, one column per question type.

    Attributes
    ----------
    right : ndarray of bool, shape [n, 5]
        Whether the greedy answer is the true one, its end included.
    loss : ndarray of float64, shape [n, 5]
        Mean negative log-likelihood of the true answer's tokens, its end included, in nats.
    said : ndarray of int64, shape [n, 5, A]
        The most likely token at each place of the true answer.
    """

    right: NDArray[np.bool_]
    loss: NDArray[np.float64]
    said: NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Some pictures, ready for the model.

    `beginning` [b, P] and `pixels` [b, 3, 48, 48] are None without pictures. `rest` [5 b, S] holds question and answer,
    padded on the right, `valid` [5 b, S] tells padding; the tokens at `places` [5 b, A] predict `targets` [5 b, A].
    """

    beginning: Tensor | None
    pixels: Tensor | None
    rest: Tensor
    valid: Tensor
    places: Tensor
    targets: Tensor


def batches(tokenizer: Any, scenes: Sequence[Scene], *, image: bool = True, size: int = BATCH) -> Iterator[Batch]:
    """Put pictures and their questions into batches; without pictures where `image` is False."""
    for start in range(0, len(scenes), size):
        part = scenes[start : start + size]
        asked = [question for scene in part for question in scene.questions]
        questions = [_ids(tokenizer, prompt(question.text, image)) for question in asked]
        answers = [_ids(tokenizer, question.answer + END) for question in asked]
        # What comes before the question is the same for all: the turn's opening, the image and a line break.
        length = 2 + max(place for place, token in enumerate(questions[0]) if token == IMAGE_TOKEN_ID) if image else 0
        rest = [question[length:] + answer[:-1] for question, answer in zip(questions, answers, strict=True)]
        places = [
            list(range(len(question) - length - 1, len(question) - length - 1 + len(answer)))
            for question, answer in zip(questions, answers, strict=True)
        ]
        yield Batch(
            torch.tensor([question[:length] for question in questions[:: len(QUESTION_TYPES)]]) if image else None,
            pixel_values(part) if image else None,
            _padded(rest, 0),
            _padded([[1] * len(one) for one in rest], 0),
            _padded(places, 0),
            _padded(answers, NOTHING),
        )


def score(loaded: LoadedModel, prepared: Sequence[Batch]) -> Scores:
    """Score all questions; inside `sinkscope.var` where VAR is to be on."""
    right, loss, said = [], [], []
    # Half-precision logits have steps of an eighth, more than VAR changes the loss.
    head = loaded.model.lm_head.weight.detach().float()
    for batch in prepared:
        with torch.inference_mode():
            logits = _answer_states(loaded.model, batch).float() @ head.T
        chance = torch.log_softmax(logits, dim=-1)
        wanted = batch.targets != NOTHING
        best = torch.where(wanted, logits.argmax(-1), NOTHING)
        negative = -chance.gather(-1, batch.targets.clamp_min(0)[..., None])[..., 0].double()
        right.append((best == batch.targets).all(-1))
        loss.append(torch.where(wanted, negative, 0).sum(-1) / wanted.sum(-1))
        said.append(torch.nn.functional.pad(best, (0, 4 - best.shape[1]), value=NOTHING))
    kinds = len(QUESTION_TYPES)
    return Scores(
        torch.cat(right).view(-1, kinds).numpy(),
        torch.cat(loss).view(-1, kinds).numpy(),
        torch.cat(said).view(-1, kinds, 4).numpy(),
    )


def _answer_states(model: Any, batch: Batch) -> Tensor:
    """The last hidden states [5 b, A, D], which predict the answers."""
    valid, cache = batch.valid, None
    if batch.beginning is not None:
        cache = DynamicCache(config=model.config.get_text_config())
        seen = torch.ones_like(batch.beginning)
        model.model(
            input_ids=batch.beginning,
            pixel_values=batch.pixels,
            attention_mask=seen,
            past_key_values=cache,
            use_cache=True,
        )
        repeats = len(batch.rest) // len(batch.beginning)
        cache.batch_repeat_interleave(repeats)
        valid = torch.cat([seen.repeat_interleave(repeats, 0), valid], dim=1)
    output = model.model(input_ids=batch.rest, attention_mask=valid, past_key_values=cache, use_cache=cache is not None)
    rows = torch.arange(len(batch.rest))[:, None]
    states: Tensor = output.last_hidden_state[rows, batch.places]
    return states


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])
