"""Where the endpoint listens, and uvicorn around it. Imports nothing heavy before it has to."""

import contextlib
import errno
import importlib.util
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sinkscope.errors import InputError

if TYPE_CHECKING:
    from starlette.applications import Starlette

PACKAGES = ("fastapi", "openai", "starlette", "uvicorn")
SECONDS_TO_FINISH = 10


def check_installed() -> None:
    """Raise `InputError` where a package of the extra ``serve`` is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"serving needs {' and '.join(missing)}: pip install 'sinkscope[serve]'")
    if importlib.util.find_spec("transformers.cli.serving") is None:
        raise InputError("serving needs a newer transformers: pip install -U 'sinkscope[serve]'")


def open_port(host: str, port: int) -> socket.socket:
    """A socket bound to `host` and `port` (0: any free one), which refuses clients until `run`.

    Raises
    ------
    InputError
        If the port is taken, or the host is none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"cannot listen on {host}: {error.strerror or error}") from error
    try:
        if os.name == "posix":
            # A server that ended a moment ago does not keep its port; one that listens does.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port {port} on {host} is in use; choose another --port") from error
        raise InputError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener


def address_of(listener: socket.socket) -> str:
    """The base URL for clients."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def run(app: "Starlette", listener: socket.socket, ready: Callable[[str], None] = lambda address: None) -> None:
    """Serve until Ctrl-C or SIGTERM; call `ready` with the base URL once clients can connect."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                ready(address_of(listener))

        async def shutdown(self, sockets: Any = None) -> None:
            app.state.service.stop()
            await super().shutdown(sockets=sockets)

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=SECONDS_TO_FINISH, lifespan="on"
    )
    # uvicorn ends in good order and then passes the signal on.
    with contextlib.suppress(KeyboardInterrupt):
        Server(config).run(sockets=[listener])
