"""Malformed input of every kind, generated: no traceback, no hang, no harm, nothing executed.

::

    profiles, lines, pictures, run_files, disguises    strategies: a piece of work, its files included
    watched                                            a child does it
    judging                                            ended as it should?
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.strategies import SearchStrategy

from benchmarks.faults.malformed import disguises, lines, pictures, profiles, run_files
from benchmarks.faults.malformed.judging import judged
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.watched import Watched, Work, write_files

KINDS = {"profiles": profiles, "lines": lines, "pictures": pictures, "run files": run_files, "disguises": disguises}
SHARES = {"profiles": 0.3, "lines": 0.25, "pictures": 0.2, "run files": 0.2, "disguises": 0.05}
"""Of the examples."""

FUNCTIONS = profiles.FUNCTIONS | lines.FUNCTIONS | run_files.FUNCTIONS | disguises.FUNCTIONS


def check(folder: Path, count: int, seed: int) -> Outcome:
    """`count` examples, shared out over the kinds."""
    tried, problems, figures = 0, [], {}
    for kind, share in SHARES.items():
        outcome = check_kind(kind, folder, max(1, round(count * share)), seed)
        tried += outcome.tried
        problems += outcome.problems
        figures[kind] = outcome.figures
    return Outcome(tried, problems, figures)


def check_kind(kind: str, folder: Path, count: int, seed: int) -> Outcome:
    """`count` examples of one kind of input. The files of those that end badly are kept below `folder`."""
    endings: Counter[str] = Counter()
    problems: list[str] = []
    with Watched(folder, FUNCTIONS) as child:

        def judge(work: Work) -> None:
            ended, wrong = judged(work, ending := child.run(work))
            if wrong:
                number = endings.total()
                said = ending.err.strip()[-300:]
                kept = folder / "problems" / f"{kind} {number}"
                write_files(work.files, kept)
                which = f"{kind} {number} of seed {seed}, kept in {kept}"
                problems.append(f"{' '.join(work.call)}: {'; '.join(wrong)}: {said!r} ({which})")
            endings[ended] += 1

        generate(KINDS[kind].works(), count, seed, judge)
    return Outcome(endings.total(), problems, dict(endings))


def generate(strategy: SearchStrategy[Any], count: int, seed: int, use: Callable[[Any], None]) -> None:
    """Call `use` with examples of a strategy, the same ones for the same seed."""
    left = count
    while left > 0:
        made = 0

        def take(example: Any) -> None:
            nonlocal made
            made += 1
            use(example)

        # A strategy may run out of new examples before its time, which another seed has more of.
        chosen = settings(
            max_examples=left,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        hypothesis.seed(seed + count - left)(chosen(hypothesis.given(strategy)(take)))()
        left -= made
