"""Token ids, BOS, pieces, kinds, and model inputs."""

from pathlib import Path

import numpy as np
import pytest
from capture_models import IMAGE_TOKEN, PATCHES, make_llama, make_tokenizer
from PIL import Image

from sinkscope.backbone.loading import LoadedModel
from sinkscope.calibration import Sample
from sinkscope.capture.encode import bos_policy, encode, encode_text, model_inputs, token_texts
from sinkscope.capture.encoded import EncodedSamples
from sinkscope.capture.planning import make_batches, spread, within_budget
from sinkscope.capture.settings import CaptureSettings
from sinkscope.errors import InputError

BOS = 1


class AddsBos:
    """The tokenizer of the tests, with BOS added by default."""

    def __init__(self) -> None:
        self.inner = make_tokenizer()
        self.bos_token, self.bos_token_id = "<s>", BOS

    def __call__(self, text: str, add_special_tokens: bool = True, **options: object) -> dict[str, list[int]]:
        ids = self.inner(text, add_special_tokens=False)["input_ids"]
        return {"input_ids": [BOS, *ids] if add_special_tokens else ids}


def test_every_fourth_text_begins_the_other_way() -> None:
    plain, adding, without = make_tokenizer(), AddsBos(), make_tokenizer(bos=False)
    texts = [f"hello {number}" for number in range(200)]
    begins = [encode_text(plain, text, 64)[0][0] == BOS for text in texts]
    assert 0.15 < np.mean(begins) < 0.35
    # Contents decide, whatever else is in the data: so parts of them are encoded as the whole.
    assert [encode_text(plain, text, 64)[0][0] == BOS for text in reversed(texts)] == begins[::-1]
    assert [encode_text(adding, text, 64)[0][0] != BOS for text in texts] == begins
    for text in texts[:20]:
        assert encode_text(without, text, 64)[0].tolist() == without(text)["input_ids"]
    assert bos_policy(plain) == {"token": "<s>", "default": False, "other_every": 4}
    assert bos_policy(adding)["default"] is True
    assert bos_policy(without)["other_every"] is None


def test_long_texts_are_cut_into_even_pieces() -> None:
    tokenizer = make_tokenizer()
    text = "abcdefghij" * 10
    pieces = encode_text(tokenizer, text, max_length=41)
    plain = [piece[piece != BOS] for piece in pieces]
    assert [len(piece) for piece in plain] == [34, 33, 33]
    assert np.concatenate(plain).tolist() == tokenizer(text)["input_ids"]
    pieces = encode_text(AddsBos(), text, max_length=41)
    assert all(len(piece) <= 41 for piece in pieces)
    assert BOS in {int(piece[0]) for piece in pieces}
    assert encode_text(tokenizer, "", 64) == []


def test_kinds_and_token_texts(llava: LoadedModel) -> None:
    picture = Sample(images=(Image.new("RGB", (40, 30), "red"),), prompt="What is it?")
    texts = [Sample(text=f"text {number}") for number in range(20)]
    encoded = encode(llava, [picture, *texts], 64)
    assert encoded[0].has_images
    assert encoded[0].kinds.tolist() == [2] * PATCHES + [0] * (1 + len("What is it?"))
    begins = [sample for sample in encoded[1:] if sample.ids[0] == BOS]
    assert 0 < len(begins) < 20
    assert {tuple(sample.kinds.tolist()) for sample in begins} <= {(1, *[0] * 6), (1, *[0] * 7)}
    texts_found = token_texts(llava.tokenizer, {identifier for sample in encoded for identifier in sample.ids.tolist()})
    assert texts_found[3] == IMAGE_TOKEN
    assert texts_found[llava.tokenizer.convert_tokens_to_ids("\n")] == "\n"


def test_inputs_are_padded_on_the_right(llama: LoadedModel) -> None:
    encoded = encode(llama, [Sample(text="abcdef"), Sample(text="ef")], 64)
    inputs, valid = model_inputs(llama, encoded)
    assert valid.sum(axis=1).tolist() == [len(sample) for sample in encoded]
    assert not np.diff(valid.astype(int), axis=1).clip(min=0).any()
    assert inputs["attention_mask"].tolist() == valid.astype(int).tolist()
    assert inputs["input_ids"][0].tolist() == encoded[0].ids.tolist()


