"""The notebooks are the source: the package is their export, and they hold no outputs."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from {{cookiecutter.__package}}.runs.manifest import modules

PACKAGE = "{{cookiecutter.__package}}"
# Imports that take seconds, or that a service must not carry.
HEAVY = {"torch", "lightning", "pytorch_lightning", "sklearn", "pandas"}


def run(*command: str, cwd: Path) -> str:
    """A command's output; a failure shows it."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """The project's sources, elsewhere."""
    for name in ("nbs", "notebooks", PACKAGE):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    return tmp_path


def sources(folder: Path) -> dict[str, str]:
    """Every module of a package, by path."""
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*.py")}


def test_the_package_is_the_export(root: Path, copy: Path) -> None:
    """Exporting the notebooks again gives the committed package, no file more or less."""
    shutil.rmtree(copy / PACKAGE)
    (copy / PACKAGE).mkdir()
    shutil.copy(root / PACKAGE / "__init__.py", copy / PACKAGE)
    run("nbdev-export", cwd=copy)
    assert sources(copy / PACKAGE) == sources(root / PACKAGE)


def test_cleaning_keeps_the_parameters_tag(copy: Path) -> None:
    """nbdev-clean strips what runs leave behind, and not the tag that papermill looks for."""
    notebooks = sorted((copy / "notebooks").glob("*.ipynb"))
    run("nbdev-clean", cwd=copy)
    run("nbdev-clean", "--fname", "notebooks", cwd=copy)
    for path in notebooks:
        tags = [c["metadata"].get("tags", []) for c in json.loads(path.read_text())["cells"]]
        assert tags.count(["parameters"]) == 1, path.name
    assert len(notebooks) >= 5


def test_the_bento_gets_what_the_lock_says(root: Path) -> None:
    """requirements.txt is the export of uv.lock for serving."""
    hooks = yaml.safe_load((root / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    *command, _, _ = next(hook["entry"] for hook in hooks if hook["id"] == "requirements").split()
    command.remove("--quiet")
    assert run(*command, cwd=root) == (root / "requirements.txt").read_text()


def test_the_bento_holds_what_the_service_imports(root: Path, tmp_path: Path) -> None:
    """The modules that pyproject.toml packs are those that the service reaches, and the package's own beginning."""
    code = [{"cell_type": "code", "source": f"import {PACKAGE}.service", "metadata": {}}]
    (tmp_path / "serve.ipynb").write_text(json.dumps({"cells": code}))
    reached = {p.relative_to(root).as_posix() for p in modules(tmp_path / "serve.ipynb", root / PACKAGE)}
    packed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["bentoml"]["build"]["include"]
    assert {p for p in packed if p.endswith(".py")} == reached | {f"{PACKAGE}/__init__.py"}
    assert yaml.safe_load((root / "deploy/bentofile-cuda.yaml").read_text())["include"] == packed


def test_notebooks_hold_no_outputs(root: Path) -> None:
    """What git keeps of a notebook is its source."""
    for path in [*root.glob("nbs/**/*.ipynb"), *root.glob("notebooks/*.ipynb")]:
        cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
        assert not any(c["outputs"] or c["execution_count"] for c in cells), f"{path.name}: run `uv run pre-commit run --all-files`"


@pytest.mark.parametrize("module", [PACKAGE, f"{PACKAGE}.runs.cli", f"{PACKAGE}.schema"])
def test_light_imports(module: str, root: Path) -> None:
    """The package and its command start without the libraries that take seconds."""
    loaded = run(sys.executable, "-c", f"import sys, {module}; print(*sys.modules)", cwd=root).split()
    assert not HEAVY & set(loaded)
