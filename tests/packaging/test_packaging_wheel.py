"""The built wheel holds what the installed package needs: profiles, schema, texts, weights, type marker."""

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from sinkscope import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_every_profile_and_the_schema_ship(wheel):
    profiles = sorted(path.name for path in (ROOT / "profiles").glob("*.json"))
    assert "schema.json" in profiles
    assert len(profiles) > 1
    shipped = [name for name in wheel.namelist() if name.startswith("sinkscope/registry/profiles/")]
    assert sorted(Path(name).name for name in shipped if name.endswith(".json")) == profiles
    for name in profiles:
        assert wheel.read(f"sinkscope/registry/profiles/{name}") == (ROOT / "profiles" / name).read_bytes()
        json.loads(wheel.read(f"sinkscope/registry/profiles/{name}"))


def test_every_file_of_the_package_ships(wheel):
    kept = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "sinkscope").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    missing = kept - set(wheel.namelist())
    assert not missing
    assert "sinkscope/py.typed" in kept
    assert {".py", ".jsonl", ".safetensors"} <= {Path(name).suffix for name in kept}


def test_nothing_else_ships(wheel):
    outside = [name for name in wheel.namelist() if not name.startswith(("sinkscope/", f"sinkscope-{__version__}."))]
    assert not outside


def test_weights_are_small_enough(wheel):
    weights = [entry for entry in wheel.infolist() if entry.filename.endswith(".safetensors")]
    assert {Path(entry.filename).name for entry in weights} >= {"demo_lmm.safetensors", "control_projector.safetensors"}
    for entry in weights:
        assert entry.file_size <= 6_000_000, entry.filename


def test_metadata_licence_and_console_script(wheel):
    folder = f"sinkscope-{__version__}.dist-info"
    metadata = wheel.read(f"{folder}/METADATA").decode()
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata
    assert b"Apache License" in wheel.read(f"{folder}/licenses/LICENSE")
    assert "sinkscope = sinkscope.cli.main:main" in wheel.read(f"{folder}/entry_points.txt").decode()


def test_constraints_pin_every_dependency_exactly():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pinned = dict(line.split("==") for line in lines)
    assert all(version[0].isdigit() and "+" not in version for version in pinned.values())
    assert pinned["torch"] == "2.13.0"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["data"], *extras["plots"], *extras["dev"]]
    names = {requirement.split("[")[0].split(">")[0].split("=")[0].lower() for requirement in wanted}
    normalised = {name.lower().replace("_", "-") for name in pinned}
    assert not {name.replace("_", "-") for name in names if name != "sinkscope"} - normalised


def test_readme_commands_are_those_of_the_makefile():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in readme
        assert f"\n{target}:" in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text()
