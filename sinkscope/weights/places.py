"""Where the files of a checkpoint are: a folder, a repository on the hub, or a folder behind a URL."""

import json
import os
from abc import ABC, abstractmethod
from pathlib import Path, PurePosixPath
from typing import Any

from sinkscope.errors import InputError
from sinkscope.weights.files import ByteRanges, LocalRanges, RemoteRanges, first_line

MAX_JSON_BYTES = 100 * 2**20


class Place(ABC):
    """A folder of files.

    Attributes
    ----------
    label : str
        What messages call it.
    """

    label: str

    @abstractmethod
    def names(self) -> list[str]:
        """The names of the files in it, without those in folders below.

        Raises
        ------
        InputError
            If the place cannot be reached.
        """

    @abstractmethod
    def open(self, name: str) -> ByteRanges:
        """Open the file called `name`.

        Raises
        ------
        InputError
            If there is none.
        """

    @abstractmethod
    def holds(self, name: str) -> bool:
        """Whether there is a file called `name`, which may lie in a folder below.

        Raises
        ------
        InputError
            If `name` leads outside the folder.
        """

    def read_json(self, name: str) -> Any:
        """What the JSON file called `name` holds.

        Raises
        ------
        InputError
            If there is none, or if it is no JSON.
        """
        file = self.open(name)
        try:
            if file.size > MAX_JSON_BYTES:
                raise InputError(f"{file.label} is larger than any index or config; it is damaged")
            return json.loads(file.read(0, file.size).tobytes())
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{file.label} is not valid JSON: {first_line(error)}") from error
        finally:
            file.close()


class LocalPlace(Place):
    """A folder on this machine."""

    def __init__(self, folder: Path, label: str | None = None) -> None:
        self.folder = folder
        self.label = label or str(folder)

    def names(self) -> list[str]:
        """The names of the files in the folder."""
        try:
            return sorted(entry.name for entry in os.scandir(self.folder) if entry.is_file())
        except OSError as error:
            raise InputError(f"cannot read the folder {self.folder}: {error.strerror or error}") from error

    def holds(self, name: str) -> bool:
        """Whether there is a file called `name`."""
        return (self.folder / checked_name(name, self.label)).is_file()

    def open(self, name: str) -> ByteRanges:
        """Open the file called `name`."""
        return LocalRanges(self.folder / checked_name(name, self.label))


class RemotePlace(Place):
    """A folder behind an fsspec file system.

    Parameters
    ----------
    system : fsspec.AbstractFileSystem
        The file system.
    root : str
        The folder, as the system names it.
    label : str
        What messages call it.
    options : optional
        Handed to the system's ``ls`` and ``open``, such as the revision of a hub repository.
    """

    def __init__(self, system: Any, root: str, label: str, **options: Any) -> None:
        self.system = system
        self.root = root.rstrip("/")
        self.label = label
        self._options = options

    def names(self) -> list[str]:
        """The names of the files in the folder."""
        try:
            entries = self.system.ls(self.root, detail=True, **self._options)
        except FileNotFoundError as error:
            raise InputError(f"there is nothing at {self.label}; check the name and the revision") from error
        except Exception as error:  # Every remote file system raises its own kinds.
            raise InputError(
                f"cannot reach {self.label}: {first_line(error)}; check the name and the network"
            ) from error
        return sorted(PurePosixPath(entry["name"]).name for entry in entries if entry["type"] == "file")

    def holds(self, name: str) -> bool:
        """Whether there is a file called `name`."""
        checked = checked_name(name, self.label)
        try:
            return bool(self.system.exists(f"{self.root}/{checked}", **self._options))
        except Exception as error:
            raise InputError(f"cannot look for {checked} in {self.label}: {first_line(error)}") from error

    def open(self, name: str) -> ByteRanges:
        """Open the file called `name`."""
        checked = checked_name(name, self.label)
        return RemoteRanges(self.system, f"{self.root}/{checked}", f"{checked} in {self.label}", **self._options)


def checked_name(name: str, label: str) -> str:
    """`name`, if it names a file inside the folder: an index may come from anywhere, and name anything.

    Raises
    ------
    InputError
        If it leads outside.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        raise InputError(f"the index of {label} names a file outside its folder: {name!r}")
    return name
