"""A run with two sink regimes, written without a model, and its profile."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sinkscope.capture.synthetic import write_synthetic
from sinkscope.profile import Backbone, Band, LayerScale, Profile, Provenance, RejectedDimension, SinkDimension, Tau
from sinkscope.store.reader import RunReader

DEPTH, WIDTH, SAMPLES, LENGTH, SINK = 8, 64, 6, 40, 17


@pytest.fixture
def profile() -> Profile:
    return Profile(
        name="toy",
        verdict="sinks",
        reason="Dimension 17 is massive on few tokens that draw attention.",
        backbone=Backbone(model_type="llama", hidden_size=WIDTH, num_layers=DEPTH),
        models=["someone/toy"],
        sink_dimensions=[SinkDimension(dim=SINK, sign=1, phi=7.9, first_layer=2, last_layer=7, triggers=["first"])],
        companion_dimensions=[RejectedDimension(dim=18, reason="too little energy")],
        content_dimensions=[RejectedDimension(dim=40, reason="draws no attention")],
        tau=Tau(phi=6.0, phi_interval=(4.0, 7.0), quality="separated"),
        bands=[
            Band(first_layer=2, last_layer=4, dims=[SINK], tau_phi=6.0, quality="separated"),
            Band(
                first_layer=5,
                last_layer=7,
                dims=[SINK],
                tau_phi=6.0,
                scale=1.0,
                tau_score=50.0,
                tau_score_interval=(10.0, 500.0),
                quality="separated",
                layers=[LayerScale(layer=6, scale=1.0, tau_score=60.0)],
            ),
        ],
        provenance=Provenance(kind="measured", date="2026-01-01"),
    )


@pytest.fixture(scope="session")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(0)
    states = generator.normal(size=(DEPTH + 1, SAMPLES * LENGTH, WIDTH)).astype(np.float32)
    position = np.tile(np.arange(LENGTH), SAMPLES)
    states[2:5, position == 0, SINK] = 100.0
    states[2:5, position == 9, SINK] = 100.0
    states[5:8, position == 0, SINK] = 1000.0
    kinds = np.where((position > 4) & (position < 9), 2, 0)
    drawn = np.full((SAMPLES * LENGTH, DEPTH), 0.01)
    drawn[position == 0] = 0.5
    return write_synthetic(
        tmp_path_factory.mktemp("run") / "toy.h5",
        states,
        np.repeat(np.arange(SAMPLES), LENGTH),
        kinds=kinds,
        drawn=drawn,
        sampled=60,
    )


@pytest.fixture
def run(run_path: Path) -> Iterator[RunReader]:
    with RunReader(run_path) as reader:
        yield reader
