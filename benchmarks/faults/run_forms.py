"""Run files of every form, made by real runs of a small model, and what each of them may be read as."""

import contextlib
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py

from benchmarks.faults.subject import RUN, Subject
from sinkscope.backbone.loading import LoadedModel
from sinkscope.calibration import Sample
from sinkscope.calibration.gather import gather
from sinkscope.capture.measuring import measure
from sinkscope.capture.runner import evaluating, prepare, run
from sinkscope.capture.settings import CaptureSettings
from sinkscope.capture.shares import share_of
from sinkscope.errors import StoreError
from sinkscope.store.compression import METHODS, compress
from sinkscope.store.layout import RunPlan
from sinkscope.store.merge import merge
from sinkscope.store.reader import RunReader
from sinkscope.store.writer import RunWriter


@dataclass(frozen=True)
class Form:
    """A run file before it is damaged.

    Attributes
    ----------
    data : bytes
        The file.
    plan : RunPlan
        What it was made from.
    states : frozenset of str
        Digests of the contents that were ever committed to it; a complete file has one.
    current : str
        The digest of those in it.
    finished : str
        The digest of the complete file that it becomes.
    older, others : tuple of bytes
        The file at earlier moments; and files of all forms.
    edges : tuple of int
        Where its datasets begin and end.
    rest : str
        Path of a complete file of the same run, to take the missing samples from.
    """

    data: bytes
    plan: RunPlan
    states: frozenset[str]
    current: str
    finished: str
    older: tuple[bytes, ...]
    edges: tuple[int, ...]
    rest: str
    others: tuple[bytes, ...] = ()


class Interrupted(Exception):
    """Stands for the death of a run."""


def digest(path: Path) -> str:
    """SHA-256 over all that a reader gives, each byte of it checked."""
    found = hashlib.sha256()
    with RunReader(path) as reader:
        reader.verify()
        told = (reader.attributes, sorted(reader.token_text.items()), reader.progress)
        found.update(repr(told).encode("utf-8", "surrogatepass"))
        tokens, attention = reader.tokens, reader.attention
        arrays = [tokens.id, tokens.position, tokens.sample, tokens.kind, *reader.statistics.arrays().values()]
        for layer in range(reader.attributes.num_layers + 1):
            arrays += [*reader.largest(layer), *reader.sampled(layer, every=True), *reader.peak_states(layer)]
        if attention is not None:
            arrays += [attention.token, attention.drawn, attention.later_queries, attention.expected]
            arrays.append(attention.value_norm)
        for array in arrays:
            found.update(array.tobytes())
    return found.hexdigest()


def forms(folder: Path, loaded: LoadedModel, subject: Subject) -> dict[str, Form]:
    """A file of every form, by its name."""
    calibration = gather(subject.texts)
    samples, source = calibration.samples(pictures=False), calibration.source(pictures=False)
    # Small batches, so that a run has several commits.
    usual = CaptureSettings(commit_seconds=0.0, batch_tokens=256)

    def complete(name: str, settings: CaptureSettings = usual, chosen: list[Sample] = samples) -> Path:
        return run(loaded, chosen, folder / f"{name}.h5", settings, source=source)

    whole = complete("complete")
    made = {"complete": _finished(whole)}
    for keep in ("all", "topk", "none"):
        made[f"keep {keep}"] = _finished(complete(f"keep-{keep}", replace(usual, keep=keep)))
    for method in METHODS:
        packed = complete(method, replace(usual, keep="all"))
        compress(packed, method)
        made[method] = _finished(packed)
    half = len(samples) // 2
    parts = [
        complete(f"part-{number}", chosen=chosen) for number, chosen in enumerate((samples[:half], samples[half:]))
    ]
    made["merged"] = _finished(merge(parts, folder / "merged.h5"))
    made["part"], made["second part"] = map(_finished, parts)
    made["share"] = _finished(_share(loaded, samples, source, usual, folder / "share.h5"))
    made["unfinished"] = _unfinished(loaded, samples, source, usual, folder, whole)
    others = tuple(form.data for form in made.values())
    return {name: replace(form, others=others) for name, form in made.items()}


def _finished(path: Path) -> Form:
    found = digest(path)
    with RunReader(path) as reader:
        plan = reader.plan
    return Form(path.read_bytes(), plan, frozenset({found}), found, found, (), _edges(path), str(path))


def _share(loaded: LoadedModel, samples: list[Sample], source: str, settings: CaptureSettings, path: Path) -> Path:
    with evaluating(loaded.model):
        entry, plan = prepare(loaded, samples, settings, source)
        share = share_of(plan, 0, 2)
        assert share is not None
        with RunWriter.create(path, share.run) as writer:
            measure(loaded, entry, share, writer, settings, None)
    return path


def _unfinished(
    loaded: LoadedModel, samples: list[Sample], source: str, settings: CaptureSettings, folder: Path, whole: Path
) -> Form:
    """What a run leaves that dies after some commits, with its earlier states."""
    path, seen = folder / RUN, []

    def die_late(done: int, total: int) -> None:
        seen.append(path.read_bytes())
        if done > total // 2:
            raise Interrupted

    try:
        run(loaded, samples, path, settings, progress=die_late, source=source)
    except Interrupted:
        seen.append(path.read_bytes())
    states: dict[str, bytes] = {}
    for number, data in enumerate(seen):
        copy = folder / f"state-{number}.h5"
        copy.write_bytes(data)
        # Copied while another thread wrote, it may be a mixture of two moments.
        with contextlib.suppress(StoreError):
            states[digest(copy)] = data
    current = digest(path)
    older = tuple(data for state, data in states.items() if state != current)
    with RunReader(path) as reader:
        plan = reader.plan
    return Form(seen[-1], plan, frozenset(states), current, digest(whole), older, _edges(path), str(whole))


def _edges(path: Path) -> tuple[int, ...]:
    """Where contiguous datasets and chunks of others begin and end."""
    found: set[int] = set()

    def take(_: str, entry: Any) -> None:
        if not isinstance(entry, h5py.Dataset):
            return
        if entry.chunks is None and entry.nbytes:
            found.update((entry.id.get_offset(), entry.id.get_offset() + entry.id.get_storage_size()))
        elif entry.chunks is not None:
            entry.id.chunk_iter(lambda info: found.update((info.byte_offset, info.byte_offset + info.size)))

    with h5py.File(path, locking=False) as file:
        file.visititems(take)
    return tuple(sorted(found))


def resume(form: Form, path: Path) -> str:
    """Go on with a file from the samples of a complete one, and give the digest of what it becomes."""
    with RunReader(form.rest) as whole, RunWriter.resume(path, form.plan) as writer:
        for number in form.plan.order[writer.samples_done :].tolist():
            writer.write_sample(whole.rows(number))
        # Accumulators are checked by their digest, too: those of the file where it is complete.
        writer.complete(writer.statistics() if writer.is_complete else whole.statistics)
    return digest(path)


def discovered(path: Path) -> str:
    """The profile that a file leads to, without the date."""
    from sinkscope.discovery import discover

    document = json.loads(discover(path).to_json())
    document["provenance"].pop("date")
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
