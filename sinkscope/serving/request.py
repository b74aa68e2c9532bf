"""A chat request: what of OpenAI's API is taken, what is refused, and the pictures in it.

Nothing that a request names is fetched or read: pictures come inside the request, as base64.
"""

import base64
import binascii
import io
import re
from typing import Annotated, Any, Literal

from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sinkscope.serving.errors import RefusedRequest

MAX_PIXELS = 64_000_000
# Formats that Pillow decodes by itself; others may start programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

# Fields that change no answer.
IGNORED = frozenset(
    {"metadata", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "service_tier", "store"}
    | {"stream_options", "user"}
)
# Fields that are not supported, with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
}


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ImageAddress(BaseModel):
    url: str


class ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: ImageAddress


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]] | None = None


class ChatRequest(BaseModel):
    """The body of a request, checked. `var`, `p` and `rho` are ours: VAR on or off, and its settings."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[Annotated[str, Field(min_length=1)]] | None = None
    var: bool | None = None
    p: float | None = Field(None, ge=0, le=1)
    rho: float | None = Field(None, ge=0, le=1)

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end the answer."""
        if not self.stop:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def read_request(body: bytes) -> ChatRequest:
    """The request in `body`.

    Raises
    ------
    RefusedRequest
        If it is no JSON, breaks the schema, or asks for what is not supported.
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from error
    for name, value in (request.model_extra or {}).items():
        if value is not None and name not in IGNORED and value not in NEUTRAL.get(name, ()):
            raise RefusedRequest(f"{name} is not supported here; leave it out", param=name, code="unsupported_field")
    return request


def chat_messages(request: ChatRequest, *, pictures: bool) -> list[dict[str, Any]]:
    """The messages as transformers' chat handler takes them, with PIL images in place of addresses.

    Raises
    ------
    RefusedRequest
        If a picture cannot be used, or the model takes none.
    """
    messages = []
    for index, message in enumerate(request.messages):
        content: list[dict[str, Any]] = []
        parts = [TextPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        for number, part in enumerate(parts or []):
            if isinstance(part, TextPart):
                content.append({"type": "text", "text": part.text})
                continue
            place = f"messages.{index}.content.{number}.image_url"
            if not pictures:
                raise RefusedRequest(f"{request.model} takes no pictures; send text alone", param=place)
            content.append({"type": "image_url", "image_url": _picture(part.image_url.url, place)})
        # The chat templates of open models know no developer.
        role = "system" if message.role == "developer" else message.role
        messages.append({"role": role, "content": content})
    return messages


def _picture(address: str, place: str) -> Image.Image:
    """The picture inside a ``data:`` address, upright, in RGB."""

    def refused(reason: str) -> RefusedRequest:
        return RefusedRequest(reason, param=place, code="invalid_image")

    # Matched at the start alone, because a picture is long.
    head = re.match(r"data:[^,;]*(?:;[^,;]+)*?;base64,", address[:256], re.IGNORECASE)
    if head is None:
        raise refused("pictures are taken as data:image/...;base64,... alone; this server fetches and reads nothing")
    try:
        data = base64.b64decode("".join(address[head.end() :].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise refused(f"the picture is not valid base64 ({error})") from error
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise refused(f"the picture has {opened.width} x {opened.height} pixels; send {MAX_PIXELS} at most")
            # Upright, as the camera noted it, which is how transformers opens pictures too.
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise refused(f"the picture cannot be decoded; send a whole {', '.join(FORMATS)} file") from error


def _refusal(error: ValidationError) -> RefusedRequest:
    """The first fault in words. Names of types, which pydantic puts between those of fields, are left out."""
    first = max(error.errors(), key=lambda fault: len(fault["loc"]))
    fields = [str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier()]
    place = ".".join(field for field in fields if field not in ("str", "text")) or None
    message = first["msg"] if place is None else f"{place}: {first['msg']}"
    return RefusedRequest(message, param=place)
