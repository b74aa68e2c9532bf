"""Profile a model with a limit on what the process may take beside the interpreter and its libraries.

    limited.py BYTES FIRST MODEL PROFILE.json [OPTION ...]

The small model FIRST is profiled without the limit, so that libraries have their buffers and threads. The limit is the
kernel's, on data: memory of its own and files mapped for it. The last line on stdout says by how many bytes the memory
that the process holds had grown at most, mapped files included.
"""

import resource
import sys
import tempfile
from pathlib import Path

import psutil

from sinkscope.cli.main import run
from sinkscope.errors import InputError
from sinkscope.pipeline import load


def profile(model: str, output: str, *options: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        return run(["profile", model, "-o", output, "--run", f"{folder}/run.h5", "--json", *options])


def held(name: str) -> int:
    """A size in ``/proc/self/status``, in bytes."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{name}:")[1].split()[0]) * 1024


def main(limit: int, first: str, model: str, output: str, *options: str) -> int:
    if profile(first, output, *options):
        return 1
    allowed = psutil.Process().memory_info().data + limit
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    Path("/proc/self/clear_refs").write_text("5")  # The peak counts from here.
    before = held("VmRSS")
    code = profile(model, output, *options)
    grown = held("VmHWM") - before
    try:
        load(model, device_map=None)
    except InputError:
        print(f"\ngrown {grown}")
        return code
    print("the limit lets the model be loaded whole", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), *sys.argv[2:]))
