"""The settings of a capture run."""

from dataclasses import asdict, dataclass
from typing import Any

from sinkscope.errors import InputError
from sinkscope.store.layout import DEFAULT_LARGEST, DEFAULT_LEVELS, DEFAULT_TOP_TOKENS


@dataclass(frozen=True)
class CaptureSettings:
    """What a run measures. A run file is resumed with the same settings only, `commit_seconds` apart.

    Attributes
    ----------
    seed : int
        Of every choice: order of batches, sampled tokens, samples with attention.
    max_samples, max_tokens : int, optional
        Use only so many of the samples given, spread evenly over them; and only so many tokens.
    max_length : int
        Texts are cut into pieces of at most so many tokens.
    batch_tokens : int
        Most tokens in a batch of texts, padding included; pictures go one by one.
    top_tokens, largest, levels
        K, M and the energy shares of the statistics; see `sinkscope.store.layout`.
    sampled_tokens : int
        About how many tokens keep their whole hidden states.
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
    max_length: int = 256
    batch_tokens: int = 2048
    top_tokens: int = DEFAULT_TOP_TOKENS
    largest: int = DEFAULT_LARGEST
    levels: tuple[float, ...] = DEFAULT_LEVELS
    sampled_tokens: int = 1024
    attention: bool = True
    attention_texts: int = 48
    attention_images: int = 12
    commit_seconds: float = 2.0

    def __post_init__(self) -> None:
        for name in ("max_samples", "max_tokens", "batch_tokens", "top_tokens", "largest"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        for name in ("sampled_tokens", "attention_texts", "attention_images", "commit_seconds"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.max_length < 8:
            raise InputError(f"max_length is {self.max_length}; it must be at least 8")
        if not self.levels or not all(0 < level <= 1 for level in self.levels):
            raise InputError(f"levels are {self.levels}; they must be energy shares above 0 and at most 1")

    def to_json(self) -> dict[str, Any]:
        """The settings that must match for a resume."""
        values = asdict(self)
        values.pop("commit_seconds")
        return values
