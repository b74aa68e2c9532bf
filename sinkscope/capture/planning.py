"""Everything about a run that is decided before its first batch: which tokens, in which batches, measured how."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from sinkscope.backbone.loading import LoadedModel
from sinkscope.backbone.placement import parameter_values, plain_tensors
from sinkscope.backbone.running import model_dtype
from sinkscope.calibration import Sample, fingerprint
from sinkscope.capture.chat import chat_bos_policy
from sinkscope.capture.encode import bos_policy, encode_each, token_texts
from sinkscope.capture.encoded import EncodedSamples
from sinkscope.capture.settings import BATCH_TOKENS, CaptureSettings
from sinkscope.errors import InputError
from sinkscope.store.choices import choose_samples, choose_tokens, kept_budget
from sinkscope.store.layout import ATTENTION_MEASURED, KIND_NAMES, RunAttributes, RunPlan


@dataclass(frozen=True)
class CapturePlan:
    """A run before its first batch.

    Attributes
    ----------
    run : RunPlan
        What the run file is made from.
    samples : EncodedSamples
        By sample number.
    batches : tuple of tuples of int
        Sample numbers of every batch, in the order of computation.
    attended : frozenset of int
        Samples whose attention is measured; a batch holds either only such samples or none.
    """

    run: RunPlan
    samples: EncodedSamples
    batches: tuple[tuple[int, ...], ...]
    attended: frozenset[int]

    def positions(self, batch: Sequence[int]) -> int:
        """Positions of a batch, padding included."""
        return len(batch) * int(self.run.tokens.lengths[list(batch)].max())


def make_plan(
    loaded: LoadedModel, samples: Sequence[Sample], settings: CaptureSettings, attention: str, source: str
) -> CapturePlan:
    """Encode the calibration data and decide batches and choices, all of it reproducible.

    Parameters
    ----------
    loaded : LoadedModel
    samples : sequence of Sample
    settings : CaptureSettings
    attention : str
        The run's attribute: "measured", or why it is not.
    source : str
        Where the samples come from, for the provenance.

    Raises
    ------
    InputError
        If the samples cannot be encoded, or none is left.
    """
    if not samples:
        raise InputError("there are no calibration samples; give texts or pictures")
    used = spread(samples, settings.max_samples)
    encoded = EncodedSamples.gather(encode_each(loaded, used, settings.max_length, settings.chat_template))
    encoded = within_budget(encoded, settings)
    tokens, fingerprints = encoded.tokens, encoded.fingerprints
    attended = choose_attended(encoded, settings) if attention == ATTENTION_MEASURED else frozenset()
    batches = make_batches(encoded, attended, settings)
    counts = tokens.count_kinds(len(KIND_NAMES)).tolist()
    attributes = RunAttributes(
        model_id=loaded.model_id,
        revision=loaded.revision,
        backbone=loaded.anatomy.fingerprint(),
        dtype=str(model_dtype(loaded.model)).removeprefix("torch."),
        settings={
            **settings.to_json(),
            "attention_kernel": str(getattr(getattr(loaded.model, "config", None), "_attn_implementation", None)),
            "attention_layers": np.flatnonzero(loaded.anatomy.attention_layers).tolist(),
            "weights": weights_fingerprint(loaded.model),
        },
        calibration={
            "fingerprint": fingerprint(
                used,
                chat_template=settings.chat_template,
                max_tokens=settings.max_tokens,
                max_length=settings.max_length,
                seed=settings.seed,
            ),
            "samples": len(encoded),
            "tokens": len(tokens),
            "kinds": dict(zip(KIND_NAMES, counts, strict=True)),
            "source": source,
            "chat_template": settings.chat_template,
            "max_length": settings.max_length,
            "bos": chat_bos_policy(loaded) if settings.chat_template else bos_policy(loaded.tokenizer),
        },
        seed=settings.seed,
        versions=versions(),
        num_layers=loaded.anatomy.num_layers,
        hidden_size=loaded.anatomy.hidden_size,
        attention=attention,
    )
    run = RunPlan(
        attributes,
        tokens,
        token_texts(loaded.tokenizer, tokens.distinct_ids().tolist()),
        np.array([sample for batch in batches for sample in batch], np.int32),
        choose_tokens(tokens, fingerprints, kept_budget(settings.to_json()), settings.seed),
        tokens.rows_of(sorted(attended)),
        settings.top_tokens,
        min(settings.largest, loaded.anatomy.hidden_size),
        settings.levels,
        fingerprints=fingerprints,
        peak_states=settings.peak_states,
    )
    return CapturePlan(run, encoded, batches, attended)


def spread(samples: Sequence[Sample], number: int | None) -> list[Sample]:
    """`number` samples spread evenly over those given, in their order; all where there are no more."""
    if number is None or number >= len(samples):
        return list(samples)
    places = (np.arange(number) + 0.5) * len(samples) / number
    return [samples[int(place)] for place in places]


def within_budget(encoded: EncodedSamples, settings: CaptureSettings) -> EncodedSamples:
    """A seeded choice of whole samples with at most `max_tokens` tokens together, but at least one sample."""
    if settings.max_tokens is None:
        return encoded
    generator = np.random.default_rng(settings.seed)
    lengths = encoded.tokens.lengths.tolist()
    kept: list[int] = []
    left = settings.max_tokens
    for number in generator.permutation(len(encoded)).tolist():
        if lengths[number] <= left:
            kept.append(number)
            left -= lengths[number]
    return encoded.take(sorted(kept) or [lengths.index(min(lengths))])


def choose_attended(encoded: EncodedSamples, settings: CaptureSettings) -> frozenset[int]:
    """The samples whose attention is measured: seeded, with visual tokens and without, of those with later queries."""
    chosen: set[int] = set()
    for visual, number in ((False, settings.attention_texts), (True, settings.attention_images)):
        candidates = np.flatnonzero((encoded.visual == visual) & (encoded.tokens.lengths > 1))
        chosen |= set(choose_samples(candidates, encoded.fingerprints, number, settings.seed).tolist())
    return frozenset(chosen)


def make_batches(
    encoded: EncodedSamples, attended: frozenset[int], settings: CaptureSettings
) -> tuple[tuple[int, ...], ...]:
    """Texts of similar length together, up to `batch_tokens` with padding; pictures one by one; in a seeded order."""
    limit = settings.batch_tokens or BATCH_TOKENS
    lengths = encoded.tokens.lengths
    batches: list[tuple[int, ...]] = [(i,) for i in encoded.pictures]
    for group in (True, False):
        texts = (i for i in range(len(encoded)) if i not in encoded.pictures and (i in attended) == group)
        current: list[int] = []
        for number in sorted(texts, key=lambda i: (-lengths[i], i)):
            # Sorted down, so the first sample of a batch is its longest.
            if current and lengths[current[0]] * (len(current) + 1) > limit:
                batches.append(tuple(current))
                current = []
            current.append(number)
        if current:
            batches.append(tuple(current))
    order = np.random.default_rng(settings.seed).permutation(len(batches))
    return tuple(batches[i] for i in order)


def weights_fingerprint(model: nn.Module, entries: int = 64) -> str:
    """SHA-256 over a few evenly spaced entries of every parameter, as 16 hexadecimal digits.

    It tells models under one name apart, such as a folder that training has overwritten since. Where the parameters
    rest, in memory or on disk, makes no difference.
    """
    digest = hashlib.sha256()
    # Tied parameters count twice, for once they rest on disk they cannot be told from others.
    for name, parameter in model.named_parameters(remove_duplicate=False):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        for values in plain_tensors(parameter_values(model, name)):
            flat = values.reshape(-1)
            chosen = flat[:: max(1, flat.numel() // entries)].cpu().contiguous().view(torch.uint8).numpy()
            digest.update(chosen.tobytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    found = {"python": platform.python_version()}
    for package in ("sinkscope", "torch", "transformers", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found
