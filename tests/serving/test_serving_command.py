"""``sinkscope serve`` as a process, and what it refuses at its start."""

import queue
import signal
import subprocess
import sys
import threading

import openai
import pytest
from serving_helpers import question, tiny_text_model

from sinkscope.cli.main import run


@pytest.mark.real_model
def test_the_command_serves_until_interrupted(demo):
    command = [sys.executable, "-m", "sinkscope", "serve", "demo:lmm", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: [lines.put(line) for line in process.stdout], daemon=True).start()
    try:
        ready = lines.get(timeout=60)
        assert ready.startswith("demo:lmm with VAR: http://127.0.0.1:")
        with openai.OpenAI(base_url=ready.split()[-1], api_key="none", max_retries=0) as client:
            create = client.chat.completions.create
            messages = question(demo.question.text, demo.image)
            completion = create(model="demo:lmm", messages=messages, temperature=0)
            assert completion.choices[0].message.content.strip() == demo.question.answer
            # Interrupted while it writes: the client is told, and the server ends in good order.
            strong = {"p": 1.0, "rho": 0.0}
            stream = create(model="demo:lmm", messages=messages, stream=True, extra_body=strong, max_tokens=1500)
            next(iter(stream))
            process.send_signal(signal.SIGINT)
            with pytest.raises(openai.APIError, match="shutting down"):
                list(stream)
        assert process.wait(20) == 0
    finally:
        process.kill()
        errors = process.communicate()[1]
    assert errors == "profile: sinkscope-demo-lmm\n"
    assert lines.empty()


def test_a_text_model_is_refused(capsys, tmp_path):
    loaded = tiny_text_model()
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    capsys.readouterr()
    assert run(["serve", str(tmp_path), "--port", "0"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("sinkscope: error: ")
    assert "visual" in captured.err or "text" in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


@pytest.mark.real_model
def test_no_profile_fits(capsys, demo, monkeypatch):
    monkeypatch.setattr("sinkscope.registry.list_profiles", list)
    assert run(["serve", "demo:lmm", "--port", "0"]) == 2
    assert "no profile fits" in capsys.readouterr().err
