"""Batches of a generated project: limits and failures, two drivers, engines, DVC, and kills at random moments."""

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from conftest import Done, environment, figure, in_project, read_json, run, succeed

pytestmark = pytest.mark.slow
NOT_RESULTS = {"run.json", "notebook.ipynb"}
WORK = """import random, subprocess, time
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
draw = random.Random(seed)
with open("executions.log", "a") as file: file.write(f"{seed}\\n")
time.sleep(0.05 + draw.random() * pause)
Path(out, "data.bin").write_bytes(draw.randbytes(10_000))
Path(out, "metrics.json").write_text(f'{{"value": {draw.random()}}}')"""
FAULTS = """import os, subprocess, time
if how == "sleep": time.sleep(600)
if how == "eat": hoard = [bytearray(50_000_000) for _ in range(40)]; time.sleep(600)
if how == "raise": raise ValueError("no luck")
if how == "exit": os._exit(3)
if how == "fork": subprocess.Popen(["sleep", "600"]), subprocess.Popen(["sleep", "600"], start_new_session=True)
if how == "flee": subprocess.Popen(["sleep", "600"], start_new_session=True), os._exit(0)
Path(out, "metrics.json").write_text("{}")"""
GPU = """import json, os, time
began = time.time()
time.sleep(0.5)
Path(out, "metrics.json").write_text(json.dumps({"gpu": os.environ["CUDA_VISIBLE_DEVICES"], "began": began, "ended": time.time()}))"""


def notebook(path: Path, types: str, parameters: str, code: str) -> None:
    """Write a run notebook."""
    cells = [{"cell_type": "code", "source": source, "metadata": {"tags": ["parameters"] if i == 1 else []}, "outputs": [], "execution_count": None}
             for i, source in enumerate([f"from pathlib import Path\nfrom typing import Literal\n{types}", f'{parameters}\nout: Path = "build/x"', code])]
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}, "language_info": {"name": "python"}}
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 4, "metadata": kernel, "cells": cells}))


@pytest.fixture(scope="module")
def lab(project: Path) -> Iterator[Path]:
    """A clone of the project with notebooks that misbehave, and the pipeline's data."""
    lab = project.parent / "lab"
    subprocess.run(["git", "clone", "--quiet", project, lab], check=True)
    shutil.copytree(project / "build/prepare", lab / "build/prepare")
    notebook(lab / "notebooks/work.ipynb", "", "seed: int = 0\npause: float = 0.3", WORK)
    notebook(lab / "notebooks/faults.ipynb", 'How = Literal["well", "sleep", "eat", "raise", "exit", "fork", "flee"]', 'how: How = "well"', FAULTS)
    notebook(lab / "notebooks/gpu.ipynb", "", "seed: int = 0", GPU)
    (lab / ".venv").symlink_to(project / ".venv")
    yield lab
    assert not processes(lab), "a process outlived the tests"
    shutil.rmtree(lab)


def sweep(lab: Path, name: str, text: str) -> str:
    """Write a sweep file; its path, as a user gives it."""
    (lab / f"sweeps/{name}.yaml").write_text(text)
    return f"sweeps/{name}.yaml"


def churn(lab: Path, *command: str, **more: str) -> Done:
    """Run the project's command."""
    return run(str(lab / ".venv/bin/churn"), *command, cwd=lab, **more)


def started(lab: Path, *command: str) -> subprocess.Popen:
    """The project's command, under way."""
    return subprocess.Popen([str(lab / ".venv/bin/churn"), *command], cwd=lab, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def status(lab: Path, name: str) -> dict:
    """How a batch stands."""
    done = churn(lab, "status", name, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)[0]


def processes(lab: Path) -> dict[int, str]:
    """What runs in a project's folder, by kind."""
    found, kinds = {}, {"supervise import main": "supervisor", "spawn_main": "dask worker", "ipykernel_launcher": "kernel", "resource_tracker": "tracker"}
    for process in psutil.process_iter(["cwd", "cmdline", "ppid"]):
        command = " ".join(process.info["cmdline"] or [])
        if process.info["cwd"] != str(lab) or process.status() == psutil.STATUS_ZOMBIE:
            continue
        kind = next((kind for mark, kind in kinds.items() if mark in command), "other")
        if "warm import main" in command:
            parent = psutil.Process(process.info["ppid"]) if psutil.pid_exists(process.info["ppid"]) else None
            kind = "kernel" if parent and "warm import main" in " ".join(parent.cmdline()) else "zygote"
        found[process.pid] = kind
    return found


def wait_until(what: Callable[[], object], timeout: float = 60) -> None:
    """Return once something is so."""
    deadline = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < deadline, f"not within {timeout} s"
        time.sleep(0.05)


def results(lab: Path, name: str) -> dict[str, bytes]:
    """The results of a batch, byte for byte, by run and file."""
    folder = lab / "runs" / name
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.glob("[!.]*/**/*")) if p.is_file() and p.name not in NOT_RESULTS}


