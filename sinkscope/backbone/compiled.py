"""Compiled models run as they are written while hooks are set on them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_lock = threading.Lock()
_users = 0
_stance: Any = None


@contextmanager
def uncompiled() -> Iterator[None]:
    """Let everything that `torch.compile` made run uncompiled inside the context, in all threads.

    A graph that was compiled before knows nothing of hooks, and one that is compiled now would keep them. Results are
    those of the model; what is lost is the speed-up. Contexts may overlap in any order.
    """
    global _users, _stance
    with _lock:
        if _users == 0:
            _stance = torch.compiler.set_stance("force_eager")
            _stance.__enter__()
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _stance.__exit__(None, None, None)
                _stance = None
