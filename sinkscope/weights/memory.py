"""The parameters of a model that is loaded already, read as a checkpoint's are."""

from typing import Any

import torch
from torch import Tensor, nn

from sinkscope.backbone.placement import dense, parameter_values
from sinkscope.backbone.tensor_parallel import team_of
from sinkscope.errors import UnsupportedModelError
from sinkscope.weights.checkpoint import Stored


class LoadedParameters:
    """What `Checkpoint` offers, from a loaded model.

    Parameters
    ----------
    model : nn.Module
        A transformers model, on any device, on disk in part, or held by several processes, which all read it then.

    Attributes
    ----------
    in_order : bool
        Whether parameters must be read one after another: several processes put each of them together.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self.in_order = team_of(model).size > 1
        self.bytes_read = 0

    def skeleton(self) -> nn.Module:
        """The model once more, on the meta device.

        Raises
        ------
        UnsupportedModelError
            If it cannot be built from its config.
        """
        kind: Any = type(self._model)
        try:
            with torch.device("meta"):
                built: nn.Module = kind(self._model.config)
        except Exception as error:  # Whatever a model's code does with its config.
            raise UnsupportedModelError(
                f"{kind.__name__} cannot be built from its config ({type(error).__name__}), so its weights are not read"
            ) from error
        return built.eval()

    def find(self, parameter: str) -> list[Stored]:
        """The parameter, as one tensor."""
        tensor = self._parameters.get(parameter)
        if tensor is None or not tensor.is_floating_point():
            state = "is not there" if tensor is None else "is quantised"
            raise UnsupportedModelError(f"{parameter} {state} in the loaded model; name its checkpoint to `predict`")
        return [Stored(parameter, parameter, None, tuple(tensor.shape), tensor.nbytes)]

    def read(self, stored: Stored) -> Tensor:
        """The parameter on the CPU."""
        self.bytes_read += stored.nbytes
        return dense(parameter_values(self._model, stored.parameter)).cpu()
