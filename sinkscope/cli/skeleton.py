"""The anatomy of a model from its config alone: its modules are made on the meta device, without weights."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from sinkscope.backbone.anatomy import Anatomy, find_anatomy
from sinkscope.backbone.loading import explain_failure, has_vision, locate
from sinkscope.errors import SinkscopeError
from sinkscope.pipeline import resolve


def find_skeleton_anatomy(model: str, revision: str | None = None, trust_remote_code: bool = False) -> Anatomy:
    """The anatomy of the model called `model`.

    Parameters
    ----------
    model : str
        Hub id, local folder, ``.gguf`` file, ``demo:llm`` or ``demo:lmm``.
    revision : str, optional
        Hub revision.
    trust_remote_code : bool
        Run code that the model's repository ships.

    Raises
    ------
    InputError
        If the config cannot be found or read.
    UnsupportedModelError
        If it is not a decoder model.
    """
    source, options = locate(resolve(model))
    options |= {"trust_remote_code": trust_remote_code} | ({"revision": revision} if revision else {})
    try:
        config = AutoConfig.from_pretrained(source, **options)
        auto: Any = AutoModelForCausalLM
        if type(config) in AutoModelForImageTextToText._model_mapping and has_vision(config):
            auto = AutoModelForImageTextToText
        options.pop("gguf_file", None)
        with torch.device("meta"):
            skeleton = auto.from_config(config, trust_remote_code=trust_remote_code)
    except SinkscopeError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, NotImplementedError, TypeError) as error:
        raise explain_failure(model, error) from error
    return find_anatomy(skeleton)
