"""Every threshold of the method, in one place."""

from dataclasses import asdict, dataclass
from typing import Any

from sinkscope.errors import InputError


@dataclass(frozen=True)
class DiscoverySettings:
    """Thresholds of discovery. None is an absolute magnitude; all are fractions, ratios or counts.

    Attributes
    ----------
    false_discovery_rate : float
        q: the share of false dimensions among those called massive that is accepted on average.
    typical_quantile : float
        A dimension's ordinary magnitude is this quantile of abs(x[d]) over tokens. Sinks must be rarer than the rest.
    top_tokens : int
        The peak of a dimension is the median over so many top tokens (one for every four samples where there are
        fewer), so that one odd token makes no sink dimension.
    effect_share : float
        A massive peak holds at least this share of its token's energy, fellow leading dimensions aside: a tenth, which
        is what the published tau = 20 says at 4096 dimensions.
    effect_share_without_attention : float
        Where attention bears no witness a massive peak must hold the majority.
    companion_ratio : float
        A dimension with less than this part of the leading dimension's energy on its own sink tokens is a companion.
    attention_sink : float
        A token whose mean attention from later queries is above this is an attention sink.
    minimum_later_queries : int
        Attention of tokens with fewer later queries is too noisy to judge.
    link_f1 : float
        Massive tokens and attention sinks must agree at least so well in a layer: at F1 = 2/3, half of the tokens that
        are one or the other are both.
    minimum_stability : float
        Below this share of bootstraps the verdict is "uncertain".
    bootstraps : int
        Resamplings of the calibration samples.
    minimum_samples, minimum_tokens : int
        Below these the profile carries a warning.
    seed : int
        Of the bootstrap.
    """

    false_discovery_rate: float = 0.01
    typical_quantile: float = 0.75
    top_tokens: int = 16
    effect_share: float = 0.1
    effect_share_without_attention: float = 0.5
    companion_ratio: float = 0.05
    attention_sink: float = 0.10
    minimum_later_queries: int = 40
    link_f1: float = 2 / 3
    minimum_stability: float = 0.9
    bootstraps: int = 50
    minimum_samples: int = 16
    minimum_tokens: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name in {"top_tokens", "bootstraps"} and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
            if isinstance(value, float) and not 0 <= value <= 1:
                raise InputError(f"{name} is {value}; it must lie between 0 and 1")
        if not 0 < self.false_discovery_rate < 1:
            raise InputError(f"false_discovery_rate is {self.false_discovery_rate}; it must lie between 0 and 1")

    def to_dict(self) -> dict[str, Any]:
        """All thresholds, ready for JSON."""
        return asdict(self)

    def minimum_run(self, num_layers: int) -> int:
        """Consecutive hidden states in which a dimension must persist: 2 in shallow models, 3 from 24 layers on."""
        return min(3, max(2, num_layers // 8))
