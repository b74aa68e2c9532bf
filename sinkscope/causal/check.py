"""The causal check: do a profile's dimensions, and no others, make their tokens draw attention?

    samples ──> observe ──> design ──> measure ──> outcome ──> verdict
                sink        edits      attention   falls with  separates,
                tokens                 and loss    intervals   and in words

On the sink tokens of each band the dimensions' values are exchanged with those of ordinary ones, which keeps the norm
and moves only the place; see `sinkscope.causal.edits`. What it cannot tell: whether a dimension acts through attention
to its token alone, and what it does on tokens that the profile does not flag.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch

from sinkscope.backbone.loading import LoadedModel
from sinkscope.calibration import Sample, default_samples
from sinkscope.capture.runner import ATTENTION_MEASURED, ATTENTION_NOT_REQUESTED, Progress, attention_access
from sinkscope.causal.design import edited_layers
from sinkscope.causal.layer import LayerCheck, Span
from sinkscope.causal.measure import Probe
from sinkscope.causal.observe import chosen_at, observe
from sinkscope.causal.settings import CausalSettings
from sinkscope.causal.verdict import judge
from sinkscope.profile import Profile


def causal_check(
    loaded: LoadedModel,
    profile: Profile,
    samples: Sequence[Sample] | None = None,
    *,
    settings: CausalSettings | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Check by exchange that the profile's dimensions cause the attention that its sink tokens draw.

    Parameters
    ----------
    loaded : LoadedModel
        The model of the profile.
    profile : Profile
    samples : sequence of Sample, optional
        By default the embedded texts, and generated pictures where the model takes them.
    settings : CausalSettings, optional
    progress : callable, optional
        Called with (edits done, edits in all).

    Returns
    -------
    dict
        Ready for JSON, the profile's `evidence.causal`. `status` is "tested" or "nothing to test"; `separates` is true
        where every band separates, null where one could not be judged; `attention` says whether it was measured.
        Each of `bands` has its layers, dims, verdict (as `sinkscope.causal.verdict.judge` gives it), and `layers` with
        `layer`, `samples`, `tokens` (measured sink tokens: how many, how many at a sample's start, and of which kinds)
        and `comparisons`. Each of these has a `group` ("found", "found elsewhere", "random", "next largest",
        "ordinary"), the `edit` ("exchange", "copy", "zero", "typical", "transplant", "transplant elsewhere"; see
        `sinkscope.causal.design`), `dims` (null for random ones), `count`, `edits` (how many in all), `moved_energy`
        (the share of the tokens' energy in the dimensions), and for `band` (from the edited layer to the band's end)
        and `network` (to the last layer) the attention drawn `before` and `after` and its relative `fall`; and
        `loss_change` in nats. Falls and changes come with their intervals. Layers count from 0, hidden states are those
        entering them.

    Raises
    ------
    InputError
        If the samples cannot be encoded, or the model has too few ordinary dimensions.
    ProfileError
        If the profile belongs to another backbone.
    SinkscopeError
        If a forward pass fails.
    """
    settings = settings or CausalSettings()
    spans = _spans(profile, loaded.anatomy.num_layers)
    if not spans:
        reason = "the profile has no sink dimensions" if not profile.sink_dimensions else "no layer can be edited"
        return _report("nothing to test", f"nothing to test: {reason}", None, [], settings)
    if samples is None:
        samples = default_samples(images=loaded.processor is not None and loaded.anatomy.multimodal)
    model = loaded.model
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            access = attention_access(loaded, samples) if settings.attention else ATTENTION_NOT_REQUESTED
            bands = _check_bands(
                Probe(loaded, access == ATTENTION_MEASURED, settings), profile, samples, spans, progress
            )
    finally:
        model.train(training)
    sentence = _overall(bands, access)
    return _report("tested", sentence, access, bands, settings)


def _spans(profile: Profile, depth: int) -> list[Span]:
    """Where which dimensions act; bands that hold only the state behind the last layer are left out."""
    if profile.bands:
        spans = [Span(band.first_layer, band.last_layer, tuple(band.dims)) for band in profile.bands]
        return [span for span in spans if span.first < depth]

    def acting(layer: int) -> tuple[int, ...]:
        return tuple(
            entry.dim
            for entry in profile.sink_dimensions
            if (entry.first_layer or 0) <= layer <= (depth if entry.last_layer is None else entry.last_layer)
        )

    groups = [(dims, list(layers)) for dims, layers in groupby(range(depth), acting)]
    return [Span(layers[0], layers[-1], dims) for dims, layers in groups if dims]


def _check_bands(
    probe: Probe, profile: Profile, samples: Sequence[Sample], spans: Sequence[Span], progress: Progress | None
) -> list[dict[str, Any]]:
    settings, depth = probe.settings, probe.loaded.anatomy.num_layers
    layers = {span: edited_layers(span.first, span.last, depth, settings) for span in spans}
    observed = observe(
        probe, profile, samples, sorted({layer for found in layers.values() for layer in found}), settings
    )
    plans = {
        span: [
            LayerCheck(probe, profile, span, layer, chosen)
            for layer in layers[span]
            if (chosen := chosen_at(observed, layer, settings))
        ]
        for span in spans
    }
    listed = {entry.dim: "content dimension" for entry in profile.content_dimensions}
    listed |= {entry.dim: "all-token outlier" for entry in profile.all_token_outliers}
    listed |= {entry.dim: "companion" for entry in profile.companion_dimensions}
    total, done = sum(plan.edits for found in plans.values() for plan in found), 0
    bands = []
    for span, found in plans.items():
        results = []
        for plan in found:
            for entry in plan.samples:
                plan.measure(entry)
                done += plan.edits // len(plan.samples)
                if progress is not None:
                    progress(done, total)
            results.append(plan.result())
        verdict = judge(span.dims, results, settings, listed)
        bands.append(
            {"first_layer": span.first, "last_layer": span.last, "dims": list(span.dims), **verdict, "layers": results}
        )
    return bands


def _overall(bands: Sequence[dict[str, Any]], access: str) -> str:
    if access != ATTENTION_MEASURED:
        return f"only the change of loss was measured, because attention is {access}"
    judged = [band for band in bands if band["separates"] is not None]
    if not judged:
        return "no band could be judged: no sink token has enough later queries"
    separated = sum(band["separates"] for band in judged)
    if separated == len(bands):
        return "the exchange separates the sink dimensions of every band from all other dimensions tried"
    sentence = f"the exchange separates the sink dimensions from all others tried in {separated} of {len(bands)} bands"
    if standing := sum(bool(band["stands_out"]) and not band["separates"] for band in bands):
        sentence += f"; in {standing} of the others they take more attention than every control"
    return sentence


def _report(
    status: str, sentence: str, access: str | None, bands: list[dict[str, Any]], settings: CausalSettings
) -> dict[str, Any]:
    verdicts = [band["separates"] for band in bands]
    return {
        "status": status,
        "separates": None if not verdicts or None in verdicts else all(verdicts),
        "sentence": sentence,
        "attention": access,
        "bands": bands,
        "settings": settings.to_json(),
    }
