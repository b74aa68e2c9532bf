"""Every threshold of the method, in one place."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sinkscope.errors import InputError


def _threshold(default: Any, says: str, low: float = 0.0, high: float = 1.0) -> Any:
    return field(default=default, metadata={"says": says, "low": low, "high": high})


UNBOUNDED = float("inf")


@dataclass(frozen=True)
class DiscoverySettings:
    """Thresholds of discovery. None is an absolute magnitude; all are fractions, ratios or counts.

    What each one says is kept with it, `DiscoverySettings.described()` lists them, and ``sinkscope discover --help``
    shows them as options. `docs/method.md` gives the reasons.

    Raises
    ------
    InputError
        If a threshold lies outside its limits.
    """

    false_discovery_rate: float = _threshold(
        0.01, "q: the accepted share of false dimensions among those called massive.", 1e-12, 0.5
    )
    typical_quantile: float = _threshold(
        0.75, "A dimension's ordinary magnitude is this quantile over tokens: sinks must be rarer than the rest."
    )
    top_tokens: int = _threshold(
        16, "The peak of a dimension is the median over at most so many of its top tokens.", 1, UNBOUNDED
    )
    samples_per_token: int = _threshold(
        4, "One top token for every so many samples, so that a few odd tokens make no sink dimension.", 1, UNBOUNDED
    )
    effect_share: float = _threshold(
        0.1,
        "A massive peak holds this share of its token's energy; a tenth is tau = 20 at 4096 dimensions.",
        high=1 - 1e-9,
    )
    effect_share_without_attention: float = _threshold(0.5, "The same where attention bears no witness: the majority.")
    minimum_run: int = _threshold(
        0, "Consecutive layers in which a dimension must persist; 0: 2, and 3 from 24 layers on.", 0, UNBOUNDED
    )
    kept_tokens: float = _threshold(
        0.5, "Share of a dimension's top tokens that must still be large in the next layer for it to persist."
    )
    companion_ratio: float = _threshold(
        0.1, "With less than this part of the leading dimension's energy on its own tokens: a companion."
    )
    attention_sink: float = _threshold(
        0.10, "Tokens that draw more than this mean attention from later queries are attention sinks."
    )
    minimum_later_queries: int = _threshold(
        40,
        "Attention of tokens with fewer later queries is too noisy to judge (half of the text, if short).",
        1,
        UNBOUNDED,
    )
    least_judged: int = _threshold(50, "With fewer tokens to judge, attention counts as not measured.", 1, UNBOUNDED)
    link_share: float = _threshold(0.5, "Of a dimension's massive tokens, this share must be attention sinks.")
    least_massive: int = _threshold(
        3, "With fewer massive tokens whose attention was measured, a layer says nothing about it.", 1, UNBOUNDED
    )
    companion_f1: float = _threshold(
        2 / 3, "A companion's largest tokens agree with the attention sinks at this F1: half of their union is both."
    )
    fair_part: float = _threshold(
        0.5, "Between linked layers, tokens that draw this part of what makes an attention sink keep their layer."
    )
    extension_p_value: float = _threshold(
        0.05, "A found dimension also has the layers next to its own that pass this level and the link to attention."
    )
    few_sinks: int = _threshold(5, "With fewer attention sinks a layer takes the threshold of its band.", 1, UNBOUNDED)
    separated_f1: float = _threshold(0.95, "A band is called separated with at least this agreement, and")
    separated_gap: float = _threshold(
        0.2, "with at least this gap, in logarithms, between the scores of sinks and others.", 0, UNBOUNDED
    )
    minimum_stability: float = _threshold(0.9, 'Below this share of bootstraps the verdict is "uncertain".')
    bootstraps: int = _threshold(50, "Resamplings of the calibration samples.", 1, UNBOUNDED)
    minimum_samples: int = _threshold(16, "With fewer samples the profile carries a warning.", 0, UNBOUNDED)
    minimum_tokens: int = _threshold(1000, "With fewer tokens the profile carries a warning.", 0, UNBOUNDED)
    seed: int = _threshold(0, "Of the bootstrap.", 0, UNBOUNDED)

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, low, high = getattr(self, entry.name), entry.metadata["low"], entry.metadata["high"]
            if not low <= value <= high:
                limits = f"at least {low:g}" if high == UNBOUNDED else f"between {low:g} and {high:g}"
                raise InputError(f"{entry.name} is {value}; it must be {limits}")

    def to_dict(self) -> dict[str, Any]:
        """All thresholds, ready for JSON."""
        return asdict(self)

    @classmethod
    def described(cls) -> dict[str, tuple[Any, str]]:
        """Default and meaning of every threshold."""
        return {entry.name: (entry.default, entry.metadata["says"]) for entry in fields(cls)}

    def run_length(self, num_layers: int) -> int:
        """Consecutive hidden states in which a dimension must persist."""
        # Imported here, because the command line lists the thresholds without waiting for NumPy.
        from sinkscope.significance import shortest_run

        return self.minimum_run or shortest_run(num_layers)
