"""From hidden states to what a run file stores, batch by batch, without keeping a hidden state beyond its layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sinkscope.capture.statistics import LayerStatistics, TokenNorms, collect_statistics, restore_fields
from sinkscope.errors import NonFiniteActivationError, SinkscopeError, UnsupportedModelError
from sinkscope.store.layout import RunPlan, SampleRows, Statistics


@dataclass
class _LayerBatch:
    """What is kept of one layer of a batch, on its device: [T, M], [T, M], [T], [s, D], and two flags."""

    dim: Tensor
    value: Tensor
    rms: Tensor
    states: Tensor
    finite: Tensor
    nonzero: Tensor
    dtype: torch.dtype


class Collector:
    """Takes hidden states layer by layer and gives rows and accumulators for the writer.

    For every batch: `begin`, then one call per layer 0..L in any order, then `finish`. It works on the device of each
    hidden state; the host waits for a device once per batch, in `finish`. No model is involved.

    Parameters
    ----------
    plan : RunPlan
        Tokens, sampled tokens, K, M and levels.
    """

    def __init__(self, plan: RunPlan) -> None:
        self.plan = plan
        self.count = 0
        self._depth = plan.attributes.num_layers + 1
        self._layers: dict[int, LayerStatistics] = {}
        self._stored: Statistics | None = None
        self._spans = plan.spans("tokens")
        self._sampled = np.zeros(len(plan.tokens), bool)
        self._sampled[plan.sampled_tokens] = True

    def restore(self, statistics: Statistics) -> None:
        """Go on from stored accumulators."""
        self._stored = statistics
        self._layers.clear()
        self.count = int(statistics.count)

    def begin(self, samples: Sequence[int], valid: NDArray[np.bool_] | None = None) -> None:
        """Announce a batch.

        Parameters
        ----------
        samples : sequence of int
            The samples of the batch, in its order.
        valid : bool [B, T], optional
            Which positions hold tokens; row b holds the tokens of ``samples[b]`` in order, wherever its padding is.
            Without it the hidden states are [1, T, D] with the tokens of all samples one after another.

        Raises
        ------
        ValueError
            If the numbers of tokens do not fit the plan.
        """
        lengths = self._spans[list(samples), 1] - self._spans[list(samples), 0]
        if valid is not None and not np.array_equal(valid.sum(axis=1), lengths):
            raise ValueError(f"the batch holds {valid.sum(axis=1).tolist()} tokens, the plan {lengths.tolist()}")
        self._samples = list(samples)
        self._rows = np.concatenate([np.arange(*self._spans[sample]) for sample in samples])
        self._shape = (1, len(self._rows)) if valid is None else valid.shape
        self._index = None if valid is None or valid.all() else np.flatnonzero(valid.reshape(-1))
        self._chosen = np.flatnonzero(self._sampled[self._rows])
        self._batch: dict[int, _LayerBatch] = {}
        self._on_device: dict[torch.device, tuple[Tensor, Tensor | None, Tensor]] = {}

    def __call__(self, layer: int, hidden_state: Tensor) -> None:
        """Take the hidden state entering `layer`, [B, T, D] of any floating dtype.

        Raises
        ------
        UnsupportedModelError
            If the layer was seen already, or the state does not hold the positions of the batch.
        """
        if layer in self._batch:
            raise UnsupportedModelError(f"decoder layer {layer} runs twice in one pass, so its state is not one state")
        if hidden_state.shape[:2] != self._shape:
            raise UnsupportedModelError(
                f"the hidden state entering layer {layer} has {tuple(hidden_state.shape[:2])} samples and tokens, the "
                f"input {self._shape}: the model adds or drops positions on the way"
            )
        # Apple's MPS has no float64, which the sums need.
        if hidden_state.device.type == "mps":
            hidden_state = hidden_state.cpu()
        rows, index, chosen = self._indices(hidden_state.device)
        states = hidden_state.detach().reshape(-1, hidden_state.shape[-1])
        if index is not None:
            states = states.index_select(0, index)
        states = states.float()
        norms = TokenNorms.of(states, self.plan.largest)
        scale = norms.rms.index_select(0, chosen).clamp_min(torch.finfo(torch.float32).tiny)
        self._batch[layer] = _LayerBatch(
            dim=norms.largest_dim.to(torch.int32),
            value=states.gather(1, norms.largest_dim),
            rms=norms.rms,
            states=(states.index_select(0, chosen) / scale[:, None]).half(),
            finite=norms.energy.isfinite(),
            nonzero=norms.energy.amax() > 0,
            dtype=hidden_state.dtype,
        )
        self._statistics(layer, states.device).update(norms, rows)

    def finish(self) -> list[SampleRows]:
        """The rows of the batch, sample by sample in its order.

        Raises
        ------
        NonFiniteActivationError
            If a hidden state holds NaN or infinity, or its squared norm passes the range of float32.
        SinkscopeError
            If a layer was not seen, or holds nothing but zeros.
        """
        missing = [layer for layer in range(self._depth) if layer not in self._batch]
        if missing:
            raise SinkscopeError(
                f"no hidden state entering layer {missing[0]} was seen; the model skipped the layer, so it cannot be "
                "profiled with this input"
            )
        layers = [self._batch.pop(layer) for layer in range(self._depth)]
        finite = _to_host([layer.finite for layer in layers])
        nonzero = _to_host([layer.nonzero for layer in layers])
        self._check(finite, nonzero, str(layers[0].dtype).removeprefix("torch."))
        dim = _to_host([layer.dim for layer in layers])
        value = _to_host([layer.value for layer in layers])
        rms = _to_host([layer.rms for layer in layers])
        states = _to_host([layer.states for layer in layers])
        self.count += len(self._rows)
        ends = np.cumsum(self._spans[self._samples, 1] - self._spans[self._samples, 0])
        edges = np.concatenate([[0], ends])
        chosen = np.searchsorted(self._chosen, edges)
        return [
            SampleRows(
                sample,
                dim[edges[i] : edges[i + 1]],
                value[edges[i] : edges[i + 1]],
                rms[edges[i] : edges[i + 1]],
                states[chosen[i] : chosen[i + 1]],
            )
            for i, sample in enumerate(self._samples)
        ]

    def statistics(self) -> Statistics:
        """The accumulators over all batches so far, on the host."""
        return collect_statistics([self._statistics(layer, "cpu") for layer in range(self._depth)], self.count)

    def _statistics(self, layer: int, device: torch.device | str) -> LayerStatistics:
        if layer not in self._layers:
            plan = self.plan
            made = LayerStatistics(plan.attributes.hidden_size, plan.top_tokens, plan.levels, device)
            if self._stored is not None:
                made.load(restore_fields(self._stored, layer))
            self._layers[layer] = made
        return self._layers[layer]

    def _indices(self, device: torch.device) -> tuple[Tensor, Tensor | None, Tensor]:
        """Rows, valid positions and sampled positions of the batch, sent to a device once per batch."""
        if device not in self._on_device:
            index = None if self._index is None else torch.from_numpy(self._index).to(device, non_blocking=True)
            self._on_device[device] = (
                torch.from_numpy(self._rows).to(device, non_blocking=True),
                index,
                torch.from_numpy(self._chosen).to(device, non_blocking=True),
            )
        return self._on_device[device]

    def _check(self, finite: NDArray[Any], nonzero: NDArray[Any], dtype: str) -> None:
        if not finite.all():
            layer = int(np.flatnonzero(~finite.all(axis=0))[0])
            row = int(self._rows[np.flatnonzero(~finite[:, layer])[0]])
            advice = "bfloat16 or float32" if dtype == "float16" else "float32"
            remedy = "check the model's weights" if dtype == "float32" else f"run again with --dtype {advice}"
            raise NonFiniteActivationError(
                f"the hidden state entering layer {layer} is not finite in sample {self.plan.tokens.sample[row]} at "
                f"position {self.plan.tokens.position[row]} (dtype {dtype}); {remedy}"
            )
        if not nonzero.all():
            raise SinkscopeError(
                f"every hidden state entering layer {int(np.flatnonzero(~nonzero)[0])} is zero; the model was not "
                "loaded whole or runs where hooks do not see it: load it on one device with --device"
            )


def _to_host(tensors: list[Tensor]) -> NDArray[Any]:
    """Tensors of one shape [T, ...] stacked behind their first axis, [T, L+1, ...], in one copy where on one device."""
    if len({tensor.device for tensor in tensors}) > 1:
        tensors = [tensor.cpu() for tensor in tensors]
    stacked = torch.stack(tensors, dim=min(1, tensors[0].dim()))
    return stacked.cpu().numpy()
