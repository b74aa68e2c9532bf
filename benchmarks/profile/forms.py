"""The ways to run a model over the calibration data that are compared."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.profile.subjects import Subject
from benchmarks.timing import seconds
from sinkscope.backbone.hooks import entering_states
from sinkscope.backbone.running import forward
from sinkscope.capture.collector import Collector
from sinkscope.capture.encode import model_inputs
from sinkscope.capture.measuring import measure
from sinkscope.store.writer import RunWriter


def plain(subject: Subject) -> None:
    """The model alone, with the options that sinkscope runs it with."""
    for inputs in subject.inputs:
        forward(subject.loaded.model, inputs)


def statistics(subject: Subject) -> None:
    """All accumulators and what is kept of every token, brought to the host and dropped."""
    collector = Collector(subject.plan.run)
    for batch in subject.plan.batches:
        inputs, valid = model_inputs(subject.loaded, [subject.plan.samples[sample] for sample in batch])
        collector.begin(batch, valid)
        with entering_states(subject.loaded.model, subject.loaded.anatomy, collector):
            forward(subject.loaded.model, inputs)
        collector.finish()


def store(subject: Subject) -> None:
    """A whole run into a run file, from its making until it is on the disk."""
    with tempfile.TemporaryDirectory() as folder, RunWriter.create(Path(folder) / "run.h5", subject.plan.run) as writer:
        measure(subject.loaded, subject.entry, subject.plan, writer, subject.settings, None)


def hidden_states(subject: Subject) -> None:
    """What people do today: transformers' hidden states of all layers, copied whole to the host, batch by batch."""
    for inputs in subject.inputs:
        copied(subject, inputs, output_hidden_states=True)


def attention_maps(subject: Subject) -> None:
    """The same and the attention maps, which only the eager kernel gives."""
    model: Any = subject.loaded.model
    kernel = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        for inputs in subject.inputs:
            copied(subject, inputs, output_hidden_states=True, output_attentions=True)
    finally:
        model.set_attn_implementation(kernel)


def copied(subject: Subject, inputs: dict[str, Any], **wanted: bool) -> list[torch.Tensor]:
    """Copies on the host of what a pass gives beside the logits."""
    model: Any = subject.loaded.model
    moved = {name: value.to(model.device) for name, value in inputs.items()}
    output = model(**moved, use_cache=False, logits_to_keep=1, **wanted)
    tensors = [*output.hidden_states, *(output.attentions or ())]
    return [tensor.to("cpu", copy=True) for tensor in tensors]


FORMS: dict[str, Callable[[Subject], None]] = {
    "plain": plain,
    "statistics": statistics,
    "default store": store,
    "output_hidden_states": hidden_states,
    "and attention maps": attention_maps,
}


def timed(subject: Subject, form: Callable[[Subject], None]) -> Callable[[], float]:
    """Seconds of a form."""

    def once() -> float:
        with torch.inference_mode():
            return seconds(subject.device, lambda: form(subject))

    return once
