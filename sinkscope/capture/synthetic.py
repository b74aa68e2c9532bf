"""Run files from given hidden states, without a model: for tests, and for activations captured elsewhere."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from sinkscope.capture.attention import causal_expectation
from sinkscope.capture.collector import Collector
from sinkscope.errors import InputError
from sinkscope.store.choices import choose_tokens, content_fingerprint
from sinkscope.store.layout import (
    ATTENTION_MEASURED,
    ATTENTION_NOT_REQUESTED,
    DEFAULT_LARGEST,
    DEFAULT_LEVELS,
    DEFAULT_TOP_TOKENS,
    RunAttributes,
    RunPlan,
    SampleRows,
)
from sinkscope.store.tokens import TokenTable
from sinkscope.store.writer import RunWriter


def write_synthetic(
    path: str | os.PathLike[str],
    hidden_states: NDArray[Any] | torch.Tensor,
    samples: ArrayLike,
    positions: ArrayLike | None = None,
    kinds: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    token_text: Mapping[int, str] | None = None,
    drawn: ArrayLike | None = None,
    *,
    expected: ArrayLike | None = None,
    value_norm: ArrayLike | None = None,
    sampled: int | None = 1024,
    seed: int = 0,
    top_tokens: int = DEFAULT_TOP_TOKENS,
    largest: int = DEFAULT_LARGEST,
    levels: tuple[float, ...] = DEFAULT_LEVELS,
    **attributes: Any,
) -> Path:
    """Write a complete run file from hidden states.

    Parameters
    ----------
    path : path
        The run file; must not exist.
    hidden_states : float [L+1, T, D]
        Entry l is the hidden state entering layer l.
    samples : int [T]
        Sample of every token: 0, 1, 2, ..., each sample's tokens together and in order.
    positions : int [T], optional
        Position of every token in its sample; counted from 0 by default.
    kinds : uint8 [T], optional
        0 text (the default), 1 special, 2 visual.
    ids : int [T], optional
        Token ids; all 0 by default.
    token_text : mapping, optional
        Text of the ids; "token ID" by default.
    drawn : float [T, L], optional
        Attention drawn by every token, all samples; without it the run has no attention.
    expected, value_norm : float [T, L], optional
        As in `AttentionTable`; by default what causal attention allows, and 1.
    sampled : int or None
        Budget of stored hidden states; None stores all.
    seed, top_tokens, largest, levels
        As for a run.
    **attributes
        Fields of `RunAttributes` to set, such as ``model_id``.

    Returns
    -------
    Path
        The run file.

    Raises
    ------
    InputError
        If the shapes do not fit together or samples are not numbered in order.
    NonFiniteActivationError
        If a hidden state is not finite.
    """
    states = torch.as_tensor(hidden_states)
    sample = np.asarray(samples, np.int32)
    if states.dim() != 3 or sample.shape != (states.shape[1],) or len(sample) == 0:
        raise InputError(
            f"hidden_states must be [L+1, T, D] and samples [T]; they are {tuple(states.shape)} and {sample.shape}"
        )
    depth, count, width = states.shape
    steps = np.diff(sample)
    if sample[0] != 0 or not np.isin(steps, (0, 1)).all():
        raise InputError("samples must be numbered 0, 1, 2, ..., with the tokens of each together")
    num_samples = int(sample[-1]) + 1
    table = TokenTable(
        np.zeros(count, np.int32) if ids is None else np.asarray(ids, np.int32),
        np.zeros(count, np.uint8) if kinds is None else np.asarray(kinds, np.uint8),
        np.bincount(sample).astype(np.int32),
        None if positions is None else np.asarray(positions, np.int32),
    )
    starts = table.edges
    named = {int(identifier): f"token {identifier}" for identifier in np.unique(table.id)} | dict(token_text or {})
    defaults: dict[str, Any] = {
        "model_id": "synthetic",
        "revision": None,
        "backbone": {"model_type": "synthetic", "hidden_size": width, "num_layers": depth - 1},
        "dtype": str(states.dtype).removeprefix("torch."),
        "settings": {"largest": largest, "seed": seed, "top_tokens": top_tokens},
        "calibration": {"samples": num_samples, "source": "synthetic", "tokens": count},
        "seed": seed,
        "versions": {},
        "num_layers": depth - 1,
        "hidden_size": width,
        "attention": ATTENTION_NOT_REQUESTED if drawn is None else ATTENTION_MEASURED,
    }
    parts = (states[:, starts[i] : starts[i + 1]].float().cpu().numpy() for i in range(num_samples))
    fingerprints = np.array([content_fingerprint(part.tobytes()) for part in parts], np.uint64)
    plan = RunPlan(
        RunAttributes(**{**defaults, **attributes}),
        table,
        named,
        np.arange(num_samples, dtype=np.int32),
        choose_tokens(table, fingerprints, count if sampled is None else sampled, seed),
        np.arange(0 if drawn is None else count, dtype=np.int64),
        top_tokens,
        min(largest, width),
        levels,
        fingerprints=fingerprints,
    )
    collector = Collector(plan)
    collector.begin(range(num_samples))
    for layer, state in enumerate(states):
        collector(layer, state[None])
    rows = collector.finish()
    if drawn is not None:
        rows = _with_attention(rows, starts, depth - 1, drawn, expected, value_norm)
    with RunWriter.create(path, plan) as writer:
        for entry in rows:
            writer.write_sample(entry)
        writer.complete(collector.statistics())
    return Path(path)


def _with_attention(
    rows: list[SampleRows],
    starts: NDArray[np.int64],
    layers: int,
    drawn: ArrayLike,
    expected: ArrayLike | None,
    value_norm: ArrayLike | None,
) -> list[SampleRows]:
    count = int(starts[-1])
    later = np.concatenate([np.arange(size)[::-1] for size in np.diff(starts)]).astype(np.int32)
    if expected is None:
        expected = np.concatenate([causal_expectation(int(size)) for size in np.diff(starts)])[:, None]
    drawn, expected, value_norm = (
        np.ascontiguousarray(np.broadcast_to(np.asarray(array, np.float32), (count, layers)))
        for array in (drawn, expected, 1.0 if value_norm is None else value_norm)
    )
    spans = [slice(*starts[entry.sample : entry.sample + 2]) for entry in rows]
    return [
        replace(
            entry,
            drawn=drawn[span],
            later_queries=later[span],
            expected=expected[span],
            value_norm=value_norm[span],
        )
        for entry, span in zip(rows, spans, strict=True)
    ]
