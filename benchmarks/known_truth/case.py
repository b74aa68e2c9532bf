"""What a case of the benchmark is made of, and what is known about it once it is built."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

JUDGED_QUERIES = 40


@dataclass(frozen=True)
class Case:
    """Everything that decides a store. Built twice, it gives the same arrays.

    Attributes
    ----------
    seed : int
    stratum : str
        Under which results are gathered. Names of sink-free strata begin with "free".
    width, layers, samples, length : int
        D, L, the number of samples and their mean number of tokens.
    tail : int
        Degrees of freedom of the t distribution of ordinary activations; 0 for a normal one.
    spread : float
        Standard deviation of the logarithm of the dimensions' scales.
    growth : float
        RMS of the last hidden state over that of the first.
    scale : float
        RMS of the first hidden state.
    attention : bool
        Whether attention is measured.
    bfloat16 : bool
        Whether hidden states are rounded to bfloat16.
    bos : bool
        Samples begin with a BOS token, whose hidden states are alike in all of them.
    dims : int
        Number of sink dimensions of a regime; 0 for none.
    sizes : str
        "equal", or "falling" down to between 0.38 and 0.8 of the leading one.
    regimes : int
        Of layers, each with its own magnitude and tokens.
    moving : bool
        Whether the second regime has other dimensions.
    onset : str
        "early", "middle" or "late".
    magnitude : float
        Leading sink dimension over the layer's median magnitude. Negative where the energy share is given instead.
    triggers : tuple of str
        "first" (BOS or first token), "delimiter", "word", "visual": single tokens of a sample. "delimiters", "words",
        "content": all occurrences, without attention only; there a content dimension is massive as any other.
    split : bool
        Whether every trigger has sink dimensions of its own.
    rare : float
        Part of the samples in which a trigger other than the first of the list does not occur.
    everywhere : str
        "no"; "large": the sink dimension holds a good part of the energy of ordinary tokens; "saturated": most of it.
    companions : int
        Dimensions that rise on the same tokens, with at most a hundredth of the leading one's energy.
    hybrid : str
        "no"; else only every third or fourth layer has attention, and the spike lives in the hidden state right before
        it ("single"), in the two before it ("pair"), or throughout.
    decoys : tuple of str
        See `decoys.py`.
    level : float
        Mean attention that a sink token draws.
    dips : int
        Layers of a regime in which sink tokens draw little attention: they are not judged.
    attended : float
        Tokens attended to above 0.10 for other reasons, as a part of the number of sink tokens.
    """

    seed: int
    stratum: str
    width: int = 256
    layers: int = 8
    samples: int = 24
    length: int = 96
    tail: int = 5
    spread: float = 0.5
    growth: float = 8.0
    scale: float = 1.0
    attention: bool = True
    bfloat16: bool = False
    bos: bool = True
    dims: int = 0
    sizes: str = "equal"
    regimes: int = 1
    moving: bool = False
    onset: str = "early"
    magnitude: float = 300.0
    triggers: tuple[str, ...] = ("first",)
    split: bool = False
    rare: float = 0.0
    everywhere: str = "no"
    companions: int = 0
    hybrid: str = "no"
    decoys: tuple[str, ...] = ()
    level: float = 0.35
    dips: int = 0
    attended: float = 0.03

    def to_dict(self) -> dict[str, Any]:
        """All factors, ready for JSON."""
        return asdict(self)

    @property
    def free(self) -> bool:
        """Whether the store holds no sink dimension."""
        return self.dims == 0


@dataclass(frozen=True)
class Tokens:
    """The token table: id, position, sample int32 [T]; kind uint8 [T]; domain bool [T], tokens of another domain."""

    id: NDArray[np.int32]
    position: NDArray[np.int32]
    sample: NDArray[np.int32]
    kind: NDArray[np.uint8]
    domain: Mask
    text: dict[int, str]

    def __len__(self) -> int:
        return len(self.id)

    @property
    def later(self) -> NDArray[np.int64]:
        """How many later tokens the sample of every token has, int64 [T]."""
        return (np.bincount(self.sample)[self.sample] - 1 - self.position).astype(np.int64)

    @property
    def judged(self) -> Mask:
        """Tokens whose attention is no noise, bool [T]: 40 later queries, in short samples half of the sample."""
        half = np.bincount(self.sample)[self.sample] / 2
        return np.asarray(self.later >= np.minimum(JUDGED_QUERIES, half))


@dataclass(frozen=True)
class Measures:
    """What was planted, measured on the hidden states; every figure is the worst over sink dimensions and layers.

    A dimension's sink tokens are those in which it was planted. Layers that are not judged do not count.

    Attributes
    ----------
    share : float
        Median over its sink tokens of a sink dimension's energy share, its fellow sink dimensions left out.
    gap : float
        The 5 % quantile of a sink dimension's magnitude on its sink tokens over its largest on any other token.
    rise : float
        Median odds of the planted peak over the highest 99.9 % quantile, over tokens, of an ordinary dimension's odds.
    samples : int
        Samples with one of its sink tokens.
    layers : int
        Longest stretch of layers that read the peak; in a hybrid, the number of attention layers that do.
    drawn : float
        Mean attention drawn by its sink tokens that have enough later queries; NaN without attention.
    judged : int
        Number of those tokens.
    attended : float
        Tokens that draw more than 0.10 by chance, as a part of all sink tokens, both with enough later queries; mean
        over layers.
    """

    share: float
    gap: float
    rise: float
    samples: int
    layers: int
    drawn: float
    judged: int
    attended: float


@dataclass(frozen=True)
class Truth:
    """A built case.

    Attributes
    ----------
    case : Case
    states : float32 [L+1, T, D]
    tokens : Tokens
    drawn : float32 [T, L] or None
        NaN where a layer has no attention.
    dims : tuple of int
        The sink dimensions.
    acting : dict of int to bool [L+1]
        Hidden states in which each of them is massive.
    sinks : bool [L+1, T]
        Sink tokens of every hidden state.
    unsure : bool [L+1]
        Hidden states that are not judged: those in which a regime fades in or out and, in hybrids, those that enter a
        layer without attention.
    companions, decoys : tuple of int
        Dimensions that are none.
    separable : bool
        Whether the truth can be told from the data, by the rule in `truth.py`.
    measures : Measures or None
        None for a sink-free store.
    """

    case: Case
    states: NDArray[np.float32]
    tokens: Tokens
    drawn: NDArray[np.float32] | None
    dims: tuple[int, ...]
    acting: dict[int, Mask]
    sinks: Mask
    unsure: Mask
    companions: tuple[int, ...]
    decoys: tuple[int, ...]
    separable: bool
    measures: Measures | None
