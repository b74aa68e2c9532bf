"""Hidden states and attention of held-out texts and pictures, with transformers' eager attention and plain hooks."""

import inspect
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.real_models.agreement import drawn_attention, judged_tokens
from sinkscope.backbone.anatomy import text_config
from sinkscope.backbone.hooks import entering_states
from sinkscope.backbone.loading import LoadedModel
from sinkscope.backbone.visual import visual_mask
from sinkscope.demo.pictures import generate
from sinkscope.demo.recipe import FIRST_HELD_OUT_SEED

PIECE_TOKENS = 255
SHORTEST_PIECE = 60
"""Pieces of no more tokens than this are left out: hardly a token of them has 40 later queries."""
WITHOUT_BOS, WITH_BOS, PICTURES = "without BOS", "with BOS", "pictures"
PICTURE_SEED = FIRST_HELD_OUT_SEED + 900


@dataclass(frozen=True)
class Piece:
    """One sample of the benchmark: where it comes from, and the model's inputs (CPU tensors with batch size 1)."""

    source: str
    variant: str
    inputs: dict[str, Any]

    def __len__(self) -> int:
        return int(self.inputs["input_ids"].shape[1])


@dataclass(frozen=True)
class Captured:
    """All tokens of all pieces, one after the other.

    Attributes
    ----------
    pieces : tuple of Piece
    ids, piece, position : int64 [T]
        Token id, index into `pieces`, and place in the piece from 0.
    visual, judged : bool [T]
        Whether the token carries a visual embedding, and whether enough later queries look at it.
    states : float32 [L+1, T, D]
        Hidden states entering layers 0..L.
    drawn : float32 [T, L]
        Attention drawn; NaN where a layer gives none.
    """

    pieces: tuple[Piece, ...]
    ids: NDArray[np.int64]
    piece: NDArray[np.int64]
    position: NDArray[np.int64]
    visual: NDArray[np.bool_]
    judged: NDArray[np.bool_]
    states: NDArray[np.float32]
    drawn: NDArray[np.float32]

    @property
    def variants(self) -> list[str]:
        """The variants that occur, in order."""
        return list(dict.fromkeys(piece.variant for piece in self.pieces))

    def chosen(self, variant: str) -> NDArray[np.bool_]:
        """Tokens of the pieces of one variant, bool [T]."""
        return np.array([piece.variant == variant for piece in self.pieces])[self.piece]


def text_pieces(loaded: LoadedModel, texts: dict[str, str], most_tokens: int | None = None) -> list[Piece]:
    """Texts in pieces of 255 tokens, without BOS and, where the tokenizer has one, with BOS put before every piece.

    Parameters
    ----------
    loaded : LoadedModel
    texts : dict of str to str
        Text by name.
    most_tokens : int, optional
        Pieces are taken from the texts in turn until so many tokens are reached, so that every kind stays.
    """
    limit = getattr(text_config(loaded.model), "max_position_embeddings", None) or PIECE_TOKENS + 1
    length = min(PIECE_TOKENS, limit - 1)
    cut: list[list[tuple[str, list[int]]]] = []
    for name, text in texts.items():
        ids = loaded.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        parts = [ids[start : start + length] for start in range(0, len(ids), length)]
        cut.append([(name, part) for part in parts if len(part) > min(SHORTEST_PIECE, length - 1)])
    rounds = [parts[index] for index in range(max(map(len, cut), default=0)) for parts in cut if index < len(parts)]
    kept: list[tuple[str, list[int]]] = []
    tokens = 0
    for name, ids in rounds:
        if most_tokens is not None and kept and tokens + len(ids) > most_tokens:
            break
        kept.append((name, ids))
        tokens += len(ids)
    bos = loaded.tokenizer.bos_token_id
    starts: dict[str, list[int]] = {WITHOUT_BOS: []} | ({WITH_BOS: [bos]} if bos is not None else {})
    return [
        Piece(name, variant, {"input_ids": torch.tensor([[*start, *ids]])})
        for variant, start in starts.items()
        for name, ids in kept
    ]


