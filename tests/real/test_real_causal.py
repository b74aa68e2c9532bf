"""The causal check on a real pretrained model: SmolLM2's sink dimension 507, in both of its regimes."""

import pytest

import sinkscope
from sinkscope.causal import CausalSettings, causal_check
from sinkscope.profile import Band, Profile, Provenance, SinkDimension
from sinkscope.profile.schema import Backbone

pytestmark = pytest.mark.real_model


def test_an_exchange_of_smollm2s_dimension_takes_the_attention_away(smollm2: str) -> None:
    loaded = sinkscope.load(smollm2)
    # Bands and thresholds as they were measured, so that this test does not wait for a capture run.
    profile = Profile(
        name="smollm2",
        verdict="sinks",
        reason="507 is massive on the first token",
        backbone=Backbone(**loaded.anatomy.fingerprint()),
        sink_dimensions=[SinkDimension(dim=507)],
        bands=[
            Band(first_layer=3, last_layer=10, dims=[507], scale=45.5, tau_score=6.5),
            Band(first_layer=12, last_layer=29, dims=[507], scale=102.0, tau_score=20.9),
        ],
        provenance=Provenance(kind="measured"),
    )
    settings = CausalSettings(texts=2, layers=1, next_largest=1, max_length=44)
    result = causal_check(loaded, profile, settings=settings)
    early, late = result["bands"]
    lines = {(line["group"], line["edit"]): line for line in early["layers"][0]["comparisons"]}
    exchanged = lines["found", "exchange"]
    assert early["stands_out"]
    assert early["place_decides"]
    assert exchanged["band"]["fall"] > 0.35
    assert exchanged["network"]["fall"] > 0.6
    assert exchanged["loss_change"] > 2
    assert exchanged["moved_energy"] > 0.8
    assert abs(lines["random", "exchange"]["band"]["fall"]) < 0.02
    assert lines["next largest", "exchange"]["band"]["fall"] < 0.2
    # Once the sink is formed a massive value in any place draws attention: half of it stays after an exchange. What
    # the model needs is still this place alone.
    lines = {(line["group"], line["edit"]): line for line in late["layers"][0]["comparisons"]}
    assert late["stands_out"]
    assert not late["place_decides"]
    assert 0.15 < lines["found", "exchange"]["band"]["fall"] < 0.5
    assert lines["found", "exchange"]["loss_change"] > 4
    assert lines["next largest", "exchange"]["loss_change"] < 0.5
    assert lines["ordinary", "transplant"]["band"]["fall"] > 0.9
    assert lines["found", "transplant"]["band"]["fall"] < 0.4
    assert abs(lines["found", "transplant"]["loss_change"]) < 0.5
    assert lines["next largest", "transplant"]["loss_change"] > 2
