"""Forward passes with edited sink tokens: the attention they draw, and the loss on what comes later.

All edits of one sample at one layer go through the model together: the layers before it run once, and the edited state
enters the layer with one sample per edit. Where a model cannot do that (the first such pass is compared with the plain
one), the edits go one by one.
"""

import contextlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sinkscope.backbone.attention import attention_tap
from sinkscope.backbone.hooks import StateCallback, edited_state, entering_states
from sinkscope.backbone.loading import LoadedModel
from sinkscope.backbone.running import FAILURES, input_device, model_dtype
from sinkscope.backbone.tensor_parallel import team_of
from sinkscope.capture.attention import AttentionMeter
from sinkscope.capture.encode import KIND_TEXT, EncodedSample, model_inputs
from sinkscope.causal.design import NO_EDIT, Edit
from sinkscope.causal.settings import CausalSettings
from sinkscope.errors import InputError, SinkscopeError

TOLERANCE = 0.02
"""How far drawn attention (as a fraction) and loss (in nats) may differ between a plain pass and one with many edits:
rounding in bfloat16 stays below, a pass that mixes samples up does not."""


@dataclass(frozen=True)
class Prepared:
    """A sample ready for the model.

    Attributes
    ----------
    encoded : EncodedSample
    inputs : dict
        Of a forward pass with this sample alone, on the model's device.
    queries : int64 [n]
        Positions whose next token is a text token and counts for the loss, ascending.
    """

    encoded: EncodedSample
    inputs: dict[str, Any]
    queries: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.encoded)


@dataclass(frozen=True)
class Reading:
    """Of B passes: drawn float32 [B, T, L] with NaN where nothing is measured, losses float32 [B, n] in nats."""

    drawn: NDArray[np.float32] | None
    losses: NDArray[np.float32] | None


