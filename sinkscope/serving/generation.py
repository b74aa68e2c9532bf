"""The generate calls of one model: one at a time, each with the VAR of its request."""

import contextlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList
from transformers.cli.serving.utils import GenerateManager, InferenceThread

from sinkscope.answering.inputs import room_to_answer
from sinkscope.backbone.loading import LoadedModel
from sinkscope.backbone.visual import visual_mask
from sinkscope.errors import InputError, SinkscopeError
from sinkscope.profile.schema import Profile
from sinkscope.redistribution.applicator import var
from sinkscope.serving.errors import RefusedRequest
from sinkscope.serving.request import ChatRequest

SECONDS_TO_STOP = 10.0


class Service:
    """One model that answers, with the VAR that a request gets by default.

    VAR allows one thread in a model. transformers runs all generate calls of a model on one thread, which is also the
    queue of the requests; nothing else here touches the model's layers.
    """

    def __init__(
        self, loaded: LoadedModel, profile: Profile | None, *, p: float | None = None, rho: float | None = None
    ) -> None:
        self.loaded, self.profile = loaded, profile
        # A model without a usable processor answers texts.
        self.processor: Any = loaded.processor or loaded.tokenizer
        if not getattr(self.processor, "chat_template", None):
            raise InputError(f"{loaded.model_id} has no chat template, so it cannot be served as a chat model")
        if not hasattr(loaded.tokenizer, "_tokenizer"):
            raise InputError(f"{loaded.model_id} has no fast tokenizer, which transformers' serving needs")
        self.p, self.rho = p, rho
        if profile is not None:
            # What does not fit is said now, and not to the first client.
            config = var(loaded.model, profile, p=p, rho=rho).config
            self.p, self.rho = config.p, config.rho
        self.thread = InferenceThread()
        self.running: set[Generation] = set()

    def var(self, request: ChatRequest) -> AbstractContextManager[Any]:
        """The VAR that a request asks for. To be called on the model's thread alone."""
        if self.profile is None or request.var is False:
            return nullcontext()
        p, rho = (own if asked is None else asked for asked, own in ((request.p, self.p), (request.rho, self.rho)))
        return var(self.loaded.model, self.profile, p=p, rho=rho)

    def stop(self) -> None:
        """Stop all requests, the waiting ones too."""
        for generation in tuple(self.running):
            generation.cancel("the server is shutting down")

    def close(self) -> None:
        """Stop all requests, and wait until the model is left alone."""
        self.stop()
        with contextlib.suppress(TimeoutError):
            self.thread.submit(lambda: None).result(SECONDS_TO_STOP)


class Generation(GenerateManager):
    """The generation of one request: transformers' manager, which calls `generate` here instead of the model's.

    Attributes
    ----------
    failure : RefusedRequest or None
        Why it came to no end; set before the stream's last item, since a stream has no other way to say it.
    """

    def __init__(self, service: Service, request: ChatRequest) -> None:
        # In place of the thread of its own that a manager starts.
        self._thread = service.thread
        self._service, self._request = service, request
        self._model: Any = service.loaded.model
        self._cancelled = threading.Event()
        self.failure: RefusedRequest | None = None

    def cancel(self, reason: str) -> None:
        """End the generation after the token at work, or before it begins."""
        self.failure = self.failure or RefusedRequest(reason, 503)
        self._cancelled.set()

    def generate_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str, response_parser: Any = None
    ) -> Any:
        inputs, tokenizer = self._prepared(inputs, gen_config), self._service.loaded.tokenizer
        generator: Any = self
        return super().generate_streaming(generator, tokenizer, inputs, gen_config, request_id, response_parser)

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, request_id: str
    ) -> Any:
        inputs, tokenizer = self._prepared(inputs, gen_config), self._service.loaded.tokenizer
        generator: Any = self
        return await super().generate_non_streaming(generator, tokenizer, inputs, gen_config, request_id)

    def generate(self, **inputs: Any) -> Tensor | None:
        """The model's generate, in the VAR of the request; a failure ends a stream, or is raised."""
        try:
            if self.failure is None:
                with _seeded(self._request.seed), self._service.var(self._request):
                    ids: Tensor = self._model.generate(**inputs)
                if not self._cancelled.is_set():
                    return ids
        except Exception as error:
            self.failure = self.failure or _told(error)
        finally:
            self._service.running.discard(self)
        if "streamer" not in inputs and self.failure is not None:
            raise self.failure
        if self.failure is not None:
            inputs["streamer"].end()
        return None

    def _prepared(self, inputs: Any, config: Any) -> dict[str, Any]:
        """What `model.generate` gets, with the limits of the model kept."""
        loaded = self._service.loaded
        try:
            config.max_new_tokens = room_to_answer(loaded, inputs, config.max_new_tokens)
        except InputError as error:
            raise RefusedRequest(str(error), param="messages", code="context_length_exceeded") from error
        pictures = any(name.startswith("pixel_values") for name in inputs)
        if pictures and loaded.anatomy.placeholder_ids and not visual_mask(loaded.anatomy, inputs["input_ids"]).any():
            raise RefusedRequest(f"the chat template of {loaded.model_id} drops the pictures", param="messages")
        kept = {
            name: value.to(self._model.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in inputs.items()
        }
        self._service.running.add(self)
        return kept | {"stopping_criteria": StoppingCriteriaList([self._criterion])}

    def _criterion(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.full((len(input_ids),), self._cancelled.is_set(), dtype=torch.bool, device=input_ids.device)


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Random numbers of their own for one request, so that a seed does not reach the requests after it."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(device_type=_accelerator()):
        torch.manual_seed(seed)
        yield


def _accelerator() -> str:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cuda" if found is None else found.type


def _told(error: Exception) -> RefusedRequest:
    """A failed generation in one line. Only the words are kept: a traceback would hold the tensors."""
    if isinstance(error, InputError):
        return RefusedRequest(str(error), 400)
    if isinstance(error, SinkscopeError):
        return RefusedRequest(str(error), 500)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return RefusedRequest("out of memory; send less text, or fewer and smaller pictures", 500)
    words = " ".join(str(error).split())[:300]
    return RefusedRequest(f"the generation failed: {type(error).__name__}: {words}", 500)
