"""Files of questions: what is read, and every way in which a line cannot be used."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sinkscope.answering.questions import read_questions
from sinkscope.errors import InputError

GOOD = {"image": "picture.png", "prompt": "What?"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "picture.png")
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "picture.png").read_bytes()[:10])
    return tmp_path


def write(folder: Path, *lines: object) -> Path:
    encoded = [
        line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    (folder / "q.jsonl").write_bytes(b"\n".join(encoded))
    return folder / "q.jsonl"


def test_lines_are_read_with_their_ids_pictures_and_fields(folder):
    path = write(
        folder,
        GOOD | {"label": "two", "split": ["test", None, 0.1]},
        {"images": ["picture.png", str(folder / "picture.png")], "question": "Which?", "id": "b"},
        {"image": ["picture.png"], "prompt": "Where?", "question": "unused", "id": None},
        GOOD | {"id": -7},
    )
    questions = read_questions(path).questions
    assert [question.identity for question in questions] == [1, "b", 3, -7]
    assert [question.prompt for question in questions] == ["What?", "Which?", "Where?", "What?"]
    assert [len(question.images) for question in questions] == [1, 2, 1, 1]
    assert all(image == folder / "picture.png" for question in questions for image in question.images)
    answered = json.loads(questions[0].answered("one", None))
    assert answered == {"id": 1, **GOOD, "label": "two", "split": ["test", None, 0.1], "answer": "one", "plain": None}
    assert json.loads(questions[2].answered("here", "there"))["id"] == 3
    # A stopped answer may end amid a character.
    assert json.loads(questions[1].answered("\ud83d", None))["answer"] == "\ud83d"


def test_marks_returns_and_blank_lines_are_passed_over(folder):
    plain = write(folder, GOOD, GOOD | {"prompt": "Two\u2028lines?"})
    wanted = [question.fields for question in read_questions(plain).questions]
    lines = [json.dumps(fields, ensure_ascii=False) for fields in wanted]
    plain.write_bytes(("\ufeff" + lines[0] + "\r\n\r\n  \r\n" + lines[1] + "\r\n\n").encode())
    questions = read_questions(plain).questions
    assert [question.fields for question in questions] == wanted
    assert [question.line for question in questions] == [1, 4]


BAD = [
    ('{"image": ', "not JSON"),
    ("[" * 100_000, "not JSON"),
    (json.dumps(GOOD).replace("What?", "What?\\ud800"), "half of a character"),
    (json.dumps(GOOD | {"label": float("nan")}), "not JSON"),
    (json.dumps(GOOD)[:-1] + ', "label": 1e999}', "not JSON"),
    (json.dumps(GOOD).encode() + b"\xff", r"not UTF-8 \(byte 43\)"),
    (["picture.png", "What?"], "not a JSON object"),
    ({"prompt": "What?"}, "names no picture"),
    (GOOD | {"image": []}, "names no picture"),
    (GOOD | {"image": ["picture.png", 3]}, "names no picture"),
    (GOOD | {"image": " "}, "names no picture"),
    (GOOD | {"images": ["picture.png"]}, 'both "image" and "images"'),
    ({"image": "picture.png"}, "asks nothing"),
    (GOOD | {"prompt": " \n"}, "asks nothing"),
    (GOOD | {"prompt": 3}, "asks nothing"),
    (GOOD | {"id": True}, '"id" must be'),
    (GOOD | {"id": 1.5}, '"id" must be'),
    (GOOD | {"id": 1}, "same id as line 1, 1"),
    (GOOD | {"answer": "two"}, '"answer" is where the answer is written; rename'),
    (GOOD | {"plain": None}, '"plain" is where'),
    (GOOD | {"image": "absent.png"}, "no picture at .*absent.png"),
    (GOOD | {"image": "."}, "no picture at"),
    (GOOD | {"image": "a\0b"}, "no picture at"),
    (GOOD | {"image": "a" * 5000}, "cannot read the picture"),
    (GOOD | {"image": "text.png"}, "cannot read the picture .*text.png"),
    (GOOD | {"image": ["picture.png", "cut.png"]}, "cannot read the picture .*cut.png"),
]


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_a_bad_line_stops_or_is_skipped(folder, line, reason):
    path = write(folder, GOOD, "", line, GOOD)
    with pytest.raises(InputError, match=rf"^line 3 of .*q\.jsonl: .*{reason}"):
        read_questions(path)
    told: list[str] = []
    source = read_questions(path, keep_going=True, report=told.append)
    assert [question.line for question in source.questions] == [1, 4]
    assert [entry.line for entry in source.skipped] == [3]
    assert told == [source.named(source.skipped[0])]
    assert "\n" not in told[0]


def test_an_id_belongs_to_its_first_line_whatever_else_is_wrong_there(folder):
    path = write(folder, GOOD, {"id": "a"}, GOOD | {"id": "a"})
    assert [entry.line for entry in read_questions(path, keep_going=True).skipped] == [2, 3]


def test_pictures_of_answered_questions_are_not_needed(folder):
    path = write(folder, GOOD | {"image": "absent.png", "id": "done"}, GOOD)
    assert len(read_questions(path, answered={"done"}).questions) == 2
    with pytest.raises(InputError, match="line 1 of"):
        read_questions(path, answered={"other"})


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "no question"), (b"\xef\xbb\xbf\r\n \n", "no question"), (b"{}\n3", "no usable")]
)
def test_a_file_without_questions(folder, content, reason):
    (folder / "q.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=reason):
        read_questions(folder / "q.jsonl", keep_going=True)


def test_a_file_that_cannot_be_read(folder):
    for path in (folder, folder / "absent.jsonl"):
        with pytest.raises(InputError, match="cannot read"):
            read_questions(path)


names = st.sampled_from(["image", "images", "prompt", "question", "id", "answer", "label"]) | st.text(max_size=3)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("picture.png"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
objects = st.builds(lambda row: json.dumps(GOOD | row).encode(), st.dictionaries(names, values, max_size=4))
cut = st.builds(lambda line, end: line[: end % (len(line) + 1)], objects, st.integers(0, 200))
malformed = st.binary(max_size=30) | cut | objects | st.text(max_size=20).map(lambda text: text.encode("utf-8"))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(malformed, max_size=5), ending=st.sampled_from([b"\n", b"\r\n"]))
def test_whatever_is_in_the_file_it_is_read_or_refused(folder, lines, ending):
    path = folder / "any.jsonl"
    path.write_bytes(ending.join(lines))
    try:
        source = read_questions(path, keep_going=True)
    except InputError:
        return
    for question in source.questions:
        again = json.loads(question.answered("an answer", None))
        assert {**question.fields, "id": question.identity} == {
            name: value for name, value in again.items() if name not in {"answer", "plain"}
        }
    if source.skipped:
        with pytest.raises(InputError, match=f"line {source.skipped[0].line} of"):
            read_questions(path)
