"""Pickles and programs under the names of data: whoever loads them runs them."""

import io
import json
import os
import pickle
import pickletools
import zipfile
from typing import Any

from hypothesis import strategies as st

from benchmarks.faults.malformed.base import picture
from benchmarks.faults.watched import Content, Work

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 16,
}


class _Opens:
    def __reduce__(self) -> Any:
        return open, ("executed", "w")


class _Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


class _Evaluates:
    def __reduce__(self) -> Any:
        return eval, ("__import__('pathlib').Path('executed').touch()",)


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """A pickle that makes a file "executed" where it is loaded: bare, in a zip file as torch writes it, or mixed."""
    thing = draw(st.sampled_from([_Opens, _Runs, _Evaluates]))()
    holder = draw(st.sampled_from([thing, {"weight": thing}, [1, thing], {"model.embed_tokens.weight": thing}]))
    data = pickle.dumps(holder, draw(st.integers(0, 5)))
    form = draw(st.sampled_from(["bare", "optimised", "zip", "numpy", "after HDF5", "after PNG", "line"]))
    if form == "optimised":
        return pickletools.optimize(data)
    if form == "zip":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/version", "3\n")
            archive.writestr("archive/byteorder", "little")
        return file.getvalue()
    if form == "numpy":
        header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
        return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data
    before = {"after HDF5": b"\x89HDF\r\n\x1a\n", "after PNG": picture(), "line": b'{"text": "a"}\n'}.get(form, b"")
    return before + data


CALLS: dict[str, tuple[tuple[str, ...], ...]] = {
    "p.json": (
        ("registry", "check", "p.json"),
        ("registry", "show", "p.json"),
        ("apply", "demo:lmm", "--image", "picture.png", "--prompt", "What?", "--profile", "p.json"),
    ),
    "run.h5": (("info", "run.h5"), ("discover", "run.h5"), ("merge", "run.h5", "run.h5", "-o", "merged.h5")),
    "texts.jsonl": (("profile", "demo:llm", "--texts", "texts.jsonl"),),
    "texts.txt": (("profile", "demo:llm", "--texts", "texts.txt"),),
    "texts.parquet": (("profile", "demo:llm", "--texts", "texts.parquet"),),
    "in.jsonl": (("apply", "demo:lmm", "--batch", "in.jsonl", "--out", "out.jsonl"),),
    "x.png": (("profile", "demo:lmm", "--images", "x.png"), ("apply", "demo:lmm", "--image", "x.png", "--prompt", "?")),
    "model/model.safetensors": (("load", "model"), ("predict", "model")),
    "model/pytorch_model.bin": (("load", "model"), ("predict", "model")),
    "model.gguf": (("load", "model.gguf"), ("predict", "model.gguf")),
    "model/tokenizer.json": (("load", "model"),),
    "model/config.json": (("load", "model"), ("predict", "model")),
}


@st.composite
def works(draw: st.DrawFn) -> Work:
    """A pickle by another name, and what reads files of that name."""
    name = draw(st.sampled_from(sorted(CALLS)))
    files: dict[str, bytes | Content] = {"picture.png": picture()}
    if name.startswith("model/"):
        files["model/config.json"] = json.dumps(CONFIG).encode()
    files[name] = draw(payloads())
    return Work(draw(st.sampled_from(CALLS[name])), files)


def load(model: str) -> None:
    """Load a model as every command does."""
    from sinkscope.backbone.loading import load

    load(model)


def predict(model: str) -> None:
    """Predict from the weights alone, as the command does."""
    from sinkscope.weights import predict

    predict(model)


FUNCTIONS = {"load": load, "predict": predict}
