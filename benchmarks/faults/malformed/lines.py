"""Malformed texts, prompts, questions and answers: JSON lines, plain text and Parquet."""

import hashlib
import json
import random
from typing import Any

from hypothesis import strategies as st

from benchmarks.faults.malformed.base import Folder, Link, NamedPipe, parquet, picture
from benchmarks.faults.malformed.mangling import RAW_VALUES, damaged, documents, flipped
from benchmarks.faults.watched import Content, Work

TEXT = {"text": "A line of text. " * 5, "id": 1}
QUESTION = {"image": "picture.png", "prompt": "What is it?", "id": "q1", "label": [1, {"a": None}]}
QUESTIONS = {"images": ["picture.png", "picture.png"], "question": "What are they?", "id": 7}
ANSWER = {"id": "q1", "image": "picture.png", "prompt": "What is it?", "answer": "a dog", "plain": None}
SETTINGS = {"model": "demo:lmm", "revision": None, "p": None, "rho": None, "max_new_tokens": 64, "compare": False}
PROMPT = {"image": "picture.png", "prompt": "What is it?"}
METADATA = {"file_name": "picture.png", "text": "What is it?"}
GOOD = json.dumps({"image": "picture.png", "prompt": "What?", "id": "q1"}).encode() + b"\n"

ODD_PLACES = st.sampled_from([Folder(), NamedPipe(), Link("itself"), Link("/dev/zero"), Link("/proc/self/mem"), b""])


@st.composite
def json_lines(draw: st.DrawFn, *valid: dict[str, Any]) -> bytes:
    """Some lines, good and malformed ones, with ends of all kinds."""
    lines = []
    for _ in range(draw(st.integers(1, 4))):
        line = draw(st.one_of(*map(documents, valid), st.sampled_from(RAW_VALUES).map(str.encode)))
        lines.append(line + draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\r", b"\n\n", b"\xe2\x80\xa8", b""])))
    return damaged(draw, b"".join(lines))


@st.composite
def plain_texts(draw: st.DrawFn) -> bytes:
    """Text, or what only looks like it."""
    generator = random.Random(draw(st.integers(0, 2**32)))
    text = draw(
        st.sampled_from(
            [
                "One paragraph.\n\nAnother.\n",
                "\ufeffText",
                "\r\n\r\n \t",
                "\u2028\u2029\x85\x0c",
                "word " * 20_000,
                "\x1b[2J\x1b]0;owned\x07",
                "%PDF-1.7\n",
            ]
        )
    ).encode()
    if draw(st.integers(0, 3)) == 0:
        text = generator.randbytes(draw(st.sampled_from([1, 100, 10_000])))
    if draw(st.integers(0, 99)) == 0:
        text = b"x" * (2**24 + 2)  # Above the longest line.
    return damaged(draw, text)


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A Parquet file with wrong bytes: in its footer, whose lengths and offsets count, or anywhere."""
    data = parquet()
    generator = random.Random(draw(st.integers(0, 2**32)))
    footer = int.from_bytes(data[-8:-4], "little") + 8
    kind = draw(st.sampled_from(["cut", "flip", "footer", "length", "whole", "text", "zeros"]))
    if kind == "cut":
        return data[: generator.randrange(len(data))]
    if kind == "flip":
        return flipped(data, generator, generator.choice([1, 2, 16]))
    if kind == "footer":
        return data[:-footer] + flipped(data[-footer:-8], generator, generator.choice([1, 3])) + data[-8:]
    if kind == "length":
        return data[:-8] + draw(st.sampled_from([0, 1, 2**31 - 1, 2**32 - 1])).to_bytes(4, "little") + data[-4:]
    if kind == "zeros":
        place = generator.randrange(len(data))
        return data[:place] + bytes(min(64, len(data) - place)) + data[place + 64 :]
    return data if kind == "whole" else draw(plain_texts())


@st.composite
def works(draw: st.DrawFn) -> Work:
    """Malformed lines, and the command that reads them."""
    return draw(draw(st.sampled_from([_texts, _prompts, _questions, _answers]))())


@st.composite
def _texts(draw: st.DrawFn) -> Work:
    suffix = draw(st.sampled_from(["jsonl", "txt", "parquet"]))
    made = {"jsonl": json_lines(TEXT), "txt": plain_texts(), "parquet": tables()}[suffix]
    content = draw(ODD_PLACES if draw(st.integers(0, 15)) == 0 else made)
    name = draw(st.sampled_from(["texts", "texts/one"]))
    call = ("profile", "demo:llm", "--texts", "texts" if "/" in name else f"{name}.{suffix}")
    return Work(call, {f"{name}.{suffix}": content})


@st.composite
def _prompts(draw: st.DrawFn) -> Work:
    files: dict[str, bytes | Content] = {"pictures/picture.png": picture()}
    kind = draw(st.sampled_from(["prompts.jsonl", "metadata.jsonl", "picture.txt"]))
    valid = {"prompts.jsonl": PROMPT, "metadata.jsonl": METADATA}.get(kind)
    made = plain_texts() if valid is None else json_lines(valid)
    files[f"pictures/{kind}"] = draw(ODD_PLACES if draw(st.integers(0, 15)) == 0 else made)
    return Work(("profile", "demo:lmm", "--images", "pictures"), files)


@st.composite
def _questions(draw: st.DrawFn) -> Work:
    made = json_lines(QUESTION, QUESTIONS)
    content = draw(ODD_PLACES if draw(st.integers(0, 15)) == 0 else made)
    call = ("apply", "demo:lmm", "--batch", "in.jsonl", "--out", "out.jsonl")
    return Work(call + draw(st.sampled_from([(), ("--keep-going",)])), {"in.jsonl": content, "picture.png": picture()})


@st.composite
def _answers(draw: st.DrawFn) -> Work:
    settings = SETTINGS | {"raw": False, "questions_sha256": hashlib.sha256(GOOD).hexdigest()}
    files: dict[str, bytes | Content] = {"in.jsonl": GOOD, "picture.png": picture()}
    for name in draw(st.sampled_from([["out.jsonl"], ["out.jsonl.partial"], ["out.jsonl", "out.jsonl.partial"]])):
        files[name] = draw(ODD_PLACES if draw(st.integers(0, 15)) == 0 else json_lines(ANSWER))
    whole = draw(st.booleans())
    files["out.jsonl.settings.json"] = json.dumps(settings).encode() if whole else draw(documents(settings))
    return Work(("apply", "demo:lmm", "--batch", "in.jsonl", "--out", "out.jsonl", "--resume"), files)


FUNCTIONS: dict[str, Any] = {}
