"""One thread: the models are so small that more threads only wait for each other."""

from collections.abc import Iterator

import pytest
import torch
from transformers.utils import logging


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    """Hybrids say on every call which fast kernels are not installed."""
    logging.set_verbosity_error()
