"""Calibration samples in a model's chat template, the same on every day."""

import re
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sinkscope.backbone.loading import LoadedModel
from sinkscope.errors import InputError

# Some templates write today's date into the prompt, and a run that is resumed tomorrow must see the tokens of today. A
# macro of the same name takes the place of the function that transformers gives to templates.
FIXED_DATE = (
    "{%- macro strftime_now(format) -%}"
    '{{ format.replace("%Y", "2025").replace("%m", "01").replace("%d", "01").replace("%B", "January")'
    '.replace("%b", "Jan") }}'
    "{%- endmacro -%}"
)

PROBE = "sinkscope" * 32
"""A text that every template keeps whole, but for those that drop texts or cut them short."""

SHOWN_PART = re.compile(rf"""['"]text['"]: ['"]{PROBE}""")
"""A list of parts as Python or JSON shows it: what templates write that want a text."""

ContentForm: TypeAlias = Callable[[str], Any]
"""From a text to the content of a message, as a template wants it."""


def has_chat_template(loaded: LoadedModel) -> bool:
    """Whether the processor, or else the tokenizer, has a chat template."""
    return bool(getattr(_helper(loaded), "chat_template", None))


def fixed_template(helper: Any) -> str | None:
    """The template with a fixed date, to be passed on; None where the helper's own is right."""
    template = getattr(helper, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("default")
    return FIXED_DATE + template if isinstance(template, str) and "strftime_now" in template else None


def content_form(loaded: LoadedModel) -> ContentForm:
    """How the template takes a text: as it is or, usual with processors, as a list of parts. Found by a probe, because
    a template that wants the other form may write the prompt without the text and without a word.

    Raises
    ------
    InputError
        If the template fails, or writes the text in neither form.
    """
    failed = None
    for form in (_part, str) if _helper(loaded) is loaded.processor else (str, _part):
        try:
            written = _render(loaded, form(PROBE))
            if PROBE in written and not SHOWN_PART.search(written):
                return form
        except InputError as error:
            failed = failed or error
    raise failed or InputError(
        f"the chat template of {loaded.model_id} does not write what the user says; leave --chat-template out"
    )


def chat_pieces(loaded: LoadedModel, text: str, max_length: int, form: ContentForm = str) -> list[NDArray[np.int32]]:
    """Token ids of a text as what a user says, each piece in a prompt of its own.

    A text whose prompt has more than `max_length` tokens is halved, between words where there are any, until all fit.
    `form` is that of `content_form`.

    Returns
    -------
    list of int32 [n]
        Empty for a text without characters.

    Raises
    ------
    InputError
        If the template fails, or is too long itself.
    """
    if not text.strip():
        return []
    plain = len(loaded.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    # Parts of about the right length from the start, so that a book is not tokenized once for every halving.
    waiting = _cut(text, max(1, -(-plain // max_length)))
    pieces: list[NDArray[np.int32]] = []
    while waiting:
        part = waiting.pop(0)
        ids = _prompt_ids(loaded, form(part))
        if len(ids) <= max_length:
            pieces.append(np.array(ids, np.int32))
        elif len(part) > 1:
            waiting[:0] = _cut(part, 2)
        else:
            raise InputError(
                f"the chat template of {loaded.model_id} alone has over {max_length} tokens; give --no-chat-template"
            )
    return pieces


def chat_bos_policy(loaded: LoadedModel) -> dict[str, Any]:
    """How prompts begin, for the run's provenance: as the template says, all of them."""
    bos = loaded.tokenizer.bos_token_id
    begins = bos is not None and _prompt_ids(loaded, content_form(loaded)("a"))[:1] == [bos]
    return {"token": loaded.tokenizer.bos_token, "default": begins, "other_every": None}


def picture_text(loaded: LoadedModel) -> str | None:
    """What the chat template writes for a picture: what it has with one and not without. None without a template."""
    if not getattr(loaded.processor, "chat_template", None):
        return None
    without = _render(loaded, [{"type": "text", "text": "a"}])
    whole = _render(loaded, [{"type": "image"}, {"type": "text", "text": "a"}])
    start = 0
    while start < len(without) and whole[start] == without[start]:
        start += 1
    end = 0
    while end < len(without) - start and whole[-1 - end] == without[-1 - end]:
        end += 1
    return whole[start : len(whole) - end]


def _helper(loaded: LoadedModel) -> Any:
    return loaded.processor if getattr(loaded.processor, "chat_template", None) else loaded.tokenizer


def _part(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _prompt_ids(loaded: LoadedModel, content: Any) -> list[int]:
    """Token ids of one user turn and the start of the answer, with the special tokens that transformers would add."""
    helper, tokenizer = _helper(loaded), loaded.tokenizer
    prompt = _render(loaded, content)
    # As transformers does it: a template of a tokenizer is whole, one of a processor where it writes BOS itself.
    bos = tokenizer.bos_token
    whole = helper is not loaded.processor or (bos is not None and prompt.startswith(bos))
    ids: list[int] = tokenizer(prompt, add_special_tokens=not whole, verbose=False)["input_ids"]
    return ids


def _render(loaded: LoadedModel, content: Any) -> str:
    helper = _helper(loaded)
    try:
        return str(
            helper.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=fixed_template(helper),
                add_generation_prompt=True,
                tokenize=False,
            )
        )
    except Exception as error:  # A template is a program of others, and raises what it likes.
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the chat template of {loaded.model_id} fails ({reason}); give --no-chat-template") from error


def _cut(text: str, parts: int) -> list[str]:
    """`text` in parts of about the same length, cut after white space where there is some near."""
    cuts = [0]
    for number in range(1, parts):
        place = number * len(text) // parts
        near = max(text.rfind(space, max(cuts[-1], place - 40), place) for space in " \n")
        cuts.append(near + 1 if near >= 0 else place)
    return [text[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(text)], strict=True) if start < stop]