def executions(lab: Path) -> Counter:
    """How often each seed's cell was begun since the last call."""
    path = lab / "executions.log"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return Counter(int(line) for line in lines)


def is_whole(lab: Path, name: str) -> None:
    """Every run of a batch is done, its run.json whole, and nothing is left beside."""
    keys, folder = read_json(lab / f"runs/{name}/batch.json")["keys"], lab / "runs" / name
    assert {p.name for p in folder.iterdir()} - {"batch.json", ".driver"} == {key[:16] for key in keys}
    assert sorted(read_json(folder / key[:16] / "run.json")["key"] for key in keys) == keys
    leases = [path for path in (lab / "runs/.leases").glob("[!.]*") if read_json(path)["batch"] == name]
    assert not leases and not (folder / ".driver").read_text(), leases


def test_once_each(lab: Path) -> None:
    """Every run of a sweep is done, once; again there is nothing to do; another sweep's common runs are taken over; what it drops waits to be wanted again."""
    one = sweep(lab, "one", "notebook: work\ngrid: {seed: [1, 2, 3, 4]}\nparameters: {pause: 0.1}\nmetric: value\n")
    done = churn(lab, "batch", one)
    assert done.code == 0 and "4 done, 0 failed, 0 running, 0 left" in done.out, done
    is_whole(lab, "one")
    assert executions(lab) == {1: 1, 2: 1, 3: 1, 4: 1}
    began = time.monotonic()
    again = churn(lab, "batch", one)
    assert again.code == 0 and time.monotonic() - began < 10 and not executions(lab)
    spoilt = next((lab / "runs/one").glob("*/run.json"))
    seed = read_json(spoilt)["parameters"]["seed"]
    spoilt.unlink()  # now it is not done, and what is there must not be in the way
    assert churn(lab, "batch", one).code == 0 and executions(lab) == {seed: 1}
    is_whole(lab, "one")
    two = sweep(lab, "two", "notebook: work\nruns: [{seed: 4}, {seed: 5}]\nparameters: {pause: 0.1}\n")
    assert churn(lab, "batch", two).code == 0 and executions(lab) == {5: 1}
    is_whole(lab, "two")
    kept = results(lab, "one")
    for grid, count in (("[1]", 1), ("[1, 2, 3, 4]", 4)):
        sweep(lab, "one", f"notebook: work\ngrid: {{seed: {grid}}}\nparameters: {{pause: 0.1}}\nmetric: value\n")
        assert churn(lab, "batch", one).code == 0 and not executions(lab) and status(lab, "one")["done"] == count
    assert results(lab, "one") == kept
    best = max(json.loads(content)["value"] for name, content in kept.items() if name.endswith("metrics.json"))
    assert status(lab, "one")["best"] == best and f"best {best:.6g}" in done.out
    table = churn(lab, "status").out
    assert " one " in table and " two " in table and table.count("\n") == 3, table


