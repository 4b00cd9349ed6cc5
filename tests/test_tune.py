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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from conftest import SECRET, Done, Postgres, environment, figure, free_port, generated, in_project, read_json, run, table

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


def begun(project: Path, *more: str, **env: str) -> subprocess.Popen:
    """A search of linear models under way, whose lines can be read as they come."""
    command = [str(project / ".venv/bin/churn"), *SEARCH[4:], *more]
    return subprocess.Popen(command, cwd=project, env=environment(PYTHONUNBUFFERED="1", **env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def await_trial(project: Path, study: str, process: subprocess.Popen) -> None:
    """Wait until a trial of a study is complete."""
    deadline = time.monotonic() + 240
    while not (project / study / "study.db").exists() or not Counter(s for _, s in trials(project, study))["COMPLETE"]:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)


@contextmanager
def changed(module: Path, old: str, new: str) -> Iterator[None]:
    """A module of the project with other words in it."""
    text = module.read_text()
    assert text.count(old) == 1
    module.write_text(text.replace(old, new))
    try:
        yield
    finally:
        module.write_text(text)


@pytest.fixture(scope="module")
def searched(project: Path) -> Path:
    """The project, after a search by papermill, as the README has it."""
    in_project(project, "papermill", "notebooks/tune.ipynb", "out.ipynb", "-p", "minutes", "5", "-p", "trials", "12")
    (project / "out.ipynb").unlink()
    return project


@pytest.fixture(scope="module")
def interrupted(project: Path) -> Done:
    """What a search says, and leaves in `build/stopped`, that Ctrl-C has stopped."""
    process = begun(project, "--study", "build/stopped")
    await_trial(project, "build/stopped", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return Done(process.returncode, out, err)


def test_by_papermill(searched: Path) -> None:
    """As the README has it: a study, what was found, plots, a model; every family's defaults beside it."""
    project = searched
    found = read_json(project / "build/tune/found.json")
    assert found["interval"][0] < found["estimate"] and found["metric"] == "roc_auc" and found["search"] > 0.9
    assert abs(found["optimism"] - found["search"] + found["beside"].get("chosen, not bagged", {"value": found["estimate"]})["value"]) < 1e-5
    assert found == read_json(project / "build/tune/report/metrics.json") and (project / "build/tune/report/plots/progress.png").exists()
    states = Counter(state for _, state in trials(project, "build/tune"))
    assert states["COMPLETE"] + states["PRUNED"] >= 12 and not states["RUNNING"]
    assert {f"{family}, default" for family in ("linear", "boosting", "net")} <= set(found["beside"]) and found["seconds"]["saved by pruning"] > 0
    assert found["model"] == sha256(project / "build/tune/model/model.onnx") and max(found["parity"].values()) < 1e-5


def test_dashboard(searched: Path) -> None:
    """The README's line shows the study."""
    address = "sqlite:///build/tune/study.db"
    assert f"uv run optuna-dashboard {address}`" in (searched / "README.md").read_text()
    port = free_port()
    process = subprocess.Popen([searched / ".venv/bin/optuna-dashboard", address, "--host", "127.0.0.1", "--port", str(port)], cwd=searched, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while (answer := asked_page(f"http://127.0.0.1:{port}/api/studies")) is None:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.2)
        assert "churn" in answer and "<html" in asked_page(f"http://127.0.0.1:{port}/dashboard").lower()
    finally:
        process.terminate()
        process.wait(timeout=20)


def asked_page(address: str) -> str | None:
    """A page's text; None while nobody answers."""
    try:
        answer = httpx.get(address, timeout=20)
    except httpx.TransportError:
        return None
    assert answer.status_code == 200, answer.text
    return answer.text


def test_adopt(searched: Path) -> None:
    """A diff first; then the train section says what was found, and the rest of the file is as it was."""
    project = searched
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


def test_adopt_warns(project: Path) -> None:
    """Where what params.yaml has is surely better, one line says so before the question; a file that is none is one line, too."""
    better = {"value": 0.9, "interval": [0.8, 1.0], "ahead by": [-0.04, -0.02]}
    (project / "build/worse").mkdir(parents=True, exist_ok=True)
    (project / "build/worse/found.json").write_text(json.dumps({"parameters": {"family": "linear", "bag": 0}, "now": "params.yaml as it is", "beside": {"params.yaml as it is": better}}))
    before = (project / "params.yaml").read_text()
    try:
        done = subprocess.run([project / ".venv/bin/churn", "adopt", "build/worse"], cwd=project, env=environment(), input="n\n", capture_output=True, text=True)
        assert done.returncode == 1 and (project / "params.yaml").read_text() == before
        assert done.stdout.index("better not adopted: what params.yaml has now is ahead of the chosen one by 0.02 to 0.04") < done.stdout.index("write it?"), done.stdout + done.stderr
        for text in ("train: {\n", "- 1\n", "train: 5\n"):
            (project / "params.yaml").write_text(text)
            done = run(str(project / ".venv/bin/churn"), "adopt", "build/worse", "--yes", cwd=project)
            assert done.code == 1 and done.err.startswith("error: params.yaml: not sections of 'name: value' lines: ") and len(done.err.strip().splitlines()) == 1, done.err
            assert (project / "params.yaml").read_text() == text
        (project / "params.yaml").write_text("")
        in_project(project, "churn", "adopt", "build/worse", "--yes")
        assert yaml.safe_load((project / "params.yaml").read_text()) == {"train": {"family": "linear", "bag": 0}}
    finally:
        (project / "params.yaml").write_text(before)


class Torture:
    """A search under kills: its driver, one of its workers, or its database."""

    def __init__(self, project: Path, postgres: Postgres, seed: int) -> None:
        self.project, self.postgres, self.rng, self.reached, self.counts, self.hit = project, postgres, random.Random(seed), -1.0, Counter(), set()
        self.command = [str(project / ".venv/bin/churn"), *SEARCH[4:], "--study", "build/kills", "--storage", f"postgresql://me@127.0.0.1:{postgres.port}/postgres", "--workers", "2"]
        self.process = self.begin()

    def begin(self) -> subprocess.Popen:
        """Start a driver."""
        return subprocess.Popen(self.command, cwd=self.project, env=environment(PGPASSWORD=SECRET, WANDB_MODE="disabled", PYTHONUNBUFFERED="1"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def kill(self) -> None:
        """Kill the driver, a worker or the database, in turns, at a moment of its life that chance decides; what was killed is counted."""
        what = ("driver", "worker", "database")[self.counts.total() % 3]
        time.sleep(self.rng.uniform(2, 7))
        if self.process.poll() is not None:
            self.ended()
        elif self.kill_worker() if what == "worker" else self.kill_driver() if what == "driver" else self.kill_database():
            self.counts[what] += 1
        best = float(self.postgres.sql("SELECT coalesce(max(value), -1) FROM trial_values JOIN trials USING (trial_id) WHERE state = 'COMPLETE'")) if self.has_trials() else -1.0
        assert best >= self.reached
        self.reached = best

    def ended(self) -> None:
        """A driver that came to its end by itself did so in order: its time was over, or the database away. The next one goes on."""
        said = self.process.communicate()[0]
        assert "Traceback" not in said and (self.process.returncode == 0 or (self.process.returncode == 1 and "postgresql://" in said.strip().splitlines()[-1])), f"{self.process.returncode}: {said}"
        self.process = self.begin()

    def kill_database(self) -> bool:
        """The server dies, and is back after a while."""
        self.postgres.kill()
        time.sleep(self.rng.uniform(0, 3))
        self.postgres.start()
        return True

    def kill_driver(self) -> bool:
        """The driver dies, its workers with it; another one begins."""
        driver = psutil.Process(self.process.pid)
        family = driver.children(recursive=True)
        driver.kill()
        self.process.communicate()
        end(family)
        self.process = self.begin()
        return True

    def kill_worker(self) -> bool:
        """A process dies that is at a trial; there may be none yet. Whether one was there before the driver came to its end."""
        query = "SELECT number, value_json FROM trials JOIN trial_user_attributes USING (trial_id) WHERE state = 'RUNNING' AND key = 'worker' AND EXISTS (SELECT 1 FROM trial_user_attributes a WHERE a.trial_id = trials.trial_id AND a.key = 'drawn')"
        deadline = time.monotonic() + 120
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "no worker is at a trial"
            family = {process.pid: process for process in psutil.Process(self.process.pid).children(recursive=True)}
            at_work = [line.split("|") for line in self.postgres.sql(query).splitlines()] if self.has_trials() else []
            if ours := [(number, family[int(pid(json.loads(worker)))]) for number, worker in at_work if int(pid(json.loads(worker))) in family]:
                number, worker = self.rng.choice(ours)
                worker.kill()
                self.hit.add(int(number))
                return True
            time.sleep(0.1)
        return False

    def has_trials(self) -> bool:
        """Whether there is a study."""
        return self.postgres.sql("SELECT count(*) FROM information_schema.tables WHERE table_name = 'trial_values'").strip() == "1"

    def finish(self) -> Counter:
        """Let it come to an end; how many trials there are of each state."""
        begun = self.process.stdout.readline()  # before its first word, Python itself would answer
        self.process.send_signal(signal.SIGINT)
        said = begun + self.process.communicate(timeout=120)[0]
        assert "Traceback" not in said and self.process.returncode == 130, f"{self.process.returncode}: {said}"
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
    assert not states["RUNNING"] and states["COMPLETE"] >= 3 and (kills < 3 or set(torture.counts) == {"driver", "worker", "database"})
    retried = {int(n) for n in postgres_server.sql("SELECT value_json FROM trial_user_attributes WHERE key = 'retry of'").split()}
    assert not torture.hit or torture.hit & retried, "a worker was killed at a trial, and nobody tried it again"
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
    process = begun(project, "--study", "build/away", "--storage", f"postgresql://me@127.0.0.1:{postgres_server.port}/template1", PGPASSWORD=SECRET)
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
    process = begun(project, "--study", "build/searched-by-dask", "--engine", "dask", "--trials", "150", "--workers", "2")
    assert "a Dask cluster" in process.stdout.readline()
    deadline = time.monotonic() + 240
    while len(workers := set(attributes(project, "build/searched-by-dask", "worker"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    assert str(process.pid) not in {pid(worker) for worker in workers}
    while not (at_work := asked(project / "build/searched-by-dask/study.db", "SELECT number, value_json FROM trials JOIN trial_user_attributes USING (trial_id) WHERE state = 'RUNNING' AND key = 'worker' AND EXISTS (SELECT 1 FROM trial_user_attributes a WHERE a.trial_id = trials.trial_id AND a.key = 'drawn')")):
        assert time.monotonic() < deadline and process.poll() is None
    number, worker = at_work[0]
    psutil.Process(int(pid(json.loads(worker)))).kill()
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0 and "Traceback" not in err, out + err
    states = Counter(state for _, state in trials(project, "build/searched-by-dask"))
    assert not states["RUNNING"] and states["COMPLETE"] + states["PRUNED"] >= 150
    assert number in attributes(project, "build/searched-by-dask", "retry of") and set(attributes(project, "build/searched-by-dask", "worker")) - workers


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
    with changed(project / "churn/models.py", "    model = Ridge(alpha=regularization)\n", "    raise ValueError('no luck')\n    model = Ridge(alpha=regularization)\n"):
        done = run(*SEARCH, "--study", f"build/broken{len(more)}", *more, cwd=project)
    assert done.code == 1 and len(done.err.strip().splitlines()) == 1 and "no trial works: " in done.err and "no luck" in done.err, done.err
    if more:
        assert (project / re.search(r"read (runs/\S+/notebook.ipynb)", done.err)[1]).exists(), done.err


@pytest.mark.parametrize("engine", ["local", "dask"])
def test_no_worker_can_work(engine: str, project: Path) -> None:
    """Where the workers end with an error before they try anything, it is one line, and soon."""
    with changed(project / "churn/trials.py", "    number = sum(map(counts_once", "    raise RuntimeError('no sampler here')\n    number = sum(map(counts_once"):
        done = run(*SEARCH, "--study", f"build/helpless-{engine}", "--engine", engine, "--workers", "1", cwd=project)
    assert done.code == 1 and len(done.err.strip().splitlines()) == 1 and "no trial works: no sampler here" in done.err, done.err


def test_a_worker_with_a_large_seed(project: Path) -> None:
    """Any seed will do."""
    in_project(project, *SEARCH[3:], "--study", "build/seeded", "--seed", "1000000000", "--trials", "3", "--workers", "2")
    assert read_json(project / "build/seeded/found.json")["trials"]["complete"]


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
    with changed(project / "churn/net.py", "class NetClassifier", "raise RuntimeError('no such device')\n\nclass NetClassifier"):
        said = in_project(project, "churn", "tune", "--minutes", "5", "--trials", "4", "--study", "build/lame", "--bag", "0")
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
    params.write_text(params.read_text().replace("  family: boosting", "  linear_regularization: 100000.0\n  family: linear"))  # a bad default
    said = in_project(project, "cars", "tune", "--family", "linear", "--minutes", "5", "--trials", "15", "--workers", "2")
    found = read_json(project / "build/tune/found.json")
    default, chosen = found["beside"]["linear, default"], found["parameters"]["linear_regularization"]
    assert found["metric"] == "rmse" and found["estimate"] < 0.8 * default["value"] and default["ahead by"][0] > 0 and chosen < 10_000 and "default" not in found, said


def test_wandb(searched: Path) -> None:
    """The searches, one by papermill and one by the command, and the trials that matter are runs of one group."""
    before = groups(searched)
    assert before["tune", "tune"] >= 1
    in_project(searched, "churn", "tune", "--trials", "12")
    known, after = read_attribute(searched, "build/tune", "tracked"), groups(searched)
    assert 0 in known and len(known) >= 3
    assert after["tune", "tune"] == before["tune", "tune"] + 1 and after["tune", "trial"] == len(known)


def test_wandb_fails(project: Path) -> None:
    """W&B's faults are one line after what was found, and nothing is lost; plots of an earlier search go."""
    (project / "build/untracked/plots").mkdir(parents=True, exist_ok=True)
    (project / "build/untracked/plots/old.png").touch()
    said = in_project(project, *SEARCH[3:], "--study", "build/untracked", "--trials", "3", WANDB_MODE="nowhere")
    assert said.index("on rows that the search has not seen") < said.index("not tracked: ") < said.index("into params.yaml: uv run churn adopt build/untracked"), said
    assert "; the result is in build/untracked\n" in said and (project / "build/untracked/found.json").exists()
    assert {p.name for p in (project / "build/untracked/plots").iterdir()} >= {"progress.png"} and not (project / "build/untracked/plots/old.png").exists()


def groups(project: Path) -> Counter:
    """How many W&B runs there are, by group and kind."""
    found = Counter()
    for file in (project / "wandb").glob("offline-run-*/*.wandb"):
        said = in_project(project, "wandb", "leet", "inspect", "--json", str(file))
        for line in said.splitlines():  # of a run that was killed there may be none
            if (begun := json.loads(line)).get("type") == "run":
                found[begun["run"].get("run_group"), begun["run"]["job_type"]] += 1
    return found


def read_attribute(project: Path, study: str, name: str) -> object:
    """An attribute of a study."""
    with sqlite3.connect(project / study / "study.db") as database:
        return json.loads(database.execute("SELECT value_json FROM study_user_attributes WHERE key = ?", [name]).fetchone()[0])


def test_interrupted_in_a_notebook(project: Path) -> None:
    """Ctrl-C: the notebook says what was found so far, and how to go on."""
    command = [str(project / ".venv/bin/papermill"), "notebooks/tune.ipynb", "stopped.ipynb", "-p", "family", "linear", "-p", "study", "build/halted"]
    process = subprocess.Popen(command, cwd=project, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    await_trial(project, "build/halted", process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.communicate(timeout=60)
    text = (project / "stopped.ipynb").read_text()
    (project / "stopped.ipynb").unlink()
    assert process.returncode and "the best so far is trial" in text and "run it again to go on" in text
    assert "RUNNING" not in dict(trials(project, "build/halted")).values()


def test_interrupted(interrupted: Done, project: Path) -> None:
    """Ctrl-C: what was found so far, and how to go on. What it cut does not count, and waits to be tried again."""
    assert interrupted.code == 130 and "the best so far is trial" in interrupted.out and "run it again to go on" in interrupted.out and not interrupted.err.strip(), interrupted
    states = [state for _, state in trials(project, "build/stopped")]
    assert "RUNNING" not in states
    cut = [number for number, in asked(project / "build/stopped/study.db", "SELECT number FROM trials JOIN trial_user_attributes USING (trial_id) WHERE key = 'time up'")]
    assert all(states[number] == "FAIL" for number in cut) and set(attributes(project, "build/stopped", "retry of")) <= set(cut)


@pytest.mark.parametrize("seconds", [0, 1])
def test_interrupted_at_the_end(seconds: int, project: Path) -> None:
    """Ctrl-C when the search is over, and what was found is fitted: the same words, nothing half-written, nobody left behind."""
    study = f"build/cut{seconds}"
    process = begun(project, "--study", study, "--trials", "3")
    said = ""
    while "the search is over" not in said:
        assert (line := process.stdout.readline()), said + process.communicate()[1]
        said += line
    time.sleep(seconds)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped after" in out and "run it again to go on" in out and not err.strip(), out + err
    end(family)
    assert not {"found.json", ".found.json", "model", ".model", ".old"} & {p.name for p in (project / study).iterdir()}
    in_project(project, *SEARCH[3:], "--study", study, "--trials", "3")
    assert read_json(project / study / "found.json")["model"] == sha256(project / study / "model/model.onnx") and not (project / study / ".model").exists()


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
def test_what_cannot_be_is_one_line(more: list[str], said: str, searched: Path) -> None:
    """No time, no such family, a metric of another task, no database, a study of another plan."""
    done = run("uv", "run", "--no-sync", "churn", "tune", "--study", "build/none", *more, cwd=searched)
    assert done.code == 1 and said in done.err and len(done.err.strip().splitlines()) == 1 and "secret" not in done.err, done.err


@pytest.mark.usefixtures("interrupted")
def test_other_rows_are_another_study(project: Path) -> None:
    """A study belongs to its rows."""
    shutil.copytree(project / "build/stopped", project / "build/other")
    with sqlite3.connect(project / "build/other/study.db") as database:
        (text,), = database.execute("SELECT value_json FROM study_user_attributes WHERE key = 'plan'")
        facts = json.loads(text)
        database.execute("UPDATE study_user_attributes SET value_json = ? WHERE key = 'plan'", [json.dumps(facts | {"data": "0" * 64})])
    done = run(*SEARCH, "--study", "build/other", cwd=project)
    assert done.code == 1 and re.search("this study was made with other data; give another folder, or remove that one", done.err), done.err
