"""From calibration samples to token ids and model inputs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sinkscope.backbone.anatomy import text_config
from sinkscope.backbone.loading import LoadedModel
from sinkscope.backbone.visual import visual_mask
from sinkscope.calibration import Sample, fingerprint
from sinkscope.calibration.samples import Picture
from sinkscope.capture.chat import chat_pieces, content_form, fixed_template, has_chat_template, picture_text
from sinkscope.errors import InputError
from sinkscope.store.choices import content_fingerprint
from sinkscope.store.layout import KIND_SPECIAL, KIND_TEXT, KIND_VISUAL

OTHER_BOS_EVERY = 4
"""About every fourth text gets the BOS token where the tokenizer would leave it out, and the other way round: sinks
move with BOS, and thresholds must hold in both cases. Which ones depends on their contents alone, so that parts of the
data are encoded as in one run over all."""


@dataclass(frozen=True)
class EncodedSample:
    """A sample as the model sees it: ids int32 [n], kinds uint8 [n], the pictures' source, and whether their prompt is
    in the chat template (None: where there is one)."""

    ids: NDArray[np.int32]
    kinds: NDArray[np.uint8]
    source: Sample | None = None
    chat_template: bool | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_images(self) -> bool:
        return self.source is not None

    def fingerprint(self) -> int:
        """A number of 64 bits that tells contents apart: of the token ids, and of the pictures."""
        pictures = "" if self.source is None else fingerprint([self.source])
        return content_fingerprint(self.ids.tobytes() + pictures.encode("ascii"))


def encode(
    loaded: LoadedModel, samples: Sequence[Sample], max_length: int, chat_template: bool | None = None
) -> list[EncodedSample]:
    """Encode samples in their order, as `encode_each` does, with its errors."""
    return list(encode_each(loaded, samples, max_length, chat_template))


def encode_each(
    loaded: LoadedModel, samples: Sequence[Sample], max_length: int, chat_template: bool | None = None
) -> Iterator[EncodedSample]:
    """Encode samples in their order, one by one; a text longer than `max_length` tokens becomes several pieces.

    `chat_template` is that of `CaptureSettings`.

    Raises
    ------
    InputError
        If there is no tokenizer or, where it is asked for, no chat template that writes texts, a picture is given to a
        model that takes none, or nothing is left.
    """
    if loaded.tokenizer is None:
        raise InputError(
            f"{loaded.model_id} has no tokenizer, so texts cannot be encoded; give a folder that holds one"
        )
    if chat_template and not has_chat_template(loaded):
        raise InputError(f"{loaded.model_id} has no chat template; leave --chat-template out")
    form = content_form(loaded) if chat_template else None
    max_length = min(max_length, position_limit(loaded))
    embeddings = getattr(loaded.model, "get_input_embeddings", lambda: None)()
    known, found = getattr(embeddings, "num_embeddings", None), False
    for sample in samples:
        if sample.text is None:
            source, pieces = sample, [image_inputs(loaded, sample, chat_template)["input_ids"][0].numpy()]
        elif form is not None:
            source, pieces = None, chat_pieces(loaded, sample.text, max_length, form)
        else:
            source, pieces = None, encode_text(loaded.tokenizer, sample.text, max_length)
        for ids in (ids for ids in pieces if len(ids)):
            if known is not None and (largest := int(ids.max())) >= known:
                raise InputError(
                    f"the tokenizer of {loaded.model_id} gives token id {largest}, but the model knows {known} tokens; "
                    "give the model its own tokenizer"
                )
            ids, found = ids.astype(np.int32, copy=False), True
            yield EncodedSample(ids, token_kinds(loaded, ids), source, chat_template if source else None)
    if not found:
        raise InputError("the calibration data hold no tokens; give texts or pictures")


def position_limit(loaded: LoadedModel) -> int:
    """Most positions that the model has: learned position embeddings end there."""
    limit = getattr(text_config(loaded.model), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else 2**31


def encode_text(tokenizer: Any, text: str, max_length: int) -> list[NDArray[np.int32]]:
    """Token ids of a text in pieces of nearly equal length, each with the tokenizer's own special tokens.

    A piece whose content falls on one in `OTHER_BOS_EVERY` gets the other BOS policy.

    Parameters
    ----------
    tokenizer : transformers tokenizer
    text : str
    max_length : int
        Most tokens of a piece.

    Returns
    -------
    list of int32 [n]
        Empty for a text without tokens.
    """
    plain = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if not plain:
        return []
    before, after = special_frame(tokenizer)
    bos = tokenizer.bos_token_id
    room = max(1, max_length - len(before) - len(after) - 1)
    pieces = []
    for part in np.array_split(np.asarray(plain, np.int32), -(-len(plain) // room)):
        start = list(before)
        if bos is not None and content_fingerprint(part.tobytes()) % OTHER_BOS_EVERY == 0:
            start = start[1:] if start[:1] == [bos] else [bos, *start]
        pieces.append(np.array([*start, *part.tolist(), *after], np.int32))
    return pieces


def special_frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text by default."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = list(tokenizer("a")["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == list(plain):
            return whole[:start], whole[start + len(plain) :]
    return [], []


def bos_policy(tokenizer: Any) -> dict[str, Any]:
    """How texts begin, for the run's provenance."""
    bos = tokenizer.bos_token_id
    return {
        "token": tokenizer.bos_token,
        "default": bos is not None and special_frame(tokenizer)[0][:1] == [bos],
        "other_every": OTHER_BOS_EVERY if bos is not None else None,
    }


