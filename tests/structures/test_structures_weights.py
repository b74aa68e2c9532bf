"""What the weights alone say of each structure: spikes written by its MLP are named, whatever stands behind them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from structure_models import CONFIGS, DEPTH, SINK_DIM, WIDTH, text_model, texts, tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from sinkscope.backbone.anatomy import find_anatomy
from sinkscope.capture.planning import weights_fingerprint
from sinkscope.weights import predict, predict_loaded

LAST = (
    "mlp.down_proj.weight",
    "mlp.fc_out.weight",
    "mlp.dense_4h_to_h.weight",
    "mlp.c_proj.weight",
    "fc2.weight",
    "feed_forward.down_proj.weight",
    "feed_forward.w2.weight",
    "experts.down_proj",
)
"""What transformers calls the last matrix of an MLP, or of all its experts."""
LAYER, TIMES = 1, 40.0


def last_matrix(model: nn.Module) -> Tensor:
    """The last matrix of a layer's MLP, or of its last expert: [D, I], sharing the model's memory."""
    prefix = f"{find_anatomy(model).layers_path}.{LAYER}."
    (weight,) = [
        weight.data for name, weight in model.named_parameters() if name.startswith(prefix) and name.endswith(LAST)
    ]
    weight = weight[-1] if weight.ndim == 3 else weight
    return weight if weight.shape[0] == WIDTH else weight.T


def spike(matrix: Tensor) -> None:
    matrix[SINK_DIM, 3] = TIMES * matrix.abs().amax(1).median()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_spike_that_one_neuron_writes_is_named(name: str) -> None:
    model = text_model(name)
    assert predict_loaded(model).verdict == "none"
    spike(last_matrix(model))
    (found,) = predict_loaded(model).sink_dimensions
    assert (found.dim, found.created_layers) == (SINK_DIM, (LAYER,))
    assert found.bands == ((LAYER + 1, DEPTH - 1),)


def norm_behind(model: nn.Module) -> tuple[nn.Module, Tensor, float]:
    """The norm behind the MLP; what it multiplies with [D]; and how much more that is than its weight."""
    norm: Any = model.get_submodule(f"model.layers.{LAYER}.post_feedforward_layernorm")
    scale = norm(torch.ones(WIDTH))
    return norm, scale, float((scale - norm.weight)[0].round())


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gemma4"])
@torch.no_grad()
def test_the_norm_behind_a_block_counts_as_it_multiplies(name: str) -> None:
    """A spike may stand in the norm's weight alone, and a matrix's spike may be taken back by it."""
    model = text_model(name)
    norm, scale, more = norm_behind(model)
    norm.weight[SINK_DIM] = TIMES - more
    scale = norm(torch.ones(WIDTH))
    assert float(scale[SINK_DIM]) == pytest.approx(TIMES, rel=1e-4)
    (found,) = predict_loaded(model).sink_dimensions
    largest = (last_matrix(model) * scale[:, None]).abs().amax(1)
    assert found.dim == SINK_DIM
    assert found.ratio == pytest.approx(float(largest[SINK_DIM] / np.median(largest.numpy())), rel=1e-3)

    model = text_model(name)
    norm, _, more = norm_behind(model)
    spike(last_matrix(model))
    norm.weight[SINK_DIM] = 1 / TIMES - more
    assert predict_loaded(model).verdict == "none"


@pytest.mark.parametrize("name", ["gemma3", "gpt2", "opt projected", "llama"])
def test_tied_and_untied_heads_make_no_difference_to_what_is_predicted(name: str, tmp_path: Path) -> None:
    predictions, anatomies = [], []
    for tied in (True, False):
        config = CONFIGS[name]()
        config.tie_word_embeddings = tied
        model = AutoModelForCausalLM.from_config(config).eval()
        # What both hold comes from one model; the untied head is a matrix of its own, with the largest entry of all.
        given = text_model(name).state_dict()
        model.load_state_dict(
            {key: value for key, value in given.items() if tied or "lm_head" not in key}, strict=False
        )
        spike(last_matrix(model))
        head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
        assert (head is embeddings) == tied
        if not tied:
            head.data[SINK_DIM + 1] = 1e4
        folder = tmp_path / str(tied)
        model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        predictions += [predict(folder), predict_loaded(model)]
        anatomies.append(find_anatomy(model))
        again = AutoModelForCausalLM.from_pretrained(folder).eval()
        assert weights_fingerprint(again) == weights_fingerprint(model)
        with torch.no_grad():
            assert torch.equal(again(**texts(9)).logits, model(**texts(9)).logits)
    assert {prediction.dims for prediction in predictions} == {(SINK_DIM,)}
    assert len({tuple(prediction.sink_dimensions) for prediction in predictions}) == 1
    assert anatomies[0].fingerprint() == anatomies[1].fingerprint()
