"""The whole check on models whose mechanism is known."""

import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from causal_models import DECOY, LAYERS, PATCHES, SINK, make_llama, make_profile, make_texts
from PIL import Image
from transformers import AutoModelForCausalLM, BloomConfig, GPT2Config

from sinkscope.backbone.anatomy import find_anatomy
from sinkscope.backbone.loading import LoadedModel
from sinkscope.calibration import Sample
from sinkscope.causal import CausalSettings, causal_check
from sinkscope.causal.design import NO_EDIT, Edit
from sinkscope.causal.measure import Probe
from sinkscope.causal.observe import observe
from sinkscope.errors import InputError, ProfileError
from sinkscope.profile import Profile
from sinkscope.report import profile_summary

QUICK = CausalSettings(texts=4, pictures=2, resamples=200)


def check(loaded: LoadedModel, profile: Profile, **options: Any) -> dict[str, Any]:
    return causal_check(loaded, profile, make_texts(), **{"settings": QUICK, **options})


def entry(result: dict[str, Any], place: int, group: str, edit: str = "exchange", dims: Any = ...) -> dict[str, Any]:
    lines = result["bands"][0]["layers"][place]["comparisons"]
    return next(
        line
        for line in lines
        if (line["group"], line["edit"]) == (group, edit) and (dims is ... or line["dims"] == dims)
    )


@pytest.fixture(scope="module")
def tested(llama: LoadedModel) -> dict[str, Any]:
    return check(llama, make_profile(llama, SINK))


def test_the_planted_dimension_separates(tested: dict[str, Any]) -> None:
    band = tested["bands"][0]
    assert (tested["status"], tested["separates"], tested["attention"]) == ("tested", True, "measured")
    assert (band["separates"], band["confident"], band["stands_out"], band["place_decides"]) == (True,) * 4
    assert [layer["layer"] for layer in band["layers"]] == [1, 3]
    for place in (0, 1):
        found, decoy = entry(tested, place, "found"), entry(tested, place, "next largest", dims=[DECOY])
        # How much it is depends on how many of the four texts begin with the sink, BOS.
        assert found["band"]["before"] > 0.4
        assert found["band"]["after"] < 0.1
        assert found["band"]["fall_interval"][0] > 0.8
        assert found["moved_energy"] > 0.7
        assert found["edits"] == 4 * QUICK.draws
        assert abs(decoy["band"]["fall"]) < 0.05
        assert abs(entry(tested, place, "random")["band"]["fall"]) < 0.02
        # Here the keys read one direction alone, so that neutralising and transplanting agree with the exchange.
        assert entry(tested, place, "found", "zero")["band"]["fall"] > 0.8
        assert entry(tested, place, "found", "typical")["band"]["fall"] > 0.8
        assert abs(entry(tested, place, "found", "transplant")["band"]["fall"]) < 0.2
        assert entry(tested, place, "ordinary", "transplant")["band"]["fall"] > 0.8
        assert entry(tested, place, "found", "transplant elsewhere")["band"]["fall"] > 0.8
        # A copy leaves the value where keys read it, only weaker beside its double.
        assert entry(tested, place, "found", "copy")["band"]["fall"] < 0.5
        assert found["loss_change"] is not None


def test_the_result_is_json_with_intervals_around_estimates(tested: dict[str, Any]) -> None:
    json.dumps(tested, allow_nan=False)
    for layer in tested["bands"][0]["layers"]:
        for line in layer["comparisons"]:
            for part in ("band", "network"):
                low, high = line[part]["fall_interval"]
                assert low <= line[part]["fall"] <= high
            low, high = line["loss_change_interval"]
            assert low <= line["loss_change"] <= high


def test_all_sink_tokens_are_edited_and_early_ones_measured(tested: dict[str, Any]) -> None:
    tokens = tested["bands"][0]["layers"][0]["tokens"]
    assert tokens["measured"] > tested["bands"][0]["layers"][0]["samples"] == 4
    assert tokens["at_start"] == 4
    assert sum(tokens["kinds"].values()) == tokens["measured"]


def test_a_dimension_that_is_only_large_does_not_separate(llama: LoadedModel) -> None:
    result = check(llama, make_profile(llama, DECOY))
    band = result["bands"][0]
    assert (result["separates"], band["separates"], band["stands_out"]) == (False, False, False)
    assert "the exchange of 9 lowers the attention drawn by" in band["sentences"][0]
    assert any(f"next largest, {SINK}" in sentence for sentence in band["sentences"])


def test_of_a_set_only_the_causal_one_matters(llama: LoadedModel) -> None:
    band = check(llama, make_profile(llama, SINK, DECOY))["bands"][0]
    assert band["separates"]
    assert band["matters"] == [
        {"dim": SINK, "sufficient_at": [1, 3], "partly_at": []},
        {"dim": DECOY, "sufficient_at": [], "partly_at": []},
    ]
    assert any(f"{DECOY} alone does not matter" in sentence for sentence in band["sentences"])


