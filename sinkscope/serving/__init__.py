"""An OpenAI-compatible chat endpoint with VAR, on transformers' own serving stack.

body ──> request.py    checked; pictures decoded; p, rho, var, seed set aside
             └──> chat.py     transformers' chat handler: template, sampling, stream, answer
                      └──> generation.py    its generate calls, one at a time, inside `sinkscope.var`
app.py    the routes, and errors as clients of OpenAI expect them
server.py    a port and uvicorn
"""

from typing import TYPE_CHECKING

from sinkscope.serving.server import check_installed, open_port, run

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from sinkscope.backbone.loading import LoadedModel
    from sinkscope.profile.schema import Profile

__all__ = ["check_installed", "create_app", "open_port", "run"]


def create_app(
    loaded: "LoadedModel", profile: "Profile | None" = None, *, p: float | None = None, rho: float | None = None
) -> "Starlette":
    """The endpoint as an ASGI application, for `run` or any ASGI server with one worker.

    >>> run(create_app(loaded, profile), open_port("127.0.0.1", 8000))

    Parameters
    ----------
    loaded : LoadedModel
        The model. While the application lives, nothing else may use it.
    profile : Profile, optional
        Of the model's backbone; without one the model answers as it is, without VAR.
    p, rho : float, optional
        As in `sinkscope.var`; requests may change them, and VAR itself, by the fields `p`, `rho` and `var`.

    Raises
    ------
    InputError
        If a package is missing, the model has no chat template, or `p` or `rho` is out of its range.
    ProfileError, UnsupportedModelError
        As `sinkscope.var`.
    """
    check_installed()
    from sinkscope.serving.app import build_app
    from sinkscope.serving.generation import Service

    return build_app(Service(loaded, profile, p=p, rho=rho))
