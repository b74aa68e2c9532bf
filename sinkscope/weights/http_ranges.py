"""Byte ranges over plain HTTP behind fsspec's interface, with the standard library alone.

fsspec has one of its own that needs a package which nothing else here uses. The server must answer ranges (206); most
that serve files do. It has to list its folder either as a page of links, or not at all: then the usual names are tried.
"""

import re
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

TIMEOUT = 30.0
ATTEMPTS = 3
USUAL_NAMES = ("config.json", "model.safetensors", "model.safetensors.index.json")
_LINK = re.compile(r'href="([^"?#]+)"', re.IGNORECASE)


class RangeFileSystem(AbstractFileSystem):
    """Files of an HTTP server that answers byte ranges. Paths are URLs."""

    protocol = ("http", "https")
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        # A URL is its own path.
        return path

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """The files of a folder: by its page of links, or those of the usual names that are there."""
        names = self._links(path) or [name for name in USUAL_NAMES if self._size(f"{path}/{name}") is not None]
        if not names:
            raise FileNotFoundError(path)
        entries = [{"name": f"{path}/{name}", "size": None, "type": "file"} for name in names]
        return entries if detail else [entry["name"] for entry in entries]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Name and size of a file."""
        size = self._size(path)
        if size is None:
            raise FileNotFoundError(path)
        return {"name": path, "size": size, "type": "file"}

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> "RangeFile":
        return RangeFile(self, path, mode=mode, **{key: kwargs[key] for key in ("cache_type", "size") if key in kwargs})

    def _links(self, path: str) -> list[str]:
        try:
            with request(f"{path}/") as answer:
                if "html" not in answer.headers.get("Content-Type", ""):
                    return []
                page = answer.read(2**20).decode("utf-8", "replace")
        except FileNotFoundError:
            return []
        names = [urllib.parse.unquote(link) for link in _LINK.findall(page)]
        return [name for name in names if "/" not in name]

    def _size(self, path: str) -> int | None:
        try:
            with request(path, method="HEAD") as answer:
                length = answer.headers.get("Content-Length")
        except FileNotFoundError:
            return None
        if length is None:
            raise OSError("the server does not tell the size of its files")
        return int(length)


class RangeFile(AbstractBufferedFile):
    """One file of such a server."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        with request(self.path, headers={"Range": f"bytes={start}-{end - 1}"}) as answer:
            if answer.status != 206:
                raise OSError("the server does not answer byte ranges")
            return bytes(answer.read())


def request(url: str, method: str = "GET", headers: dict[str, str] | None = None) -> Any:
    """Ask a server, and again where it was busy.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    OSError
        If the server cannot be reached, or refuses.
    """
    asked = urllib.request.Request(url, method=method, headers=headers or {})
    for attempt in range(ATTEMPTS):
        try:
            return urllib.request.urlopen(asked, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code in (404, 410):
                raise FileNotFoundError(url) from error
            if error.code < 500 or attempt == ATTEMPTS - 1:
                raise OSError(f"the server answers {error.code} {error.reason}") from error
        except urllib.error.URLError as error:
            if attempt == ATTEMPTS - 1:
                raise OSError(f"the server cannot be reached ({error.reason})") from error
        time.sleep(0.5 * 2**attempt)
    raise OSError("the server cannot be reached")
