"""Random-weight models of several families with planted massive activations. Nothing is downloaded."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2VLConfig,
)

from sinkscope.backbone.anatomy import decoder_layers, find_anatomy
from sinkscope.calibration import default_texts

VOCABULARY, WIDTH, LAYERS = 600, 64, 6
IMAGE, BOS, EOS, PAD = "<image>", "<s>", "</s>", "<pad>"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the embedded calibration texts."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 8,
        special_tokens=[PAD, BOS, EOS, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([sample.text or "" for sample in default_texts()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=PAD, bos_token=BOS, eos_token=EOS, extra_special_tokens=[IMAGE]
    )


def _shape(**changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 128,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | changes


def _llava() -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=32,
    )
    return LlavaConfig(vision_config=vision, text_config=LlamaConfig(**_shape()), image_token_id=3, image_seq_length=16)


def _qwen2_vl() -> Qwen2VLConfig:
    text = _shape(rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]})
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": WIDTH, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2}
    return Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=3)


CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**_shape()),
    "qwen2": lambda: Qwen2Config(**_shape()),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=2
    ),
    "gemma2": lambda: Gemma2Config(**_shape(head_dim=16, sliding_window=32)),
    "llava": _llava,
    "qwen2_vl": _qwen2_vl,
}


def make_model(family: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = CONFIGS[family]()
    auto = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    return auto.from_config(config).eval()


def make_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """For the LLaVA above: 16 visual tokens a picture."""
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False)
    template = (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        image_token=IMAGE,
        num_additional_image_tokens=1,
        chat_template=template,
    )


def plant(
    model: nn.Module, dims: Sequence[int], value: float, first: int, last: int, triggers: Callable[[Any], Any]
) -> None:
    """From layer `first` to layer `last`, write `value` with alternating sign into `dims` of the trigger tokens.

    `triggers` takes the token ids [B, T] and gives bool [B, T]; the ids are seen at the input embeddings.
    """
    layers = decoder_layers(model, find_anatomy(model))
    seen: dict[str, torch.Tensor] = {}
    model.get_input_embeddings().register_forward_pre_hook(lambda module, args: seen.update(ids=args[0]))
    spike = torch.tensor([value if place % 2 == 0 else -value for place in range(len(dims))])

    def write(module: nn.Module, args: Any, output: Any) -> Any:
        state = (output[0] if isinstance(output, tuple) else output).clone()
        mask = triggers(seen["ids"])
        rows = state[mask]
        # Spread by what the token holds, so that it does not depend on the batch.
        wobble = 1 + 0.02 * torch.sin(rows[:, -1:])
        rows[:, list(dims)] = spike.to(state.dtype) * wobble
        state[mask] = rows
        return (state, *output[1:]) if isinstance(output, tuple) else state

    for layer in layers[first - 1 : last]:
        layer.register_forward_hook(write)
