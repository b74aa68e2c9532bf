import pytest
import torch
from causal_models import make_llama, make_llava

from sinkscope.backbone.loading import LoadedModel


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama() -> LoadedModel:
    return make_llama()


@pytest.fixture(scope="session")
def llava() -> LoadedModel:
    return make_llava()
