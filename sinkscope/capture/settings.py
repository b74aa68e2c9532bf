"""The settings of a capture run."""

from dataclasses import asdict, dataclass
from typing import Any

from sinkscope.errors import InputError
from sinkscope.store.layout import DEFAULT_LARGEST, DEFAULT_LEVELS, DEFAULT_TOP_TOKENS
from sinkscope.store.limits import LARGEST_INTEGER

BATCH_TOKENS = 2048
"""Enough to keep a processor busy, and little to hold."""

KEEP = {
    "sample": "a seeded choice of tokens",
    "topk": "that choice, and the tokens with the highest peaks of every sample, layer by layer",
    "all": "all tokens",
    "none": "none: statistics and every token's largest coordinates only, from which no profile can be made",
}
"""Whose hidden states a run file keeps."""
PEAK_STATES = 4
"""Tokens of a sample whose states are kept for their high peaks: its first token and a few delimiters."""


@dataclass(frozen=True)
class CaptureSettings:
    """What a run measures.

    A run file is resumed with the same settings only, apart from `commit_seconds` and a `max_store` that leaves room
    for all.

    Attributes
    ----------
    seed : int
        Of every choice: order of batches, sampled tokens, samples with attention.
    max_samples, max_tokens : int, optional
        Use only so many of the samples given, spread evenly over them; and only so many tokens.
    chat_template : bool, optional
        Put texts and the prompts of pictures into the model's chat template, or neither. By default prompts of pictures
        where there is a template, and no texts: a base model has seen texts as they are.
    max_length : int
        Texts are cut into pieces of at most so many tokens.
    batch_tokens : int, optional
        Most tokens in a batch of texts, padding included; pictures go one by one. By default `BATCH_TOKENS`, or fewer
        where memory is short, see `sinkscope.capture.batch_size`.
    top_tokens, largest, levels
        K, M and the energy shares of the statistics; see `sinkscope.store.layout`.
    keep : str
        Whose whole hidden states are kept: one of `KEEP`.
    sampled_tokens : int
        About how many tokens a seeded choice has.
    max_store : int, optional
        Bytes of the run file at most: fewer hidden states are kept where they would not fit, and a file that would be
        too large without any is refused before it is begun.
    attention : bool
        Measure the attention that tokens draw, where the model gives access to it.
    attention_texts, attention_images : int
        At most so many text and image samples are measured.
    commit_seconds : float
        Time between commits to the run file: what a killed run loses at most, besides the batch at work.
    """

    seed: int = 0
    max_samples: int | None = None
    max_tokens: int | None = None
    chat_template: bool | None = None
    max_length: int = 256
    batch_tokens: int | None = None
    top_tokens: int = DEFAULT_TOP_TOKENS
    largest: int = DEFAULT_LARGEST
    levels: tuple[float, ...] = DEFAULT_LEVELS
    keep: str = "sample"
    sampled_tokens: int = 1024
    max_store: int | None = None
    attention: bool = True
    attention_texts: int = 48
    attention_images: int = 12
    commit_seconds: float = 2.0

    def __post_init__(self) -> None:
        if self.keep not in KEEP:
            raise InputError(f"keep is {self.keep!r}; it must be one of {', '.join(KEEP)}")
        for name, value in asdict(self).items():
            if isinstance(value, int) and value > LARGEST_INTEGER:
                raise InputError(f"{name} is {value}; it must be at most {LARGEST_INTEGER}")
        for name in ("max_samples", "max_tokens", "batch_tokens", "top_tokens", "largest", "max_store"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        for name in ("seed", "sampled_tokens", "attention_texts", "attention_images", "commit_seconds"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.max_length < 8:
            raise InputError(f"max_length is {self.max_length}; it must be at least 8")
        if not self.levels or not all(0 < level <= 1 for level in self.levels):
            raise InputError(f"levels are {self.levels}; they must be energy shares above 0 and at most 1")

    @property
    def peak_states(self) -> int:
        """Tokens of every sample and layer whose hidden states are kept for their high peaks."""
        return PEAK_STATES if self.keep == "topk" else 0

    def to_json(self) -> dict[str, Any]:
        """The settings that must match for a resume."""
        values = asdict(self)
        for name in ("commit_seconds", "max_store"):
            values.pop(name)
        return values
