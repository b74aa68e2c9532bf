"""One batch on its way from the devices to the run file."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sinkscope.errors import NonFiniteActivationError, SinkscopeError
from sinkscope.store.layout import RunPlan, SampleRows

Kept = dict[str, Tensor]
"""What is kept of one layer of a batch, by the fields of `SampleRows`; the first axis is that of the rows."""


class _Sent(NamedTuple):
    """Layers of one device on their way, by field; the event is over when they are there."""

    layers: list[int]
    arrays: dict[str, Tensor]
    event: torch.cuda.Event | None


class CollectedBatch:
    """What is kept of a batch, gathered layer by layer.

    Layers on the CPU are put where they belong at once. Those of a CUDA device stay there until `send`, which copies
    them in one go per field into page-locked memory without waiting.

    Parameters
    ----------
    plan : RunPlan
    samples : list of int
        In the order of the batch.
    rows : int64 [T]
        Rows of the batch's tokens in the token table, ascending.
    chosen : int64 [s]
        Places among them of the sampled tokens.
    """

    def __init__(self, plan: RunPlan, samples: list[int], rows: NDArray[np.int64], chosen: NDArray[np.int64]) -> None:
        self.layers: set[int] = set()
        self._plan = plan
        self._samples = samples
        self._ascending = sorted(samples)
        self._rows = rows
        self._edges = np.append(0, np.cumsum(plan.tokens.lengths[self._ascending], dtype=np.int64))
        self._chosen = np.searchsorted(chosen, self._edges)
        self._arrays: dict[str, NDArray[Any]] = {}
        self._waiting: dict[int, Kept] = {}
        self._sent: list[_Sent] = []
        self._dtype = ""

    def places(self, nowhere: int) -> NDArray[np.int64]:
        """Places of the tokens by sample, int64 [B, longest], filled up with `nowhere`; samples in ascending order."""
        lengths = np.diff(self._edges)
        column = np.arange(lengths.max())
        return np.where(column < lengths[:, None], self._edges[:-1, None] + column, nowhere)

    def add(self, layer: int, kept: Kept, dtype: torch.dtype) -> None:
        """Take what is kept of a layer, whose hidden states had `dtype`."""
        self.layers.add(layer)
        self._dtype = str(dtype).removeprefix("torch.")
        if kept["rms"].device.type == "cpu":
            for name, tensor in kept.items():
                self._array(name, tensor)[:, layer] = tensor.numpy()
        else:
            self._waiting[layer] = kept

    def send(self) -> None:
        """Start copying to the host what is still elsewhere."""
        devices = {kept["rms"].device for kept in self._waiting.values()}
        for device in devices:
            layers = [layer for layer, kept in self._waiting.items() if kept["rms"].device == device]
            arrays, event = {}, None
            for name in self._waiting[layers[0]]:
                stacked = torch.stack([self._waiting[layer].pop(name) for layer in layers], dim=1)
                if device.type == "cuda":
                    host = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
                    arrays[name] = host.copy_(stacked, non_blocking=True)
                else:
                    arrays[name] = stacked.cpu()
            if device.type == "cuda":
                event = torch.cuda.current_stream(device).record_event()
            self._sent.append(_Sent(layers, arrays, event))
        self._waiting.clear()

    def rows(self) -> list[SampleRows]:
        """The rows of the batch, sample by sample in its order; waits for them.

        Raises
        ------
        NonFiniteActivationError
            If a hidden state holds NaN or infinity, or its squared norm passes the range of float32.
        SinkscopeError
            If a layer holds nothing but zeros.
        """
        for sent in self._sent:
            if sent.event is not None:
                sent.event.synchronize()
            self._put(sent)
        self._sent.clear()
        self._check(self._arrays["rms"])
        return [self._sample(self._ascending.index(sample)) for sample in self._samples]

    def _sample(self, place: int) -> SampleRows:
        tokens, chosen = slice(*self._edges[place : place + 2]), slice(*self._chosen[place : place + 2])
        arrays = {
            name: array[chosen if name == "states" else slice(place, place + 1) if "peak" in name else tokens]
            for name, array in self._arrays.items()
        }
        return SampleRows(self._ascending[place], **arrays)

    def _put(self, sent: _Sent) -> None:
        depth = self._plan.attributes.num_layers + 1
        for name, tensor in sent.arrays.items():
            if sent.layers == list(range(depth)):  # All on one device, as usual: nothing to put together.
                self._arrays[name] = tensor.numpy()
                continue
            array = self._array(name, tensor[:, 0])
            for place, layer in enumerate(sent.layers):
                array[:, layer] = tensor[:, place].numpy()

    def _array(self, name: str, one_layer: Tensor) -> NDArray[Any]:
        """The array of a field, [rows, L+1, ...], made when the first layer is there."""
        if name not in self._arrays:
            like = one_layer[:0].cpu().numpy()
            shape = (len(one_layer), self._plan.attributes.num_layers + 1, *like.shape[1:])
            self._arrays[name] = np.empty(shape, like.dtype)
        return self._arrays[name]

    def _check(self, rms: NDArray[np.float32]) -> None:
        finite = np.isfinite(rms)
        if not finite.all():
            layer = int(np.flatnonzero(~finite.all(axis=0))[0])
            row = self._rows[np.flatnonzero(~finite[:, layer])[0]]
            tokens = self._plan.tokens
            advice = "bfloat16 or float32" if self._dtype == "float16" else "float32"
            remedy = "check the model's weights" if self._dtype == "float32" else f"run again with --dtype {advice}"
            raise NonFiniteActivationError(
                f"the hidden state entering layer {layer} is not finite in sample {tokens.sample_of(row)} at "
                f"position {tokens.position_of(row)} (dtype {self._dtype}); {remedy}"
            )
        if (zero := np.flatnonzero(~rms.any(axis=0))).size:
            raise SinkscopeError(
                f"every hidden state entering layer {int(zero[0])} is zero; the model was not loaded whole or runs "
                "where hooks do not see it: load it on one device with --device"
            )
