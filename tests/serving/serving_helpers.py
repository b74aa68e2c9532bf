"""Real servers over loopback, in threads of this process, and models behind them."""

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import openai
import torch
import uvicorn
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sinkscope.backbone.anatomy import find_anatomy
from sinkscope.backbone.loading import LoadedModel
from sinkscope.serving import create_app, open_port
from sinkscope.serving.server import address_of


def data_url(image: Image.Image, kind: str = "PNG", **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def question(text: str, *images: Image.Image) -> list[dict]:
    """One user turn, the pictures first."""
    parts = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def eventually(condition: Callable[[], bool], seconds: float = 8.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@contextmanager
def served(loaded, profile=None, **settings) -> Iterator[SimpleNamespace]:
    """`loaded` behind a free port: its `url`, `service`, and an openai `client`."""
    app = create_app(loaded, profile, **settings)
    listener = open_port("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    assert eventually(lambda: server.started)
    url = address_of(listener)
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield SimpleNamespace(url=url, client=client, service=app.state.service)
    server.should_exit = True
    thread.join(60)
    listener.close()
    assert not thread.is_alive()


def tiny_text_model() -> LoadedModel:
    """A random Llama with a tokenizer over bytes."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1} | {character: number for number, character in enumerate(characters, 2)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    model = LlamaForCausalLM(config).eval()
    return LoadedModel(model, fast, None, find_anatomy(model), "tiny")
