"""A model folder that ships its own code: what no library knows by name. Every file of it notes that it was run."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from structure_models import DEPTH, SINK_DIM, STOP_ID, VOCABULARY, WIDTH, tokenizer

NOTE = """\
from pathlib import Path

with open({notes!r}, "a") as notes:
    notes.write(Path(__file__).stem + "\\n")
"""
CONFIGURATION = """
from transformers import PreTrainedConfig


class OddConfig(PreTrainedConfig):
    model_type = "odd-model"

    def __init__(self, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, vocab_size=120, **kwargs):
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.num_attention_heads, self.vocab_size = num_attention_heads, vocab_size
        super().__init__(**kwargs)
"""
MODELING = """
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_odd import OddConfig


class OddMixer(nn.Module):
    is_causal = True

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.enter, self.leave = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, state):
        query, key, value = self.enter(state).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        logits = query @ key.mT * query.shape[-1] ** -0.5
        seen = torch.ones(logits.shape[-2:], dtype=torch.bool, device=state.device).tril()
        weights = logits.masked_fill(~seen, -1e30).softmax(-1)
        return self.leave((weights @ value).transpose(1, 2).flatten(2))


class OddBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.mixer, self.wide, self.narrow = OddMixer(width, heads), nn.Linear(width, 48), nn.Linear(48, width)

    def forward(self, state):
        state = state + self.mixer(nn.functional.layer_norm(state, state.shape[-1:]))
        return state + self.narrow(self.wide(nn.functional.layer_norm(state, state.shape[-1:])).relu())


class OddForCausalLM(PreTrainedModel):
    config_class = OddConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        blocks = (OddBlock(config.hidden_size, config.num_attention_heads) for _ in range(config.num_hidden_layers))
        self.tower = nn.ModuleList(blocks)
        self.out = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, attention_mask=None, **kwargs):
        state = self.words(input_ids)
        for block in self.tower:
            state = block(state)
        return CausalLMOutput(logits=self.out(state))
"""
TOKENIZATION = """
from transformers import PreTrainedTokenizerFast


class OddTokenizer(PreTrainedTokenizerFast):
    pass
"""
AUTO = {"AutoConfig": "configuration_odd.OddConfig", "AutoModelForCausalLM": "modeling_odd.OddForCausalLM"}


def write_odd(folder: Path, **config: Any) -> Path:
    """Write the folder with its weights, but run nothing of it; gives the file in which its code notes that it ran.

    A dimension is massive on full stops.
    """
    folder.mkdir()
    notes = folder.parent / f"{folder.name}-ran.txt"
    files = {"configuration_odd": CONFIGURATION, "modeling_odd": MODELING, "tokenization_odd": TOKENIZATION}
    for name, text in files.items():
        (folder / f"{name}.py").write_text(NOTE.format(notes=str(notes)) + text)
    (folder / "config.json").write_text(json.dumps({"model_type": "odd-model", "auto_map": AUTO} | config))
    tokenizer().save_pretrained(folder)
    save_file(_weights(), folder / "model.safetensors", metadata={"format": "pt"})
    return notes


def _weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"words.weight": (VOCABULARY, WIDTH), "out.weight": (VOCABULARY, WIDTH), "out.bias": (VOCABULARY,)}
    matrices = {
        "mixer.enter": (3 * WIDTH, WIDTH),
        "mixer.leave": (WIDTH, WIDTH),
        "wide": (48, WIDTH),
        "narrow": (WIDTH, 48),
    }
    for layer in range(DEPTH):
        for name, shape in matrices.items():
            shapes |= {f"tower.{layer}.{name}.weight": shape, f"tower.{layer}.{name}.bias": shape[:1]}
    weights = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    weights["words.weight"][STOP_ID, SINK_DIM] = 600.0
    return weights
