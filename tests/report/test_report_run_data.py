"""The numbers behind the pictures, against what was put into the run."""

import math

import numpy as np
import pytest

from sinkscope.errors import InputError
from sinkscope.profile import Profile
from sinkscope.report import band_scores, layer_series
from sinkscope.report.layers import contrast
from sinkscope.store.reader import RunReader


def test_scores_of_the_bands(run: RunReader, profile: Profile) -> None:
    first, second = band_scores(run, profile)
    assert (first.score_name, first.tau, first.interval) == ("phi", 6.0, (4.0, 7.0))
    assert (second.score_name, second.tau, second.interval) == ("score", 50.0, (10.0, 500.0))
    for band, sinks_a_sample in ((first, 2), (second, 1)):
        weights = {population.name: population.weight.sum() for population in band.populations}
        # Every token counts once in each of the band's three layers: six samples of 40 tokens, 4 of them visual.
        assert weights == pytest.approx({"first token": 18, "visual": 72, "text": 630})
        above = sum(population.weight[population.score >= band.tau].sum() for population in band.populations)
        assert above == pytest.approx(3 * 6 * sinks_a_sample)


def test_phi_and_score_are_the_stored_ones(run: RunReader, profile: Profile) -> None:
    first, second = band_scores(run, profile)
    phi = next(population.score for population in first.populations if population.name == "first token")
    assert ((phi > 7.5) & (phi <= math.sqrt(64))).all()
    score = next(population.score for population in second.populations if population.name == "first token")
    assert score == pytest.approx(np.full(18, 1000.0))


def test_layer_by_layer(run: RunReader, profile: Profile) -> None:
    series = layer_series(run, profile)
    assert series.dims == (17,)
    assert series.bands == [(2, 4), (5, 7)]
    assert series.on_sinks[0, 2:8] == pytest.approx([100, 100, 100, 1000, 1000, 1000])
    # The median of |x| of a standard normal is 0.67; about 60 tokens are sampled.
    assert (np.abs(series.on_others[0] - 0.67) < 0.25).all()
    assert series.attention_sinks is not None
    assert series.attention_others is not None
    assert series.attention_sinks[5:] == pytest.approx(np.full(3, 0.5))
    # In the first band half of the sink tokens, those at position 9, draw nothing.
    assert series.attention_sinks[2:5] == pytest.approx(np.full(3, 0.255))
    assert series.attention_others[5:] == pytest.approx(np.full(3, 0.01))
    assert contrast(series) > 500


def test_without_bands_the_dimensions_layers_serve(run: RunReader, profile: Profile) -> None:
    plain = Profile.model_validate(profile.model_dump() | {"bands": []})
    (band,) = band_scores(run, plain)
    assert (band.first_layer, band.last_layer, band.score_name, band.quality) == (2, 7, "phi", "separated")
    assert layer_series(run, plain).on_sinks[0, 3] == pytest.approx(100)


def test_a_run_of_another_backbone(run: RunReader, profile: Profile) -> None:
    data = profile.model_dump()
    data["backbone"]["hidden_size"] = 65
    other = Profile.model_validate(data)
    for read in (band_scores, layer_series):
        with pytest.raises(InputError, match="8 layers of width 64, profile toy is for 8 of 65"):
            read(run, other)
