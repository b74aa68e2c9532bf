"""Profile one small model with planted massive activations, and ask whether exactly they come back."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sinkscope
from benchmarks.coverage.building import forward, one_line
from benchmarks.coverage.planting import DIMS, FIRST_LAYER, Planted
from benchmarks.coverage.words import stops, tokenizer
from sinkscope.backbone.anatomy import Anatomy
from sinkscope.backbone.hooks import entering_states
from sinkscope.backbone.loading import LoadedModel
from sinkscope.calibration import Sample
from sinkscope.errors import SinkscopeError

SAMPLES, SAMPLES_WITH_PICTURES, TOKENS = 24, 40, 4000


def profile_planted(
    model: nn.Module, anatomy: Anatomy, size: float, processor: Any = None, images: Sequence[Sample] = ()
) -> dict[str, Any]:
    """Capture into a run file, discovery, and what came of it, ready for JSON.

    `size` is that of the planted entries. `processor` makes `images` into inputs with visual tokens. Without images the
    samples are texts.
    """
    result: dict[str, Any] = {"planted": list(DIMS)}
    loaded = LoadedModel(model, tokenizer(), processor, anatomy, anatomy.model_type)
    planted = None
    try:
        planted = Planted(model, anatomy, stops(), size)
        with tempfile.TemporaryDirectory(prefix="coverage-") as folder:
            profile = sinkscope.profile_model(
                loaded,
                images=None if processor is None else list(images),
                samples=SAMPLES_WITH_PICTURES if images else SAMPLES,
                tokens=None if images else TOKENS,
                attention=False,
                run=Path(folder) / "run.h5",
            )
    except SinkscopeError as error:
        return result | {"status": "refused", "reason": str(error)}
    except Exception as error:
        return result | {"status": "failed", "reason": one_line(error)}
    finally:
        if planted is not None:
            planted.remove()
    found = sorted(profile.dims)
    exact = found == list(DIMS) and profile.verdict == "sinks"
    layers = [[band.first_layer, band.last_layer] for band in profile.bands]
    result |= {"status": "works" if exact else "failed", "found": found, "layers": layers}
    if not exact:
        result["reason"] = f"found {found}, verdict {profile.verdict}: {profile.reason}"
    elif layers != [[FIRST_LAYER, anatomy.num_layers - 1]]:
        result["layers_differ"] = True
    return result


def states_agree(model: nn.Module, anatomy: Anatomy, inputs: dict[str, Tensor]) -> bool | None:
    """Whether transformers' own `hidden_states` are among the states that sinkscope sees, in order; None without any.

    The last own one stands after the final norm and does not count.
    """
    seen: dict[int, Tensor] = {}
    try:
        with entering_states(model, anatomy, lambda layer, state: seen.update({layer: state.clone()})):
            output = forward(model, **inputs, output_hidden_states=True)
    except Exception:
        return None
    own = getattr(output, "hidden_states", None) or getattr(output, "language_model_outputs", {}).get("hidden_states")
    if not own or len(own) < 2 or not all(isinstance(state, Tensor) for state in own):
        return None
    if 0 not in seen:
        return False
    # Some give back the hidden states of their image encoder.
    if own[0].shape[:2] != inputs["input_ids"].shape:
        return None
    # A model that leaves out the embeddings may still do something to the last state before it is collected.
    counted = own[:-1] if _same(own[0], seen[0]) else own[:-2]
    left = [seen[layer] for layer in sorted(seen)]
    for state in counted:
        while left and not _same(left[0], state):
            left.pop(0)
        if not left:
            return False
    return True


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
