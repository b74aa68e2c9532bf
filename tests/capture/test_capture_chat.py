"""Texts and pictures in the chat template or without it, the same on every day."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from capture_models import IMAGE_TOKEN, PATCHES, TinyProcessor, make_tokenizer
from PIL import Image

from sinkscope.backbone.loading import LoadedModel
from sinkscope.calibration import Sample
from sinkscope.capture.chat import chat_bos_policy, picture_text
from sinkscope.capture.encode import encode, model_inputs
from sinkscope.errors import InputError

TEMPLATE = (
    "{{ bos_token }}{{ strftime_now('%d %b %Y') if dated else '' }}"
    "{% for message in messages %}User: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
PICTURE_TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message.content %}"
    "{{ '(' + '<image>' + ')\n' if part.type == 'image' else part.text }}{% endfor %} ASSISTANT:{% endfor %}"
)


class ChattyProcessor(TinyProcessor):
    """With a chat template, applied as transformers does it."""

    chat_template = PICTURE_TEMPLATE

    def apply_chat_template(self, messages: list[Any], *, tokenize: bool, **options: Any) -> Any:
        options["chat_template"] = options["chat_template"] or self.chat_template
        options.pop("return_dict", None), options.pop("return_tensors", None)
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
        pictures = [
            part["image"] for message in messages for part in message["content"] if tokenize and part["type"] == "image"
        ]
        return self(images=pictures, text=text, return_tensors="pt") if tokenize else text


def chatty(loaded: LoadedModel, template: str = TEMPLATE) -> LoadedModel:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return replace(loaded, tokenizer=tokenizer)


def text_of(loaded: LoadedModel, ids: Any) -> str:
    return loaded.tokenizer.decode(ids, clean_up_tokenization_spaces=False).replace(" ", "")


def test_texts_are_put_into_the_template_on_request(llama: LoadedModel) -> None:
    loaded = chatty(llama)
    (sample,) = encode(loaded, [Sample(text="hello there")], 64, True)
    expected = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello there"}], add_generation_prompt=True, return_dict=False
    )
    assert sample.ids.tolist() == expected
    assert sample.kinds.tolist() == [1] + [0] * (len(expected) - 1), "BOS is special"
    for off in (None, False):
        (plain,) = encode(loaded, [Sample(text="hello there")], 64, off)
        assert plain.ids[-11:].tolist() == loaded.tokenizer("hello there")["input_ids"]
        assert len(plain) <= 12
    assert chat_bos_policy(loaded) == {"token": "<s>", "default": True, "other_every": None}
    assert chat_bos_policy(chatty(llama, "{{ messages[0].content }}"))["default"] is False
    with pytest.raises(InputError, match="tiny-llama has no chat template; leave --chat-template out"):
        encode(llama, [Sample(text="a")], 64, True)


def test_long_texts_are_several_prompts(llama: LoadedModel) -> None:
    loaded, text = chatty(llama), "many short words in a long row. " * 40
    pieces = encode(loaded, [Sample(text=text)], 64, True)
    assert max(map(len, pieces)) <= 64
    assert min(map(len, pieces)) > 32
    shown = [text_of(loaded, piece.ids) for piece in pieces]
    assert all(piece.startswith("<s>User:") and piece.endswith("\nAssistant:") for piece in shown)
    inner = "".join(piece.removeprefix("<s>User:").removesuffix("\nAssistant:") for piece in shown)
    assert inner == text.replace(" ", "")
    unbroken = encode(loaded, [Sample(text="x" * 200)], 64, True)
    assert sum(text_of(loaded, piece.ids).count("x") for piece in unbroken) == 200
    assert len(encode(loaded, [Sample(text=" \n"), Sample(text="a")], 64, True)) == 1
    with pytest.raises(InputError, match="alone has over 10 tokens"):
        encode(loaded, [Sample(text="abc")], 10, True)


def test_templates_that_write_the_date_write_a_fixed_one(llama: LoadedModel) -> None:
    loaded = chatty(llama, TEMPLATE.replace("if dated else ''", ""))
    (sample,) = encode(loaded, [Sample(text="hello")], 64, True)
    assert text_of(loaded, sample.ids) == "<s>01Jan2025User:hello\nAssistant:"
    named = chatty(llama, "{% set day = strftime_now('%B %d, %Y') %}{{ day }}: {{ messages[0].content }}")
    (sample,) = encode(named, [Sample(text="hello")], 64, True)
    assert text_of(named, sample.ids) == "January01,2025:hello"


def test_a_template_that_fails_is_one_line(llama: LoadedModel) -> None:
    loaded = chatty(llama, "{{ raise_exception('Only\nsystem turns') }}")
    with pytest.raises(InputError, match=r"chat template of tiny-llama fails \(Only system turns\)"):
        encode(loaded, [Sample(text="a")], 64, True)


PARTS = (
    "{% for m in messages %}{% for part in m.content %}{{ part.text if part.type == 'text' }}{% endfor %}{% endfor %}"
)


def test_a_template_gets_texts_in_the_form_that_it_writes(llama: LoadedModel, llava: LoadedModel) -> None:
    for template in (
        PARTS,
        "{{ messages[0]['content'][0]['text'] }}",
        "{{ messages[0].content | trim | upper | lower }}",
    ):
        loaded = chatty(llama, template)
        assert [text_of(loaded, piece.ids) for piece in encode(loaded, [Sample(text="hello")], 64, True)] == ["hello"]
    loaded = replace(llava, processor=ChattyProcessor(llava.tokenizer))
    for template in ("{{ messages[0].content if messages[0].content is string }}", "{{ messages[0].content }}"):
        loaded.processor.chat_template = template
        assert [text_of(loaded, piece.ids) for piece in encode(loaded, [Sample(text="hello")], 64, True)] == ["hello"]


@pytest.mark.parametrize("template", ["You are here.", "{{ messages[0].content[:20] }}", "{{ messages[0].role }}"])
def test_a_template_that_drops_texts_is_refused(llama: LoadedModel, template: str) -> None:
    with pytest.raises(InputError, match="template of tiny-llama does not write what the user says; leave"):
        encode(chatty(llama, template), [Sample(text="hello")], 64, True)


def test_pictures_with_the_template_and_without(llava: LoadedModel) -> None:
    loaded = replace(llava, processor=ChattyProcessor(llava.tokenizer))
    assert picture_text(loaded) == f"({IMAGE_TOKEN})\n"
    assert picture_text(llava) is None
    sample = Sample(images=(Image.new("RGB", (40, 30), "red"),), prompt="What?")
    images = IMAGE_TOKEN * PATCHES
    for choice, shown in ((None, f"USER:({images})\nWhat?ASSISTANT:"), (False, f"({images})\nWhat?")):
        (encoded,) = encode(loaded, [sample], 64, choice)
        assert text_of(loaded, encoded.ids) == shown
        inputs, valid = model_inputs(loaded, [encoded])
        assert np.array_equal(inputs["input_ids"][0].numpy(), encoded.ids)
        assert valid.all()
    picture, text = encode(loaded, [sample, Sample(text="hi")], 64, True)
    assert text_of(loaded, picture.ids) == f"USER:({images})\nWhat?ASSISTANT:"
    assert text_of(loaded, text.ids) == "USER:hiASSISTANT:"
