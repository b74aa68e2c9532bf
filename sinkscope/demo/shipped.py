"""The small trained weights that ship with the package: writing and reading them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
DEMO_FILE = "demo_lmm.safetensors"
CONTROL_FILE = "control_projector.safetensors"


def write_weights(path: Path, groups: dict[str, dict[str, torch.Tensor]], metadata: dict[str, Any]) -> None:
    """Write groups of tensors in float16, named "<group>.<name>", with the metadata as one JSON string."""
    tensors = {
        f"{group}.{name}": tensor.detach().to(torch.float16).contiguous()
        for group, members in groups.items()
        for name, tensor in members.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"sinkscope": json.dumps(metadata, sort_keys=True)})
    # The library creates a file that only its owner can read, which a package must not ship.
    path.chmod(0o644)


def read_weights(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Read what ``write_weights`` wrote.

    Returns
    -------
    (dict, dict)
        The groups of tensors in float32, and the metadata.
    """
    groups: dict[str, dict[str, torch.Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (not a mapping: it has no iterator)
            group, name = key.split(".", 1)
            groups.setdefault(group, {})[name] = file.get_tensor(key).float()
        metadata = json.loads(file.metadata()["sinkscope"])
    return groups, metadata
