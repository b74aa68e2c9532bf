"""Whether a command that was fed with nonsense ended as it should."""

import re

from benchmarks.faults.watched import Accepted, Ending, Work

MEMORY = 2**30
"""Bytes by which memory may grow over one input."""
LONGEST_LINE = 2200

NOTES = ("skipped line ", "your own profiles: ", "profile: ", "run file: ", "capture: ")

# What a terminal acts on, but for the line ends of the output itself.
CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

DONE, FINDING, REFUSED, ACCEPTED = "done", "problem found", "refused", "accepted"


def judged(work: Work, ending: Ending) -> tuple[str, list[str]]:
    """The kind of ending, and what is wrong with it."""
    if ending.death is not None:
        return "death", [ending.death]
    wrong: list[str] = list(ending.strange)
    made = outputs(work)
    lines = [line for line in ending.err.splitlines() if not _is_note(line)]
    if ending.code == Accepted.exit_code:
        kind, lines = ACCEPTED, lines[:-1]
    elif ending.code == 0:
        kind = DONE
        made = () if made is None else made
    else:
        kind = REFUSED if ending.code == 2 else FINDING
        made = ()
        if ending.code not in (1, 2) or (ending.code == 1 and not _may_find(work, ending)):
            wrong.append(f"exit code {ending.code}")
        if not lines or not lines[-1].startswith("sinkscope: error: "):
            wrong.append("no line of error at the end")
        elif "error: unexpected " in lines[-1] or "out of memory" in lines[-1]:
            wrong.append("an error that was not foreseen")
        if ending.out and "--json" not in work.call:
            wrong.append("an error and an output")
        lines = lines[:-1]
    if lines:
        wrong.append(f"more on stderr than one line: {lines[0]!r:.200}")
    changed = [name for name in ending.changed if name not in made]
    if changed:
        wrong.append(f"changed {', '.join(map(repr, changed))}")
    if "Traceback" in ending.err + ending.out:
        wrong.append("a traceback")
    if CONTROLS.search(ending.err) or ("--json" not in work.call and CONTROLS.search(ending.out)):
        wrong.append("control characters printed")
    if max(map(len, ending.err.split("\n"))) > LONGEST_LINE:
        wrong.append("a line of error that nobody reads to its end")
    if ending.memory > MEMORY:
        wrong.append(f"took {ending.memory >> 20} MiB")
    return kind, wrong


def outputs(work: Work) -> tuple[str, ...]:
    """The files that a command may write when it succeeds."""
    return tuple(
        value for option, value in zip(work.call, work.call[1:], strict=False) if option in ("-o", "--out", "--run")
    )


def _may_find(work: Work, ending: Ending) -> bool:
    """Whether exit code 1 says what `registry check` found."""
    return work.call[:2] == ("registry", "check") and re.search(r"error: \d+ problems? found: ", ending.err) is not None


def _is_note(line: str) -> bool:
    """Lines that a command says on stderr besides an error."""
    return line.startswith(NOTES) or (": " in line and line.startswith("/"))
