"""The shared tables, each by one generation and the pipeline, with no hand edit."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import cookiecutter, figure, generated, in_project, read_json, table

pytestmark = pytest.mark.slow
TABLES = [("beijing_pm25.csv", "pm2.5"), ("diamonds.csv.gz", "price"), ("mammography.parquet", "auto"), ("penguins.csv", "species"),
          ("automobiles.csv", "price")]


def metrics(project: Path) -> dict:
    """What `evaluate` measured."""
    return read_json(project / "build/evaluate/metrics.json")


def pipeline(where: Path, name: str, target: str) -> Path:
    """A project on one table, its pipeline run."""
    where.mkdir()
    project = generated(where, data=str(table(name)), target=target, project="table")
    in_project(project, "dvc", "repro", "package")  # all but the sweep, which learns nothing new from each table
    shutil.rmtree(project / ".venv")
    return project


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A project on each table, two at a time: most of their time is imports, which keep one core busy."""
    where = tmp_path_factory.mktemp("tables")
    with ThreadPoolExecutor(2) as pool:
        made = {name: pool.submit(pipeline, where / str(i), name, target) for i, (name, target) in enumerate(TABLES)}
    return {name: project.result() for name, project in made.items()}


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", [name for name, _ in TABLES])
def test_beats_the_trivial_baseline(name: str, projects: dict[str, Path]) -> None:
    """The pipeline ends well, and the model beats the trivial baseline beyond its confidence interval."""
    project = projects[name]
    found = metrics(project)
    metric = "r2" if "r2" in found else "average_precision"
    score = found[metric]
    figure(f"{name}, `boosting`, {metric} on the test split", f"{score['value']} ({score['interval'][0]} to {score['interval'][1]}),"
           f" linear {score['linear']}, trivial {score['trivial']}")
    assert score["interval"][0] > score["trivial"], score
    assert (project / "build/model/model.onnx").exists()
    dropped = {"beijing_pm25.csv": 2067}.get(name, 0)
    assert read_json(project / "build/prepare/metrics.json")["rows"]["without_target"] == dropped


@pytest.mark.parametrize(("family", "least"), [("boosting", 0.925), ("net", 0.905)])
def test_adult(family: str, least: float, tmp_path: Path, shared_environment: None) -> None:
    """48,842 rows: the score that the family is due, in at most five minutes."""
    project = generated(tmp_path, data=str(table("adult.csv")), target="income", project="adult")
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("family: boosting", f"family: {family}"))
    began = time.monotonic()
    in_project(project, "dvc", "repro")
    seconds, score = time.monotonic() - began, metrics(project)["roc_auc"]
    figure(f"adult.csv, `{family}`, test ROC AUC; `dvc repro`", f"{score['value']} ({score['interval'][0]} to {score['interval'][1]}),"
           f" linear {score['linear']}; {seconds:.0f} s")
    assert seconds < 300 and score["value"] >= least


def test_text_alone(tmp_path: Path, shared_environment: None) -> None:
    """A table with nothing but text is refused with a line that says why."""
    done = cookiecutter(tmp_path, data=str(table("movie_reviews.parquet")), project="reviews")
    assert done.code != 0 and "no column to learn from; left out: review (text or an identifier" in done.err
    assert list(tmp_path.iterdir()) == []
