"""The main job in two functions: load a model, and profile it. Thin over the parts that do the work."""

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from sinkscope.backbone.anatomy import find_anatomy
from sinkscope.backbone.loading import LoadedModel
from sinkscope.backbone.loading import load as load_model
from sinkscope.backbone.tensor_parallel import team_of
from sinkscope.calibration import Calibration, Sample, gather
from sinkscope.capture.distributed import run as capture_run
from sinkscope.capture.ranks import Ranks
from sinkscope.capture.runner import Progress
from sinkscope.capture.settings import CaptureSettings
from sinkscope.causal import CausalSettings, causal_check
from sinkscope.discovery import DiscoverySettings, discover
from sinkscope.errors import InputError, SinkscopeError
from sinkscope.processes import Process
from sinkscope.profile import Profile
from sinkscope.store.compression import compress as compress_run
from sinkscope.store.compression import filter_options
from sinkscope.weights import predict_loaded, with_weights

DEMO_PREFIX = "demo:"
DEMO_MODELS = ("demo:llm", "demo:lmm")


def load(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device_map: Any = "auto",
    quantization: Any = None,
    trust_remote_code: bool = False,
    tensor_parallel: int = 1,
) -> LoadedModel:
    """Load a model by hub id, local folder, ``.gguf`` file, ``demo:llm`` or ``demo:lmm``.

    Parameters are those of `sinkscope.backbone.loading.load`.

    Raises
    ------
    InputError
        If the model cannot be found or read.
    UnsupportedModelError
        If it is not a decoder model.
    """
    loaded = load_model(
        resolve(model),
        revision=revision,
        dtype=dtype,
        device_map=device_map,
        quantization=quantization,
        trust_remote_code=trust_remote_code,
        tensor_parallel=tensor_parallel,
    )
    return dataclasses.replace(loaded, model_id=os.fspath(model))


def resolve(model: str | os.PathLike[str]) -> str:
    """Where the weights of `model` are: the demo models by their names, everything else as given.

    Raises
    ------
    InputError
        If a demo model is unknown, or its package is missing.
    """
    name = os.fspath(model)
    if not name.startswith(DEMO_PREFIX):
        return name
    if name == "demo:llm":
        from sinkscope.demo.backbone import smollm2_path

        return str(smollm2_path())
    if name == "demo:lmm":
        from sinkscope.demo.assemble import demo_lmm_folder

        return str(demo_lmm_folder())
    raise InputError(f"no demo model named {name}; there are {' and '.join(DEMO_MODELS)}")


