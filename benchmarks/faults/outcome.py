"""What a part of the fault suite found."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """The result of one part.

    Attributes
    ----------
    tried : int
        Faults that were caused.
    problems : list of str
        What went wrong, one line each with what repeats it (seed and number); empty where all is well.
    figures : dict
        Counts worth telling, such as how often each ending was seen.
    """

    tried: int
    problems: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether something was tried and nothing went wrong."""
        return self.tried > 0 and not self.problems