def token_kinds(loaded: LoadedModel, ids: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Kind of every token, uint8 [n]: text, special, visual."""
    special = np.isin(ids, np.array(list(loaded.tokenizer.all_special_ids), np.int64))
    kinds = np.where(special, KIND_SPECIAL, KIND_TEXT).astype(np.uint8)
    visual = visual_mask(loaded.anatomy, torch.from_numpy(ids.astype(np.int64))[None])[0].numpy()
    kinds[visual] = KIND_VISUAL
    return kinds


def token_texts(tokenizer: Any, ids: Iterable[int]) -> dict[int, str]:
    """Text of every id, with the leading space that belongs to the token."""
    texts = {}
    for identifier in ids:
        text = tokenizer.decode([identifier], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        token = tokenizer.convert_ids_to_tokens(identifier)
        # SentencePiece tokenizers strip the space that starts a decoded text.
        if isinstance(token, str) and token.startswith("▁") and not text.startswith(" "):
            text = " " + text
        texts[identifier] = text
    return texts


def image_inputs(loaded: LoadedModel, sample: Sample, chat_template: bool | None = None) -> dict[str, Any]:
    """Model inputs of one image sample, as the processor makes them: CPU tensors with batch size 1.

    The prompt is in the processor's chat template where there is one, but for `chat_template` False.

    Raises
    ------
    InputError
        If the model takes no pictures, a picture cannot be read, its prompt holds the token that stands for a picture,
        or the processor refuses it.
    """
    processor = loaded.processor
    if processor is None:
        raise InputError(f"{loaded.model_id} takes no pictures; leave --images out")
    pictures, prompt = sample.open_images(), sample.prompt or "Describe the picture."
    if (token := image_token(loaded)) and token in prompt:
        raise InputError(
            f"the prompt of {_named(sample.images[0])} holds {token}, which stands for a picture itself; take it out"
        )
    try:
        if chat_template is not False and getattr(processor, "chat_template", None):
            content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
            content.append({"type": "text", "text": prompt})
            features = processor.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=fixed_template(processor),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        else:
            placeholders = (picture_text(loaded) or token) * len(pictures)
            text = placeholders.removesuffix("\n") + "\n" + prompt
            features = processor(images=pictures, text=text, return_tensors="pt")
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the processor of {loaded.model_id} refuses {_named(sample.images[0])} with its prompt ({reason}); "
            "profile on texts alone, or with other --images"
        ) from error
    return dict(features)


def _named(picture: Picture) -> str:
    return f"a picture of {picture.size} pixels" if isinstance(picture, Image.Image) else f"the picture {picture}"


def image_token(loaded: LoadedModel) -> str:
    """The text that stands for a picture in a prompt; empty for a processor that needs none."""
    token = getattr(loaded.processor, "image_token", None)
    if token is None and loaded.anatomy.placeholder_ids:
        token = loaded.tokenizer.convert_ids_to_tokens(loaded.anatomy.placeholder_ids[0])
    return "" if token is None else str(token)


def model_inputs(loaded: LoadedModel, batch: Sequence[EncodedSample]) -> tuple[dict[str, Any], NDArray[np.bool_]]:
    """Inputs of one forward pass, and which positions hold tokens, bool [B, T].

    Texts are padded on the right; a batch with pictures holds one sample.
    """
    first = batch[0]
    if first.source is not None:
        inputs = image_inputs(loaded, first.source, first.chat_template)
        return inputs, np.ones((1, len(first)), bool)
    lengths = np.array([len(sample) for sample in batch])
    valid = np.arange(lengths.max()) < lengths[:, None]
    tokenizer = loaded.tokenizer
    padding = next((value for value in (tokenizer.pad_token_id, tokenizer.eos_token_id) if value is not None), 0)
    ids = np.full(valid.shape, padding, np.int64)
    ids[valid] = np.concatenate([sample.ids for sample in batch])
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(valid.astype(np.int64))}, valid
