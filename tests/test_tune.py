"""Tuning: a search that is stopped, killed and continued, and what becomes of its findings."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import SECRET, Postgres, environment, figure, generated, in_project, read_json, run, table

pytestmark = pytest.mark.slow
SEARCH = ["uv", "run", "--no-sync", "churn", "tune", "--family", "linear", "--minutes", "5"]


def sha256(path: Path) -> str:
    """A file's digest."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def trials(project: Path, study: str) -> list[tuple[int, str]]:
    """Number and state of each trial."""
    return asked(project / study / "study.db", "SELECT number, state FROM trials ORDER BY number")


def asked(database: Path, query: str, *values: str) -> list[tuple]:
    """What a study's database answers; nothing while it is being made."""
    with sqlite3.connect(database) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchall():
            return []
        return connection.execute(query, values).fetchall()


def test_by_papermill(project: Path) -> None:
    """As the README has it: a study, what was found, plots, a model; every family's defaults beside it."""
    in_project(project, "papermill", "notebooks/tune.ipynb", "out.ipynb", "-p", "minutes", "5", "-p", "trials", "12")
    (project / "out.ipynb").unlink()
    found = read_json(project / "build/tune/found.json")
    assert found["interval"][0] < found["estimate"] and found["metric"] == "roc_auc" and found["search"] > 0.9
    assert abs(found["optimism"] - found["search"] + found["beside"].get("chosen, not bagged", {"value": found["estimate"]})["value"]) < 1e-5
    assert found == read_json(project / "build/tune/report/metrics.json") and (project / "build/tune/report/plots/progress.png").exists()
    states = Counter(state for _, state in trials(project, "build/tune"))
    assert states["COMPLETE"] + states["PRUNED"] >= 12 and not states["RUNNING"]
    assert {f"{family}, default" for family in ("linear", "boosting", "net")} <= set(found["beside"]) and found["seconds"]["saved by pruning"] > 0
    assert found["model"] == sha256(project / "build/tune/model/model.onnx") and max(found["parity"].values()) < 1e-5


def test_adopt(project: Path) -> None:
    """A diff first; then the train section says what was found, and the rest of the file is as it was."""
    before = (project / "params.yaml").read_text()
    done = subprocess.run(["uv", "run", "--no-sync", "churn", "adopt"], cwd=project, env=environment(), input="n\n", capture_output=True, text=True)
    assert done.returncode == 1 and "+  " in done.stdout and (project / "params.yaml").read_text() == before, done.stdout + done.stderr
    said = in_project(project, "churn", "adopt", "build/tune", "--yes")
    after, found = (project / "params.yaml").read_text(), read_json(project / "build/tune/found.json")["parameters"]
    more = in_project(project, "churn", "tune", "--trials", "13")  # what was adopted does not make another study
    (project / "params.yaml").write_text(before)
    assert "this study" not in more and "trials so far" in more
    assert all(f"+  {name}" in said for name in found if name != "family") and "Traceback" not in said
    assert yaml.safe_load(after)["train"] == {**yaml.safe_load(before)["train"], **found}
    assert [line for line in before.splitlines() if line.startswith("#")] == [line for line in after.splitlines() if line.startswith("#")]


