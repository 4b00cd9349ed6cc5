"""A generated project, used as its README says: pipeline, parameters, tracking, interruptions, the built bento."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import environment, figure, generated, in_project, read_json, run, succeed

pytestmark = pytest.mark.slow
OUTPUTS = ["prepare", "train", "evaluate", "model"]


def files(project: Path, *folders: str) -> dict[str, bytes]:
    """What DVC hashes of a project's outputs, byte for byte."""
    beside = {"run.json", "attempt.json", "notebook.ipynb"}
    return {p.relative_to(project).as_posix(): p.read_bytes() for name in folders
            for p in sorted((project / "build" / name).rglob("*")) if p.is_file() and p.name not in beside}


def runs(project: Path) -> dict[str, str]:
    """The key of each finished run."""
    return {name: read_json(project / f"build/{name}/run.json")["started"] for name in OUTPUTS}


def kernels(project: Path) -> list[int]:
    """Kernels of this project's environment that are alive."""
    venv = str(project / ".venv")
    return [p.pid for p in psutil.process_iter(["cmdline"])
            if "ipykernel_launcher" in " ".join(p.info["cmdline"] or []) and venv in " ".join(p.info["cmdline"])]


def wait_for(project: Path, pattern: str, process: subprocess.Popen) -> None:
    """Return once a running process has written such a file."""
    deadline = time.monotonic() + 120
    while not list(project.glob(pattern)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)


def test_sizes(project: Path) -> None:
    """A project is small enough to be read: files under git, lines of machinery."""
    tracked = subprocess.check_output(["git", "ls-files"], cwd=project, text=True).splitlines()
    lines = sum(len(path.read_text().splitlines()) for path in (project / "churn/runs").glob("*.py"))
    figure("files under git in a generated project; lines of machinery, batches included", f"{len(tracked)}; {lines}")
    assert len(tracked) <= 155 and lines <= 2750, (len(tracked), lines)


def test_its_notebooks_and_tests_pass(project: Path) -> None:
    """The project's own tests, over real HTTP where they speak of the service, and every example in its notebooks."""
    in_project(project, "nbdev-test", "--n-workers", "2")
    report = in_project(project, "pytest", "-q", "-rs")
    assert re.search(r"\d+ passed", report) and "skipped" not in report, report


def test_nothing_to_do(project: Path) -> None:
    """With nothing changed, `dvc repro` takes under 4 seconds, the best of three times, and starts no kernel."""
    before, said, seconds = runs(project), "", 1e9
    for _ in range(3):
        began = time.monotonic()
        said += in_project(project, "dvc", "repro")
        seconds = min(seconds, time.monotonic() - began)
    figure("`dvc repro` with nothing changed", f"{seconds:.1f} s")
    assert seconds < 4
    assert "running" not in said and runs(project) == before


def test_only_what_depends_on_it(project: Path) -> None:
    """A parameter of `evaluate` runs `evaluate` and `package` again, and nothing else; taking it back brings the results back."""
    params, before, results = project / "params.yaml", runs(project), files(project, *OUTPUTS)
    original = params.read_text()
    params.write_text(original.replace("evaluate: {}", "evaluate:\n  seed: 7"))
    in_project(project, "dvc", "repro")
    after = runs(project)
    assert {name for name in OUTPUTS if before[name] != after[name]} == {"evaluate", "model"}
    assert files(project, "evaluate") != {k: v for k, v in results.items() if "/evaluate/" in k}
    params.write_text(original)
    in_project(project, "dvc", "repro")
    assert files(project, *OUTPUTS) == results and runs(project) == before


def test_metrics_and_plots(project: Path) -> None:
    """DVC shows the metrics and draws the plots."""
    metrics = json.loads(in_project(project, "dvc", "metrics", "show", "--json"))
    shown = {Path(p).stem: found["data"] for p, found in next(iter(metrics.values()))["data"].items()}
    assert shown["model"]["roc_auc"] > 0.9 > shown["trivial"]["roc_auc"] and shown["linear"]["roc_auc"] > 0.9
    auc = read_json(project / "build/evaluate/metrics.json")["roc_auc"]
    assert auc["interval"][0] <= auc["value"] <= auc["interval"][1] and auc["value"] == shown["model"]["roc_auc"]
    page = in_project(project, "dvc", "plots", "show").strip().splitlines()[-1].removeprefix("file://")
    text = Path(page).read_text()
    assert "build_train_curves_csv" in text and "build_evaluate_plots_roc.png" in text
    shutil.rmtree(project / "dvc_plots")


