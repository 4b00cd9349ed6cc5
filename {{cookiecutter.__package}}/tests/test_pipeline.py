"""The pipeline's file and the notebooks agree, and mistakes in parameters start nothing."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from {{cookiecutter.__package}}.runs.manifest import modules
from {{cookiecutter.__package}}.runs.parameters import Parameters

PACKAGE = "{{cookiecutter.__package}}"
STAGES = ["prepare", "train", "evaluate", "package"]
NOTEBOOKS = {name: name for name in STAGES} | {"sweep": "train"}


@pytest.fixture(scope="session")
def stages(root: Path) -> dict:
    """The stages of dvc.yaml."""
    return yaml.safe_load((root / "dvc.yaml").read_text())["stages"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_stage_depends_on_all_it_reaches(name: str, root: Path, stages: dict) -> None:
    """A module that a notebook imports, however deep, is in its stage's list: its change makes the stage run again."""
    deps = set(stages[name]["deps"])
    reached = {p.relative_to(root).as_posix() for p in modules(root / f"notebooks/{NOTEBOOKS[name]}.ipynb", root / PACKAGE)}
    assert {d for d in deps if d.startswith(f"{PACKAGE}/")} == reached
    assert {f"notebooks/{NOTEBOOKS[name]}.ipynb", "uv.lock"} <= deps


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_reads_what_it_says(name: str, root: Path, stages: dict) -> None:
    """Every input of a notebook lies in a dependency of its stage, and its output is the stage's."""
    defaults = Parameters.read(root / f"notebooks/{name}.ipynb")
    values, deps = {p.name: p.default for p in defaults.items}, stages[name]["deps"]
    for source in (values[n] for n in defaults.inputs):
        assert any(dep == source or dep.startswith(source + "/") for dep in deps), source
    assert values["out"] in stages[name]["outs"][0]


def test_only_evaluate_reads_the_test_split(root: Path, stages: dict) -> None:
    """The test split is named by no other notebook that runs after prepare."""
    readers = [p.stem for p in (root / "notebooks").glob("*.ipynb") if '"test"' in "".join(
        "".join(c["source"]) for c in json.loads(p.read_text())["cells"] if c["cell_type"] == "code")]
    assert readers == ["evaluate"]
    assert not any("test" in dep for dep in stages["train"]["deps"])


@pytest.mark.parametrize(("given", "said"), [
    ("sede=1", "no parameter is called 'sede'; did you mean 'seed'?"),
    ("seed=many", "parameter 'seed' is 'many'"),
    ("seed=-1", "greater than or equal to 0"),
    ("family=forest", "parameter 'family' is 'forest'"),
    ("data=build/nowhere", "build/nowhere: missing"),
])
def test_a_mistake_is_one_line(given: str, said: str, root: Path) -> None:
    """A wrong name, type, bound, choice or input is one line and exit code 1, before a kernel starts."""
    before = set(root.glob("build/.train-*"))
    done = subprocess.run([PACKAGE, "run", "train", "-p", given], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1
    assert set(root.glob("build/.train-*")) == before


def break_cell(root: Path, source: str) -> None:
    """Put other source into the last cell of `train`."""
    content = json.loads((root / "notebooks/train.ipynb").read_text())
    content["cells"][-1]["source"] = source
    (root / "notebooks/train.ipynb").write_text(json.dumps(content))


@pytest.mark.parametrize(("how", "said"), [
    (lambda root: break_cell(root, "x = (1,"), "line 1: '(' was never closed"),
    (lambda root: break_cell(root, "%%bash\nls | wc -l"), "build/prepare: missing"),
    (lambda root: break_cell(root, "if True:\n    %time files = !ls"), "build/prepare: missing"),
    (lambda root: (root / PACKAGE / "features.py").write_text("import\n"), f"{PACKAGE}/features.py, line 1"),
    (lambda root: (root / "params.yaml").write_text("train: [x]"), "params.yaml: not sections of 'name: value' lines"),
    (lambda root: (root / "params.yaml").write_text("a: b: c"), "params.yaml: not sections of 'name: value' lines"),
    (lambda root: (root / "notebooks/train.ipynb").write_text("{}"), "not a notebook"),
    (lambda root: (root / "dvc.yaml").unlink(), "not inside a project"),
])
def test_what_cannot_be_read_is_one_line(how: Callable[[Path], None], said: str, root: Path, tmp_path: Path) -> None:
    """Broken code and broken files are one line each; what only IPython understands is no error."""
    for name in ("notebooks", PACKAGE):
        shutil.copytree(root / name, tmp_path / name)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(root / name, tmp_path)
    how(tmp_path)
    done = subprocess.run([PACKAGE, "run", "train"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
