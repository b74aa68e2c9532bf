"""The ways to run a model over the calibration data that are compared."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.profile.subjects import Subject
from benchmarks.timing import steps_by_turns
from sinkscope.backbone.hooks import entering_states
from sinkscope.backbone.running import forward
from sinkscope.capture.collector import Collector
from sinkscope.capture.encode import model_inputs
from sinkscope.capture.measuring import Passes, all_rows
from sinkscope.store.background import BackgroundWriter
from sinkscope.store.writer import RunWriter


def plain(subject: Subject) -> Iterator[None]:
    """The model alone, with the options that sinkscope runs it with."""
    for inputs in subject.inputs:
        forward(subject.loaded.model, inputs)
        yield


def statistics(subject: Subject) -> Iterator[None]:
    """All accumulators and what is kept of every token, brought to the host and dropped."""
    collector = Collector(subject.plan.run)
    for batch in subject.plan.batches:
        inputs, valid = model_inputs(subject.loaded, [subject.plan.samples[sample] for sample in batch])
        collector.begin(batch, valid)
        with entering_states(subject.loaded.model, subject.loaded.anatomy, collector):
            forward(subject.loaded.model, inputs)
        collector.finish()
        yield


def store(subject: Subject) -> Iterator[None]:
    """A whole run into a run file, from its making until it is on the disk; as `measure` does it, batch by batch.

    On the CPU, where the writer's work must be counted, each batch is on its way to the disk before the next begins.
    """
    plan = subject.plan
    with tempfile.TemporaryDirectory() as folder, RunWriter.create(Path(folder) / "run.h5", plan.run) as writer:
        collector = Collector(plan.run)
        passes = Passes(subject.loaded, subject.entry, plan, collector)
        with BackgroundWriter(writer, subject.settings.commit_seconds) as background:
            for batch in plan.batches:
                background.write(partial(all_rows, list(passes(batch))), collector.snapshot())
                if subject.device == "cpu":
                    background.wait()
                yield
            background.complete(collector.snapshot())


def hidden_states(subject: Subject) -> Iterator[None]:
    """What people do today: transformers' hidden states of all layers, copied whole to the host, batch by batch."""
    for inputs in subject.inputs:
        copied(subject, inputs, output_hidden_states=True)
        yield


def attention_maps(subject: Subject) -> Iterator[None]:
    """The same and the attention maps, which only the eager kernel gives."""
    model: Any = subject.loaded.model
    kernel = model.config._attn_implementation
    for inputs in subject.inputs:
        model.set_attn_implementation("eager")
        try:
            copied(subject, inputs, output_hidden_states=True, output_attentions=True)
        finally:
            model.set_attn_implementation(kernel)
        yield


def copied(subject: Subject, inputs: dict[str, Any], **wanted: bool) -> list[torch.Tensor]:
    """Copies on the host of what a pass gives beside the logits."""
    model: Any = subject.loaded.model
    moved = {name: value.to(model.device) for name, value in inputs.items()}
    output = model(**moved, use_cache=False, logits_to_keep=1, **wanted)
    tensors = [*output.hidden_states, *(output.attentions or ())]
    return [tensor.to("cpu", copy=True) for tensor in tensors]


Form = Callable[[Subject], Iterator[None]]
"""One batch after another."""

FORMS: dict[str, Form] = {
    "plain": plain,
    "statistics": statistics,
    "default store": store,
    "output_hidden_states": hidden_states,
    "and attention maps": attention_maps,
}


def compared(subject: Subject, forms: Mapping[str, Form], repeats: int) -> dict[str, Any]:
    """The forms by turns on a subject."""
    with torch.inference_mode():
        return steps_by_turns(subject.device, {name: partial(form, subject) for name, form in forms.items()}, repeats)
