"""The user's own calibration data from the command line into the run file and the profile."""

import json
from pathlib import Path

import pyarrow
import pytest
from cli_models import byte_tokenizer, save_tiny_llama
from PIL import Image
from pyarrow import parquet

from sinkscope.capture.settings import CaptureSettings
from sinkscope.store.reader import RunReader

TEMPLATE = "{{ bos_token }}User: {{ messages[0].content }}{% if add_generation_prompt %}\nAssistant:{% endif %}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose tokenizer has a chat template."""
    folder = save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def profile(sinkscope, here, tiny):
    """Profile the tiny model; gives what the profile says about the data."""

    def call(name: str, *arguments: object) -> dict:
        outcome = sinkscope("profile", tiny, "--run", f"{name}.h5", "-o", f"{name}.json", "--json", *arguments)
        assert outcome.code == 0, outcome.err
        return json.loads(outcome.out)["provenance"]["calibration"]

    return call


def test_the_fingerprint_is_in_run_and_profile_and_tells_uses_apart(profile, here):
    (here / "a.txt").write_text("\n\n".join(f"text {number} " + "and so on " * 60 for number in range(12)))
    own = ("--texts", "a.txt", "--no-attention")
    uses = {
        "embedded": ("--samples", 6, "--no-attention"),
        "texts": own,
        "samples": (*own, "--samples", 5),
        "tokens": (*own, "--tokens", 700),
        "seed": (*own, "--tokens", 700, "--seed", 1),
        "template": (*own, "--chat-template"),
        "no template": (*own, "--no-chat-template"),
    }
    found = {name: profile(name, *arguments) for name, arguments in uses.items()}
    assert len({facts["fingerprint"] for facts in found.values()}) == len(uses)
    for name, facts in found.items():
        with RunReader(here / f"{name}.h5") as reader:
            calibration = dict(reader.attributes.calibration)
            assert facts | calibration == facts
            texts = "".join(reader.token_text.get(int(token), "") for token in reader.tokens.id)
            assert (texts.count("Assistant:") == calibration["samples"]) == (name == "template")
        assert facts["max_length"] == CaptureSettings().max_length
    assert found["texts"]["source"] == "texts from a.txt"
    assert found["template"]["bos"] == {"token": "<s>", "default": True, "other_every": None}
    assert found["tokens"]["tokens"] <= 700 < found["texts"]["tokens"]
    again = profile("again", *own)
    assert again["fingerprint"] == found["texts"]["fingerprint"]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["--texts", "b.txt"], "calibration.fingerprint"),
        (["--texts", "a.txt", "--chat-template"], "chat_template"),
        (["--texts", "a.txt", "--samples", 3], "max_samples"),
    ],
)
def test_another_run_is_refused_by_name(sinkscope, profile, here, tiny, changed, named):
    (here / "a.txt").write_text("\n\n".join(f"text {number} " + "and so on " * 60 for number in range(6)))
    (here / "b.txt").write_text("\n\n".join(f"Text {number} " + "and so on " * 60 for number in range(6)))
    profile("run", "--texts", "a.txt", "--no-attention")
    outcome = sinkscope("profile", tiny, "--run", "run.h5", *changed, "--no-attention", "--resume")
    outcome.refused("run.h5 is a run with", named, "--run")


def test_parquet_and_a_local_dataset(profile, here):
    table = pyarrow.table({"id": range(40), "body": [f"row {number} " + "of words " * 50 for number in range(40)]})
    (here / "data").mkdir()
    parquet.write_table(table, here / "data" / "train.parquet")
    facts = profile("parquet", "--texts", "data/train.parquet", "--samples", 3, "--no-attention")
    assert facts["source"] == "texts from train.parquet"
    facts = profile("dataset", "--dataset", "data::train", "--samples", 3, "--no-attention")
    assert facts["source"] == "dataset data (default, train), 3 rows of body"
    assert facts["samples"] == 6, "each row is two pieces"


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--texts", "picture.png"], ["picture.png", "not UTF-8"]),
        (["--texts", "zeros.txt"], ["zeros.txt is no text", "line 1"]),
        (["--texts", "empty.txt"], ["empty.txt holds no text"]),
        (["--texts", "broken.jsonl"], ["line 2 of broken.jsonl is not valid JSON"]),
        (["--texts", "other.jsonl"], ["line 1 of other.jsonl", '"text"']),
        (["--texts", "huge.txt"], ["line 1 of huge.txt", "16 MiB"]),
        (["--texts", "broken.parquet"], ["broken.parquet"]),
        (["--images", "photos"], ["cannot read the picture photos/cut.png"]),
        (["--images", "broken.jsonl"], ["broken.jsonl"]),
        (["--dataset", "broken.parquet"], ["cannot read the dataset broken.parquet"]),
        (["--dataset", "no-one/nothing"], ["cannot read the dataset no-one/nothing"]),
        (["--dataset", "good.jsonl", "--texts", "good.jsonl"], ["holds texts", "--texts"]),
    ],
)
def test_bad_data_are_one_line_before_the_model_is_loaded(sinkscope, here, no_model, arguments, fragments):
    (here / "photos").mkdir()
    Image.effect_noise((64, 64), 80).save(here / "picture.png")
    (here / "photos" / "cut.png").write_bytes((here / "picture.png").read_bytes()[:1000])
    (here / "zeros.txt").write_bytes(bytes(100))
    (here / "empty.txt").write_text(" \n")
    (here / "good.jsonl").write_text('{"text": "a"}\n')
    (here / "broken.jsonl").write_text('{"text": "a"}\n{"text": "b"\n')
    (here / "other.jsonl").write_text('{"txt": "a"}\n')
    (here / "huge.txt").write_bytes(b"x" * (2**24 + 5))
    (here / "broken.parquet").write_bytes(b"PAR1PAR1")
    before = sorted(here.rglob("*"))
    sinkscope("profile", "demo:llm", *arguments).refused(*fragments)
    assert sorted(here.rglob("*")) == before
