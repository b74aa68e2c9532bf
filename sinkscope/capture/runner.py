"""A capture run: calibration samples through the model into one run file."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sinkscope.backbone.attention import attention_tap
from sinkscope.backbone.loading import LoadedModel
from sinkscope.backbone.running import FAILURES, failed_pass, forward
from sinkscope.backbone.tensor_parallel import team_of
from sinkscope.backbone.trial import TRIAL_TOKENS, TextEntry, try_text
from sinkscope.calibration import Sample
from sinkscope.capture.attention import AttentionMeter
from sinkscope.capture.batch_size import batch_tokens
from sinkscope.capture.budget import within_budget
from sinkscope.capture.encode import encode_text, position_limit
from sinkscope.capture.measuring import Progress, measure
from sinkscope.capture.planning import CapturePlan, make_plan
from sinkscope.capture.settings import CaptureSettings
from sinkscope.errors import InputError, UnsupportedModelError
from sinkscope.store.layout import (
    ATTENTION_MEASURED,
    ATTENTION_NOT_REQUESTED,
    ATTENTION_UNAVAILABLE,
)
from sinkscope.store.writer import RunWriter


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
        If samples cannot be encoded, the run file would be larger than the settings allow, or the model is held by
        several processes together.
    StoreError
        If the file exists without `resume`, is damaged, locked, or belongs to another run.
    NonFiniteActivationError
        If a hidden state is not finite.
    UnsupportedModelError
        If the hidden states cannot be seen.
    SinkscopeError
        If the device runs out of memory.
    """
    if (team := team_of(loaded.model)).size > 1:
        raise InputError(
            f"{loaded.model_id} is held by {team.size} processes together, so they must be told of each other; give "
            "ranks=, from `with sinkscope.capture.ranks.joined() as ranks`"
        )
    path = Path(run_path)
    settings = settings or CaptureSettings()
    settings = replace(settings, batch_tokens=batch_tokens(loaded, settings, path if resume else None))
    with evaluating(loaded.model):
        entry, plan = prepare(loaded, samples, settings, source)
        with open_run(path, plan, resume) as writer:
            measure(loaded, entry, plan, writer, settings, progress)
    return path


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout and gradients inside the block."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def prepare(
    loaded: LoadedModel, samples: Sequence[Sample], settings: CaptureSettings, source: str
) -> tuple[TextEntry, CapturePlan]:
    """How the model is run on texts, and the plan of the whole run; raises as `run` does."""
    entry = text_entry(loaded, samples)
    attention = attention_access(loaded, samples, entry) if settings.attention else ATTENTION_NOT_REQUESTED
    plan = make_plan(loaded, samples, settings, attention, source)
    return entry, replace(plan, run=within_budget(plan.run, settings))


def open_run(path: Path, plan: CapturePlan, resume: bool) -> RunWriter:
    """The writer of a new run file, or with `resume` of the one that is there."""
    made = RunWriter.resume if resume and path.exists() else RunWriter.create
    return made(path, plan.run)


def text_entry(loaded: LoadedModel, samples: Sequence[Sample]) -> TextEntry:
    """How the model is run on texts, found by a trial on the first few tokens of the samples.

    Raises
    ------
    InputError
        If there is no tokenizer.
    UnsupportedModelError
        If the hidden states cannot be seen, or the model is an encoder.
    SinkscopeError
        If the forward pass fails.
    """
    ids = _first_tokens(loaded, samples)
    return try_text(loaded.model, loaded.anatomy, ids, loaded.processor, name=loaded.model_id)


def attention_access(loaded: LoadedModel, samples: Sequence[Sample], entry: TextEntry | None = None) -> str:
    """The run's attribute `attention`: "measured", or why it cannot be.

    Found by a trial on a few tokens, so that a run does not learn it halfway. `entry` is how texts are run: by default
    through the model itself.

    Raises
    ------
    SinkscopeError
        If there is no tokenizer, or the forward pass fails.
    """
    anatomy = loaded.anatomy
    if anatomy.attention_refusal is not None:
        return ATTENTION_UNAVAILABLE + anatomy.attention_refusal
    entry = entry or TextEntry(loaded.model)
    ids = _first_tokens(loaded, samples)[None]
    meter = AttentionMeter(anatomy.num_layers)
    meter.begin(np.ones(tuple(ids.shape), bool))
    try:
        with attention_tap(loaded.model, anatomy, meter):
            forward(entry.module, entry.complete({"input_ids": ids, "attention_mask": torch.ones_like(ids)}))
    except UnsupportedModelError as error:
        return ATTENTION_UNAVAILABLE + str(error)
    except FAILURES as error:
        raise failed_pass(loaded.model_id, error) from error
    if not meter.layers_seen:
        return ATTENTION_UNAVAILABLE + f"no layer of {anatomy.model_type} passes its attention on"
    return ATTENTION_MEASURED


def _first_tokens(loaded: LoadedModel, samples: Sequence[Sample]) -> torch.Tensor:
    """The first tokens of the first text that has any, or of some words, again if they are few: LongTensor [T]."""
    if loaded.tokenizer is None:
        raise InputError(
            f"{loaded.model_id} has no tokenizer, so texts cannot be encoded; give a folder that holds one"
        )
    texts = (*(sample.text for sample in samples if sample.text), "A few words, to see whether it works.")
    limit = position_limit(loaded)
    for text in texts:
        if pieces := encode_text(loaded.tokenizer, text[:200], limit):
            return torch.from_numpy(np.resize(pieces[0], min(TRIAL_TOKENS, limit)).astype(np.int64))
    raise InputError(f"the tokenizer of {loaded.model_id} makes no tokens of words; give the model its own")
