"""`predict`: a table of any size, scored by the packaged model, here and on a cluster."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from conftest import environment, generated, in_project, read_json, run, serve, table

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def march(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample table, a hundred times over, without its target."""
    raw = next((project / "data/raw").glob("*.csv"))
    path = tmp_path_factory.mktemp("march") / "march.csv"
    with raw.open() as source, path.open("w", newline="") as target:
        rows = list(csv.reader(source))
        csv.writer(target).writerows([rows[0][:-1], *(row[:-1] for _ in range(100) for row in rows[1:])])
    return path


def predicted(project: Path, out: str) -> bytes:
    """The file of answers."""
    return (project / out / "predictions.parquet").read_bytes()


def test_by_papermill(project: Path, march: Path) -> None:
    """As the README has it: one row of answers for each row, those that `evaluate` recorded for the rows that it tested."""
    in_project(project, "papermill", "notebooks/predict.ipynb", "out.ipynb", "-p", "data", str(march), "-p", "out", "build/march")
    (project / "out.ipynb").unlink()
    answers = pq.read_table(project / "build/march/predictions.parquet")
    assert answers.column_names == ["row", "prediction", "probability benign", "probability malignant"] and len(answers) == 56_900
    known = pq.read_table(project / "build/evaluate/predictions.parquet").to_pylist()
    said = {round(p, 9) for p in answers["probability malignant"].to_pylist()}
    assert all(round(row["__p1"], 9) in said for row in known)
    metrics = read_json(project / "build/march/metrics.json")
    assert metrics["rows"] == 56_900 and metrics["model"] == read_json(project / "build/model/manifest.json")["digest"]
    assert (project / "build/march/plots/predicted.png").exists()


