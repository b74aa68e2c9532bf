"""JSON documents with something wrong in them: in their values, their spelling, or their bytes."""

import copy
import json
import random
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\nsinkscope: error: forged\u2028\x00"
"""What moves a terminal's cursor, changes its title, or starts a line that looks like another message."""

RAW_VALUES = (
    "NaN",
    "-Infinity",
    "1e999",
    "-1e999",
    "1" + "0" * 400,
    "-" + "9" * 5000,
    "0.1e-400",
    "01",
    "0x10",
    "'single'",
    '"\\ud800"',
    '"\\u0000"',
    '"open',
    '"\x01"',
    "[" * 100_000,
    "[" * 100_000 + "]" * 100_000,
    '{"a":' * 50_000 + "1" + "}" * 50_000,
    "// comment\n1",
    "",
    '{"a": 1, "a": [], "a": {}}',
    '"' + "x" * 2**20 + '"',
)
"""JSON, or nearly, that no Python value is written as."""

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 15, 16, 17, 64, 2**31 - 1, 2**31, 2**63, 2**64, -(2**63), 10**30]),
    st.sampled_from([0.0, -0.0, 0.5, 1.0, 1.5, -1e-300, 5e-324, 1.7e308, 1e16]),
    st.sampled_from(
        ["", " ", "sinks", "none", "1", "NaN", "3.0", "99.0", "1.0.0", "\uff11.0", "text", "é" * 300, "x" * 5000]
    ),
    st.sampled_from(
        ["../../../etc/passwd", "/dev/zero", "a/b", "a\0b", "%s%n{0}", "[bold]x[/nope]", ESCAPES, "\u202eevil"]
    ),
    st.text(max_size=8),
    st.sampled_from([[], {}, [[]], [None], {"": None}, [0] * 100, [1, 2], {"dim": 3}, {"__class__": "os.system"}]),
).map(copy.deepcopy)  # Lists and objects may be changed once they are in a document.


@st.composite
def documents(draw: st.DrawFn, valid: Mapping[str, Any] | list[Any]) -> bytes:
    """A valid document with up to three wrong values, and sometimes damaged bytes."""
    document = copy.deepcopy(valid)
    raw: dict[str, str] = {}
    for _ in range(draw(st.integers(0, 3))):
        _mangle(draw, document, raw)
    text = json.dumps(document, ensure_ascii=draw(st.booleans()))
    for token, value in raw.items():
        text = text.replace(json.dumps(token), value)
    return damaged(draw, text.encode("utf-8", "surrogatepass"))


def _mangle(draw: st.DrawFn, document: Any, raw: dict[str, str]) -> None:
    """Change one place of the document."""
    places = list(_places(document))
    if not places:
        return
    holder, key = draw(st.sampled_from(places))
    kind = draw(st.sampled_from(["replace", "replace", "raw", "delete", "wrap", "add", "rename"]))
    if kind == "replace":
        holder[key] = draw(VALUES)
    elif kind == "raw":
        token = f"raw value {len(raw)}"
        raw[token] = draw(st.sampled_from(RAW_VALUES))
        holder[key] = token
    elif kind == "delete":
        del holder[key]
    elif kind == "wrap":
        holder[key] = draw(
            st.sampled_from([[holder[key]], {"value": holder[key]}, [holder[key]] * 70, str(holder[key])])
        )
    elif isinstance(holder, list):
        holder.append(draw(VALUES))
    elif kind == "add":
        holder[draw(st.sampled_from(["extra", "", "model_config", "__init__", "x" * 5000, ESCAPES]))] = draw(VALUES)
    else:
        holder[str(key) + draw(st.sampled_from(["\u200b", " ", "_"]))] = holder.pop(key)


def _places(document: Any) -> Any:
    """Every holder and key of the document."""
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in list(items):
        yield document, key
        yield from _places(value)


def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes as they are in most cases, else cut, flipped, mixed with others or in another encoding."""
    kind = draw(st.sampled_from(["whole"] * 6 + ["cut", "flip", "insert", "encode", "before", "after", "replace"]))
    generator = random.Random(draw(st.integers(0, 2**32)))
    place = generator.randrange(len(data) + 1)
    if kind == "cut":
        return data[:place]
    if kind == "flip":
        return flipped(data, generator, generator.choice([1, 2, 8, 64]))
    odd = draw(
        st.sampled_from(
            [b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc3", b"\x1b[2J", b"\n", b"}", b"\0" * 4096]
        )
    )
    if kind == "insert":
        return data[:place] + odd + data[place:]
    if kind == "before":
        return odd + data
    if kind == "after":
        return data + odd
    if kind == "encode":
        text = data.decode("utf-8", "replace")
        return text.encode(draw(st.sampled_from(["utf-16", "utf-32", "utf-8-sig", "utf-7"])), "replace")
    return odd if kind == "replace" else data


def flipped(data: bytes, generator: random.Random, count: int) -> bytes:
    """The bytes with some bits flipped."""
    changed = bytearray(data)
    for _ in range(count if data else 0):
        changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    return bytes(changed)
