"""The built bento: what it holds, what it runs on, and that it serves by itself."""

import csv
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import figure, read_json, rendered, run, serve, succeed

pytestmark = pytest.mark.slow
SECRETS = {".env": "TOKEN=hush", "server.pem": "hush", "build/model/secret.key": "hush", "data/raw/more.csv": "hush"}


def build(project: Path, home: Path, bentoml: Path) -> Path:
    """Build the bento; its folder."""
    done = run(str(bentoml), "build", cwd=project, BENTOML_HOME=str(home), PATH=f"{bentoml.parent}:{os.environ['PATH']}")
    assert done.code == 0, done.out + done.err
    return next(path for path in (home / "bentos").glob("*/*") if path.is_dir())


@pytest.fixture(scope="module")
def bento(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The sample project's bento, built with secrets lying about."""
    for name, text in SECRETS.items():
        (project / name).write_text(text)
    try:
        yield build(project, tmp_path_factory.mktemp("bentoml"), project / ".venv/bin/bentoml")
    finally:
        for name in SECRETS:
            (project / name).unlink()


def test_holds_the_model_and_what_serves_it(bento: Path) -> None:
    """No data, notebook, secret or training code is packed."""
    held = {p.relative_to(bento / "src").as_posix() for p in (bento / "src").rglob("*") if p.is_file()}
    model = {f"build/model/{name}" for name in ("model.onnx", "schema.json", "golden.json", "metrics.json", "manifest.json")}
    assert held == model | {"churn/__init__.py", "churn/features.py", "churn/schema.py", "churn/service.py", "bentofile.yaml"}
    assert not any(b"hush" in p.read_bytes() for p in bento.rglob("*") if p.is_file())
    requirements = (bento / "env/python/requirements.txt").read_text()
    assert not any(name in requirements for name in ("torch", "lightning", "scikit-learn", "pandas", "onnxruntime-gpu"))
    assert "bentoml==" in requirements and "pydantic-core==" in requirements  # what the lock says, and not what is newest


def test_no_row_of_the_table_is_packed(project: Path, bento: Path) -> None:
    """Golden rows are made up: none is a row of the table, and those inside its range share no value with it."""
    with (project / "data/raw/breast_cancer.csv").open() as file:
        table = [{name: float(value) for name, value in row.items() if name != "diagnosis"} for row in csv.DictReader(file)]
    golden = read_json(bento / "src/build/model/golden.json")["rows"]
    held = {name: {row[name] for row in table} for name in golden[0]}
    assert len(golden) > 16 and not any(row in table for row in golden)
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
    with serve(bentoml, tmp_path / "empty", f"churn:{bento.name}", **home) as (client, process, seconds):
        answer = client.post("/predict", json={"rows": golden["rows"]}).json()
        memory = sum(p.memory_info().rss for p in [process, *process.children(recursive=True)]) / 2**20
    assert (answer["model"], answer["run"]) == (manifest["digest"], manifest["run"])
    for said, expected in zip(answer["predictions"], golden["answers"], strict=True):
        assert said["prediction"] == expected["prediction"]
        assert all(math.isclose(said["probabilities"][k], v, abs_tol=1e-9) for k, v in expected["probabilities"].items())
    figure("service from the built bento: ready; memory of all its processes (RSS)", f"{seconds:.1f} s; {memory:.0f} MB")
    assert seconds < 8 and memory < 400, (seconds, memory)


def test_serves_from_the_source_tree(project: Path) -> None:
    """`uv run bentoml serve`, bare, in the project: one row or many, and it says which provider it runs on."""
    row = read_json(project / "build/model/golden.json")["rows"][0]
    with serve(project / ".venv/bin/bentoml", project) as (client, _, _):
        one = client.post("/predict", json={"rows": row}).json()["predictions"]
        many = client.post("/predict", json={"rows": [row] * 3}).json()["predictions"]
        assert client.get("/info").json()["provider"] == "CPUExecutionProvider"
    assert len(one) == 1 and len(many) == 3
    assert {p["probabilities"]["malignant"] for p in one + many} == {one[0]["probabilities"]["malignant"]}
    assert len({p["id"] for p in one + many}) == 4