def test_the_same_seed_gives_the_same_result(llama: LoadedModel, tested: dict[str, Any]) -> None:
    profile = make_profile(llama, SINK)
    assert check(llama, profile) == tested
    other = check(llama, profile, settings=CausalSettings(texts=4, pictures=2, resamples=200, seed=1))
    assert other["bands"] != tested["bands"]
    assert other["separates"]


def test_the_model_is_left_as_it_was(tested: dict[str, Any]) -> None:
    loaded = make_llama()
    loaded.model.train()
    kernel = loaded.model.config._attn_implementation
    done: list[tuple[int, int]] = []
    check(loaded, make_profile(loaded, SINK), progress=lambda *state: done.append(state))
    assert loaded.model.training
    assert loaded.model.config._attn_implementation == kernel
    assert all(not module._forward_pre_hooks and not module._forward_hooks for module in loaded.model.modules())
    assert done[-1][0] == done[-1][1]
    assert done == sorted(done)


def test_a_model_that_takes_no_growing_batch_is_edited_one_by_one(tested: dict[str, Any]) -> None:
    loaded = make_llama()

    def refuse(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if args[0].shape[0] != 1:
            raise RuntimeError("one sample at a time")

    handle = loaded.model.model.layers[4].register_forward_pre_hook(refuse)
    alone = check(loaded, make_profile(loaded, SINK))
    handle.remove()
    assert alone["separates"]
    for place in (0, 1):
        for group in ("found", "random"):
            one, many = entry(alone, place, group)["band"], entry(tested, place, group)["band"]
            assert one["after"] == pytest.approx(many["after"], rel=0.02)


def test_edits_together_equal_edits_alone(llama: LoadedModel) -> None:
    probe = Probe(llama, True, QUICK)
    profile = make_profile(llama, SINK)
    edits = [
        NO_EDIT,
        Edit("exchange", (SINK,), (30,)),
        Edit("zero", (SINK,), values=(0.0,)),
        Edit("transplant", (), donor=20),
    ]
    with torch.inference_mode():
        seen = observe(probe, profile, make_texts(1), [2], QUICK)[0]
        rows = seen.sinks[2].rows.tolist()
        together = probe.edited(seen.sample, 2, rows, edits, seen.reading)
        assert probe.together is True
        probe.together = False
        alone = probe.edited(seen.sample, 2, rows, edits, seen.reading)
    np.testing.assert_allclose(together.drawn, alone.drawn, atol=1e-5, equal_nan=True)
    np.testing.assert_allclose(together.losses, alone.losses, atol=1e-4)
    np.testing.assert_allclose(together.drawn[0, :, 2:], seen.reading.drawn[0, :, 2:], atol=1e-5, equal_nan=True)
    # What comes before the edited layer is not measured again.
    assert np.isnan(together.drawn[..., :2]).all()


def test_attention_and_loss_are_those_of_the_model(llama: LoadedModel) -> None:
    """Against the eager kernel's own maps, and the loss of the whole logits."""
    probe = Probe(llama, True, QUICK)
    loaded = make_llama(attn_implementation="eager")
    with torch.inference_mode():
        seen = observe(probe, make_profile(llama, SINK), make_texts(1), [2], QUICK)[0]
        output = loaded.model(**seen.sample.inputs, output_attentions=True)
    length = len(seen.sample)
    for layer in (0, 3, 5):
        weights = output.attentions[layer][0].mean(0).numpy()
        later = [weights[token + 1 :, token].mean() for token in range(length - 1)]
        np.testing.assert_allclose(seen.reading.drawn[0, :-1, layer], later, atol=1e-5)
    ids = torch.from_numpy(seen.sample.encoded.ids.astype(np.int64))
    losses = torch.nn.functional.cross_entropy(output.logits[0, :-1], ids[1:], reduction="none")
    np.testing.assert_allclose(seen.reading.losses[0], losses[seen.sample.queries], atol=1e-4)
    assert (seen.sample.encoded.kinds[seen.sample.queries + 1] == 0).all()
    assert len(seen.sample.queries) == QUICK.loss_targets


def test_visual_sinks_are_told_apart(llava: LoadedModel) -> None:
    pictures = [
        Sample(
            images=(Image.new("RGB", (32, 32), (40 * shade, 90, 60)),), prompt="a b c d e f g h i j k l m n o p q r s t"
        )
        for shade in range(4)
    ]
    result = causal_check(llava, make_profile(llava, SINK, first=0), [*make_texts(), *pictures], settings=QUICK)
    assert result["separates"]
    layer = result["bands"][0]["layers"][0]
    assert layer["layer"] == 0
    assert layer["samples"] == 6
    assert layer["tokens"]["kinds"]["visual"] == 2 * PATCHES
    kinds = entry(result, 0, "found")["kinds"]
    assert kinds["visual"]["fall"] > 0.3
    assert any("from visual tokens" in sentence for sentence in result["bands"][0]["sentences"])
    assert kinds["text"]["fall"] > 0.8


def test_without_attention_the_loss_is_still_measured(llama: LoadedModel) -> None:
    settings = CausalSettings(texts=4, pictures=2, resamples=200, attention=False)
    result = check(llama, make_profile(llama, SINK), settings=settings)
    assert result["separates"] is None
    assert result["attention"] == "not requested"
    assert "only the change of loss" in result["sentence"]
    line = entry(result, 0, "found")
    assert line["band"] is None
    assert line["loss_change"] is not None


def test_none_leaves_nothing_to_test(llama: LoadedModel) -> None:
    data = make_profile(llama, SINK).model_dump() | {"verdict": "none", "sink_dimensions": [], "bands": []}
    result = check(llama, Profile.model_validate(data))
    assert (result["status"], result["separates"], result["bands"]) == ("nothing to test", None, [])
    assert "no sink dimensions" in result["sentence"]


def test_a_profile_without_bands_is_tested_where_its_dimensions_act(llama: LoadedModel) -> None:
    data = make_profile(llama, SINK).model_dump() | {"bands": [], "tau": {"phi": 4.0}}
    data["sink_dimensions"][0] |= {"first_layer": 2, "last_layer": 4}
    result = check(llama, Profile.model_validate(data))
    assert [(band["first_layer"], band["last_layer"], band["dims"]) for band in result["bands"]] == [(2, 4, [SINK])]
    assert result["separates"]


def test_a_band_without_measurable_sinks_is_not_judged(llama: LoadedModel) -> None:
    result = check(llama, make_profile(llama, SINK, tau=1e6))
    assert result["separates"] is None
    assert result["bands"][0]["layers"] == []
    assert "no sample has a sink token" in result["bands"][0]["sentences"][0]
    assert "no band could be judged" in result["sentence"]


def test_a_foreign_profile_is_refused(llama: LoadedModel) -> None:
    data = make_profile(llama, SINK).model_dump()
    data["backbone"]["hidden_size"] = 2 * data["backbone"]["hidden_size"]
    with pytest.raises(ProfileError, match="hidden size"):
        check(llama, Profile.model_validate(data))


def test_without_a_tokenizer_it_says_so(llama: LoadedModel) -> None:
    bare = LoadedModel(llama.model, None, None, llama.anatomy, "bare")
    with pytest.raises(InputError, match="no tokenizer"):
        check(bare, make_profile(llama, SINK))


def test_a_hidden_size_with_too_few_ordinary_dimensions_is_refused(llama: LoadedModel) -> None:
    with pytest.raises(InputError, match="too few"):
        check(llama, make_profile(llama, *range(33)))


def test_the_summary_shows_it(llama: LoadedModel, tested: dict[str, Any]) -> None:
    from rich.console import Console

    def shown(causal: dict[str, Any]) -> str:
        profile = make_profile(llama, SINK)
        profile.evidence.causal = causal
        console = Console(width=140, record=True, color_system=None, file=io.StringIO())
        console.print(profile_summary(Profile.model_validate_json(profile.to_json())))
        return console.export_text()

    text = shown(tested)
    assert "Causal check" in text
    assert f"1–{LAYERS}" in text
    assert "exchanged" in text
    assert "lowers the attention drawn by" in text
    # The entry is free in the schema, so another writer's must not break the summary.
    for strange in ({}, {"bands": 3}, {"bands": [{"layers": [{}]}], "sentence": 5}, {"bands": [{"sentences": "x"}]}):
        assert "Causal check" in shown(strange)


@pytest.mark.parametrize(
    ("config", "together", "attention"),
    [
        (GPT2Config(n_embd=64, n_layer=6, n_head=4, n_positions=256, vocab_size=40), True, "measured"),
        # Its position biases are laid out for the batch that the pass began with, and never reach the interface.
        (BloomConfig(hidden_size=64, n_layer=6, n_head=4, vocab_size=40), False, "unavailable: "),
    ],
    ids=["gpt2", "bloom"],
)
def test_other_families(
    llama: LoadedModel, config: Any, together: bool, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States by position or keyword, with or without access to the attention."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    # One token is made large, so that it counts as a sink.
    with torch.no_grad():
        model.get_input_embeddings().weight[llama.tokenizer.convert_tokens_to_ids("."), SINK] = 50.0
    loaded = LoadedModel(model, llama.tokenizer, None, find_anatomy(model), "other")
    probes: list[Probe] = []
    monkeypatch.setattr("sinkscope.causal.check.Probe", lambda *given: probes.append(Probe(*given)) or probes[-1])
    result = check(loaded, make_profile(loaded, SINK, first=0, tau=5.0))
    assert result["attention"].startswith(attention)
    assert probes[0].together is together
    line = entry(result, 0, "found")
    assert line["loss_change"] is not None
    assert (line["band"] is None) == (attention != "measured")
    json.dumps(result, allow_nan=False)
