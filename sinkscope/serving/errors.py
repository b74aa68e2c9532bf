"""What the endpoint answers to a request that it cannot serve."""

from typing import Any

from sinkscope.errors import SinkscopeError


class RefusedRequest(SinkscopeError):
    """A request that ends with an error of OpenAI's form.

    Attributes
    ----------
    status : int
        Of HTTP.
    param : str or None
        The field at fault.
    code : str or None
        A name for programs.
    """

    def __init__(self, message: str, status: int = 400, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def error_document(error: RefusedRequest) -> dict[str, Any]:
    """The error as OpenAI's API writes it."""
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}
