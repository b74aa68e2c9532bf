"""Answers of a real server, through the openai client."""

import threading
import time

import openai
import pytest
from PIL import Image
from serving_helpers import eventually, question, served, tiny_text_model

from sinkscope.answering import answer

# The strongest VAR: no head has to look at the picture, and sinks lose all.
STRONG = {"p": 1.0, "rho": 0.0}


def text(completion) -> str:
    return completion.choices[0].message.content.strip()


@pytest.mark.real_model
def test_models(server):
    assert [model.id for model in server.client.models.list()] == ["demo:lmm"]
    assert server.client.models.retrieve("demo:lmm").owned_by == "sinkscope"


@pytest.mark.real_model
def test_a_picture_is_answered(ask, demo):
    completion = ask(question(demo.question.text, demo.image))
    assert text(completion) == demo.question.answer
    assert completion.model == "demo:lmm"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.prompt_tokens == 52
    assert completion.usage.total_tokens == 52 + completion.usage.completion_tokens


@pytest.mark.real_model
def test_on_and_off_alternate_and_equal_the_library(ask, demo):
    expected = answer(demo.loaded, demo.profile, [demo.image], demo.question.text, max_new_tokens=8, **STRONG)
    assert expected.changed
    messages = question(demo.question.text, demo.image)
    for _ in range(2):
        assert text(ask(messages, extra=STRONG)) == expected.var
        assert text(ask(messages, extra={"var": False})) == expected.plain
    # The server's own p and rho are as before.
    assert text(ask(messages)) == demo.question.answer


@pytest.mark.real_model
def test_settings_of_the_server_are_used(demo):
    expected = answer(
        demo.loaded, demo.profile, [demo.image], demo.question.text, compare=False, max_new_tokens=8, **STRONG
    )
    with served(demo.loaded, demo.profile, **STRONG) as strong:
        completion = strong.client.chat.completions.create(
            model="demo:lmm", messages=question(demo.question.text, demo.image), temperature=0, max_tokens=8
        )
    assert text(completion) == expected.var


@pytest.mark.real_model
def test_a_stream_comes_piece_by_piece(ask, demo):
    messages = question(demo.question.text, demo.image)
    whole = ask(messages, extra=STRONG)
    stream = ask(messages, extra=STRONG, stream=True, stream_options={"include_usage": True})
    pieces, last, times = [], None, []
    for chunk in stream:
        last = chunk
        times.append(time.monotonic())
        pieces.append(chunk.choices[0].delta.content or "")
    assert "".join(pieces) == whole.choices[0].message.content
    assert sum(map(bool, pieces)) > 5
    assert times[-1] - times[1] > 0.02
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert last.usage == whole.usage
    assert last.usage.completion_tokens == 8


@pytest.mark.real_model
def test_a_stream_ends_with_done(server, demo):
    raw = server.client.chat.completions.with_raw_response.create(
        model="demo:lmm", messages=question(demo.question.text, demo.image), stream=True, temperature=0
    )
    lines = [line for line in raw.http_response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)


@pytest.mark.real_model
def test_turns_and_several_pictures(ask, demo):
    black = Image.new("RGB", (48, 48))
    first = question(demo.question.text, demo.image)
    turns = [
        {"role": "developer", "content": "Answer in one word."},
        *first,
        {"role": "assistant", "content": "blue"},
        *question("And here?", black),
    ]
    one, both = ask(first), ask(turns)
    # Each picture is 36 tokens.
    assert both.usage.prompt_tokens > one.usage.prompt_tokens + 36
    assert ask(question("Compare.", demo.image, black)).usage.prompt_tokens > 72


@pytest.mark.real_model
def test_text_alone(ask):
    messages = [{"role": "user", "content": "Say hello."}]
    on = ask(messages, extra=STRONG)
    assert text(on)
    assert text(on) == text(ask(messages, extra={"var": False}))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.real_model
def test_stop(ask, demo, stream):
    messages = question(demo.question.text, demo.image)
    # The answer begins "blue cross, blue cross": the string reaches over several tokens.
    result = ask(messages, extra=STRONG, stop=["s, blu", "nowhere"], stream=stream)
    if stream:
        chunks = list(result)
        content, reason = "".join(chunk.choices[0].delta.content or "" for chunk in chunks), chunks[-1].choices[0]
    else:
        content, reason = result.choices[0].message.content, result.choices[0]
    assert content.strip() == "blue cros"
    assert reason.finish_reason == "stop"


@pytest.mark.real_model
def test_seeds_repeat_and_leave_no_trace(ask):
    messages = [{"role": "user", "content": "Tell me something."}]

    def drawn(seed):
        return text(ask(messages, temperature=1.5, seed=seed, max_tokens=6))

    first, other = drawn(1), drawn(2)
    assert first != other
    assert drawn(1) == first
    # A request without a seed after one with it is not repeated by it.
    after = []
    for _ in range(6):  # Two short answers may be the same by chance.
        drawn(1)
        after.append(drawn(None))
    assert len(set(after)) > 1


@pytest.mark.real_model
def test_requests_at_once_get_the_answers_of_requests_in_turn(ask, demo):
    messages = question(demo.question.text, demo.image)
    settings = [STRONG, {"var": False}, {"p": 0.6, "rho": 0.8}, STRONG]
    in_turn = [text(ask(messages, extra=extra)) for extra in settings]
    answers: dict[int, str] = {}

    def work(number: int) -> None:
        answers[number] = text(ask(messages, extra=settings[number]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(settings))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [answers[number] for number in range(len(settings))] == in_turn
    assert len(set(in_turn)) == 2


@pytest.mark.real_model
def test_a_client_that_leaves_stops_its_generation(ask, server, demo):
    messages = question(demo.question.text, demo.image)
    implementation = demo.loaded.model.config.text_config._attn_implementation
    stream = ask(messages, extra=STRONG, stream=True, max_tokens=1500)
    for _, chunk in zip(range(4), stream, strict=False):
        assert chunk.choices[0].finish_reason is None
    assert server.service.running
    stream.close()
    assert eventually(lambda: not server.service.running)

    with pytest.raises(openai.APITimeoutError):
        ask(messages, extra=STRONG, max_tokens=1500, timeout=0.7)
    assert eventually(lambda: not server.service.running)
    assert text(ask(messages, extra={"var": False})) == demo.question.answer
    assert demo.loaded.model.config.text_config._attn_implementation == implementation


def test_a_text_model_without_var():
    with served(tiny_text_model()) as plain:
        create = plain.client.chat.completions.create
        asked = {"model": "tiny", "temperature": 0, "max_tokens": 6}
        completion = create(messages=question("Hello"), **asked)
        assert completion.usage.prompt_tokens == len("user: Hello\n")
        assert completion.usage.completion_tokens == 6
        assert completion == create(messages=question("Hello"), **asked).model_copy(
            update={"id": completion.id, "created": completion.created}
        )
        with pytest.raises(openai.BadRequestError, match="takes no pictures"):
            create(messages=question("What is this?", Image.new("RGB", (8, 8))), **asked)
        with pytest.raises(openai.BadRequestError, match="without VAR"):
            create(messages=question("Hello"), extra_body={"p": 0.5}, **asked)
