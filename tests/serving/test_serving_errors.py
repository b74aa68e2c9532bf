"""What a real server refuses, and how."""

import base64

import openai
import pytest
from PIL import Image
from serving_helpers import data_url, question

from sinkscope.serving import app as serving_app
from sinkscope.serving import request as serving_request

pytestmark = pytest.mark.real_model


def at(url: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def refused(ask, messages, *, status: int = 400, **fields) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(messages, **fields)
    assert caught.value.status_code == status, caught.value
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert caught.value.type == "invalid_request_error"
    return caught.value


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/a.png", "https://example.org/a.png", "file:///etc/hosts"])
def test_nothing_is_fetched(ask, url):
    error = refused(ask, at(url))
    assert "fetches and reads nothing" in str(error)
    assert error.param == "messages.0.content.0.image_url"
    assert error.code == "invalid_image"


def test_no_file_is_read(ask, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "there.png")
    assert "fetches and reads nothing" in str(refused(ask, at(str(tmp_path / "there.png"))))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("data:image/png;base64,@@@@", "not valid base64"),
        ("data:image/png;base64," + base64.b64encode(b"not a picture").decode(), "cannot be decoded"),
        (data_url(Image.effect_noise((64, 64), 50))[:-400], "cannot be decoded"),
        (data_url(Image.new("RGB", (8, 8)), "TIFF"), "cannot be decoded"),
        ("data:image/png,abc", "base64"),
    ],
)
def test_bad_pictures(ask, url, reason):
    assert reason in str(refused(ask, at(url)))


def test_pictures_beyond_the_limit(ask, monkeypatch):
    monkeypatch.setattr(serving_request, "MAX_PIXELS", 100)
    assert "11 x 10 pixels" in str(refused(ask, at(data_url(Image.new("RGB", (11, 10))))))


def test_bodies_beyond_the_limit(ask, monkeypatch):
    monkeypatch.setattr(serving_app, "MAX_BODY_BYTES", 1000)
    refused(ask, [{"role": "user", "content": "a" * 1000}], status=413)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"extra": {"generation_config": "{}"}}, "generation_config"),
        ({"extra": {"p": 1.5}}, "p"),
        ({"extra": {"rho": -0.1}}, "rho"),
        ({"extra": {"var": "perhaps"}}, "var"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_fields_that_cannot_be_served(ask, fields, param):
    assert refused(ask, question("Hello"), **fields).param == param


def test_fields_that_ask_for_nothing_are_taken(ask):
    neutral = {"n": 1, "logprobs": False, "presence_penalty": 0, "tools": [], "user": "someone", "max_tokens": 1}
    assert ask(question("Hello"), **neutral).usage.completion_tokens == 1


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([{"role": "tool", "content": "x", "tool_call_id": "1"}], "messages.0.role"),
        ([{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]}], "messages.0.content.0"),
        ([{"role": "user", "content": 3}], "messages.0.content"),
    ],
)
def test_messages_that_cannot_be_served(ask, messages, param):
    assert refused(ask, messages).param == param


def test_prompts_beyond_the_context(ask):
    assert refused(ask, question("word " * 9000)).code == "context_length_exceeded"


def test_unknown_model(ask, server):
    assert refused(ask, question("Hello"), status=404, model="gpt-5").code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        server.client.models.retrieve("gpt-5")


def test_other_routes_and_bodies(server):
    with pytest.raises(openai.NotFoundError, match="no POST /v1/embeddings here"):
        server.client.embeddings.create(model="demo:lmm", input="Hello")
    for content, kind, status in ((b"{", "application/json", 400), (b"{}", "text/plain", 415)):
        response = server.client._client.post(
            f"{server.url}/chat/completions", content=content, headers={"content-type": kind}
        )
        assert (response.status_code, set(response.json())) == (status, {"error"})


@pytest.mark.parametrize("stream", [False, True])
def test_a_failing_generation_is_told_and_the_next_one_works(ask, demo, monkeypatch, stream):
    def broken(*_, **__):
        raise RuntimeError('a "quoted"\nreason')

    with monkeypatch.context() as patch:
        patch.setattr(demo.loaded.model, "generate", broken)
        with pytest.raises(openai.APIError, match='RuntimeError: a "quoted" reason') as caught:
            list(ask(question("Hello"), stream=stream))
    assert caught.value.type == "server_error"
    assert stream or caught.value.status_code == 500
    assert ask(question("Hello"), max_tokens=1).usage.completion_tokens == 1