def test_executed_notebooks_have_plots(project: Path) -> None:
    """Every stage leaves its executed notebook, with plots in it."""
    for name in ("prepare", "train", "evaluate"):
        cells = read_json(project / f"build/{name}/notebook.ipynb")["cells"]
        assert any("image/png" in output.get("data", {}) for c in cells for output in c.get("outputs", [])), name


def test_papermill_by_hand(project: Path) -> None:
    """The bare command works, warns of nothing, is tracked, and the pipeline's results come back after it."""
    results, manifest = files(project, *OUTPUTS), read_json(project / "build/train/run.json")
    command = ("uv", "run", "papermill", "notebooks/train.ipynb", "out.ipynb", "-p", "family", "linear")
    done = run(*command, cwd=project)
    assert done.code == 0 and "unknown parameter" not in done.err, done.err
    assert read_json(project / "build/train/provenance.json")["parameters"]["family"] == "linear"
    assert not (project / "build/train/run.json").exists()
    summary = in_project(project, "wandb", "leet", "inspect", "--summary")
    assert re.search(r"family +linear", summary) and "finished" in summary
    before = read_json(project / "build/.done/train" / manifest["key"][:12] / "run.json")
    in_project(project, "dvc", "repro")
    assert files(project, *OUTPUTS) == results and before == read_json(project / "build/train/run.json") == manifest
    (project / "out.ipynb").unlink()


def test_papermill_refuses_a_mistyped_name(project: Path) -> None:
    """A name that papermill only warns of ends the run at its first step, and nothing is lost."""
    results = files(project, *OUTPUTS)
    done = run("uv", "run", "--no-sync", "papermill", "notebooks/train.ipynb", "out.ipynb", "-p", "famly", "linear", cwd=project)
    assert done.code != 0 and "did you mean 'family'?" in done.err
    assert files(project, *OUTPUTS) == results
    (project / "out.ipynb").unlink()


@pytest.mark.parametrize(("content", "said"), [
    (b"", "empty"),
    (b"a,b\n", "a header but no rows"),
    ("näme,b\nZoë,x\n".encode("utf-16")[:-1], "begins like utf-16"),
    (b"text\x00with\x00zeros", "byte 4 is zero"),
    (b"a,b\n1,\n2,\n", "has no value in any row"),
])
def test_bad_tables(content: bytes, said: str, project: Path, tmp_path: Path) -> None:
    """What generation asks of a table, and `prepare` too: one line that names the file or the column, and exit code 1."""
    (tmp_path / "table.csv").write_bytes(content)
    ask = "import sys; from churn.settle import main; main(sys.argv[1], schema=sys.argv[1] + '/schema.yaml')"
    done = run("uv", "run", "--no-sync", "python", "-c", ask, str(tmp_path), cwd=project)
    assert done.code == 1 and said in done.err and len(done.err.splitlines()) == 1, done.err
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_explore(project: Path) -> None:
    """`explore` is no stage; it runs on the table as it is."""
    in_project(project, "papermill", "notebooks/explore.ipynb", "out.ipynb")
    assert read_json(project / "build/explore/metrics.json")
    (project / "out.ipynb").unlink()


WARM = """
import os, time, papermill
from churn.runs.warm import ADDRESS, Zygote, libraries
zygote = Zygote(libraries(["tiny.ipynb"], "churn"))
assert zygote.is_ready()
os.environ[ADDRESS] = zygote.address
for kernel in ("python3", "churn-warm", "churn-warm", "churn-warm"):
    began = time.monotonic()
    papermill.execute_notebook("tiny.ipynb", "out.ipynb", kernel_name=kernel, progress_bar=False, log_output=False)
    print(f"{time.monotonic() - began:.2f}")
zygote.close()
"""


