"""A model without weights: its config, and its modules on the meta device."""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig

from sinkscope.backbone.loading import FAILURES, explain_failure, has_vision, quiet_transformers
from sinkscope.errors import SinkscopeError


def read_config(name: str, source: str, **options: Any) -> PreTrainedConfig:
    """The config of the model `name`, which transformers finds at `source`.

    Raises
    ------
    InputError
        If there is none, or if it cannot be reached or read.
    UnsupportedModelError
        If transformers knows no decoder of this kind.
    """
    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(source, **options)
    except SinkscopeError:
        raise
    except FAILURES as error:
        raise explain_failure(name, error) from error


def build_skeleton(name: str, config: PreTrainedConfig, trust_remote_code: bool = False) -> nn.Module:
    """The modules of a model on the meta device: its whole structure, none of its memory.

    Raises
    ------
    UnsupportedModelError
        If it is no decoder that transformers can build.
    InputError
        If building it fails otherwise.
    """
    auto: Any = AutoModelForCausalLM
    if type(config) in AutoModelForImageTextToText._model_mapping and has_vision(config):
        auto = AutoModelForImageTextToText
    try:
        with quiet_transformers(), torch.device("meta"):
            return auto.from_config(config, trust_remote_code=trust_remote_code).eval()
    except SinkscopeError:
        raise
    except FAILURES as error:
        raise explain_failure(name, error) from error
