"""A pretrained model with weights of 8 bits."""

from pathlib import Path

import pytest

import sinkscope

pytestmark = pytest.mark.real_model


def test_smollm2_in_int8_has_the_sink_dimension_that_it_has_in_float32(smollm2: str, tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed: pip install -c constraints.txt torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    original = sinkscope.load(smollm2)
    # transformers quantises safetensors, not GGUF files, and saves a model from one only once it forgets that.
    original.model.hf_quantizer = None
    del original.model.config.quantization_config
    original.model.save_pretrained(tmp_path)
    original.tokenizer.save_pretrained(tmp_path)
    loaded = sinkscope.load(tmp_path, quantization=TorchAoConfig(Int8WeightOnlyConfig()))
    assert type(loaded.model.model.layers[0].mlp.down_proj.weight).__module__.startswith("torchao")
    profile = sinkscope.profile_model(loaded, tokens=700)
    assert profile.dims == (507,)
    entry = profile.sink_dimensions[0]
    assert (entry.first_layer, entry.last_layer) == (3, 29)
    assert entry.typical_value == pytest.approx(24900, rel=0.1)
    # The weights speak as well: what 8 bits stand for is read.
    assert profile.evidence.weights is not None
    assert profile.evidence.weights["agrees"]