class Probe:
    """Reads a model with and without edits.

    Parameters
    ----------
    loaded : LoadedModel
    attention : bool
        Whether the attention can be measured.
    settings : CausalSettings
    """

    def __init__(self, loaded: LoadedModel, attention: bool, settings: CausalSettings) -> None:
        self.loaded, self.attention, self.settings = loaded, attention, settings
        self.team = team_of(loaded.model)
        self.together: bool | None = None
        """Whether many edits can go through the model at once; None until it has been tried."""

    def prepare(self, encoded: EncodedSample) -> Prepared:
        """Inputs on the model's device, and the positions that count for the loss."""
        inputs, _ = model_inputs(self.loaded, [encoded])
        model = self.loaded.model
        device, dtype = input_device(model), model_dtype(model)
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                inputs[name] = value.to(device, dtype if value.is_floating_point() else value.dtype)
        queries = np.flatnonzero(encoded.kinds[1:] == KIND_TEXT)
        if len(queries) > self.settings.loss_targets:
            queries = queries[np.linspace(0, len(queries) - 1, self.settings.loss_targets).round().astype(np.int64)]
        return Prepared(encoded, inputs, queries)

    def plain(self, sample: Prepared, callback: StateCallback) -> Reading:
        """One pass without edits; `callback` is given the state entering each layer, Tensor [1, T, D]."""
        with entering_states(self.loaded.model, self.loaded.anatomy, callback):
            return self._pass(sample, 1, 0)

    def edited(
        self, sample: Prepared, layer: int, rows: Sequence[int], edits: Sequence[Edit], plain: Reading
    ) -> Reading:
        """A reading for each edit of the state entering `layer` at the tokens `rows`."""
        readings: list[Reading] = []
        left = list(edits)
        while left:
            size = self._batch_size(sample)
            chosen, left = left[:size], left[size:]
            if self.together is None and size > 1:
                # Only what holds without an edit can be trusted with one.
                self.together = self._agrees(sample, layer, rows, [NO_EDIT, *chosen], plain)
                left = chosen + left
                continue
            readings.append(self._edited(sample, layer, rows, chosen))
        return Reading(
            _joined([reading.drawn for reading in readings]), _joined([reading.losses for reading in readings])
        )

    def _batch_size(self, sample: Prepared) -> int:
        if self.together is False:
            return 1
        vocabulary = self.loaded.anatomy.vocab_size or 2**16
        logits = max(1, len(sample.queries)) * vocabulary
        return max(1, min(self.settings.batch_tokens // len(sample), self.settings.batch_logits // logits))

    def _agrees(self, sample: Prepared, layer: int, rows: Sequence[int], edits: Sequence[Edit], plain: Reading) -> bool:
        try:
            reading = self._edited(sample, layer, rows, edits)
        except SinkscopeError:
            return False
        for found, expected in ((reading.drawn, plain.drawn), (reading.losses, plain.losses)):
            if found is None or expected is None:
                continue
            if found is reading.drawn:
                found, expected = found[..., layer:], expected[..., layer:]
            if len(found) != len(edits) or not np.allclose(found[0], expected[0], atol=TOLERANCE, equal_nan=True):
                return False
        return True

    def _edited(self, sample: Prepared, layer: int, rows: Sequence[int], edits: Sequence[Edit]) -> Reading:
        def edit(state: Tensor) -> Tensor:
            return torch.stack([entry.apply(state[0], rows) for entry in edits])

        with edited_state(self.loaded.model, self.loaded.anatomy, layer, edit):
            return self._pass(sample, len(edits), layer)

    def _pass(self, sample: Prepared, batch: int, first: int) -> Reading:
        """One forward pass in which `batch` samples enter layer `first`; attention is measured from there on."""
        model, anatomy = self.loaded.model, self.loaded.anatomy
        meter = AttentionMeter(anatomy.num_layers, self.team)
        with contextlib.ExitStack() as stack:
            if self.attention:
                meter.begin(np.ones((batch, len(sample)), bool))
                stack.enter_context(attention_tap(model, anatomy, meter, range(first, anatomy.num_layers)))
            try:
                logits = next_token_logits(model, sample.inputs, sample.queries)
            except torch.OutOfMemoryError as error:
                raise SinkscopeError(
                    f"out of memory in a causal check of {batch * len(sample)} tokens; load the model with --dtype "
                    "bfloat16, or use another --device"
                ) from error
            except FAILURES as error:
                if isinstance(error, InputError):
                    raise
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                raise SinkscopeError(
                    f"the forward pass of {self.loaded.model_id} failed in the causal check ({reason}); leave out "
                    "--causal"
                ) from error
        targets = sample.encoded.ids[sample.queries + 1]
        return Reading(
            meter.finish().drawn if self.attention else None, None if logits is None else cross_entropy(logits, targets)
        )


def next_token_logits(model: nn.Module, inputs: dict[str, Any], positions: NDArray[np.int64]) -> Tensor | None:
    """Logits [B, n, V] at the positions, or None where there are no positions or the model has no such head.

    Only these are computed where the model allows that: a large vocabulary costs more than the layers of a small model.
    """
    parameters = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {}
    if "use_cache" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        options["use_cache"] = False
    chosen = torch.from_numpy(positions)
    if "logits_to_keep" in parameters:
        options["logits_to_keep"] = chosen if len(chosen) else torch.tensor([-1])
    output = model(**inputs, **options)
    logits = getattr(output, "logits", None)
    if logits is None or not len(chosen):
        return None
    return logits if logits.shape[1] == len(chosen) else logits[:, chosen.to(logits.device)]


def cross_entropy(logits: Tensor, targets: NDArray[np.int32]) -> NDArray[np.float32]:
    """Loss in nats, float32 [B, n], of logits [B, n, V] and the tokens that came, int32 [n]."""
    expected = torch.from_numpy(targets.astype(np.int64)).to(logits.device)
    # One sample at a time, because a float32 copy of all the logits may not fit.
    losses = [nn.functional.cross_entropy(entry.float(), expected, reduction="none") for entry in logits]
    return torch.stack(losses).cpu().numpy()


def _joined(parts: list[Any]) -> NDArray[np.float32] | None:
    return None if not parts or any(part is None for part in parts) else np.concatenate(parts)
