"""A capture run: calibration samples through the model into one run file."""

import contextlib
import inspect
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sinkscope.backbone.anatomy import decoder_holders
from sinkscope.backbone.attention import attention_tap
from sinkscope.backbone.hooks import entering_states
from sinkscope.backbone.loading import LoadedModel
from sinkscope.calibration import Sample
from sinkscope.capture.attention import AttentionMeter
from sinkscope.capture.collector import Collector
from sinkscope.capture.encode import EncodedSample, encode_text, model_inputs
from sinkscope.capture.planning import CapturePlan, make_plan, model_dtype
from sinkscope.capture.settings import CaptureSettings
from sinkscope.errors import InputError, SinkscopeError, UnsupportedModelError
from sinkscope.store.layout import (
    ATTENTION_MEASURED,
    ATTENTION_NOT_REQUESTED,
    ATTENTION_UNAVAILABLE,
    SampleRows,
)
from sinkscope.store.writer import RunWriter

Progress = Callable[[int, int], None]
"""Called after every batch with the tokens done and the tokens in all."""


def run(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    run_path: str | os.PathLike[str],
    settings: CaptureSettings | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    *,
    source: str = "given samples",
) -> Path:
    """Measure a model on calibration samples and write the run file.

    Parameters
    ----------
    loaded : LoadedModel
    samples : sequence of Sample
        Texts, and pictures for a multimodal model.
    run_path : path
        The run file. It is complete when its attribute `status` is "complete"; a run that was interrupted or killed
        leaves a file to resume.
    settings : CaptureSettings, optional
    resume : bool
        Go on with the file at `run_path`, if there is one. A complete run is left as it is.
    progress : callable, optional
        Called with (tokens done, tokens in all) after every batch.
    source : str
        Where the samples come from, for the provenance.

    Returns
    -------
    Path
        `run_path`.

    Raises
    ------
    InputError
        If samples cannot be encoded.
    StoreError
        If the file exists without `resume`, is damaged, locked, or belongs to another run.
    NonFiniteActivationError
        If a hidden state is not finite.
    UnsupportedModelError
        If the hidden states cannot be seen.
    SinkscopeError
        If the device runs out of memory.
    """
    settings = settings or CaptureSettings()
    path = Path(run_path)
    model = loaded.model
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            attention = attention_access(loaded, samples) if settings.attention else ATTENTION_NOT_REQUESTED
            plan = make_plan(loaded, samples, settings, attention, source)
            made = RunWriter.resume if resume and path.exists() else RunWriter.create
            with made(path, plan.run) as writer:
                _measure(loaded, plan, writer, settings, progress)
    finally:
        model.train(training)
    return path


def _measure(
    loaded: LoadedModel, plan: CapturePlan, writer: RunWriter, settings: CaptureSettings, progress: Progress | None
) -> None:
    """All batches that the file does not hold yet."""
    if writer.is_complete:
        return
    collector = Collector(plan.run)
    collector.restore(writer.statistics())
    meter = AttentionMeter(loaded.anatomy.num_layers)
    total = len(plan.run.tokens)
    before, committed = 0, time.monotonic()
    for batch in plan.batches:
        before += len(batch)
        if before <= writer.samples_done:
            continue
        for rows in _measure_batch(loaded, plan, batch, collector, meter):
            writer.write_sample(rows)
        if time.monotonic() - committed >= settings.commit_seconds:
            writer.commit(collector.statistics())
            committed = time.monotonic()
        if progress is not None:
            progress(collector.count, total)
    writer.complete(collector.statistics())


