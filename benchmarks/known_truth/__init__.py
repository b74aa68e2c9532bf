"""Stores whose sinks are known: a seeded generator of hidden states and attention with planted truth.

`cases()` lists what is planted, `build(case)` plants it. A case is separable, or not, by a rule over what was planted,
stated in `truth.py`; no method has a say in it.
"""

from benchmarks.known_truth.build import build
from benchmarks.known_truth.case import Case, Truth
from benchmarks.known_truth.cases import cases

__all__ = ["Case", "Truth", "build", "cases"]