def test_failures(lab: Path) -> None:
    """A deadline, a memory limit, an error, an exit and fled children are each told apart; none says done, no process is left, what is well is done."""
    path = sweep(lab, "faults", "notebook: faults\ngrid: {how: [well, sleep, eat, raise, exit, fork, flee]}\nlimits: {timeout: 8, memory: 0.5, retries: 1}\n")
    done = churn(lab, "batch", path)
    assert done.code == 1 and "2 done, 5 failed" in done.out and "Traceback" not in done.err, done
    assert "to try them again: uv run churn retry faults" in done.err
    failures = [read_json(path) for path in (lab / "runs/faults").glob("*/failure.json")]
    assert {f["parameters"]["how"]: (f["cause"], f["attempt"]) for f in failures} == {
        "sleep": ("timeout", 2), "eat": ("memory", 2), "raise": ("error", 1), "exit": ("killed", 2), "flee": ("killed", 2)}
    words = {f["parameters"]["how"]: f["words"] for f in failures}
    assert "longer than 8 s" in words["sleep"] and "more than 0.50 GiB" in words["eat"] and "ValueError: no luck" in words["raise"]
    assert all(Path(lab, said.rpartition("read ")[2]).exists() for said in words.values()), words
    wait_until(lambda: not processes(lab), 10)
    assert status(lab, "faults")["causes"] == {"error": 1, "killed": 2, "memory": 1, "timeout": 1}
    assert churn(lab, "batch", path).code == 1 and status(lab, "faults")["failed"] == 5  # they wait for a retry
    notebook(lab / "notebooks/faults.ipynb", 'How = Literal["well", "raise"]', 'how: How = "well"', FAULTS)
    sweep(lab, "faults", "notebook: faults\ngrid: {how: [well, raise]}\n")
    assert churn(lab, "retry", "faults").code == 1 and status(lab, "faults")["failed"] == 1
    assert len(list((lab / "runs/faults").glob("[!.]*/*.json"))) == 3  # two runs: what the first sweep had is gone


def test_stop_and_a_second_driver(lab: Path) -> None:
    """A second driver is refused in one line; `stop` ends the first and every kernel of it; the same command goes on."""
    path = sweep(lab, "long", "notebook: work\ngrid: {seed: [11, 12, 13]}\nparameters: {pause: 20.0}\nlimits: {workers: 2}\n")
    driver = started(lab, "batch", path)
    wait_until(lambda: (lab / "executions.log").exists())
    second = churn(lab, "batch", path)
    assert second.code == 1 and "drives this batch" in second.err and second.err.count("\n") == 1, second
    now = status(lab, "long")
    assert now["running"] == 2 and now["driver"]["pid"] == driver.pid, now
    watching = started(lab, "status", "long", "--watch")
    time.sleep(4)
    stopped = churn(lab, "stop", "long")
    assert stopped.code == 0 and "stopped" in stopped.out, stopped
    said = driver.communicate(timeout=30)[0]
    assert driver.returncode == 130 and "the same command goes on" in said and "Traceback" not in said, said
    wait_until(lambda: not processes(lab), 10)
    seen = watching.communicate(timeout=30)[0]
    assert watching.returncode == 0 and seen.count(" long ") >= 2 and f"process {driver.pid}" in seen, seen
    assert "nobody" in churn(lab, "stop", "long").out and status(lab, "long")["failed"] == 0
    sweep(lab, "long", "notebook: work\ngrid: {seed: [11, 12, 13]}\nparameters: {pause: 0.0}\n")
    assert churn(lab, "batch", path).code == 0
    executions(lab)
    is_whole(lab, "long")


def test_two_batches_at_once(lab: Path) -> None:
    """Two batches with common runs, at the same time: each run is done once."""
    seeds = list(range(20, 32))
    paths = [sweep(lab, name, f"notebook: work\ngrid: {{seed: {order}}}\n") for name, order in (("left", seeds), ("right", seeds[::-1]))]
    drivers = [started(lab, "batch", path) for path in paths]
    said = [driver.communicate(timeout=120)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], said
    assert executions(lab) == dict.fromkeys(seeds, 1)
    for name in ("left", "right"):
        is_whole(lab, name)
    assert results(lab, "left") == results(lab, "right")


def test_a_gpu_each(lab: Path) -> None:
    """A run that needs a GPU gets one, and no other run has it at that time."""
    path = sweep(lab, "gpu", "notebook: gpu\ngrid: {seed: [1, 2, 3, 4, 5, 6]}\nlimits: {gpus_per_run: 1, workers: 3}\n")
    none = churn(lab, "batch", path, CUDA_VISIBLE_DEVICES="")
    assert none.code == 1 and "gpus_per_run is 1, and this machine has 0" in none.err
    done = churn(lab, "batch", path, CUDA_VISIBLE_DEVICES="0,1,2")
    assert done.code == 0, done
    held = [read_json(path) for path in (lab / "runs/gpu").glob("*/metrics.json")]
    assert {each["gpu"] for each in held} == {"0", "1", "2"}
    for one in held:
        assert not [other for other in held if other is not one and other["gpu"] == one["gpu"] and one["began"] < other["ended"] and other["began"] < one["ended"]]


