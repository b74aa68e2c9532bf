"""What the verdicts must come to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Verdict = dict[str, Any]
MOST_NOT_BUILT = 0.08


@dataclass(frozen=True)
class Bar:
    """One bar: how many of which types meet it, and who does not."""

    words: str
    met: int
    of: int
    missing: tuple[str, ...]
    is_met: bool


def bars(verdicts: list[Verdict]) -> list[Bar]:
    """All bars."""
    built = [verdict for verdict in verdicts if verdict["verdict"] != "not built"]
    seeing = [verdict for verdict in built if "connector" in verdict and not structural(verdict)]
    projectors = [verdict for verdict in seeing if verdict["connector"] == "projector"]
    others = [verdict for verdict in seeing if verdict["connector"] in ("resampler", "cross-attention")]
    few = len(verdicts) - len(built) <= MOST_NOT_BUILT * len(verdicts)
    return [
        _all("types that can be built profile with exactly the planted dimensions, or are refused for their structure",
             built, lambda verdict: structural(verdict) or profiles(verdict)),
        _all("projector models apply VAR as `sinkscope.redistribute` does, within 1e-5 of the largest logit",
             projectors, lambda verdict: step(verdict, "var") == "works"),
        _all("resampler and cross-attention models are refused by VAR, and profile",
             others, lambda verdict: step(verdict, "var") == "refused" and profiles(verdict)),
        Bar(f"types can be built (at most {MOST_NOT_BUILT:.0%} cannot)", len(built), len(verdicts),
            tuple(name(verdict) for verdict in verdicts if verdict["verdict"] == "not built"), few),
    ]  # fmt: skip


def profiles(verdict: Verdict) -> bool:
    """Whether exactly the planted dimensions came back: on texts, on pictures where those could be made."""
    pictures = step(verdict, "pictures")
    # A model that nobody can show a picture in this way (none enters its decoder as a token) profiles on texts.
    shown = verdict.get("connector") not in ("no images", "no placeholders")
    agree = verdict.get("states_agree") is not False
    return step(verdict, "profile") == "works" and agree and (not shown or pictures in (None, "works"))


def structural(verdict: Verdict) -> bool:
    """Whether it was refused for its structure."""
    return verdict["verdict"] == "refused" and bool(verdict.get("structural"))


def step(verdict: Verdict, which: str) -> str | None:
    """The status of one step: works, refused, failed, not run; None where it was not to be taken."""
    return verdict.get(which, {}).get("status")


def name(verdict: Verdict) -> str:
    """The type, and its mapping where it is not the larger one."""
    return verdict["type"] + (" (multimodal)" if verdict["mapping"] == "image-text-to-text" else "")


def _all(words: str, verdicts: list[Verdict], meets: Callable[[Verdict], bool]) -> Bar:
    missing = tuple(name(verdict) for verdict in verdicts if not meets(verdict))
    return Bar(words, len(verdicts) - len(missing), len(verdicts), missing, not missing)