def _measure_batch(
    loaded: LoadedModel, plan: CapturePlan, batch: tuple[int, ...], collector: Collector, meter: AttentionMeter
) -> list[SampleRows]:
    """One forward pass; the rows of its samples."""
    inputs, valid = model_inputs(loaded, [plan.samples[sample] for sample in batch])
    attended = batch[0] in plan.attended
    collector.begin(batch, valid)
    with contextlib.ExitStack() as stack:
        if attended:
            meter.begin(valid)
            stack.enter_context(attention_tap(loaded.model, loaded.anatomy, meter))
        stack.enter_context(entering_states(loaded.model, loaded.anatomy, collector))
        try:
            forward(entry_of(loaded, inputs), inputs)
        except torch.OutOfMemoryError as error:
            raise SinkscopeError(
                f"out of memory in a batch of {valid.size} tokens; load the model with --dtype bfloat16, use another "
                "--device, or give smaller pictures"
            ) from error
        except (RuntimeError, IndexError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
            if isinstance(error, SinkscopeError):
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise SinkscopeError(
                f"the forward pass of {loaded.model_id} failed ({reason}); check that the model runs by itself on such "
                "input"
            ) from error
    rows = collector.finish()
    if not attended:
        return rows
    measured = meter.finish()
    return [
        replace(
            entry,
            drawn=measured.drawn[place][valid[place]],
            expected=measured.expected[place][valid[place]],
            value_norm=measured.value_norm[place][valid[place]],
            later_queries=np.arange(valid[place].sum() - 1, -1, -1, dtype=np.int32),
        )
        for place, entry in enumerate(rows)
    ]


def forward(model: nn.Module, inputs: dict[str, Any]) -> None:
    """One forward pass without a cache, and with the logits of one position only where the model allows that.

    Logits over a large vocabulary cost more than the layers of a small model, and nothing here needs them.
    """
    parameters = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {}
    if "use_cache" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        options["use_cache"] = False
    if "logits_to_keep" in parameters:
        options["logits_to_keep"] = 1
    device, dtype = input_device(model), model_dtype(model)
    moved = {
        name: value.to(device, dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
        if isinstance(value, torch.Tensor)
    }
    model(**inputs | moved, **options)


def entry_of(loaded: LoadedModel, inputs: dict[str, Any]) -> nn.Module:
    """The outermost module around the decoder layers that runs on `inputs` alone.

    That is the model itself, but for those that demand pictures also where the text has none.
    """
    for module in decoder_holders(loaded.model, loaded.anatomy):
        parameters = inspect.signature(module.forward).parameters.values()
        asked = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        if "input_ids" in inputs and all(name in inputs for name in asked):
            return module
    return loaded.model


def input_device(model: nn.Module) -> torch.device:
    """Where token ids go: the device of the input embeddings."""
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    parameter = next((embeddings or model).parameters())
    # Offloaded parameters rest on the meta device; their hooks bring inputs to where the weights will be.
    return torch.device("cpu") if parameter.is_meta else parameter.device


def attention_access(loaded: LoadedModel, samples: Sequence[Sample]) -> str:
    """The run's attribute `attention`: "measured", or why it cannot be.

    Found by a trial on a few tokens, so that a run does not learn it halfway.
    """
    anatomy = loaded.anatomy
    if not anatomy.attention_interface:
        reason = f"the attention of {anatomy.model_type} does not go through transformers' attention interface"
        return ATTENTION_UNAVAILABLE + reason
    if loaded.tokenizer is None:
        raise InputError(
            f"{loaded.model_id} has no tokenizer, so texts cannot be encoded; give a folder that holds one"
        )
    text = next((sample.text for sample in samples if sample.text), "A few words, to see whether it works.")
    pieces = encode_text(loaded.tokenizer, text[:200], max_length=16)
    if not pieces:
        return ATTENTION_UNAVAILABLE + "the first text has no tokens"
    inputs, valid = model_inputs(loaded, [EncodedSample(pieces[0], np.zeros(len(pieces[0]), np.uint8))])
    meter = AttentionMeter(anatomy.num_layers)
    meter.begin(valid)
    try:
        with attention_tap(loaded.model, anatomy, meter):
            forward(entry_of(loaded, inputs), inputs)
    except UnsupportedModelError as error:
        return ATTENTION_UNAVAILABLE + str(error)
    if not meter.layers_seen:
        return ATTENTION_UNAVAILABLE + f"no layer of {anatomy.model_type} passes its attention on"
    return ATTENTION_MEASURED
