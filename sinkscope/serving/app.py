"""The routes of the endpoint."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from jinja2 import TemplateError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sinkscope.serving.chat import Chat
from sinkscope.serving.errors import RefusedRequest, error_document
from sinkscope.serving.generation import Service
from sinkscope.serving.request import read_request

MAX_BODY_BYTES = 64 * 2**20
SECONDS_BETWEEN_LOOKS = 0.2


def build_app(service: Service) -> Starlette:
    """The application that serves one model."""
    started = int(time.time())
    name = service.loaded.model_id
    model = {"id": name, "object": "model", "created": started, "owned_by": "sinkscope"}

    def check_name(asked: str) -> None:
        if asked != name:
            raise RefusedRequest(
                f"there is no model {asked!r} here; this server has {name!r}",
                404,
                param="model",
                code="model_not_found",
            )

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model]})

    async def one_model(request: Request) -> Response:
        check_name(request.path_params["name"])
        return JSONResponse(model)

    async def chat(request: Request) -> Response:
        asked = read_request(await _body(request))
        check_name(asked.model)
        if service.profile is None and (asked.var or asked.p is not None or asked.rho is not None):
            raise RefusedRequest("this server runs without VAR; start it with a profile", param="var")
        handler = Chat(service, asked)
        try:
            work = asyncio.ensure_future(handler.handle_request(handler.body(), f"chatcmpl-{uuid.uuid4().hex}"))
            while not (await asyncio.wait({work}, timeout=SECONDS_BETWEEN_LOOKS))[0]:
                # transformers looks for a client that went away in streams alone.
                if await request.is_disconnected():
                    handler.generation.cancel("the client went away")
            return work.result()
        except (ValueError, TypeError, KeyError, IndexError, TemplateError) as error:
            reason = " ".join(str(error).split())[:300]
            raise RefusedRequest(f"{name} does not take these messages: {reason}", param="messages") from error

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", one_model),
            Route("/v1/chat/completions", chat, methods=["POST"]),
        ],
        exception_handlers={RefusedRequest: _refuse, HTTPException: _refuse_route, Exception: _fail},
        lifespan=lifespan,
    )
    app.state.service = service
    return app


async def _body(request: Request) -> bytes:
    """The body, kept no further than the limit."""
    # Pages of other sites can send no JSON to a server on this machine, as long as nothing else is taken for it.
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise RefusedRequest("send JSON, with the header content-type: application/json", 415)
    size, parts = 0, []
    try:
        async for part in request.stream():
            size += len(part)
            # The rest is read and dropped, since a client that still sends would not see the answer.
            if size <= MAX_BODY_BYTES:
                parts.append(part)
    except ClientDisconnect as error:
        raise RefusedRequest("the client went away") from error
    if size > MAX_BODY_BYTES:
        raise RefusedRequest(f"the request is larger than {MAX_BODY_BYTES >> 20} MiB; send smaller pictures", 413)
    return b"".join(parts)


async def _refuse(_: Request, error: Any) -> Response:
    return JSONResponse(error_document(error), error.status)


async def _refuse_route(request: Request, error: Any) -> Response:
    message = f"there is no {request.method} {request.url.path} here; see /v1/models and /v1/chat/completions"
    return JSONResponse(error_document(RefusedRequest(message, error.status_code)), error.status_code)


async def _fail(_: Request, error: Exception) -> Response:
    return JSONResponse(error_document(RefusedRequest(f"unexpected {type(error).__name__}", 500)), 500)
