"""Work in several processes that find each other as under torchrun, without importing torch anew in each."""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from sinkscope.errors import SinkscopeError

# Hundreds of expressions are compiled for the first checkpoint that is read: here, once for all processes.
get_checkpoint_conversion_mapping("llama")

PRELOADED = [
    "several_processes",
    "sinkscope.pipeline",
    "sinkscope.cli.profile",
    "transformers.quantizers.auto",
    "capture_models",
    "test_capture_runner",
]


def start(size: int, folder: Path, work: Callable[..., dict[str, Any]], *arguments: Any) -> list[dict[str, Any]]:
    """Run ``work(rank, *arguments)`` in `size` processes to their ends; what each returns, nothing where it was killed.

    An error of sinkscope's is returned as {"error": its text}.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    reports = [folder / f"outcome{rank}.json" for rank in range(size)]
    children = [
        context.Process(target=_main, args=(rank, size, port, reports[rank], work, arguments)) for rank in range(size)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    outcomes = [json.loads(report.read_text()) if report.exists() else {} for report in reports]
    for report in reports:
        report.unlink(missing_ok=True)
    return outcomes


def _main(
    rank: int, size: int, port: int, report: Path, work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        outcome = work(rank, *arguments)
    except SinkscopeError as error:
        outcome = {"error": str(error)}
    report.write_text(json.dumps(outcome))
