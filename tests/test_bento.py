"""The built bento: what it holds, what it runs on, and that it serves by itself."""

import csv
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import build, figure, private_files, read_json, rendered, run, serve, succeed

pytestmark = pytest.mark.slow
PACKED = ("__init__.py", "page.html", *(f"{name}.py" for name in ("arrow", "body", "cache", "connections", "door", "explain", "features", "guard", "journal", "line", "meters", "page", "release", "schema", "service", "settings")))


@pytest.fixture(scope="module")
def bento(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The sample project's bento, built with secrets lying about."""
    with private_files(project):
        yield build(project, tmp_path_factory.mktemp("bentoml"), project / ".venv/bin/bentoml")


def test_holds_the_model_and_what_serves_it(bento: Path) -> None:
    """No data, notebook, secret or training code is packed."""
    held = {p.relative_to(bento / "src").as_posix() for p in (bento / "src").rglob("*") if p.is_file()}
    model = {f"build/model/{name}" for name in ("model.onnx", "schema.json", "golden.json", "metrics.json", "manifest.json")}
    assert held == model | {f"churn/{name}" for name in PACKED} | {"bentofile.yaml"}
    assert not any(b"hush" in p.read_bytes() for p in bento.rglob("*") if p.is_file())
    requirements = (bento / "env/python/requirements.txt").read_text()
    assert not any(name in requirements for name in ("torch", "lightning", "scikit-learn", "pandas", "onnxruntime-gpu"))
    assert "bentoml==" in requirements and "pydantic-core==" in requirements  # what the lock says, and not what is newest


def test_no_row_of_the_table_is_packed(project: Path, bento: Path) -> None:
    """Golden and usual rows are made up: none is a row of the table, and golden ones inside its range share no value with it."""
    with (project / "data/raw/breast_cancer.csv").open() as file:
        table = [{name: float(value) for name, value in row.items() if name != "diagnosis"} for row in csv.DictReader(file)]
    packed = read_json(bento / "src/build/model/golden.json")
    golden, usual = packed["rows"], packed["usual"]
    held = {name: {row[name] for row in table} for name in golden[0]}
    assert len(golden) > 16 and len(usual) == 16 and not any(row in table for row in golden + usual)
    assert not [name for row in golden[:16] for name, value in row.items() if value in held[name]]


@pytest.mark.parametrize(("accelerator", "base", "runtime"), [
    ("cpu", "python:3.11-slim", "onnxruntime=="), ("cuda", "nvidia/cuda:13", "onnxruntime-gpu==")])
def test_image(accelerator: str, base: str, runtime: str, project: Path, tmp_path: Path) -> None:
    """A GPU project's image is a CUDA one, a CPU project's is not, and torch is in neither."""
    (tmp_path / "where").mkdir()
    other = rendered(tmp_path / "where", project="churn", accelerator=accelerator)
    shutil.copytree(project / "build/model", other / "build/model")
    hooks = yaml.safe_load((other / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    succeed("uv", "lock", cwd=other)
    succeed(*next(hook["entry"] for hook in hooks if hook["id"] == "requirements").split(), cwd=other)
    folder = build(other, tmp_path / "home", project / ".venv/bin/bentoml")
    first = next(line for line in (folder / "env/docker/Dockerfile").read_text().splitlines() if line.startswith("FROM"))
    assert first.startswith(f"FROM {base}")
    requirements = (folder / "env/python/requirements.txt").read_text()
    assert runtime in requirements and "torch" not in requirements


def test_serves_from_an_empty_folder(project: Path, bento: Path, tmp_path: Path) -> None:
    """With its own requirements and nothing of the project, the bento is ready within 8 seconds, under 400 MB, and answers as the golden rows say."""
    (tmp_path / "empty").mkdir()
    succeed("uv", "venv", "--quiet", "--python", str(project / ".venv/bin/python"), "venv", cwd=tmp_path)
    succeed("uv", "pip", "install", "--quiet", "--python", "venv", "--requirements", str(bento / "env/python/requirements.txt"), cwd=tmp_path)
    assert run("venv/bin/python", "-c", "import churn", cwd=tmp_path).code != 0
    bentoml = tmp_path / "venv/bin/bentoml"
    golden, manifest = (read_json(project / f"build/model/{name}.json") for name in ("golden", "manifest"))
    home = {"BENTOML_HOME": str(bento.parents[2])}
    with serve(bentoml, tmp_path / "empty", f"churn:{bento.name}", **home) as server:
        answer = server.client.post("/predict", json={"rows": golden["rows"]}).json()
        memory = sum(p.memory_info().rss for p in [server.process, *server.process.children(recursive=True)]) / 2**20
    assert (answer["model"], answer["run"]) == (manifest["digest"], manifest["run"])
    for said, expected in zip(answer["predictions"], golden["answers"], strict=True):
        assert said["prediction"] == expected["prediction"]
        assert all(math.isclose(said["probabilities"][k], v, abs_tol=1e-9) for k, v in expected["probabilities"].items())
    figure("service from the built bento: ready; memory of all its processes (RSS)", f"{server.seconds:.1f} s; {memory:.0f} MB")
    assert server.seconds < 8 and memory < 400, (server.seconds, memory)


def test_serves_from_the_source_tree(project: Path) -> None:
    """`uv run bentoml serve`, bare, in the project: one row or many, and it says which provider it runs on."""
    row = read_json(project / "build/model/golden.json")["rows"][0]
    with serve(project / ".venv/bin/bentoml", project) as server:
        one = server.client.post("/predict", json={"rows": row}).json()["predictions"]
        many = server.client.post("/predict", json={"rows": [row] * 3}).json()["predictions"]
        assert server.client.get("/info").json()["provider"] == "CPUExecutionProvider"
    assert len(one) == 1 and len(many) == 3
    assert {p["probabilities"]["malignant"] for p in one + many} == {one[0]["probabilities"]["malignant"]}
    assert len({p["id"] for p in one + many}) == 4
