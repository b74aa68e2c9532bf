"""The layout of a run file: names, shapes, dtypes and the schema version.

::

    /                       attributes: schema_version, status, model_id, revision, backbone, dtype, settings,
                            calibration, seed, versions, attention, num_layers, hidden_size
    /tokens                 id, position, sample, kind                                        [N]
    /token_text             id, text                                                          [distinct ids]
    /statistics             the accumulators over all calibration tokens                      [L+1, D, ...]
    /largest                dim, value [N, L+1, M], rms [N, L+1]
    /sampled                token [S], states [S, L+1, D]
    /peaks                  place [samples, L+1, Q], states [samples, L+1, Q, D], where they are kept
    /attention              token, later_queries [A]; drawn, expected, value_norm [A, L]
    /recovery               the second slot of the accumulators, of use to a running file only
    /checksums              CRC-32 of every sample's rows, one dataset each for `ROW_DATASETS`  [samples]
    /samples                fingerprint [samples]; part [2, samples] in a part of a larger run
    /progress               order [samples], record [2, RECORD_BYTES], seal [SEAL_BYTES]

The structure is written once, before the first batch, at its final size. From then on bytes are only overwritten in
place, so that no kill can leave a half-written structure behind. Rows stand in the order of the samples, whatever the
order in which batches are computed; `/progress/order` gives that order, and the record how many of its samples are
committed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sinkscope.store.tokens import TOKEN_DTYPES, TokenTable

SCHEMA_VERSION = "2.0"

KIND_TEXT, KIND_SPECIAL, KIND_VISUAL = 0, 1, 2
KIND_NAMES = ("text", "special", "visual")

STATUS_RUNNING, STATUS_COMPLETE = "running", "complete"
ATTENTION_MEASURED, ATTENTION_NOT_REQUESTED, ATTENTION_UNAVAILABLE = "measured", "not requested", "unavailable: "

DEFAULT_TOP_TOKENS = 16
DEFAULT_LARGEST = 8
DEFAULT_LEVELS = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.9)

STATUS_BYTES, ATTENTION_BYTES, RECORD_BYTES = 16, 512, 2048

TOKEN_LIMIT, SAMPLE_LIMIT = 2**32, 2**31
"""A run has no more tokens, whose rows are half of a 64-bit key, and no more samples, whose numbers are int32."""

TEXT_ATTRIBUTES = ("schema_version", "model_id", "revision", "dtype")
JSON_ATTRIBUTES = ("backbone", "settings", "calibration", "versions")
NUMBER_ATTRIBUTES = ("seed", "num_layers", "hidden_size")

STATISTICS_GROUPS = ("statistics", "recovery")
ROW_DATASETS = (
    "largest/dim",
    "largest/value",
    "largest/rms",
    "sampled/states",
    "peaks/place",
    "peaks/states",
    "attention/drawn",
    "attention/later_queries",
    "attention/expected",
    "attention/value_norm",
)


@dataclass(frozen=True)
class RunAttributes:
    """What a run is about. `revision` is None where the model has none; the JSON attributes are decoded."""

    model_id: str
    revision: str | None
    backbone: Mapping[str, Any]
    dtype: str
    settings: Mapping[str, Any]
    calibration: Mapping[str, Any]
    seed: int
    versions: Mapping[str, Any]
    num_layers: int
    hidden_size: int
    attention: str = ATTENTION_NOT_REQUESTED
    status: str = STATUS_RUNNING
    schema_version: str = SCHEMA_VERSION


@dataclass(frozen=True)
class Statistics:
    """Accumulators over all calibration tokens; index l is the hidden state entering layer l, l = L the last output.

    Attributes
    ----------
    count : int64 []
        Number of tokens.
    topk_odds : float32 [L+1, D, K]
        The K highest odds, sorted down: x_d^2 over the energy of the token's other dimensions, where those that lead
        beside it (at least a twentieth of the largest one's energy) are left out; 0 where there are fewer than K
        tokens.
    topk_token : int64 [L+1, D, K]
        Rows of the token table that hold them, ties by lower row; -1 where there are fewer than K tokens.
    peak_magnitude : float32 [L+1, D]
        Largest |x_d|.
    exceedance : int64 [L+1, D, E]
        Number of tokens whose odds reach share / (1 - share) for each of `levels`.
    sum_normed, sum_abs_normed, sum_square_normed : float64 [L+1, D]
        Sums over tokens of x_d / RMS, of its absolute value, and of its square.
    sum_rms : float64 [L+1]
        Sum over tokens of RMS(x).
    levels : tuple of float
        The energy shares of `exceedance`.
    """

    count: NDArray[np.int64]
    topk_odds: NDArray[np.float32]
    topk_token: NDArray[np.int64]
    peak_magnitude: NDArray[np.float32]
    exceedance: NDArray[np.int64]
    sum_normed: NDArray[np.float64]
    sum_abs_normed: NDArray[np.float64]
    sum_square_normed: NDArray[np.float64]
    sum_rms: NDArray[np.float64]
    levels: tuple[float, ...] = DEFAULT_LEVELS

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The stored arrays by name, in the order of `STATISTICS_FIELDS`."""
        return {name: getattr(self, name) for name in STATISTICS_FIELDS}


STATISTICS_FIELDS = tuple(field.name for field in fields(Statistics) if field.name != "levels")

STATISTICS_MERGE = {
    "count": "sum",
    "topk_odds": "top",
    "topk_token": "top",
    "peak_magnitude": "max",
    "exceedance": "sum",
    "sum_normed": "sum",
    "sum_abs_normed": "sum",
    "sum_square_normed": "sum",
    "sum_rms": "sum",
}
"""How the accumulators over two disjoint sets of tokens combine into those over both: the sum, the larger one, or the K
largest odds of both with their tokens. Sums in float64 merge up to rounding, all else exactly."""


@dataclass(frozen=True)
class AttentionTable:
    """Attention that tokens draw, measured on a seeded part of the samples.

    Attributes
    ----------
    token : int64 [A]
        Rows of the token table.
    drawn : float32 [A, L]
        Mean over heads and over the strictly later queries of the same sample of the attention to this token. NaN
        where the layer has no softmax attention or the token has no later query.
    later_queries : int32 [A]
        Number of strictly later queries.
    expected : float32 [A, L]
        What uniform attention over the visible keys would give, averaged over the same queries.
    value_norm : float32 [A, L]
        Mean over key-value heads of the norm of the token's value vector.
    """

    token: NDArray[np.int64]
    drawn: NDArray[np.float32]
    later_queries: NDArray[np.int32]
    expected: NDArray[np.float32]
    value_norm: NDArray[np.float32]


@dataclass(frozen=True)
class SampleRows:
    """The rows of one sample of n tokens, s of them in `/sampled`, as the writer takes them.

    Attributes
    ----------
    sample : int
        Number of the sample.
    largest_dim : int32 [n, L+1, M]
    largest_value : float32 [n, L+1, M]
    rms : float32 [n, L+1]
    states : float16 [s, L+1, D]
        x / RMS of the tokens that the plan chose.
    drawn, expected, value_norm : float32 [n, L], later_queries : int32 [n], optional
        Attention, for the samples that the plan chose.
    peak_place : int32 [1, L+1, Q], peak_states : float16 [1, L+1, Q, D], optional
        In every layer, the tokens with the highest odds in any dimension: their places in the sample, -1 where it is
        too short, and x / RMS. Where the plan keeps them.
    """

    sample: int
    largest_dim: NDArray[np.int32]
    largest_value: NDArray[np.float32]
    rms: NDArray[np.float32]
    states: NDArray[np.float16]
    drawn: NDArray[np.float32] | None = None
    later_queries: NDArray[np.int32] | None = None
    expected: NDArray[np.float32] | None = None
    value_norm: NDArray[np.float32] | None = None
    peak_place: NDArray[np.int32] | None = None
    peak_states: NDArray[np.float16] | None = None

    @classmethod
    def of(cls, sample: int, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """From the rows by the names of `ROW_DATASETS`."""
        return cls(sample, **{_row_field(name): array for name, array in arrays.items()})

    def dataset(self, name: str) -> NDArray[Any] | None:
        """The rows that belong to one of `ROW_DATASETS`."""
        rows: NDArray[Any] | None = getattr(self, _row_field(name))
        return rows


def _row_field(name: str) -> str:
    """The field of `SampleRows` with the rows of a dataset."""
    group, _, field_name = name.partition("/")
    joined = {"largest/dim", "largest/value", "peaks/place", "peaks/states"}
    return f"{group.removesuffix('s')}_{field_name}" if name in joined else field_name


@dataclass(frozen=True)
class RunPlan:
    """Everything about a run that is fixed before its first batch.

    Attributes
    ----------
    attributes : RunAttributes
    tokens : TokenTable
        All tokens, with samples numbered from 0 and their rows together and in order.
    token_text : mapping of int to str
        Text of the distinct ids.
    order : int32 [samples]
        The order in which the samples are computed and committed.
    sampled_tokens : int64 [S]
        Rows whose hidden states are stored, ascending.
    attention_tokens : int64 [A]
        Rows whose attention is stored, ascending: whole samples. Empty without attention.
    top_tokens, largest, levels
        K, M and the energy shares of the statistics.
    fingerprints : uint64 [samples]
        Of the samples' contents.
    peak_states : int
        Q, the number of tokens of every sample and layer whose hidden states are stored for their high peaks.
    part : int32 [2, samples], optional
        Where the run is one part of a larger one: the number of every sample there, and its turn in that order.
    """

    attributes: RunAttributes
    tokens: TokenTable
    token_text: Mapping[int, str]
    order: NDArray[np.int32]
    sampled_tokens: NDArray[np.int64]
    attention_tokens: NDArray[np.int64]
    top_tokens: int = DEFAULT_TOP_TOKENS
    largest: int = DEFAULT_LARGEST
    levels: tuple[float, ...] = DEFAULT_LEVELS
    fingerprints: NDArray[np.uint64] = field(kw_only=True)
    part: NDArray[np.int32] | None = field(default=None, kw_only=True)
    peak_states: int = field(default=0, kw_only=True)

    @property
    def num_samples(self) -> int:
        return len(self.order)

    def spans(self, name: str) -> NDArray[np.int64]:
        """First and one-past-last row of every sample in a row dataset, int64 [samples, 2], not to be written to."""
        edges = self.tokens.edges
        if name.startswith("sampled/"):
            edges = np.searchsorted(self.sampled_tokens, edges)
        elif name.startswith("attention/"):
            edges = np.searchsorted(self.attention_tokens, edges)
        elif name.startswith("peaks/"):
            edges = np.arange(self.num_samples + 1)
        return np.lib.stride_tricks.sliding_window_view(edges, 2)


def statistics_layout(plan: RunPlan) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every array of a statistics group."""
    depth, width = plan.attributes.num_layers + 1, plan.attributes.hidden_size
    return {
        "count": ((), "int64"),
        "topk_odds": ((depth, width, plan.top_tokens), "float32"),
        "topk_token": ((depth, width, plan.top_tokens), "int64"),
        "peak_magnitude": ((depth, width), "float32"),
        "exceedance": ((depth, width, len(plan.levels)), "int64"),
        "sum_normed": ((depth, width), "float64"),
        "sum_abs_normed": ((depth, width), "float64"),
        "sum_square_normed": ((depth, width), "float64"),
        "sum_rms": ((depth,), "float64"),
    }


def row_layout(plan: RunPlan) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every row dataset, by name. Attention is left out where the plan has none."""
    depth, width = plan.attributes.num_layers + 1, plan.attributes.hidden_size
    count, sampled, attended = len(plan.tokens), len(plan.sampled_tokens), len(plan.attention_tokens)
    layout: dict[str, tuple[tuple[int, ...], str]] = {
        "largest/dim": ((count, depth, plan.largest), "int32"),
        "largest/value": ((count, depth, plan.largest), "float32"),
        "largest/rms": ((count, depth), "float32"),
        "sampled/states": ((sampled, depth, width), "float16"),
    }
    if plan.peak_states:
        each = (plan.num_samples, depth, plan.peak_states)
        layout |= {"peaks/place": (each, "int32"), "peaks/states": ((*each, width), "float16")}
    if attended:
        layers = plan.attributes.num_layers
        layout |= {
            "attention/drawn": ((attended, layers), "float32"),
            "attention/later_queries": ((attended,), "int32"),
            "attention/expected": ((attended, layers), "float32"),
            "attention/value_norm": ((attended, layers), "float32"),
        }
    return layout


def stored_bytes(plan: RunPlan) -> int:
    """Bytes of the rows and both slots of the accumulators: nearly all of the run file."""
    layouts = [*row_layout(plan).values(), *2 * list(statistics_layout(plan).values())]
    return sum(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize for shape, dtype in layouts)


def file_bytes(plan: RunPlan) -> int:
    """Bytes of the whole run file, to within a few thousand; never less than it has."""
    tables = (plan.fingerprints, plan.order, plan.sampled_tokens, plan.attention_tokens)
    texts = sum(len(text.encode("utf-8", "replace")) + 48 for text in plan.token_text.values())
    checksums = 4 * len(row_layout(plan)) * plan.num_samples
    columns = len(plan.tokens) * sum(np.dtype(dtype).itemsize for dtype in TOKEN_DTYPES.values())
    return stored_bytes(plan) + columns + sum(table.nbytes for table in tables) + checksums + texts + 2**16


def empty_statistics(plan: RunPlan) -> Statistics:
    """Statistics of no tokens."""
    arrays: dict[str, NDArray[Any]] = {
        name: np.zeros(shape, dtype) for name, (shape, dtype) in statistics_layout(plan).items()
    }
    arrays["topk_token"].fill(-1)
    return Statistics(levels=plan.levels, **arrays)
