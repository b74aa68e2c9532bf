"""Sink scores and masks: the paper's phi, the calibrated score, and where neither applies."""

import math
from typing import Any

import pytest
import torch

from sinkscope.errors import InputError, ProfileError
from sinkscope.profile import Profile
from sinkscope.profile.score import PUBLISHED_TAU, joint_magnitude, phi, sink_mask, threshold_at

WIDTH = 16


def state(value: float, dim: int = 5) -> torch.Tensor:
    """Two tokens [2, 16]: `value` in one dimension above ones, and ones throughout."""
    states = torch.ones(2, WIDTH)
    states[0, dim] = value
    return states


def test_phi_by_hand() -> None:
    states = state(-90.0)
    rms = math.sqrt((90.0**2 + 15) / WIDTH)
    assert torch.allclose(phi(states, [5, 7]), torch.tensor([90.0 / rms, 1.0]))
    assert phi(torch.zeros(1, WIDTH), [5]).item() == 0.0


def test_phi_never_passes_its_ceiling_and_does_not_overflow() -> None:
    huge = torch.zeros(1, WIDTH, dtype=torch.float16)
    huge[0, 5] = 60000.0
    assert phi(huge, [5]).item() == pytest.approx(4.0)
    assert phi(huge, [5]).dtype == torch.float32
    assert joint_magnitude(huge, [5, 7]).item() == pytest.approx(60000.0, rel=1e-3)


def test_mask_by_phi_in_a_band_without_a_calibrated_score(profile: Profile) -> None:
    assert sink_mask(state(90.0), profile, 1).tolist() == [True, False]
    # phi of this token is 2.9, just below tau.
    assert sink_mask(state(4.16), profile, 1).tolist() == [False, False]
    # The other sink dimension does not act in this band.
    assert sink_mask(state(90.0, dim=7), profile, 1).tolist() == [False, False]


def test_mask_by_the_calibrated_score(profile: Profile) -> None:
    # Scale times threshold: 2 x 10 in layer 4, and 4 x 8 in layer 5, which has its own.
    for layer, edge in ((4, 20.0), (5, 32.0)):
        assert sink_mask(state(edge + 1), profile, layer).tolist() == [True, False]
        assert sink_mask(state(edge - 1), profile, layer).tolist() == [False, False]
    joint = torch.ones(1, WIDTH)
    joint[0, [5, 7]] = 15.0
    assert sink_mask(joint, profile, 4).tolist() == [True]
    assert sink_mask(joint, profile, 4, score="phi").tolist() == [False]
    assert sink_mask(state(21.0), profile, 4, tau=11.0).tolist() == [False, False]


@pytest.mark.parametrize("layer", [0, 3, 6, 40])
def test_no_sinks_outside_the_bands(profile: Profile, layer: int) -> None:
    assert threshold_at(profile, layer) is None
    assert not sink_mask(state(90.0), profile, layer).any()


def test_without_bands_the_dimensions_act_in_their_own_layers(document: dict[str, Any]) -> None:
    document |= {"bands": [], "tau": None}
    document["sink_dimensions"][1] |= {"first_layer": 4}
    profile = Profile.model_validate(document)
    assert threshold_at(profile, 0) is None
    assert threshold_at(profile, 2) == ([5], None, PUBLISHED_TAU)
    assert threshold_at(profile, 4) == ([5, 7], None, PUBLISHED_TAU)
    assert threshold_at(profile, 6) == ([7], None, PUBLISHED_TAU)


def test_shape_and_dtype_of_the_mask(profile: Profile) -> None:
    mask = sink_mask(torch.zeros(2, 3, WIDTH, dtype=torch.bfloat16), profile, 1)
    assert mask.shape == (2, 3)
    assert mask.dtype == torch.bool


def test_wrong_use(profile: Profile) -> None:
    with pytest.raises(ProfileError, match="hidden size 16, the hidden state has 8"):
        sink_mask(torch.zeros(1, 8), profile, 1)
    with pytest.raises(InputError, match="score='phi'"):
        sink_mask(state(90.0), profile, 1, score="calibrated")


def test_a_profile_without_sinks_marks_nothing(document: dict[str, Any]) -> None:
    document |= {"verdict": "none", "sink_dimensions": [], "bands": [], "tau": None}
    assert not sink_mask(state(90.0), Profile.model_validate(document), 1).any()