def test_a_cluster_says_the_same(project: Path, march: Path) -> None:
    """Dask's answers are those of this process to the last byte; a worker that is seen at work is killed on the way."""
    before = {p.pid for p in psutil.process_iter()}
    command = ["uv", "run", "--no-sync", "churn", "run", "predict", "-p", f"data={march}", "-p", "engine=dask", "-p", "chunk=500", "-p", "out=build/dask"]
    process = subprocess.Popen(command, cwd=project, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killed, deadline = 0, time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not killed:
        for path in project.glob("build/.dask-*/.parts-*/*.parquet"):
            if path.name != "rows.parquet":  # a worker has begun to answer
                workers = [p for p in psutil.process_iter(["cmdline"]) if p.pid not in before and "multiprocessing.spawn" in " ".join(p.info["cmdline"] or [])]
                if workers:
                    os.kill(workers[0].pid, signal.SIGKILL)
                    killed = workers[0].pid
                    break
        time.sleep(0.01)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0 and killed, out + err
    in_project(project, "churn", "run", "predict", "-p", f"data={march}", "-p", "chunk=500", "-p", "out=build/here")
    assert predicted(project, "build/dask") == predicted(project, "build/here")
    assert {p.name for p in (project / "build/dask").iterdir()} >= {"predictions.parquet", "run.json"} and not list((project / "build/dask").glob(".parts*"))


@pytest.mark.parametrize(("more", "said"), [
    (["-p", "engine=tcp://127.0.0.1:9"], "no Dask scheduler with workers at tcp://127.0.0.1:9"),
    (["-p", "model=build/nowhere"], "build/nowhere: missing"),
    (["-p", "engine=spark"], "parameter 'engine'"),
])
def test_what_cannot_be_is_one_line(more: list[str], said: str, project: Path, march: Path) -> None:
    """No scheduler, no model, no such engine."""
    done = run("uv", "run", "--no-sync", "churn", "run", "predict", "-p", f"data={march}", "-p", "out=build/no", *more, cwd=project)
    assert done.code == 1 and said in done.err and "Traceback" not in done.err and not (project / "build/no").exists(), done.err


def test_what_does_not_fit(project: Path, march: Path, tmp_path: Path) -> None:
    """A table without a column that the model needs, and a model with a changed byte, are refused."""
    lines = march.read_text().splitlines()[:50]
    (tmp_path / "short.csv").write_text("\n".join(line.partition(",")[2] for line in lines) + "\n")
    done = run("uv", "run", "--no-sync", "churn", "run", "predict", "-p", f"data={tmp_path / 'short.csv'}", "-p", "out=build/no", cwd=project)
    assert done.code == 1 and "mean_radius: the file has no such column" in done.err, done.err
    shutil.copytree(project / "build/model", project / "build/changed")
    graph = project / "build/changed/model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    done = run("uv", "run", "--no-sync", "churn", "run", "predict", "-p", f"data={march}", "-p", "model=build/changed", "-p", "out=build/no", cwd=project)
    shutil.rmtree(project / "build/changed")
    assert done.code == 1 and "model.onnx differs from its digest" in done.err, done.err


OWN = 'return {"bill ratio": ratio(columns["bill_length_mm"], columns["bill_depth_mm"])}'
ODD = """island,bill_length_mm,bill_depth_mm,flipper_length_mm,body_mass_g,sex
Biscoe,46,14,215,5000,FEMALE
Mars,46,14,215,5000,?
Dream,990,0,,,MALE
,50,19,200,NA,robot
Torgersen,39.1,18.7,-5,3750.5,
"""


def test_the_service_says_the_same(penguins: Path, tmp_path: Path) -> None:
    """Features of the user's own, values out of range that are imputed, unseen categories that are taken as they are: the service's answers and doubts are those of `predict`."""
    trained(penguins, out_of_range="impute", unseen_category="warn")
    assert [column["name"] for column in read_json(penguins / "build/model/schema.json")["derived"]] == ["bill ratio"]
    (tmp_path / "odd.csv").write_text(ODD)
    in_project(penguins, "churn", "run", "predict", "-p", f"data={tmp_path / 'odd.csv'}", "-p", "out=build/odd")
    answers = pq.read_table(penguins / "build/odd/predictions.parquet").to_pylist()
    said = read_json(penguins / "build/odd/metrics.json")["findings"]["values"]
    with serve(penguins / ".venv/bin/bentoml", penguins) as server:
        body = server.client.post("/predict", json={"rows": as_sent()}).json()
    got = [{"prediction": a["prediction"]} | {f"probability {label}": p for label, p in a["probabilities"].items()} for a in body["predictions"]]
    assert got == [{name: value for name, value in answer.items() if name != "row"} for answer in answers]
    doubts = Counter(doubt.split(":")[0].rpartition(".")[2] for doubt in body["warnings"])
    assert doubts == {"island": 1, "sex": 1, "bill_length_mm": 1, "bill_depth_mm": 1, "flipper_length_mm": 1}
    assert said == {f"{'unseen_category' if name in ('island', 'sex') else 'out_of_range'}: {name}": count for name, count in doubts.items()}


def test_what_is_an_error_is_one_for_both(penguins: Path, tmp_path: Path) -> None:
    """`predict` stops, with one line; the service refuses the request, and names the row."""
    trained(penguins, out_of_range="error", unseen_category="error")
    (tmp_path / "odd.csv").write_text(ODD)
    done = run("uv", "run", "--no-sync", "churn", "run", "predict", "-p", f"data={tmp_path / 'odd.csv'}", "-p", "out=build/no", cwd=penguins)
    assert done.code == 1 and "'Mars'" in done.err and "4 more: out_of_range: bill_length_mm" in done.err and "Traceback" not in done.err, done.err
    with serve(penguins / ".venv/bin/bentoml", penguins) as server:
        answer = server.client.post("/predict", json={"rows": as_sent()})
    assert answer.status_code == 400 and "Mars" in answer.text, answer.text


def trained(penguins: Path, **outcomes: str) -> None:
    """Train with other outcomes for what does not fit."""
    contract = penguins / "schema.yaml"
    contract.write_text(re.sub(rf"({'|'.join(outcomes)}): \w+", lambda match: f"{match[1]}: {outcomes[match[1]]}", contract.read_text()))
    in_project(penguins, "dvc", "repro", "package")


def as_sent() -> list[dict]:
    """The odd rows as JSON has them."""
    value = lambda name, text: None if text in ("", "?", "NA") else text if name in ("island", "sex") else float(text)
    return [{name: value(name, text) for name, text in row.items()} for row in csv.DictReader(ODD.splitlines())]


@pytest.fixture(scope="module")
def penguins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project on the penguins, with a feature of the user's own."""
    project = generated(tmp_path_factory.mktemp("penguins"), project="churn", data=str(table("penguins.csv")), target="species")
    notebook = project / "nbs/features.ipynb"
    text = notebook.read_text()
    assert text.count('"    return {}\\n"') == 1
    notebook.write_text(text.replace('"    return {}\\n"', json.dumps(f"    {OWN}\n")))
    in_project(project, "nbdev-export")
    yield project
    shutil.rmtree(project / ".venv")
