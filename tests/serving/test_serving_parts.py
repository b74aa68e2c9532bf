"""The parts that need no model."""

import json
import socket
import subprocess
import sys

import pytest
from PIL import ExifTags, Image
from serving_helpers import data_url

from sinkscope.cli.main import run
from sinkscope.errors import InputError
from sinkscope.serving import check_installed, open_port
from sinkscope.serving.chat import Cutter
from sinkscope.serving.errors import RefusedRequest
from sinkscope.serving.request import chat_messages, read_request
from sinkscope.serving.server import address_of


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("a line\nand more", ["\n"], "a line"),
        ("aaab is here", ["aab"], "a"),
        ("abcab", ["abcd"], "abcab"),
        ("first or second", ["second", "or"], "first "),
        ("nothing", [], "nothing"),
        ("END", ["END"], ""),
    ],
)
def test_a_text_is_cut_at_the_first_stop_however_it_comes(text, stops, expected, size):
    cutter = Cutter(stops)
    pieces = [cutter.feed(text[start : start + size]) for start in range(0, len(text), size)]
    assert "".join(pieces) + cutter.end() == expected


def test_what_cannot_begin_a_stop_is_not_held_back():
    cutter = Cutter(["\n\n"])
    assert cutter.feed("one") == "one"
    assert cutter.feed(" two\n") == " two"
    assert cutter.feed("three") == "\nthree"


def body(**fields: object) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hello"}]} | fields).encode()


def test_fields_that_are_null_are_as_absent():
    request = read_request(body(stop=None, user=None, tools=None, p=None))
    assert (request.stops, request.var, request.p) == ((), None, None)
    assert read_request(body(stop="a")).stops == ("a",)


@pytest.mark.parametrize("fields", [{"model": None}, {"p": float("nan")}, {"stop": ["a", ""]}, {"seed": 2**70}])
def test_fields_out_of_their_range(fields):
    with pytest.raises(RefusedRequest, match=next(iter(fields))) as caught:
        read_request(body(**fields))
    assert caught.value.status == 400


def test_pictures_come_in_any_spelling_of_a_data_address():
    url = data_url(Image.new("RGB", (3, 2), "red")).removeprefix("data:image/png;base64,")
    for head in ("data:image/png;charset=utf-8;base64,", "data:;base64,", "DATA:image/jpeg;BASE64,"):
        part = {"type": "image_url", "image_url": {"url": head + url[:20] + "\n" + url[20:], "detail": "high"}}
        request = read_request(body(messages=[{"role": "user", "content": [part]}]))
        [message] = chat_messages(request, pictures=True)
        picture = message["content"][0]["image_url"]
        assert (picture.size, picture.mode, picture.getpixel((0, 0))) == ((3, 2), "RGB", (255, 0, 0))


def test_photos_are_turned_upright():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    part = {"type": "image_url", "image_url": {"url": data_url(Image.new("RGB", (3, 2)), "JPEG", exif=exif)}}
    [message] = chat_messages(read_request(body(messages=[{"role": "user", "content": [part]}])), pictures=True)
    assert message["content"][0]["image_url"].size == (2, 3)


def test_ports():
    with open_port("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        assert address_of(listener) == f"http://127.0.0.1:{port}/v1"
        with pytest.raises(InputError, match=f"port {port} on 127.0.0.1 is in use"):
            open_port("127.0.0.1", port)
    with pytest.raises(InputError, match=r"cannot listen on no\.such\.host\.invalid"):
        open_port("no.such.host.invalid", 0)


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError, match=r"needs uvicorn: pip install 'sinkscope\[serve\]'"):
        check_installed()
    assert run(["serve", "demo:lmm"]) == 2
    assert capsys.readouterr().err.startswith("sinkscope: error: serving needs uvicorn")


def test_a_port_in_use_is_told_before_anything_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["serve", "no/such-model", "--port", str(port)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"sinkscope: error: port {port} on 127.0.0.1 is in use")
    assert captured.out == ""


def test_wrong_use(capsys):
    assert run(["serve", "demo:lmm", "--no-var", "--p", "0.5"]) == 2
    assert "--no-var takes no --profile" in capsys.readouterr().err


def test_importing_the_part_is_light():
    code = "import sys, sinkscope.serving; print([n for n in ('torch', 'fastapi', 'openai') if n in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
