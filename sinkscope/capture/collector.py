"""From hidden states to what a run file stores, batch by batch, without keeping a hidden state beyond its layer."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sinkscope.capture.collected import CollectedBatch, Kept
from sinkscope.capture.reading import TINY, LayerReading
from sinkscope.capture.reading_on_cpu import read_on_cpu
from sinkscope.capture.reading_on_device import read_on_device
from sinkscope.capture.statistics import LayerStatistics, collect_statistics, restore_statistics
from sinkscope.errors import SinkscopeError, UnsupportedModelError
from sinkscope.store.layout import RunPlan, SampleRows, Statistics

NOWHERE = -1


class Collector:
    """Takes hidden states layer by layer and gives rows and accumulators for the writer.

    For every batch: `begin`, then one call per layer 0..L in any order, then `finish`; or `close`, whose batch gives
    its rows later, while the next one runs. It works on the device of each hidden state; the host waits for a device
    once per batch, for the rows. No model is involved.

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

    def restore(self, statistics: Statistics) -> None:
        """Go on from stored accumulators."""
        self._stored = statistics
        self._layers = {}
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
        rows = np.concatenate([np.arange(*self._spans[sample]) for sample in samples])
        self._shape = (1, len(rows)) if valid is None else valid.shape
        place = np.arange(len(rows)) if valid is None else np.flatnonzero(valid.reshape(-1))
        order = np.argsort(rows, kind="stable")  # Ties between tokens are decided by their rows.
        self._rows, place = rows[order], place[order]
        self._index = None if np.array_equal(place, np.arange(np.prod(self._shape))) else place
        sampled = self.plan.sampled_tokens
        near = np.searchsorted(sampled, self._rows)
        self._chosen = np.flatnonzero(sampled.take(near, mode="clip") == self._rows) if len(sampled) else near[:0]
        self._on_device: dict[torch.device, dict[str, Tensor]] = {}
        self._before = (dict(self._layers), self.count)
        self._batch = CollectedBatch(self.plan, list(samples), self._rows, self._chosen)

    def __call__(self, layer: int, hidden_state: Tensor) -> None:
        """Take the hidden state entering `layer`, [B, T, D] of any floating dtype.

        Raises
        ------
        UnsupportedModelError
            If the layer was seen already, or the state does not hold the positions of the batch.
        """
        if layer in self._batch.layers:
            raise UnsupportedModelError(f"decoder layer {layer} runs twice in one pass, so its state is not one state")
        if hidden_state.shape[:2] != self._shape:
            raise UnsupportedModelError(
                f"the hidden state entering layer {layer} has {tuple(hidden_state.shape[:2])} samples and tokens, the "
                f"input {self._shape}: the model adds or drops positions on the way"
            )
        # Apple's MPS has no float64, which the sums need.
        if hidden_state.device.type == "mps":
            hidden_state = hidden_state.cpu()
        states = hidden_state.detach().reshape(-1, hidden_state.shape[-1])
        there = self._indices(states.device)
        before = self._statistics(layer, states.device)
        if states.device.type == "cpu":
            reading = read_on_cpu(states, there.get("index"), self._rows, before, self.plan.largest)
        else:
            reading = read_on_device(states, there.get("index"), there["rows"], before, self.plan.largest)
        self._layers[layer] = reading.statistics
        kept: Kept = {"largest_dim": reading.dim.to(torch.int32), "largest_value": reading.value, "rms": reading.rms}
        kept["states"] = self._normed(states, reading, there["chosen"])
        if self.plan.peak_states:
            kept |= self._peaks(states, reading, there["places"])
        self._batch.add(layer, kept, hidden_state.dtype)

    def close(self) -> CollectedBatch:
        """End the batch, whose tokens count from now on.

        Raises
        ------
        SinkscopeError
            If a layer was not seen.
        """
        missing = [layer for layer in range(self._depth) if layer not in self._batch.layers]
        if missing:
            raise SinkscopeError(
                f"no hidden state entering layer {missing[0]} was seen; the model skipped the layer, so it cannot be "
                "profiled with this input"
            )
        self.count += len(self._rows)
        self._batch.send()
        return self._batch

    def finish(self) -> list[SampleRows]:
        """End the batch, and wait for its rows, sample by sample in its order; errors as of `close` and of the rows."""
        return self.close().rows()

    def discard(self) -> None:
        """Forget the batch that was begun, as if it never was."""
        self._layers, self.count = self._before

    def snapshot(self) -> Callable[[], Statistics]:
        """The accumulators over all batches so far, to be brought to the host when called, from any thread."""
        layers = [self._statistics(layer, "cpu") for layer in range(self._depth)]
        return lambda: collect_statistics(layers)

    def statistics(self) -> Statistics:
        """The accumulators over all batches so far, on the host."""
        return self.snapshot()()

    def _statistics(self, layer: int, device: torch.device | str) -> LayerStatistics:
        if layer in self._layers:
            return self._layers[layer]
        if self._stored is not None:
            return restore_statistics(self._stored, layer, device)
        plan = self.plan
        return LayerStatistics.empty(plan.attributes.hidden_size, plan.top_tokens, plan.levels, device)

    def _indices(self, device: torch.device) -> dict[str, Tensor]:
        """What says where the tokens of the batch are, sent to a device once per batch.

        Rows in the token table; places of tokens among all positions, where these differ; places among the tokens of
        those that are sampled; and places among the tokens by sample, [B, longest], filled up with `NOWHERE`.
        """
        if device not in self._on_device:
            arrays = {"rows": self._rows, "chosen": self._chosen}
            if self._index is not None:
                arrays["index"] = self._index
            if self.plan.peak_states:
                arrays["places"] = self._batch.places(NOWHERE)
            self._on_device[device] = {
                name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in arrays.items()
            }
        return self._on_device[device]

    def _normed(self, states: Tensor, reading: LayerReading, tokens: Tensor) -> Tensor:
        """x / RMS of some tokens, int64 [s] gives float16 [s, D]; bounded by sqrt(D), so nothing overflows."""
        index = self._on_device[states.device].get("index")
        chosen = states.index_select(0, tokens if index is None else index.index_select(0, tokens)).float()
        return chosen.div_(reading.rms.index_select(0, tokens).clamp_min(TINY)[:, None]).half()

    def _peaks(self, states: Tensor, reading: LayerReading, places: Tensor) -> Kept:
        """The states of every sample's strongest tokens, and where these stand in their sample; ties by position."""
        strength = torch.where(places >= 0, reading.odds.amax(dim=1)[places.clamp_min(0)], -1.0)
        order = strength.argsort(dim=1, descending=True, stable=True)[:, : self.plan.peak_states]
        missing = self.plan.peak_states - order.shape[1]
        order = torch.nn.functional.pad(order, (0, missing), value=places.shape[1] - 1)
        tokens = places.gather(1, order)
        if missing > 0:
            tokens[:, -missing:] = NOWHERE
        some = tokens >= 0
        normed = self._normed(states, reading, tokens.clamp_min(0).reshape(-1)).unflatten(0, tokens.shape)
        return {
            "peak_place": torch.where(some, order, NOWHERE).to(torch.int32),
            "peak_states": normed.masked_fill_(~some[:, :, None], 0.0),
        }