@pytest.mark.parametrize(("text", "said"), [
    ("notebook: wrk\ngrid: {seed: [1]}", "wrk.ipynb: no such notebook; there are compare, evaluate"),
    ("notebook: work\ngrid: {sed: [1]}", "no parameter is called 'sed'; did you mean 'seed'?"),
    ("notebook: work\ngrid: {seed: [1, two]}", "run 2: notebooks/work.ipynb: parameter 'seed' is 'two'"),
    ("notebook: work\ngrid: {seed: []}", "grid.seed: List should have at least 1 item"),
    ("notebook: work", "nothing to run"),
    ("notebook: work\ngrid: {pause: [.inf]}", "run 1: Out of range float"),
    ("notebook: train\ngrid: {data: [build/nowhere]}", "build/nowhere: missing"),
    (f"notebook: work\ngrid: {{seed: {list(range(1001))}, pause: {[x / 1000 for x in range(1000)]}}}", "1,001,000 runs; if you mean it, say --yes"),
    ("notebook: work\nlimits: {timeot: 3}", "did you mean 'timeout'?"),
    ("notebook: work\nsample: {count: 3, parameters: {seed: {integers: [1, 2]}}}", "sample.parameters.seed"),
    ("}", "not YAML"),
])
def test_bad_sweeps(text: str, said: str, lab: Path) -> None:
    """A mistake in a sweep is one line, and nothing has started."""
    done = churn(lab, "batch", sweep(lab, "bad", text))
    assert done.code == 1 and said in done.err and done.err.count("\n") == 1, done
    assert not (lab / "runs/bad").exists() and not processes(lab)


def test_bad_places(lab: Path) -> None:
    """No such batch, no such engine, no scheduler, a full disk, a read-only one: one line each."""
    path = sweep(lab, "places", "notebook: work\ngrid: {seed: [1]}\nparameters: {pause: 0.2}\n")
    for command, said in ((("batch", "sweeps/nowhere.yaml"), "no such file; there are "), (("batch", path, "--engine", "dusk"), "no engine is called 'dusk'"),
                          (("batch", path, "--engine", "tcp://127.0.0.1:9"), "no Dask scheduler answers at tcp://127.0.0.1:9"),
                          (("status", "nowhere"), "no batch there; there are "), (("retry", "nowhere"), "no batch there"), (("stop", "nowhere"), "no batch there")):
        done = churn(lab, *command)
        assert done.code == 1 and said in done.err and done.err.count("\n") == 1, done
    (lab / "runs").rename(lab / "runs-before")
    try:
        for options, said in (("ro", "Read-only file system"), ("size=24k", "No space left on device")):
            (lab / "runs").mkdir()
            if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", lab / "runs"], capture_output=True).returncode:
                pytest.skip("no right to mount a small file system")
            try:
                done = churn(lab, "batch", path)
                assert done.code == 1 and said in done.err and "Traceback" not in done.err and not list(lab.glob("runs/*/*/run.json")), done
            finally:
                subprocess.run(["umount", lab / "runs"], check=True)
                (lab / "runs").rmdir()
    finally:
        (lab / "runs-before").rename(lab / "runs")
    executions(lab)


def test_the_pipeline_has_a_batch(project: Path) -> None:
    """`dvc repro` has run the sweep; `dvc push` and `dvc pull` carry it; what is done is not done again after a pull. Its runs are one group in W&B."""
    assert status(project, "families")["done"] == 4
    ids = {read_json(path)["wandb"] for path in project.glob("runs/families/*/run.json")}
    assert len(ids) == 4 and all(list(project.glob(f"wandb/offline-run-*-{run}/files/notebook.ipynb")) for run in ids)
    clone = project.parent / "puller"
    in_project(project, "dvc", "push", "--quiet")
    subprocess.run(["git", "clone", "--quiet", project, clone], check=True)
    shutil.copyfile(project / "dvc.lock", clone / "dvc.lock")  # as if it had been committed
    (clone / ".venv").symlink_to(project / ".venv")
    shared = {"UV_PROJECT_ENVIRONMENT": str(project / ".venv")}
    in_project(clone, "dvc", "pull", "--quiet", **shared)
    assert not list(clone.glob("runs/*/*/run.json"))
    began = time.monotonic()
    done = churn(clone, "batch", "sweeps/families.yaml")
    assert done.code == 0 and "4 done" in done.out and "to do" not in done.out and time.monotonic() - began < 10, done
    assert results(clone, "families") == results(project, "families")
    assert "Running stage" not in in_project(clone, "dvc", "repro", "sweep", **shared)
    shutil.rmtree(clone)