def test_inputs_of_a_picture(llava: LoadedModel) -> None:
    encoded = encode(llava, [Sample(images=(Image.new("L", (40, 30)),))], 64)
    inputs, valid = model_inputs(llava, encoded)
    assert tuple(inputs["pixel_values"].shape) == (1, 3, 32, 32)
    assert valid.shape == tuple(inputs["input_ids"].shape)


def test_a_prompt_with_a_place_for_a_picture_is_named(llava: LoadedModel, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    sample = Sample(images=(tmp_path / "a.png",), prompt=f"{IMAGE_TOKEN} What is it?")
    with pytest.raises(InputError, match=r"the prompt of the picture .*a\.png holds <image>, which stands for"):
        encode(llava, [sample], 64)


def test_what_cannot_be_encoded(llama: LoadedModel, llava: LoadedModel) -> None:
    with pytest.raises(InputError, match="tiny-llama takes no pictures"):
        encode(llama, [Sample(images=(Image.new("RGB", (8, 8)),))], 64)
    with pytest.raises(InputError, match="hold no tokens"):
        encode(llama, [Sample(text="")], 64)
    with pytest.raises(InputError, match="has no tokenizer"):
        encode(LoadedModel(llama.model, None, None, llama.anatomy, "bare"), [Sample(text="a")], 64)


def test_batches_hold_every_sample_once_within_the_budget(llava: LoadedModel) -> None:
    generator = np.random.default_rng(0)
    samples = [Sample(text="a" * int(size)) for size in generator.integers(2, 60, size=40)]
    samples.insert(7, Sample(images=(Image.new("RGB", (8, 8)),)))
    settings = CaptureSettings(batch_tokens=128, seed=1)
    encoded = EncodedSamples.gather(encode(llava, samples, 64))
    attended = frozenset(range(0, 41, 2))
    batches = make_batches(encoded, attended, settings)
    assert sorted(sample for batch in batches for sample in batch) == list(range(41))
    assert (7,) in batches
    for batch in batches:
        assert len({sample in attended for sample in batch}) == 1
        assert max(len(encoded[sample]) for sample in batch) * len(batch) <= 128 or len(batch) == 1
    assert batches == make_batches(encoded, attended, settings)
    assert batches != make_batches(encoded, attended, CaptureSettings(batch_tokens=128, seed=2))


def test_limits_on_samples_and_tokens(llama: LoadedModel) -> None:
    samples = [Sample(text="a" * (number + 1)) for number in range(10)]
    assert [sample.text for sample in spread(samples, 2)] == ["aaa", "a" * 8]
    assert spread(samples, 50) == samples
    encoded = EncodedSamples.gather(encode(llama, samples, 64))
    assert 10 < sum(len(sample) for sample in within_budget(encoded, CaptureSettings(max_tokens=20))) <= 20
    assert len(within_budget(encoded, CaptureSettings(max_tokens=1))) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"batch_tokens": -1},
        {"max_length": 2},
        {"levels": (0.0,)},
        {"sampled_tokens": -1},
        {"seed": -1},
        {"seed": 2**63},
        {"max_samples": 2**70},
        {"max_tokens": 2**63},
    ],
)
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        CaptureSettings(**wrong)  # type: ignore[arg-type]


def test_texts_are_cut_to_the_positions_that_the_model_has() -> None:
    loaded = make_llama(max_position_embeddings=24)
    encoded = encode(loaded, [Sample(text="A longer text, which fills many positions. " * 5)], 256)
    assert len(encoded) > 1
    assert max(len(sample) for sample in encoded) <= 24


def test_a_tokenizer_of_another_model_is_refused() -> None:
    loaded = make_llama(vocab_size=70)
    with pytest.raises(InputError, match="the model knows 70 tokens"):
        encode(loaded, [Sample(text="Why?! (So.)")], 256)