def test_warm_kernels(project: Path) -> None:
    """A notebook that imports the network's stack runs in a fraction of the time, in a kernel that is forked for it."""
    cells = [{"cell_type": "code", "source": "from churn.net import NetClassifier", "metadata": {}, "outputs": [], "execution_count": None}]
    kernelspec = {"name": "python3", "display_name": "python3", "language": "python"}
    notebook = project / "tiny.ipynb"
    notebook.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 4, "metadata": {"kernelspec": kernelspec}, "cells": cells}))
    ordinary, *warm = map(float, in_project(project, "python", "-c", WARM).split())
    figure("papermill, a notebook that imports the `net` stack: ordinary kernel; warm kernel", f"{ordinary:.1f} s; {min(warm):.2f} to {max(warm):.2f} s")
    (project / "out.ipynb").unlink(), notebook.unlink()
    assert max(warm) < ordinary / 6, (ordinary, warm)


def test_tracking(project: Path) -> None:
    """Each run is an offline W&B run in the project, with parameters, hashes of its inputs, metrics and the executed notebook."""
    manifest = read_json(project / "build/train/run.json")
    folder = next((project / "wandb").glob(f"offline-run-*-{manifest['wandb']}"))
    said = in_project(project, "wandb", "leet", "inspect", "--json", str(next(folder.glob("*.wandb"))))
    for expected in ("pipeline", manifest["key"], manifest["data"]["build/prepare"], "family", "roc_auc", "loss/valid"):
        assert expected in said, expected
    assert json.loads((folder / "files/notebook.ipynb").read_text())["cells"]
    evaluated = read_json(project / "build/evaluate/run.json")["wandb"]
    assert list(project.glob(f"wandb/offline-run-*-{evaluated}/files/**/*.png"))


