"""What a profile says about its own certainty: intervals, power, and warnings about the data."""

import numpy as np
import pytest
from synthetic_runs import LENGTH, SAMPLES, attention_of, plant, positions, residual_stream, write

from sinkscope.discovery import DiscoverySettings, discover
from sinkscope.discovery.pooled import resampled_thresholds
from sinkscope.discovery.split import split_at

WIDTH, LAYERS = 128, 8


@pytest.fixture
def states():
    made = residual_stream(30, WIDTH, LAYERS)
    plant(made, [64], 300.0, positions() == 0, 2, LAYERS)
    return made


def test_thresholds_lie_in_their_intervals(tmp_path, states):
    drawn = attention_of((positions() == 0)[:, None] & (np.arange(LAYERS) >= 2), LAYERS)
    profile = discover(write(tmp_path / "run.h5", states, drawn=drawn))
    (band,) = profile.bands
    for value, interval, spread in (
        (band.tau_score, band.tau_score_interval, band.tau_score_bootstrap),
        (band.tau_phi, band.tau_phi_interval, band.tau_phi_bootstrap),
        (profile.tau.phi, profile.tau.phi_interval, profile.tau.phi_bootstrap),
    ):
        assert interval[0] < value <= interval[1]
        # Nothing lies between the two populations: any resampling's threshold does.
        assert interval[0] <= spread[0] <= value <= spread[1] <= interval[1]
    assert band.quality == "separated"


def test_resampled_thresholds_spread_where_populations_overlap():
    generator = np.random.default_rng(0)
    score = np.exp(np.concatenate([generator.normal(0, 1, 900), generator.normal(3, 1, 100)]))
    label, sample = np.arange(1000) >= 900, np.arange(1000) % 40
    weights = np.stack([np.bincount(generator.integers(0, 40, 40), minlength=40) for _ in range(60)])
    found = np.log(resampled_thresholds(score, label, sample, weights))
    assert np.isfinite(found).all()
    assert 1.2 < np.median(found) < 3.0
    assert found.std() > 0.05
    middle = split_at(score, label, float(np.exp(np.median(found))))
    assert 0.6 < middle.f1 < 0.95
    assert middle.low < np.exp(np.median(found)) <= middle.high


def test_power_says_how_much_data_the_decision_needed(tmp_path, states):
    power = discover(write(tmp_path / "run.h5", states)).evidence.model_extra["power"]
    assert power["tokens_needed"] == power["samples_needed"] * LENGTH < SAMPLES * LENGTH
    assert [entry["samples"] for entry in power["curve"]] == [3, 6, 12, 18]
    assert power["curve"][-1]["repeated"] == 1.0
    none = discover(write(tmp_path / "none.h5", residual_stream(31, WIDTH, LAYERS)))
    power = none.evidence.model_extra["power"]
    assert power["tokens_needed"] is None
    assert power["curve"] == []
    assert f"{power['detectable_share']:.0%}" in none.reason
    few = discover(tmp_path / "none.h5", DiscoverySettings(minimum_samples=100)).reason
    assert "little calibration data" in few
    assert "would have been seen" not in few


def test_what_would_have_been_seen_is_seen(tmp_path):
    """A dimension planted somewhat above the detectable share is found; far below it nothing is."""
    quiet = residual_stream(32, WIDTH, LAYERS)
    share = discover(write(tmp_path / "quiet.h5", quiet)).evidence.model_extra["power"]["detectable_share"]
    for name, odds, dims in (("above", 4 * share / (1 - share), (9,)), ("below", 0.02, ())):
        loud = quiet.copy()
        for layer in range(2, LAYERS + 1):
            others = np.sum(np.delete(loud[layer], 9, axis=1) ** 2, axis=1)
            loud[layer][positions() == 0, 9] = np.sqrt(odds * others[positions() == 0])
        assert discover(write(tmp_path / f"{name}.h5", loud)).dims == dims


def test_warnings_about_the_data(tmp_path, states):
    generator = np.random.default_rng(0)
    alike = generator.integers(0, 30, SAMPLES * LENGTH)
    sample = np.repeat(np.arange(SAMPLES), LENGTH)
    mixed = generator.integers(0, 30, SAMPLES * LENGTH) + 1000 * (sample // 2)
    bos = {"bos": {"token": "<s>", "default": True, "other_every": 4}}

    def notes(name, **options):
        return " ".join(discover(write(tmp_path / f"{name}.h5", states, **options)).evidence.notes)

    assert "much alike" in notes("alike", ids=alike)
    assert "much alike" not in notes("mixed", ids=mixed)
    assert "no sample begins with <s>" in notes("without", calibration=bos, ids=mixed)
    special = (positions() == 0).astype(np.uint8)
    assert "begins with" not in notes("with", calibration=bos, ids=mixed, kinds=special)
    assert "float16" not in notes("small", ids=mixed)
    plant(states, [64], 90_000.0, positions() == 0, 4, LAYERS)
    assert "from layer 4 on, beyond float16's 65,504" in notes("large", ids=mixed)


def test_every_threshold_has_a_meaning_and_limits():
    described = DiscoverySettings.described()
    assert set(described) == set(DiscoverySettings().to_dict())
    assert all(len(says) > 10 for _, says in described.values())
    for name, (default, _) in described.items():
        with pytest.raises(Exception, match=name):
            DiscoverySettings(**{name: -1 if isinstance(default, int) else 2.5 if name != "separated_gap" else -0.1})


def test_thresholds_change_what_they_say(tmp_path, states):
    weak = attention_of((positions() == 0)[:, None] & (np.arange(LAYERS) >= 2), LAYERS, drawn=0.07)
    run = write(tmp_path / "run.h5", states, drawn=weak)
    assert discover(run).verdict == "none"
    assert discover(run, DiscoverySettings(attention_sink=0.05)).dims == (64,)
    assert discover(run, DiscoverySettings(attention_sink=0.05, minimum_run=8)).verdict == "none"
