"""Options that several commands share."""

import math
from collections.abc import Callable
from typing import Any

import click

DTYPES = ("auto", "float32", "bfloat16", "float16")


class Fraction(click.FloatRange):
    """A number from 0 to 1; not NaN, which passes every comparison of a range."""

    def __init__(self) -> None:
        super().__init__(min=0, max=1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number from 0 to 1.", param, ctx)
        return number


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """How a model is loaded: ``--device``, ``--dtype``, ``--revision``, ``--trust-remote-code``."""
    for option in reversed(
        (
            click.option(
                "--device",
                metavar="D",
                default="auto",
                show_default=True,
                help="auto (all accelerators, else CPU), cpu, cuda, cuda:1, mps ...",
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