def test_nothing_outside_the_project(project: Path, tmp_path: Path) -> None:
    """A tracked run leaves no trace in the home folder but the caches of matplotlib and Jupyter."""
    succeed(str(project / ".venv/bin/churn"), "run", "train", "-p", "family=linear", "-p", "out=build/elsewhere", cwd=project, HOME=str(tmp_path))
    left = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert not [name for name in left if not re.search("matplotlib|ipython|jupyter", name)], left
    shutil.rmtree(project / "build/elsewhere")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(stop: signal.Signals, project: Path) -> None:
    """Ctrl-C or a polite kill: exit code 130, one line, no kernel left, the attempt marked unfinished, the last run in place."""
    before = files(project, "train")
    command = [str(project / ".venv/bin/churn"), "run", "train", "-p", f"seed={int(stop)}"]
    process = subprocess.Popen(command, cwd=project, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(project, "build/.train-*/provenance.json", process)
    process.send_signal(stop)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.strip().splitlines() == ["train: interrupted; run it again to start clean"], said
    deadline = time.monotonic() + 10
    while kernels(project):
        assert time.monotonic() < deadline, "a kernel outlived its run"
        time.sleep(0.1)
    attempt = next(project.glob("build/.train-*"))
    if stop == signal.SIGINT:
        in_project(project, "pytest", "-q", "tests/test_pipeline.py")  # what an interruption leaves disturbs no test
    marked = (attempt / "attempt.json").exists() and not (attempt / "run.json").exists()
    shutil.rmtree(attempt)
    assert marked and files(project, "train") == before


def test_a_killed_kernel_is_not_done(project: Path) -> None:
    """A kernel that is killed ends the run with one line; nothing says done; the next attempt starts clean."""
    before = files(project, "train")
    command = [str(project / ".venv/bin/churn"), "run", "train", "-p", "seed=99"]
    process = subprocess.Popen(command, cwd=project, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(project, "build/.train-*/provenance.json", process)
    for pid in kernels(project): os.kill(pid, signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "the kernel died" in said.splitlines()[-1] and "Traceback" not in said, said
    attempt = next(project.glob("build/.train-*"))
    assert not (attempt / "run.json").exists() and files(project, "train") == before
    in_project(project, "churn", "run", "train", "-p", "seed=99", "-p", "out=build/train")
    assert read_json(project / "build/train/run.json")["attempt"] == 2
    in_project(project, "dvc", "repro")
    assert files(project, "train") == before


@pytest.mark.skipif(os.getuid() != 0, reason="a full disk is a small file system, which root alone can mount")
def test_full_disk(project: Path, tmp_path: Path) -> None:
    """A disk that fills up is one line; the last finished run is untouched."""
    before, small = files(project, "train"), project / "build/small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], check=True)
    try:
        done = run("uv", "run", "--no-sync", "churn", "run", "train", "-p", "out=build/small/train", cwd=project)
        assert done.code == 1 and "No space left on device" in done.err and "Traceback" not in done.err, done.err
        assert not list(small.glob("**/run.json")) and files(project, "train") == before
    finally:
        subprocess.run(["umount", small], check=True)
        small.rmdir()


def test_its_commit_hooks_pass(project: Path) -> None:
    """The pre-commit hooks agree with what was generated. They take outputs out of a notebook that was run: `git commit -a` stops once."""
    in_project(project, "pre-commit", "run", "--all-files")
    notebook, lock = project / "notebooks/explore.ipynb", project / "uv.lock"
    original = notebook.read_text()
    content = json.loads(original)
    lock.write_text(lock.read_text() + "\n")
    module = [{"cell_type": "code", "source": f"#| {s}", "metadata": {}, "outputs": [], "execution_count": None} for s in ("default_exp more", "export\nMORE = 1")]
    (project / "nbs/more.ipynb").write_text(json.dumps({"nbformat": 4, "nbformat_minor": 4, "metadata": content["metadata"], "cells": module}))
    succeed("git", "add", "nbs/more.ipynb", cwd=project)
    code = next(c for c in content["cells"] if c["cell_type"] == "code")
    code |= {"execution_count": 3, "outputs": [{"output_type": "stream", "name": "stdout", "text": "private"}]}
    notebook.write_text(json.dumps(content))
    commit = ("git", "-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qam", "Look")
    stopped = run(*commit, cwd=project)
    assert stopped.code == 1 and "no outputs" in stopped.err and "run git add churn/more.py" in stopped.err, stopped
    succeed("git", "add", "churn/more.py", cwd=project)
    succeed(*commit, cwd=project)
    assert notebook.read_text() == original and "private" not in succeed("git", "show", "HEAD:notebooks/explore.ipynb", cwd=project)
    succeed("git", "reset", "--quiet", "--soft", "HEAD~1", cwd=project)  # `dvc.lock` stays staged
    succeed("git", "checkout", "--quiet", "HEAD", "--", "uv.lock", "churn/_modidx.py", cwd=project)
    succeed("git", "rm", "--quiet", "--force", "nbs/more.ipynb", "churn/more.py", cwd=project)


def test_share(project: Path) -> None:
    """What one pushes another pulls: data, model and results, and nothing has to run again."""
    results, clone = files(project, *OUTPUTS), project.parent / "clone"
    in_project(project, "dvc", "push", "--quiet")
    subprocess.run(["git", "-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qnam", "Run"], cwd=project, check=True)
    assert "roc_auc" in in_project(project, "dvc", "metrics", "diff", "HEAD~1")
    subprocess.run(["git", "clone", "--quiet", project, clone], check=True)
    shared = {"UV_PROJECT_ENVIRONMENT": str(project / ".venv")}
    in_project(clone, "dvc", "pull", "--quiet", **shared)
    assert files(clone, *OUTPUTS) == results and (clone / "data/raw/breast_cancer.csv").exists()
    assert "running" not in in_project(clone, "dvc", "repro", **shared)
    shutil.rmtree(clone)


def test_two_folders_same_bytes(project: Path, tmp_path: Path) -> None:
    """A clean run in another folder gives the same bytes; so does a network that is killed there and goes on from its last epoch."""
    other = generated(tmp_path, project="churn")
    in_project(other, "dvc", "repro")
    assert files(project, *OUTPUTS) == files(other, *OUTPUTS)
    sweeps = [yaml.safe_load((folder / "dvc.lock").read_text())["stages"]["sweep"]["outs"] for folder in (project, other)]
    assert sweeps[0] == sweeps[1]
    network = ("run", "train", "-p", "family=net", "-p", "out=build/net")
    in_project(project, "churn", *network)
    process = subprocess.Popen([str(other / ".venv/bin/churn"), *network], cwd=other, env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for(other, "build/.net-*/checkpoints/*/last.ckpt", process)
    for pid in kernels(other):
        os.kill(pid, signal.SIGKILL)
    assert "the kernel died" in process.communicate(timeout=60)[1]
    in_project(other, "churn", *network)
    assert read_json(other / "build/net/run.json")["attempt"] == 2
    assert files(project, "net") == files(other, "net") and any("estimator.ckpt" in name for name in files(project, "net"))
    shutil.rmtree(project / "build/net")
