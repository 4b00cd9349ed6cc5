"""Every answer gives the project it promises; bad answers give one line each, and no folder."""

import http.server
import itertools
import json
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest
from conftest import TEMPLATE, cookiecutter, environment, generated, in_project, rendered, succeed

ACCELERATORS, TASKS = ["auto", "cpu", "cuda"], ["auto", "classification", "regression"]
LICENSES = ["MIT", "BSD-3-Clause", "Apache-2.0", "Proprietary"]


def pyproject(project: Path) -> dict:
    """The project's pyproject.toml."""
    return tomllib.loads((project / "pyproject.toml").read_text())


@pytest.mark.parametrize(("accelerator", "task", "license"), [
    (*pair, LICENSES[i % 4]) for i, pair in enumerate(itertools.product(ACCELERATORS, TASKS))])
def test_choices(accelerator: str, task: str, license: str, tmp_path: Path) -> None:
    """Every accelerator with every task: what is rendered parses, and says what was chosen."""
    project = rendered(tmp_path, accelerator=accelerator, task=task, license=license)
    config = pyproject(project)
    runtimes = [d for d in config["project"]["dependencies"] if d.startswith("onnxruntime-gpu")]
    assert bool(runtimes) == (accelerator == "cuda")
    assert not any(d.startswith(("torch", "lightning", "scikit-learn", "pandas")) for d in config["project"]["dependencies"])
    assert config["project"].get("license", "Proprietary") == license
    assert (project / "LICENSE").read_text().startswith({"MIT": "MIT", "BSD-3-Clause": "BSD 3", "Apache-2.0": "Copyright",
                                                         "Proprietary": "Copyright"}[license])
    for path in project.rglob("*"):
        assert not path.is_file() or "cookiecutter" not in path.read_text(), path
    docker = config["tool"]["bentoml"]["build"].get("docker", {})
    assert ("cuda" in str(docker)) == (accelerator == "cuda")


@pytest.mark.parametrize(("remote", "dvc"), [
    ("../storage", "dvc>="), ("/srv/dvc", "dvc>="), ("s3://bucket/churn", "dvc[s3]>="), ("gs://bucket", "dvc[gs]>="),
    ("azure://container/churn", "dvc[azure]>="), ("ssh://host/srv/dvc", "dvc[ssh]>=")])
def test_storage(remote: str, dvc: str, tmp_path: Path) -> None:
    """An address brings the DVC extra that it needs."""
    assert any(needed.startswith(dvc) for needed in pyproject(rendered(tmp_path, remote=remote))["dependency-groups"]["lab"])


def test_answers_stay_data(tmp_path: Path) -> None:
    """Quotes, backslashes and braces in an answer arrive as they are, in TOML too."""
    said = 'It\'s "quoted" \\ back & <tag> {brace} ${HOME} $(id) ünï'
    project = rendered(tmp_path, description=said, author='O\'Brien "Bob" \\', project="Customer Churn-2")
    assert project.name == "customer_churn_2"
    assert pyproject(project)["project"]["description"] == said
    assert pyproject(project)["project"]["authors"][0]["name"] == 'O\'Brien "Bob" \\'


def test_questions() -> None:
    """At most ten questions, each with a label."""
    questions = json.loads((TEMPLATE / "cookiecutter.json").read_text())
    public = [name for name in questions if not name.startswith("_")]
    assert len(public) <= 10 and set(public) == set(questions["__prompts__"])


@pytest.mark.parametrize(("answer", "said"), [
    ({"project": "class"}, "'class' is a word of the Python language"),
    ({"project": "Json"}, "'json' is a module of Python's standard library"),
    ({"project": "torch"}, "would hide a package"),
    ({"project": "123"}, "which Python cannot import"),
    ({"project": "???"}, "use letters, digits"),
    ({"project": ""}, "which Python cannot import"),
    ({"project": "../evil"}, "use letters, digits"),
    ({"project": "a/b"}, "use letters, digits"),
    ({"project": "it's"}, "use letters, digits"),
    ({"project": "say \"hi\""}, "use letters, digits"),
    ({"project": "two\nlines"}, "has a line break"),
    ({"project": "{brace}"}, "use letters, digits"),
    ({"description": "two\nlines"}, "description: 'two\\nlines' has a line break"),
    ({"author": "bell\x07"}, "control character"),
    ({"email": "nobody"}, "is not an e-mail address"),
    ({"email": 'a@b" # injected'}, "is not an e-mail address"),
    ({"data": "nowhere.csv"}, "there is no file 'nowhere.csv'"),
    ({"data": "/dev/null/*.csv"}, "there is no file"),
    ({"data": "sqlite:///shop.db"}, "say what to read from the database"),
    ({"data": "oracle://host/db?table=x"}, "is no address that can be read"),
    ({"data": "postgresql://me:secret@host/db?table=x"}, "holds a password or token, which would be written down"),
    ({"data": __file__}, "of a kind that cannot be read"),
    ({"data": "ftp://host/table.csv"}, "is no address that can be read"),
    ({"data": "http://127.0.0.1:9/table.csv"}, "cannot be read"),
    ({"remote": "ftp://host"}, "'ftp' is not offered"),
    ({"remote": "s3://"}, "names no place"),
    ({"remote": "ssh://me:secret@host/dvc"}, "holds a password"),
])
def test_bad_answers(answer: dict[str, str], said: str, tmp_path: Path) -> None:
    """One line that says what is wrong, exit code not zero, and no folder."""
    done = cookiecutter(tmp_path, **answer)
    assert done.code != 0 and said in done.err, done.err
    assert "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answer", [{"license": "GPL"}, {"task": "clustering"}])