class Torture:
    """A search under kills: its driver, one of its workers, or its database."""

    def __init__(self, project: Path, postgres: Postgres, seed: int) -> None:
        self.project, self.postgres, self.rng, self.reached, self.counts = project, postgres, random.Random(seed), -1.0, Counter()
        self.command = [str(project / ".venv/bin/churn"), *SEARCH[4:], "--study", "build/kills", "--storage", f"postgresql://me@127.0.0.1:{postgres.port}/postgres", "--workers", "2"]
        self.process = self.begin()

    def begin(self) -> subprocess.Popen:
        """Start a driver."""
        return subprocess.Popen(self.command, cwd=self.project, env=environment(PGPASSWORD=SECRET, WANDB_MODE="disabled"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def kill(self) -> None:
        """Kill something, at a moment of its life that chance decides."""
        what, driver = self.rng.choice(["driver", "worker", "database"]), psutil.Process(self.process.pid)
        time.sleep(self.rng.uniform(2, 7))
        if self.process.poll() is not None:
            self.process = self.begin()
            return
        family = driver.children(recursive=True)
        if what == "database":
            self.postgres.kill()
            time.sleep(self.rng.uniform(0, 3))
            self.postgres.start()
        elif what == "worker" and (workers := [p for p in family if p.is_running() and "forkserver" in " ".join(p.cmdline())]):
            self.rng.choice(workers).kill()
        else:
            driver.kill()
            self.process.communicate()
            end(family)
            self.process = self.begin()
        self.counts[what] += 1
        best = float(self.postgres.sql("SELECT coalesce(max(value), -1) FROM trial_values JOIN trials USING (trial_id) WHERE state = 'COMPLETE'")) if self.has_trials() else -1.0
        assert best >= self.reached
        self.reached = best

    def has_trials(self) -> bool:
        """Whether there is a study."""
        return self.postgres.sql("SELECT count(*) FROM information_schema.tables WHERE table_name = 'trial_values'").strip() == "1"

    def finish(self) -> Counter:
        """Let it come to an end; how many trials there are of each state."""
        begun = self.process.stdout.readline()  # before its first word, Python itself would answer
        self.process.send_signal(signal.SIGINT)
        said = begun + self.process.communicate(timeout=120)[0]
        assert "Traceback" not in said, said
        enough = int(self.postgres.sql("SELECT count(*) FROM trials WHERE state IN ('COMPLETE', 'PRUNED')")) + 6
        done = run(*self.command, "--trials", str(enough), cwd=self.project, PGPASSWORD=SECRET, WANDB_MODE="disabled")
        assert done.code == 0, done.err
        return Counter(self.postgres.sql("SELECT state FROM trials").split())


def test_kills(project: Path, postgres_server: Postgres) -> None:
    """The driver, a worker or the database is killed again and again: the search goes on, no trial runs for ever or counts twice, and the best never gets worse."""
    in_project(project, "python", "-c", "import psycopg")  # the project's environment has the driver
    kills = int(os.environ.get("LABLINE_KILLS", 6))
    torture = Torture(project, postgres_server, seed=kills)
    while torture.counts.total() < kills:
        torture.kill()
    states = torture.finish()
    assert not states["RUNNING"] and states["COMPLETE"] >= 3
    numbers = [int(n) for n in postgres_server.sql("SELECT number FROM trials ORDER BY number").split()]
    assert numbers == list(range(len(numbers)))
    values = [int(n) for n in postgres_server.sql("SELECT count(*) FROM trials JOIN trial_values USING (trial_id) WHERE state = 'COMPLETE' GROUP BY trial_id").split()]
    folds = {int(n) for n in postgres_server.sql("SELECT count(*) FROM trials JOIN trial_intermediate_values USING (trial_id) WHERE state = 'COMPLETE' GROUP BY trial_id").split()}
    assert set(values) == {1} and folds == {15}
    tried = [text for text in postgres_server.sql("SELECT string_agg(param_name || '=' || param_value, ',' ORDER BY param_name) FROM trials JOIN trial_params USING (trial_id) WHERE state = 'COMPLETE' GROUP BY trial_id").splitlines()]
    assert len(tried) == len(set(tried)), "a trial was counted twice"
    assert read_json(project / "build/kills/found.json")["search"] >= torture.reached - 0.01
    figure(f"a search under {kills} kills", f"{', '.join(f'{n} of the {what}' for what, n in sorted(torture.counts.items()))}; {states['COMPLETE']} complete, {states['PRUNED']} pruned, {states['FAIL']} failed and tried again, none running")


def end(family: list[psutil.Process]) -> None:
    """Nothing of a search that was killed may go on; what does is a failure, and ended."""
    _, left = psutil.wait_procs(family, timeout=20)
    for process in left:
        process.kill()
    assert not left, left


def test_the_database_stays_away(project: Path, postgres_server: Postgres) -> None:
    """A database that does not come back is one line, after a minute, and the search can go on later."""
    command = [str(project / ".venv/bin/churn"), *SEARCH[4:], "--study", "build/away", "--storage", f"postgresql://me@127.0.0.1:{postgres_server.port}/template1"]
    process = subprocess.Popen(command, cwd=project, env=environment(PGPASSWORD=SECRET), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert "trial" in process.stdout.readline() + process.stdout.readline()
        postgres_server.kill()
        out, err = process.communicate(timeout=180)
    finally:
        process.kill()
        postgres_server.start()
    assert process.returncode == 1 and len(err.strip().splitlines()) == 1 and "the database is gone" in err and SECRET not in out + err, err


def test_on_a_cluster(project: Path) -> None:
    """Dask's workers do the trials; one that is killed is replaced, and what it was at is tried again."""
    process = subprocess.Popen([str(project / ".venv/bin/churn"), *SEARCH[4:], "--study", "build/searched-by-dask", "--engine", "dask", "--trials", "40", "--workers", "2"], cwd=project, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "a Dask cluster" in process.stdout.readline()
    deadline = time.monotonic() + 240
    while len(workers := set(attributes(project, "build/searched-by-dask", "worker"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    assert str(process.pid) not in {pid(worker) for worker in workers}
    psutil.Process(int(pid(max(workers)))).kill()
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0 and "Traceback" not in err, out + err
    states = Counter(state for _, state in trials(project, "build/searched-by-dask"))
    assert not states["RUNNING"] and states["COMPLETE"] + states["PRUNED"] >= 40


def pid(worker: str) -> str:
    """The process's number in a worker's name."""
    return worker.rpartition(":")[2]


def attributes(project: Path, study: str, name: str) -> list:
    """An attribute of each trial that has it."""
    return [json.loads(value) for value, in asked(project / study / "study.db", "SELECT value_json FROM trial_user_attributes WHERE key = ? ORDER BY trial_id", name)]


def test_trials_as_runs(project: Path) -> None:
    """Each trial is a run with its notebook; its score is what the same trial has in the process; a search that is repeated does no run again."""
    search = [*SEARCH[3:], "--trials", "3", "--workers", "1"]
    in_project(project, *search, "--study", "build/runs", "--trial-runs")
    places = attributes(project, "build/runs", "run")
    assert len(places) >= 3 and all((project / place / "run.json").exists() and (project / place / "notebook.ipynb").exists() for place in places)
    in_project(project, *search, "--study", "build/process")
    assert attributes(project, "build/runs", "folds")[0] == attributes(project, "build/process", "folds")[0]
    shutil.rmtree(project / "build/runs")
    before = {place: (project / place / "run.json").stat().st_mtime_ns for place in places}
    in_project(project, *search, "--study", "build/runs", "--trial-runs")
    assert attributes(project, "build/runs", "run") == places and {place: (project / place / "run.json").stat().st_mtime_ns for place in places} == before
    assert run("uv", "run", "--no-sync", "churn", "status", "runs", cwd=project).out.count("runs") >= 1


@pytest.mark.parametrize("more", [[], ["--trial-runs"]])
def test_nothing_works(more: list[str], project: Path) -> None:
    """Where every trial fails, the first cause is one line; of runs, with the trial's notebook."""
    module = project / "churn/models.py"
    text = module.read_text()
    module.write_text(text.replace("    model = Ridge(alpha=regularization)\n", "    raise ValueError('no luck')\n    model = Ridge(alpha=regularization)\n"))
    try:
        done = run(*SEARCH, "--study", f"build/broken{len(more)}", *more, cwd=project)
    finally:
        module.write_text(text)
    assert done.code == 1 and len(done.err.strip().splitlines()) == 1 and "no trial works: " in done.err and "no luck" in done.err, done.err
    if more:
        assert (project / re.search(r"read (runs/\S+/notebook.ipynb)", done.err)[1]).exists(), done.err


def test_bag(project: Path) -> None:
    """What is released is a bag of five, judged as one; on request it is one model."""
    search = ["churn", "tune", "--family", "boosting", "--minutes", "5", "--trials", "3", "--study", "build/bag"]
    said, found = in_project(project, *search), read_json(project / "build/bag/found.json")
    assert found["parameters"]["bag"] == 5 and "chosen, not bagged" in found["beside"] and "not a bag" not in said, said
    assert sorted(p.name for p in (project / "build/bag/model").glob("member*")) == [f"member{i}" for i in range(5)] and max(found["parity"].values()) < 1e-5
    before = len(trials(project, "build/bag"))
    said, found = in_project(project, *search, "--bag", "0"), read_json(project / "build/bag/found.json")
    assert found["parameters"]["bag"] == 0 and "one model, not a bag of several: not asked for" in said
    assert not list((project / "build/bag/model").glob("member*")) and "trials so far" in said and len(trials(project, "build/bag")) == before  # the search was done already


def test_a_bag_of_blends_is_a_model_like_others(project: Path) -> None:
    """Adopted, a blend, each of its members once for each part, goes through the pipeline: trained, evaluated, packaged with parity."""
    members = [{"weight": 2, "family": "boosting", "max_iter": 30}, {"weight": 1, "family": "linear"}, {"weight": 1, "family": "net", "epochs": 3, "width": 16}]
    (project / "build/blend").mkdir(parents=True)
    (project / "build/blend/found.json").write_text(json.dumps({"parameters": {"family": "blend", "blend_members": json.dumps(members), "bag": 2}}))
    before = (project / "params.yaml").read_text()
    in_project(project, "churn", "adopt", "build/blend", "--yes")
    try:
        in_project(project, "dvc", "repro", "package")
        assert read_json(project / "build/model/manifest.json")["family"] == "blend" and (project / "build/train/model/member1/member2/model.json").exists()
        assert read_json(project / "build/train/metrics.json")["valid"]["roc_auc"] > 0.9
        assert read_json(project / "build/evaluate/metrics.json")["roc_auc"]["value"] > 0.9
    finally:
        (project / "params.yaml").write_text(before)
        in_project(project, "dvc", "repro", "package")


def test_a_family_that_fails_costs_the_others_nothing(project: Path) -> None:
    """What was found is released, and the family's cause is beside it in one line."""
    module = project / "churn/net.py"
    text = module.read_text()
    module.write_text(text.replace("class NetClassifier", "raise RuntimeError('no such device')\n\nclass NetClassifier"))
    try:
        said = in_project(project, "churn", "tune", "--minutes", "5", "--trials", "4", "--study", "build/lame", "--bag", "0")
    finally:
        module.write_text(text)
    found = read_json(project / "build/lame/found.json")
    assert found["beside"]["net, default"] == {"failed": "no such device"} and found["first failure"] == "no such device", found
    assert "net, default: no such device" in said and "Traceback" not in said and found["parameters"]["family"] != "net"
    assert found["model"] == sha256(project / "build/lame/model/model.onnx")


def test_two_drivers(project: Path) -> None:
    """Two that begin together, and end together, make one study, and a model that found.json speaks of."""
    command = [str(project / ".venv/bin/churn"), *SEARCH[4:], "--study", "build/both", "--trials", "12", "--workers", "1"]
    both = [subprocess.Popen(command, cwd=project, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=280)
        assert process.returncode == 0 and "on rows that the search has not seen" in out, out + err
    assert len(set(attributes(project, "build/both", "driver"))) == 2
    found, states = read_json(project / "build/both/found.json"), Counter(state for _, state in trials(project, "build/both"))
    assert found["model"] == sha256(project / "build/both/model/model.onnx") and states["COMPLETE"] + states["PRUNED"] >= 12 and not states["RUNNING"]


@pytest.mark.usefixtures("shared_environment")
def test_a_regression(tmp_path: Path) -> None:
    """Less of an error is better: what is chosen is ahead of a default that is worse."""
    project = generated(tmp_path, project="cars", data=str(table("automobiles.csv")), target="price")
    in_project(project, "dvc", "repro", "prepare")
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("  family: boosting", "  linear_regularization: 1000.0\n  family: linear"))  # a bad default
    said = in_project(project, "cars", "tune", "--family", "linear", "--minutes", "5", "--trials", "15", "--workers", "2")
    found = read_json(project / "build/tune/found.json")
    assert found["metric"] == "rmse" and found["estimate"] < found["beside"]["linear, default"]["value"] and found["beside"]["linear, default"]["ahead by"][1] > 0, said


def test_wandb(project: Path) -> None:
    """The searches, one by papermill and one by the command, and the trials that matter are runs of one group."""
    known = read_attribute(project, "build/tune", "tracked")
    assert 0 in known and len(known) >= 3
    groups = Counter()
    for file in (project / "wandb").glob("offline-run-*/*.wandb"):
        said = in_project(project, "wandb", "leet", "inspect", "--json", str(file))
        for line in said.splitlines():  # of a run that was killed there may be none
            if (begun := json.loads(line)).get("type") == "run":
                groups[begun["run"].get("run_group"), begun["run"]["job_type"]] += 1
    assert groups["tune", "tune"] == 2 and groups["tune", "trial"] == len(known)


def read_attribute(project: Path, study: str, name: str) -> object:
    """An attribute of a study."""
    with sqlite3.connect(project / study / "study.db") as database:
        return json.loads(database.execute("SELECT value_json FROM study_user_attributes WHERE key = ?", [name]).fetchone()[0])


def test_interrupted_in_a_notebook(project: Path) -> None:
    """Ctrl-C: the notebook says what was found so far, and how to go on."""
    command = [str(project / ".venv/bin/papermill"), "notebooks/tune.ipynb", "stopped.ipynb", "-p", "family", "linear", "-p", "study", "build/halted"]
    process = subprocess.Popen(command, cwd=project, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 240
    while not (project / "build/halted/study.db").exists() or not Counter(s for _, s in trials(project, "build/halted"))["COMPLETE"]:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.communicate(timeout=60)
    text = (project / "stopped.ipynb").read_text()
    (project / "stopped.ipynb").unlink()
    assert process.returncode and "the best so far is trial" in text and "run it again to go on" in text
    assert "RUNNING" not in dict(trials(project, "build/halted")).values()


def test_interrupted(project: Path) -> None:
    """Ctrl-C: what was found so far, and how to go on."""
    process = subprocess.Popen([str(project / ".venv/bin/churn"), *SEARCH[4:], "--study", "build/stopped"], cwd=project, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not (project / "build/stopped/study.db").exists() or not Counter(s for _, s in trials(project, "build/stopped"))["COMPLETE"]:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the best so far is trial" in out and "run it again to go on" in out and not err.strip(), out + err
    assert "RUNNING" not in dict(trials(project, "build/stopped")).values()


@pytest.mark.parametrize(("more", "said"), [
    (["--minutes", "0"], "minutes: a search needs some time"),
    (["--family", "forest"], "family: 'forest' is not one of linear, boosting, net, or all"),
    (["--metric", "rmse"], "metric: 'rmse' is none of a classification; there are roc_auc"),
    (["--storage", "postgresql://me:secret@127.0.0.1:9/x"], "storage: the address holds a password"),
    (["--storage", "postgresql://me@127.0.0.1:9/x"], "postgresql://me@127.0.0.1:9/x: connection"),
    (["--storage", "study.db"], "storage: no address of a database"),
    (["--study", "build/tune", "--family", "linear"], "this study was made with other spaces"),
    (["--gpus", "1"], "gpus: they are shared out among trials that are notebook runs"),
    (["--engine", "spark"], "no engine is called 'spark'"),
    (["--engine", "tcp://127.0.0.1:9"], "no Dask scheduler answers at tcp://127.0.0.1:9"),
    (["--engine", "tcp://farm.example:8786"], "storage: the machines of a cluster cannot share a SQLite file"),
    (["--study", "build/tune", "--seed", "7"], "this study was made with other seed"),
])
def test_what_cannot_be_is_one_line(more: list[str], said: str, project: Path) -> None:
    """No time, no such family, a metric of another task, no database, a study of another plan."""
    done = run("uv", "run", "--no-sync", "churn", "tune", "--study", "build/none", *more, cwd=project)
    assert done.code == 1 and said in done.err and len(done.err.strip().splitlines()) == 1 and "secret" not in done.err, done.err


def test_other_rows_are_another_study(project: Path) -> None:
    """A study belongs to its rows."""
    shutil.copytree(project / "build/stopped", project / "build/other")
    with sqlite3.connect(project / "build/other/study.db") as database:
        (text,), = database.execute("SELECT value_json FROM study_user_attributes WHERE key = 'plan'")
        facts = json.loads(text)
        database.execute("UPDATE study_user_attributes SET value_json = ? WHERE key = 'plan'", [json.dumps(facts | {"data": "0" * 64})])
    done = run(*SEARCH, "--study", "build/other", cwd=project)
    assert done.code == 1 and re.search("this study was made with other data; give another folder, or remove that one", done.err), done.err
