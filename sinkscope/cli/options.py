"""Options that several commands share."""

import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import click

from sinkscope.store.limits import LARGEST_INTEGER

DTYPES = ("auto", "float32", "bfloat16", "float16")


class Integer(click.IntRange):
    """An integer that a run file can hold, of at least `min`."""

    def __init__(self, min: int) -> None:
        super().__init__(min=min, max=LARGEST_INTEGER)


class ProfileName(click.ParamType):
    """A name that a profile can have."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from sinkscope.profile import json_schema

        longest = json_schema()["properties"]["name"]["maxLength"]
        if len(value) > longest:
            self.fail(f"it has {len(value)} characters; a profile's has {longest} at most.", param, ctx)
        try:
            value.encode()
        except UnicodeEncodeError:  # Bytes of the command line that are no text.
            self.fail("it is not UTF-8.", param, ctx)
        return str(value)


class Fraction(click.FloatRange):
    """A number from 0 to 1; not NaN, which passes every comparison of a range."""

    def __init__(self) -> None:
        super().__init__(min=0, max=1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number from 0 to 1.", param, ctx)
        return number


class ByteSize(click.ParamType):
    """A number of bytes: 2GB, 500 MB, 1.5GiB, or digits alone."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?) *(?:([kmgtp])(i?)b|b)?", str(value).strip().lower())
        if found is None:
            self.fail(f"{value!r} is no size like 2GB or 500MiB.", param, ctx)
        number, prefix, binary = found.groups()
        return int(Decimal(number) * (1024 if binary else 1000) ** (" kmgtp".index(prefix) if prefix else 0))


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """How a model is loaded: ``--device``, ``--dtype``, ``--revision``, ``--trust-remote-code``."""
    for option in reversed(
        (
            click.option(
                "--device",
                metavar="D",
                default="auto",
                show_default=True,
                help="auto (all accelerators, then the CPU, then the disk), cpu, cuda, cuda:1, mps ...",
            ),
            click.option(
                "--dtype",
                type=click.Choice(DTYPES),
                default="auto",
                show_default=True,
                help="auto keeps the checkpoint's dtype.",
            ),
            click.option("--revision", metavar="R", help="Revision on the hub: a branch, tag or commit."),
            click.option(
                "--trust-remote-code", is_flag=True, help="Run code that the model's repository ships. Read it first."
            ),
        )
    ):
        function = option(function)
    return function
