"""The held-out texts are many-sided, and calibration has nothing of them."""

from benchmarks.real_models.__main__ import TEXTS
from benchmarks.real_models.captured import read_folder
from sinkscope.calibration import default_texts

LENGTH = 40


def pieces(text):
    text = " ".join(text.split())
    return {text[start : start + LENGTH] for start in range(len(text) - LENGTH + 1)}


def test_no_forty_characters_of_a_held_out_text_occur_in_calibration_or_in_another():
    seen = set().union(*(pieces(sample.text) for sample in default_texts()))
    for name, text in read_folder(TEXTS).items():
        own = pieces(text)
        assert not own & seen, (name, sorted(own & seen)[:3])
        seen |= own


def test_there_are_at_least_eight_kinds_of_text_of_some_length():
    texts = read_folder(TEXTS)
    assert len(texts) >= 8
    assert {"code_python", "german", "japanese", "mathematics", "prose", "spanish", "terms"} <= set(texts)
    assert all(len(text.encode()) > 2000 for text in texts.values())
