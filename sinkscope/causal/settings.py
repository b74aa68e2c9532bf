"""The settings of a causal check."""

from dataclasses import asdict, dataclass
from typing import Any

from sinkscope.errors import InputError


@dataclass(frozen=True)
class CausalSettings:
    """How much a causal check measures, and what it asks of the result.

    Attributes
    ----------
    seed : int
        Of every choice: samples, partners, random dimensions, bootstrap.
    texts, pictures : int
        Samples edited at each layer: pieces of text, and pictures where the model takes them.
    layers : int
        Layers edited in a band: its first one, and further ones that cut the band into equal parts.
    draws : int
        Exchanges of the same dimensions in one sample, each with other partners.
    next_largest : int
        Least number of next-largest dimensions exchanged singly; never fewer than the band has dimensions.
    max_length : int
        Of each piece of text that a capture run would take, the first so many tokens are used; a check costs in
        proportion to them.
    later_queries, later_queries_visual : int
        A sink token is measured where at least so many queries follow it. Fewer are asked of visual ones, because
        prompts that follow a picture are short.
    loss_targets : int
        At most so many text tokens of a sample, evenly spread, count for the loss.
    chat_template : bool, optional
        As in `CaptureSettings`.
    attention : bool
        Measure the attention drawn, where the model gives access to it; else the change of loss alone.
    fall, control_fall : float
        A band's dimensions are separated where their joint exchange takes at least `fall` of the attention drawn, and
        every control less than `control_fall`.
    resamples : int
        Of the bootstrap.
    confidence : float
        Of its intervals.
    batch_tokens, batch_logits : int
        Most tokens, and most entries of the logits, of the edits computed together.
    """

    seed: int = 0
    texts: int = 8
    pictures: int = 4
    layers: int = 2
    draws: int = 2
    next_largest: int = 2
    max_length: int = 52
    later_queries: int = 40
    later_queries_visual: int = 16
    loss_targets: int = 16
    chat_template: bool | None = None
    attention: bool = True
    fall: float = 0.5
    control_fall: float = 0.2
    resamples: int = 1000
    confidence: float = 0.95
    batch_tokens: int = 1024
    batch_logits: int = 2**26

    def __post_init__(self) -> None:
        for name in (
            "layers",
            "draws",
            "next_largest",
            "later_queries",
            "later_queries_visual",
            "loss_targets",
            "batch_tokens",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if min(self.texts, self.pictures) < 0 or self.texts + self.pictures < 1:
            raise InputError("a causal check needs samples: texts and pictures must not be negative, nor both be 0")
        if self.resamples < 100:
            raise InputError(f"resamples is {self.resamples}; an interval needs at least 100")
        if self.max_length <= self.later_queries:
            raise InputError(
                f"max_length is {self.max_length}; it must be above later_queries, {self.later_queries}, or no token "
                "has so many queries behind it"
            )
        for name in ("fall", "control_fall", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")

    def to_json(self) -> dict[str, Any]:
        """The settings that decide the figures."""
        values = asdict(self)
        values.pop("batch_tokens")
        values.pop("batch_logits")
        return values