def picture_pieces(loaded: LoadedModel, count: int) -> list[Piece]:
    """Held-out generated pictures, each with a conversation of five questions and their answers.

    The conversation puts more than 40 later queries behind every visual token. Empty where the model takes no pictures
    or its processor has no chat template.
    """
    processor = loaded.processor
    if processor is None or not loaded.anatomy.multimodal or not getattr(processor, "chat_template", None):
        return []
    pieces = []
    for number, scene in enumerate(generate(PICTURE_SEED, count)):
        messages: list[dict[str, Any]] = []
        for question in scene.questions:
            content: list[dict[str, Any]] = [] if messages else [{"type": "image", "image": scene.image}]
            content.append({"type": "text", "text": question.text})
            messages.append({"role": "user", "content": content})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": question.answer}]})
        inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        pieces.append(Piece(f"picture {number}", PICTURES, dict(inputs)))
    return pieces


@contextmanager
def captured(loaded: LoadedModel, pieces: Sequence[Piece]) -> Iterator[Captured]:
    """Run the pieces one by one through the model; the states lie in a temporary file until the context ends.

    The model has eager attention while it runs, whose weights transformers hands out, and gets its own kernel back.
    """
    anatomy, model = loaded.anatomy, loaded.model
    edges = np.cumsum([0, *map(len, pieces)])
    tokens, depth = int(edges[-1]), anatomy.num_layers
    drawn = np.full((tokens, depth), np.nan, np.float32)
    options: dict[str, Any] = {"output_attentions": True, "use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = 1  # The logits of all tokens are not looked at, and with large vocabularies dear.
    with tempfile.TemporaryDirectory(prefix="held-out-") as scratch:
        shape = (depth + 1, tokens, anatomy.hidden_size)
        states = np.lib.format.open_memmap(Path(scratch) / "states.npy", mode="w+", dtype=np.float32, shape=shape)
        with eager_attention(model):
            for piece, start, stop in zip(pieces, edges[:-1].tolist(), edges[1:].tolist(), strict=True):

                def keep(layer: int, state: torch.Tensor, start: int = start, stop: int = stop) -> None:
                    states[layer, start:stop] = state[0].float().cpu().numpy()

                inputs = {name: _on(value, model.device) for name, value in piece.inputs.items()}
                with torch.inference_mode(), entering_states(model, anatomy, keep):
                    output = model(**inputs, **options)
                for layer, weights in attention_weights(output, anatomy.attention_layers):
                    drawn[start:stop, layer] = drawn_attention(weights[0].float().cpu().numpy())
        ids = torch.cat([piece.inputs["input_ids"][0] for piece in pieces])
        yield Captured(
            tuple(pieces),
            ids.numpy().astype(np.int64),
            np.repeat(np.arange(len(pieces)), np.diff(edges)),
            np.concatenate([np.arange(len(piece)) for piece in pieces]),
            visual_mask(anatomy, ids[None])[0].numpy(),
            np.concatenate([judged_tokens(len(piece)) for piece in pieces]),
            states,
            drawn,
        )


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Eager attention inside the context, for models that can switch; the others stay as they are."""
    kernel = getattr(text_config(model), "_attn_implementation", None)
    if not isinstance(kernel, str) or not hasattr(model, "set_attn_implementation"):
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(kernel)


def attention_weights(output: Any, attention_layers: Sequence[bool]) -> Iterator[tuple[int, torch.Tensor]]:
    """Attention weights [1, heads, T, T] of a model's output with their layers.

    Hybrids hand out weights for their attention layers only, or None for the others.
    """
    given = list(getattr(output, "attentions", None) or ())
    places = list(range(len(attention_layers)))
    if len(given) != len(attention_layers):
        places = [layer for layer, holds in enumerate(attention_layers) if holds]
    for layer, weights in zip(places, given, strict=True):
        if isinstance(weights, torch.Tensor) and weights.dim() == 4 and weights.shape[-1] == weights.shape[-2]:
            yield layer, weights


def _on(value: Any, device: Any) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def read_folder(folder: str | os.PathLike[str]) -> dict[str, str]:
    """The text files of a folder by their names, without the ending."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(Path(folder).glob("*.txt"))}