def test_compare(project: Path, tmp_path: Path) -> None:
    """The runs side by side, with plots, also as one page of HTML; a batch that is not there is one line."""
    in_project(project, "papermill", "notebooks/compare.ipynb", str(tmp_path / "out.ipynb"), "-p", "batch", "families")
    outputs = [o for c in read_json(tmp_path / "out.ipynb")["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 3 and not any(o["output_type"] == "error" for o in outputs)
    assert "4 runs: 4 done" in "".join("".join(o.get("text", "")) for o in outputs)
    in_project(project, "jupyter", "nbconvert", "--to", "html", "--no-input", str(tmp_path / "out.ipynb"))
    page = (tmp_path / "out.html").read_text()
    assert page.count('src="data:image/png') == 3 and "boosting_learning_rate" in page
    wrong = churn(project, "run", "compare", "-p", "batch=family")
    assert wrong.code == 1 and "no such batch" in wrong.err and wrong.err.count("\n") == 1, wrong
    shutil.rmtree(project / "build/compare")


@contextmanager
def cluster(lab: Path, workers: int, log: Path) -> Iterator[tuple[str, str, list[subprocess.Popen], Callable[[], None]]]:
    """A Dask scheduler and workers, processes of their own, started elsewhere: (address, dashboard, workers, how to add one)."""
    with log.open("w") as file:
        def dask(*command: str) -> subprocess.Popen:
            return subprocess.Popen([str(lab / ".venv/bin/dask"), *command], cwd=log.parent, env=environment(), stdout=file, stderr=file)

        about = log.parent / "scheduler.json"
        everyone = [dask("scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(about))]

        def add() -> None:
            name = f"w{len(everyone)}"
            everyone.append(dask("worker", "--scheduler-file", str(about), "--nthreads", "1", "--no-nanny", "--name", name, "--host", "127.0.0.1",
                                 "--dashboard-address", "127.0.0.1:0", "--local-directory", str(log.parent)))

        try:
            wait_until(about.exists)
            for _ in range(workers):
                add()
            said = read_json(about)
            yield said["address"], f"http://127.0.0.1:{said['services']['dashboard']}", everyone, add
        finally:
            for process in everyone:  # asked to end while its scheduler ends, a worker of Dask's sometimes waits for ever (distributed 2026.8)
                process.kill()
            for process in everyone:
                process.wait(30)


def test_dask(lab: Path, tmp_path: Path) -> None:
    """A scheduler that is there already: a worker is killed and one is added in the middle, the batch ends, the dashboard answers; another environment is refused."""
    seeds = list(range(40, 64))
    path = sweep(lab, "cluster", f"notebook: work\ngrid: {{seed: {seeds}}}\n")
    with cluster(lab, 3, tmp_path / "log") as (address, dashboard, everyone, add):
        wait_until(lambda: (tmp_path / "log").read_text().count("Registered to") == 3)
        driver = started(lab, "batch", path, "--engine", address)
        wait_until(lambda: len(list((lab / "runs/cluster").glob("[!.]*/run.json"))) > 4)
        everyone[1].kill()
        add()
        short = churn(lab, "batch", sweep(lab, "beside", "notebook: work\ngrid: {seed: [98]}\nlimits: {retries: 0}\n"), "--engine", address)
        assert short.code == 0, short  # another driver on the same cluster; its end is not the other's
        assert urllib.request.urlopen(f"{dashboard}/status", timeout=10).status == 200
        said = driver.communicate(timeout=180)[0]
        assert driver.returncode == 0 and "24 done, 0 failed" in said and dashboard in said, said
        is_whole(lab, "cluster")
        assert executions(lab).keys() == {*seeds, 98} and not status(lab, "cluster")["failed"]
        site = tmp_path / "site/papermill-0.0.1.dist-info"
        site.mkdir(parents=True)
        (site / "METADATA").write_text("Metadata-Version: 2.1\nName: papermill\nVersion: 0.0.1\n")
        sweep(lab, "cluster", "notebook: work\ngrid: {seed: [99]}\n")
        other = churn(lab, "batch", path, "--engine", address, PYTHONPATH=str(site.parent))
        assert other.code == 1 and "papermill is 2." in other.err and "there, 0.0.1 here" in other.err and other.err.count("\n") == 1, other
    wait_until(lambda: not processes(lab), 30)


def torture(lab: Path, kills: int, engine: str, seed: int) -> Counter:
    """Kill at random moments until there were enough; every run is done once, whole, and as in an undisturbed batch. Who was killed how often."""
    batch = 6 if kills < 50 else 16  # runs between one check of everything and the next
    draw, killed, first_seen, over, name = random.Random(seed), Counter(), {}, threading.Event(), f"torture-{engine}"
    weights = {"kernel": 8, "supervisor": 3, "driver": 1, "zygote": 1} | ({"dask worker": 2} if engine == "dask" else {})  # a new driver takes seconds to begin

    def watch() -> None:
        while not over.wait(0.02):
            for path in (lab / "runs" / name).glob("[!.]*/run.json"):
                whole = path.read_text().endswith("}\n")
                if not whole or first_seen.setdefault(path, path.stat().st_ino) != path.stat().st_ino:
                    first_seen[path] = 0  # torn, or published twice

    watcher = threading.Thread(target=watch)
    watcher.start()
    rounds, about = 0, lab / "runs" / name / "batch.json"
    try:
        while sum(killed.values()) < kills:
            rounds += 1
            path = sweep(lab, name, f"notebook: work\ngrid: {{seed: {list(range(1000 * seed, 1000 * seed + rounds * batch))}}}\nparameters: {{pause: 1.0}}\nlimits: {{retries: 9}}\n")
            while True:
                driver = started(lab, *(("retry", name) if about.exists() and status(lab, name)["failed"] else ("batch", path)), "--engine", engine)
                while driver.poll() is None and sum(killed.values()) < kills:
                    time.sleep(draw.uniform(0.1, 1.5))
                    kind = draw.choices(list(weights), weights.values())[0]
                    victims = [driver.pid] if kind == "driver" else sorted(pid for pid, what in processes(lab).items() if what == kind)
                    if victims and driver.poll() is None:
                        os.kill(draw.choice(victims), signal.SIGKILL)
                        killed[kind] += 1
                said = driver.communicate(timeout=180)[0]
                assert "Traceback" not in said, said
                wait_until(lambda: not processes(lab), 20)  # whoever was killed, no kernel outlives the driver
                now = status(lab, name) if about.exists() else {"done": 0, "causes": {}}
                assert "error" not in now["causes"], now  # a kill is never the notebook's own error
                if now["done"] == rounds * batch:
                    break
            is_whole(lab, name)
    finally:
        over.set()
        watcher.join()
    assert all(first_seen.values()) and len(first_seen) == rounds * batch
    disturbed = results(lab, name)
    for folder in (name, ".done"):
        shutil.rmtree(lab / "runs" / folder, ignore_errors=True)
    executions(lab)
    assert churn(lab, "batch", path).code == 0 and len(executions(lab)) == rounds * batch
    assert results(lab, name) == disturbed
    return killed


@pytest.mark.parametrize("engine", ["local", "dask"])
def test_torture(engine: str, lab: Path) -> None:
    """The quick version of the torture; `make torture` is the long one."""
    kills = int(os.environ.get("LABLINE_KILLS", 8 if engine == "local" else 4))
    killed = torture(lab, kills, engine, seed=1 if engine == "local" else 2)
    figure(f"kills survived, engine {engine}", ", ".join(f"{count} {kind}" for kind, count in sorted(killed.items())))
    assert sum(killed.values()) == kills and (kills < 50 or len(killed) == (5 if engine == "dask" else 4) and min(killed.values()) >= kills // 20), killed