def test_a_choice_that_is_not_offered(answer: dict[str, str], tmp_path: Path) -> None:
    """cookiecutter refuses it by itself, before any hook of ours; no folder is left."""
    done = cookiecutter(tmp_path, **answer)
    assert done.code != 0 and f"{answer.popitem()[1]} provided for choice variable" in done.err
    assert list(tmp_path.iterdir()) == []


def test_existing_folder(tmp_path: Path) -> None:
    """A folder that is there already is left alone."""
    (tmp_path / "churn").mkdir()
    (tmp_path / "churn/mine.txt").write_text("precious")
    done = cookiecutter(tmp_path)
    assert done.code != 0 and "already exists" in done.out
    assert [p.name for p in (tmp_path / "churn").iterdir()] == ["mine.txt"]


@pytest.mark.slow
@pytest.mark.parametrize(("content", "answer", "said"), [
    (b"a,b\n1,x\n2,x\n3,x\n4,x\n", {}, "is 'x' in every row"),
    (b"a,a,b\n1,2,x\n3,4,y\n", {}, "more than one column is called 'a'"),
    (b"a,income\n1,x\n2,y\n3,x\n4,y\n5,x\n6,y\n", {"target": "incme"}, "no column is called 'incme'; near: income"),
])
def test_bad_tables(content: bytes, answer: dict[str, str], said: str, tmp_path: Path, shared_environment: None) -> None:
    """A table that cannot be learned from is one line at generation, and leaves no folder."""
    (tmp_path / "table.csv").write_bytes(content)
    done = cookiecutter(tmp_path, data="table.csv", **answer)
    assert done.code != 0 and said in done.err, done.out + done.err
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.slow
def test_a_url(tmp_path: Path, shared_environment: None) -> None:
    """A table behind an address is downloaded, and target and task are said aloud."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www/shop.csv").write_text("age,plan,left\n" + "".join(f"{20 + i},{'ab'[i % 2]},{i % 3 // 2}\n" for i in range(90)))
    handler = lambda *args: http.server.SimpleHTTPRequestHandler(*args, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = cookiecutter(tmp_path, data=f"http://127.0.0.1:{server.server_port}/shop.csv", project="shop")
        server.shutdown()
    assert done.code == 0, done.err
    assert "target 'left' (inferred), task classification (inferred)" in done.out
    assert f"desc: from http://127.0.0.1:{server.server_port}/shop.csv\n" in (tmp_path / "shop/data/raw.dvc").read_text()
    assert (tmp_path / "shop/data/raw/shop.csv").read_bytes() == (tmp_path / "www/shop.csv").read_bytes()


@pytest.mark.slow
def test_running_twice_changes_nothing(tmp_path: Path, shared_environment: None) -> None:
    """Generating over an untouched project leaves git with nothing to say."""
    project = generated(tmp_path)
    first = subprocess.check_output(["git", "log", "--format=%H"], cwd=project, text=True)
    again = subprocess.run([sys.executable, "-m", "cookiecutter", str(TEMPLATE), "--no-input", "--overwrite-if-exists",
                            "--output-dir", str(tmp_path)], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert again.returncode == 0 and "later" not in again.stdout, again.stdout + again.stderr
    assert subprocess.check_output(["git", "status", "--porcelain"], cwd=project, text=True) == ""
    assert subprocess.check_output(["git", "log", "--format=%H"], cwd=project, text=True) == first


def bare(tmp_path: Path, case: str) -> dict[str, str]:
    """An environment that lacks uv and git, uv, or the network."""
    if case == "no network":
        return environment(UV_OFFLINE="1", UV_CACHE_DIR=str(tmp_path / "cache"))
    (tools := tmp_path / "bin").mkdir()
    if case == "no uv":
        (tools / "git").symlink_to(shutil.which("git"))
    return environment(PATH=f"{Path(sys.executable).parent}:{tools}") | {"PIP_FIND_LINKS": "", "UV_FIND_LINKS": ""}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["no uv, no git", "no uv", "no network"])
def test_what_cannot_be_done_here_is_done_later(case: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Each step that fails says what to run later. Those commands, in that order, make the project whole; the table never gets into git."""
    if case != "no network":
        request.getfixturevalue("shared_environment")
    (tmp_path / "shop.csv").write_text("age,plan,left\n" + "".join(f"{20 + i},{'ab'[i % 2]},{'yn'[i % 3 // 2]}\n" for i in range(90)))
    data = "sample" if case == "no uv" else "shop.csv"
    done = subprocess.run([sys.executable, "-m", "cookiecutter", str(TEMPLATE), "--no-input", "--output-dir", str(tmp_path), f"data={data}"],
                          cwd=tmp_path, env=bare(tmp_path, case), capture_output=True, text=True)
    assert done.returncode == 0 and "Next:" in done.stdout, done.stdout + done.stderr
    later = dict(re.findall(r"(?m)^  later  (\w+) .*; run: (.*)$", done.stdout))
    missing = {"lock", "environment", "package", "table", "dvc", "hooks"} | ({"git", "commit"} if "no git" in case else set())
    assert later.keys() == missing, done.stdout
    who = {f"GIT_{role}_{part}": "me@example.com" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    for command in later.values():
        succeed("bash", "-c", command, cwd=tmp_path / "churn", **who)
    tracked = succeed("git", "ls-files", cwd=tmp_path / "churn").splitlines()
    assert not [name for name in tracked if name.endswith(".csv")] and "data/.gitignore" in tracked
    in_project(tmp_path / "churn", "dvc", "repro", "prepare")
    assert "data/raw.dvc" in succeed("git", "ls-files", "--others", "--cached", "--exclude-standard", cwd=tmp_path / "churn").splitlines()
