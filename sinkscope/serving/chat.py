"""One chat request, by transformers' own handler, with what a client of OpenAI's API counts on beside it."""

import json
from collections.abc import Sequence
from typing import Any

from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.utils import GenerationState, Modality

from sinkscope.serving.errors import error_document
from sinkscope.serving.generation import Generation, Service
from sinkscope.serving.request import ChatRequest, chat_messages

DONE = "data: [DONE]\n\n"


class Chat(ChatCompletionHandler):
    """The handler of one request. It changes four things in its parent:

    - the model is ours, and is not looked for;
    - a temperature or top_p means sampling, also where the model's default is not to sample;
    - strings that stop the answer are no part of it;
    - a stream ends with ``[DONE]``, or with an error of OpenAI's form.
    """

    def __init__(self, service: Service, request: ChatRequest) -> None:
        self.generation = Generation(service, request)
        models: Any = _OneModel(service)
        super().__init__(models, _OneState(self.generation))
        self._service, self._request = service, request
        self._cutter = Cutter(request.stops)

    def body(self) -> dict[str, Any]:
        """The request for `handle_request`, its pictures decoded."""
        request = self._request
        fields = {
            "model": request.model,
            "messages": chat_messages(request, pictures=self._service.loaded.processor is not None),
            "stream": request.stream,
            "max_tokens": request.max_tokens,
            "max_completion_tokens": request.max_completion_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "stop": list(request.stops) or None,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def _resolve_model(self, body: dict[str, Any]) -> tuple[str, Any, Any]:
        return self._request.model, self._service.loaded.model, self._service.processor

    def _build_generation_config(self, body: dict[str, Any], model_generation_config: Any, use_cb: bool = False) -> Any:
        config = super()._build_generation_config(body, model_generation_config, use_cb=use_cb)
        request = self._request
        if request.temperature is not None or request.top_p is not None:
            config.do_sample = request.temperature != 0
        if request.temperature == 0:
            # The model's own again, which generate does not warn of.
            config.temperature, config.top_p = model_generation_config.temperature, model_generation_config.top_p
        # Inside VAR nothing runs compiled, and a stream is of one sequence.
        config.disable_compile, config.num_beams, config.num_return_sequences = True, 1, 1
        if config.pad_token_id is None:
            tokenizer = self._service.loaded.tokenizer
            padding = tokenizer.pad_token_id
            config.pad_token_id = tokenizer.eos_token_id if padding is None else padding
        return config

    def _build_completion(self, request_id: str, content: str, *fields: Any, **named: Any) -> Any:
        content = self._cutter.feed(content) + self._cutter.end()
        return super()._build_completion(request_id, content, *fields, **named)

    def _build_chunk_sse(
        self,
        request_id: str = "",
        content: str | None = None,
        model: str | None = None,
        role: str | None = None,
        finish_reason: str | None = None,
        *fields: Any,
        **named: Any,
    ) -> str:
        if content is not None:
            content = self._cutter.feed(content)
            if not content:
                return ""
        if finish_reason is None:
            return super()._build_chunk_sse(request_id, content, model, role, None, *fields, **named)
        if self.generation.failure is not None:
            return f"data: {json.dumps(error_document(self.generation.failure))}\n\n"
        rest = self._cutter.end()
        held = super()._build_chunk_sse(request_id, rest, model) if rest else ""
        return held + super()._build_chunk_sse(request_id, None, model, role, finish_reason, *fields, **named) + DONE


class Cutter:
    """Cuts a growing text before the first of some strings, and holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self._ended = False

    def feed(self, text: str) -> str:
        """What is certain of the text after another piece of it."""
        if self._ended:
            return ""
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self._ended, certain, self._held = True, self._held[: min(places)], ""
            return certain
        longest = max((self._overlap(stop) for stop in self._stops), default=0)
        keep = len(self._held) - longest
        certain, self._held = self._held[:keep], self._held[keep:]
        return certain

    def end(self) -> str:
        """The rest of a text that ended otherwise."""
        rest, self._held = self._held, ""
        return rest

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((length for length in range(longest, 0, -1) if self._held.endswith(stop[:length])), 0)


class _OneModel:
    """In place of transformers' manager of models, which loads what a request names."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def get_model_modality(self, model: Any, processor: Any = None) -> Modality:
        return Modality.LLM if self._service.loaded.processor is None else Modality.VLM


class _OneState(GenerationState):
    """Gives one request its own manager."""

    def __init__(self, generation: Generation) -> None:
        super().__init__()
        self._generation = generation

    def get_manager(self, model_id: str, use_cb: bool = False) -> Generation:
        return self._generation
