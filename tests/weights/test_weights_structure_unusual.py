"""Models whose forward pass is hard to follow without data, and layers that are no plain attention and MLP."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BlipConfig,
    DeepseekV4Config,
    Gemma3nTextConfig,
    JetMoeConfig,
    Kosmos2Config,
    LlamaConfig,
    MambaConfig,
    RwkvConfig,
    XGLMConfig,
)
from transformers.models.inkling2.configuration_inkling2 import Inkling2TextConfig
from transformers.models.mllama.configuration_mllama import MllamaTextConfig
from transformers.models.mllama.modeling_mllama import MllamaForCausalLM

from sinkscope.backbone.anatomy import find_anatomy
from sinkscope.errors import UnsupportedModelError
from sinkscope.weights.structure import find_writers

WIDTH, LAYERS = 64, 3
SHAPE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 100,
    "pad_token_id": 0,
}
TEXT = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 96}


def skeleton_of(config, auto=AutoModelForCausalLM):
    with torch.device("meta"):
        return auto.from_config(config)


def found(model):
    """For each layer the ends of the names of its writers, by kind."""
    layers = [{"attention": set(), "mlp": set()} for _ in range(LAYERS)]
    parameters = dict(model.named_parameters())
    for writer in find_writers(model, find_anatomy(model)):
        assert parameters[writer.parameter].shape[writer.axis] == WIDTH
        parts = [part for part in writer.parameter.removesuffix(".weight").split(".") if not part.isdigit()]
        layers[writer.layer][writer.kind].add(".".join(parts[-2:]).removeprefix("layers."))
    return layers


@pytest.mark.parametrize(
    ("config", "attention", "mlp"),
    [
        # Splits the tokens by a list of expert sizes.
        (
            JetMoeConfig(**SHAPE | {"num_key_value_heads": 4}, kv_channels=16, num_local_experts=4),
            {"experts.output_linear"},
            {"mlp.output_linear"},
        ),
        # Softmax over scores of three axes.
        (
            XGLMConfig(d_model=WIDTH, num_layers=LAYERS, attention_heads=4, ffn_dim=96, vocab_size=100),
            {"self_attn.out_proj"},
            {"fc2"},
        ),
        # A recurrence, and a gate of hidden size that is no writer.
        (
            RwkvConfig(hidden_size=WIDTH, num_hidden_layers=LAYERS, vocab_size=100),
            {"attention.output"},
            {"feed_forward.value"},
        ),
        # A convolution and a recurrence; no MLP.
        (MambaConfig(hidden_size=WIDTH, num_hidden_layers=LAYERS, vocab_size=100), {"mixer.out_proj"}, set()),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_kinds(config, attention, mlp):
    for layer in found(skeleton_of(config)):
        assert layer == {"attention": attention, "mlp": mlp}


def test_attention_over_depth_mixes_no_tokens():
    model = skeleton_of(Inkling2TextConfig(**SHAPE, head_dim=16, n_layers_per_attn_res_block=2))
    for layer in found(model):
        assert (layer["attention"], layer["mlp"]) == ({"self_attn.o_proj"}, {"experts.down_proj"})


def test_layers_that_a_text_only_pass_skips_have_no_writers():
    rope = {"rope_theta": 10000.0, "rope_type": "default"}
    config = MllamaTextConfig(**SHAPE, cross_attention_layers=[1], rope_parameters=rope)
    with torch.device("meta"):
        first, skipped, last = found(MllamaForCausalLM._from_config(config))
    assert first == last == {"attention": {"self_attn.o_proj"}, "mlp": {"mlp.down_proj"}}
    assert skipped == {"attention": set(), "mlp": set()}


@pytest.mark.parametrize(
    ("config", "attention", "mlp"),
    [
        (DeepseekV4Config(**SHAPE), {"self_attn.o_b_proj"}, {"experts.down_proj", "shared_experts.down_proj"}),
        (
            Gemma3nTextConfig(
                **SHAPE, head_dim=16, num_kv_shared_layers=0, hidden_size_per_layer_input=8, laurel_rank=8,
                vocab_size_per_layer_input=100, activation_sparsity_pattern=[0.5, 0.0, 0.0],
            ),
            {"self_attn.o_proj"},
            {"mlp.down_proj", "laurel.linear_right", "per_layer_projection"},
        ),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)  # fmt: skip
def test_several_streams(config, attention, mlp):
    assert found(skeleton_of(config))[2] == {"attention": attention, "mlp": mlp}


@pytest.mark.parametrize(
    "config",
    [
        BlipConfig(text_config=TEXT | {"vocab_size": 100}, vision_config=TEXT),
        Kosmos2Config(
            text_config={"embed_dim": WIDTH, "layers": LAYERS, "attention_heads": 4, "ffn_dim": 96, "vocab_size": 100},
            vision_config=TEXT,
        ),
    ],
    ids=lambda value: value.model_type,
)
def test_the_text_decoder_of_a_model_that_asks_for_an_image(config):
    for layer in found(skeleton_of(config, AutoModelForImageTextToText)):
        assert len(layer["attention"]) >= 1
        assert len(layer["mlp"]) == 1


class FusedLayer(nn.Module):
    """Attention and MLP side by side with one output matrix."""

    def __init__(self, layer):
        super().__init__()
        self.self_attn, self.up, self.down = layer.self_attn, nn.Linear(WIDTH, 96), nn.Linear(WIDTH + 96, WIDTH)
        self.self_attn.o_proj = nn.Identity()

    def forward(self, hidden_states, **kwargs):
        mixed, _ = self.self_attn(hidden_states=hidden_states, **kwargs)
        return hidden_states + self.down(torch.cat([mixed, self.up(hidden_states).relu()], -1))


def test_one_matrix_for_attention_and_mlp_counts_as_mlp():
    model = skeleton_of(LlamaConfig(**SHAPE))
    with torch.device("meta"):
        model.model.layers[1] = FusedLayer(model.model.layers[1])
    plain = {"attention": {"self_attn.o_proj"}, "mlp": {"mlp.down_proj"}}
    assert found(model) == [plain, {"attention": set(), "mlp": {"down"}}, plain]


def test_what_is_added_again_from_an_earlier_layer_belongs_to_that_layer():
    model = skeleton_of(LlamaConfig(**SHAPE))
    plain = found(model)
    kept = []
    model.model.layers[0].register_forward_hook(lambda module, args, output: kept.append(output))
    model.model.layers[2].register_forward_hook(lambda module, args, output: output + kept[-1])
    assert found(model) == plain


def test_training_mode_is_left_as_it_was():
    model = skeleton_of(LlamaConfig(**SHAPE, attention_dropout=0.5))
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    assert found(model) == found(model.eval().train())
    model.model.layers[0].eval()
    find_writers(model, find_anatomy(model))
    assert [module.training for module in model.modules()] == before


def test_a_width_that_changes_is_refused():
    model = skeleton_of(LlamaConfig(**SHAPE))
    model.model.layers[1].register_forward_pre_hook(lambda module, args: (args[0][..., :8], *args[1:]))
    with pytest.raises(UnsupportedModelError, match=r"entering decoder layer 1 of llama is \[1, 19, 8\], not"):
        find_writers(model, find_anatomy(model))
