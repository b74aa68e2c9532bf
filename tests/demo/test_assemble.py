import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sinkscope.demo import assemble
from sinkscope.demo.pictures import generate
from sinkscope.demo.recipe import FIRST_HELD_OUT_SEED, IMAGE_TOKEN_ID, VISUAL_TOKENS, prompt
from sinkscope.demo.shipped import CONTROL_FILE, DEMO_FILE, WEIGHTS_FOLDER, read_weights
from sinkscope.errors import InputError


@pytest.fixture(scope="module")
def loaded(demo_folder):
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(demo_folder, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(demo_folder)


def conversation(question):
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]


@pytest.mark.parametrize(("name", "limit"), [(DEMO_FILE, 6_000_000), (CONTROL_FILE, 1_000_000)])
def test_shipped_weights_are_small_and_say_how_they_were_made(name, limit):
    assert (WEIGHTS_FOLDER / name).stat().st_size <= limit
    metadata = read_weights(WEIGHTS_FOLDER / name)[1]
    assert metadata["image_token_id"] == IMAGE_TOKEN_ID
    assert {"seed", "schedule", "background", "vision_config"} <= metadata.keys()
    assert metadata["seed"] < FIRST_HELD_OUT_SEED


@pytest.mark.real_model
def test_model_is_float32_with_tied_embeddings(loaded):
    import torch

    model, _ = loaded
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert model.config.image_token_id == IMAGE_TOKEN_ID


@pytest.mark.real_model
def test_processor_writes_the_prompt_that_was_trained(loaded):
    _, processor = loaded
    text = processor.apply_chat_template(conversation("What color is the circle?"), add_generation_prompt=True)
    image = generate(0, 1)[0].image.resize((301, 200))
    inputs = processor(text=text, images=image, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 48, 48)
    assert int((inputs["input_ids"] == IMAGE_TOKEN_ID).sum()) == VISUAL_TOKENS
    expected = processor.tokenizer(prompt("What color is the circle?"))["input_ids"]
    assert inputs["input_ids"][0].tolist() == expected


@pytest.mark.real_model
def test_renamed_token_changes_no_other_tokenisation(loaded, backbone):
    from transformers import AutoTokenizer

    source = AutoTokenizer.from_pretrained(backbone.parent, gguf_file=backbone.name)
    for text in (
        "Where is the red circle?",
        "1,234 naïve – ünïcode\n\n  done",
        prompt("Is there a cross?", image=False),
    ):
        assert loaded[1].tokenizer(text)["input_ids"] == source(text, add_special_tokens=False)["input_ids"]


@pytest.mark.real_model
def test_pictures_reach_the_model_as_in_training(loaded):
    import torch

    from sinkscope.demo.vision import pixel_values

    scene = generate(0, 1)[0]
    inputs = loaded[1](text="<image>", images=scene.image, return_tensors="pt")
    torch.testing.assert_close(inputs["pixel_values"], pixel_values([scene]), atol=1e-5, rtol=0)


@pytest.mark.real_model
def test_questions_are_answered(loaded):
    model, processor = loaded
    scenes = generate(FIRST_HELD_OUT_SEED + 1, 3)
    questions = [(scene.image, question) for scene in scenes for question in scene.questions]
    texts = [
        processor.apply_chat_template(conversation(question.text), add_generation_prompt=True)
        for _, question in questions
    ]
    inputs = processor(text=texts, images=[image for image, _ in questions], return_tensors="pt", padding=True)
    output = model.generate(**inputs, max_new_tokens=6)
    said = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    right = [one == question.answer for one, (_, question) in zip(said, questions, strict=True)]
    assert np.mean(right) >= 0.8


@pytest.mark.real_model
def test_background_tokens_are_visual_sinks(loaded):
    import torch

    model, processor = loaded
    scenes = generate(FIRST_HELD_OUT_SEED + 2, 4)
    text = processor.apply_chat_template(conversation("How many objects are there?"), add_generation_prompt=True)
    inputs = processor(text=[text] * 4, images=[scene.image for scene in scenes], return_tensors="pt")
    with torch.inference_mode():
        state = model(**inputs, output_hidden_states=True).hidden_states[6]
    phi = state[..., 507].abs() / state.square().mean(dim=-1).sqrt()
    visual = (inputs["input_ids"] == IMAGE_TOKEN_ID)[0]
    assert bool((phi[:, visual].amax(dim=1) >= 20).all())


def write_empty_model(folder, backbone, control):
    for name in assemble.COMPLETE:
        (folder / name).write_text(str(control))


def test_first_uses_at_once_share_one_folder(backbone, monkeypatch, tmp_path):
    monkeypatch.setenv(assemble.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(assemble, "_build", write_empty_model)
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: assemble.demo_lmm_folder(), range(16)))
    assert len(folders) == 1
    assert [path.name for path in tmp_path.iterdir()] == [folders.pop().name]


def test_control_has_its_own_folder(backbone, monkeypatch, tmp_path):
    monkeypatch.setenv(assemble.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(assemble, "_build", write_empty_model)
    assert assemble.demo_lmm_folder(control=True) != assemble.demo_lmm_folder()


def test_damaged_folder_is_built_again(backbone, monkeypatch, tmp_path):
    monkeypatch.setenv(assemble.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(assemble, "_build", write_empty_model)
    folder = assemble.demo_lmm_folder()
    (folder / "model.safetensors").unlink()
    assert assemble.demo_lmm_folder() == folder
    assert (folder / "model.safetensors").is_file()


def test_failed_build_leaves_nothing(backbone, monkeypatch, tmp_path):
    monkeypatch.setenv(assemble.CACHE_VARIABLE, str(tmp_path / "cache"))

    def full_disk(folder, backbone, control):
        (folder / "config.json").write_text("{}")
        raise OSError("no space left on device")

    monkeypatch.setattr(assemble, "_build", full_disk)
    with pytest.raises(InputError, match="SINKSCOPE_CACHE"):
        assemble.demo_lmm_folder()
    assert list((tmp_path / "cache").iterdir()) == []


def test_new_weights_give_a_new_folder_name(monkeypatch, tmp_path):
    import sinkscope.demo.shipped as shipped

    before = assemble._fingerprint(control=True)
    shutil.copytree(WEIGHTS_FOLDER, tmp_path, dirs_exist_ok=True)
    with (tmp_path / CONTROL_FILE).open("ab") as file:
        file.write(b"x")
    monkeypatch.setattr(shipped, "WEIGHTS_FOLDER", tmp_path)
    assert assemble._fingerprint(control=True) != before