def profile_model(
    model: LoadedModel | nn.Module | str | os.PathLike[str],
    tokenizer_or_processor: Any = None,
    *,
    texts: str | os.PathLike[str] | list[str] | None = None,
    images: str | os.PathLike[str] | list[Sample] | None = None,
    dataset: str | None = None,
    calibration: Calibration | None = None,
    samples: int | None = None,
    tokens: int | None = None,
    chat_template: bool | None = None,
    run: str | os.PathLike[str] | None = None,
    resume: bool = False,
    keep: str = "sample",
    max_store: int | None = None,
    compress: str | None = None,
    attention: bool = True,
    seed: int = 0,
    name: str | None = None,
    settings: DiscoverySettings | None = None,
    progress: Progress | None = None,
    causal: bool | CausalSettings = False,
    causal_progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> Profile:
    """Profile a model: calibration data, hidden states into a run file, discovery, and a causal check if wanted.

    What the weights alone say goes into `evidence.weights`, as a second witness.

    Parameters
    ----------
    model : LoadedModel, nn.Module, str or path
        A loaded model, a transformers model, or what `load` takes.
    tokenizer_or_processor : optional
        Of a transformers model: the tokenizer, or the processor of a multimodal model.
    texts : path or list of str, optional
        Calibration texts in place of the embedded ones.
    images : path or list of Sample, optional
        Calibration pictures in place of the generated ones; used by multimodal models only.
    dataset : str, optional
        A dataset with texts or pictures in place of one of them, ``ID[@REVISION][:CONFIG[:SPLIT]]``; see
        `sinkscope.calibration.read_dataset`.
    calibration : Calibration, optional
        All of these, already read with `sinkscope.calibration.gather`.
    samples, tokens : int, optional
        Use at most so many.
    chat_template : bool, optional
        Put texts and the prompts of pictures into the model's chat template, or neither; by default prompts only.
    run : path, optional
        The run file to write; a temporary one by default.
    resume : bool
        Go on with an interrupted run file. A finished one is used as it is.
    keep : str
        Whose hidden states the run file keeps, see `sinkscope.capture.settings.KEEP`; without any there is no profile.
    max_store : int, optional
        Bytes of the run file at most: it keeps fewer hidden states where they would not fit.
    compress : str, optional
        Compress the finished run file: "blosc2" or "gzip", see `sinkscope.store.compression`.
    attention : bool
        Measure which tokens draw attention, and ask sink dimensions for the link to it.
    seed : int
        Of every random choice.
    name : str, optional
        Of the profile; by default made from the model id.
    settings : DiscoverySettings, optional
        Thresholds of the method.
    progress : callable, optional
        Called with (tokens done, tokens in all).
    causal : bool or CausalSettings
        Check by exchange that the dimensions found cause the attention that their tokens draw; the result is
        `evidence.causal`, see `sinkscope.causal.causal_check`.
    causal_progress : callable, optional
        Called with (edits done, edits in all) during that check.
    ranks : Ranks, optional
        Share the work with other processes that call this with the same arguments; see
        `sinkscope.capture.ranks.joined`. The run file must then be given, in a folder that all of them see.

    Returns
    -------
    Profile
        Its verdict may be "none".

    Raises
    ------
    SinkscopeError
        Or one of its subclasses, as `load`, the capture run, `discover` and `causal_check` say.
    """
    ranks = ranks or Ranks(Process())
    if run is None and not ranks.process.is_alone:
        raise InputError("several processes need a run file in a folder that all of them see; give it with run=")
    if compress is not None:
        filter_options(compress)
    capture = CaptureSettings(
        seed=seed,
        max_samples=samples,
        max_tokens=tokens,
        chat_template=chat_template,
        keep=keep,
        max_store=max_store,
        attention=attention,
    )
    loaded = _as_loaded(model, tokenizer_or_processor)
    if calibration is None:
        calibration = gather(texts, images, dataset, samples=samples, tokens=tokens, seed=seed)
    with tempfile.TemporaryDirectory(prefix="sinkscope-") as scratch:
        path = Path(scratch) / "run.h5" if run is None else Path(run)
        chosen = measure_model(
            loaded, calibration, path, capture, resume=resume, compress=compress, progress=progress, ranks=ranks
        )
        found = ranks.from_first(lambda: discover(path, settings, name=name))
    team = team_of(loaded.model)
    profile = ranks.from_first(lambda: _with_weights(found, loaded.model), team)
    if not causal:
        return profile
    check = (
        causal
        if isinstance(causal, CausalSettings)
        else CausalSettings(seed=seed, chat_template=chat_template, attention=attention)
    )
    result = ranks.from_first(
        lambda: causal_check(loaded, profile, chosen, settings=check, progress=causal_progress), team
    )
    return profile.model_copy(update={"evidence": profile.evidence.model_copy(update={"causal": result})})


def measure_model(
    loaded: LoadedModel,
    calibration: Calibration,
    run: str | os.PathLike[str],
    settings: CaptureSettings,
    *,
    resume: bool = False,
    compress: str | None = None,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> list[Sample]:
    """Measure a model into a run file, without looking for sinks in it.

    The parameters and errors are those of `profile_model`.

    Returns
    -------
    list of Sample
        The calibration data that this model takes.
    """
    ranks = ranks or Ranks(Process())
    chosen, source = _chosen(loaded, calibration)
    if settings.chat_template is not None:
        source += ", in the chat template" if settings.chat_template else ", outside the chat template"
    capture_run(loaded, chosen, run, settings, resume=resume, progress=progress, source=source, ranks=ranks)
    if compress is not None:
        ranks.from_first(lambda: compress_run(run, compress))
    return chosen


def _with_weights(profile: Profile, model: nn.Module) -> Profile:
    """The profile with its second witness; where the weights cannot be read, with the reason."""
    try:
        return with_weights(profile, predict_loaded(model))
    except SinkscopeError as error:
        evidence = profile.evidence.model_copy(update={"weights": {"unavailable": str(error)}})
        return profile.model_copy(update={"evidence": evidence})


def _as_loaded(model: Any, helper: Any) -> LoadedModel:
    if isinstance(model, LoadedModel):
        return model
    if not isinstance(model, nn.Module):
        return load(model)
    anatomy = find_anatomy(model)
    processor = helper if hasattr(helper, "tokenizer") else None
    tokenizer = processor.tokenizer if processor is not None else helper
    if tokenizer is None:
        raise InputError("give the model's tokenizer or processor: profile_model(model, tokenizer)")
    identifier = str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
    return LoadedModel(model, tokenizer, processor, anatomy, identifier)


def _chosen(loaded: LoadedModel, calibration: Calibration) -> tuple[list[Sample], str]:
    """The samples that the model takes, and a sentence on where they come from."""
    if loaded.processor is not None and loaded.anatomy.multimodal:
        return calibration.samples(pictures=True), calibration.source(pictures=True)
    because = loaded.processor_error
    if calibration.pictures is not None:
        raise InputError(f"{loaded.model_id} takes no pictures{f' here: {because}' if because else ''}; leave them out")
    return calibration.samples(pictures=False), calibration.source(pictures=False) + (
        f"; no pictures: {because}" if because else ""
    )
