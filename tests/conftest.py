"""Baking projects, for all tests."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

TEMPLATE = Path(__file__).parents[1]
DATA = TEMPLATE.parent / "shared/data"
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests started in the background would hand on that Ctrl-C is ignored


@dataclass
class Done:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    """This process's environment, without its own virtual environment, and telling nobody. Modules are compiled once, as for a user; where that is switched off each import takes twice as long."""
    clean = {name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "PWD", "PYTHONDONTWRITEBYTECODE"}}
    return clean | {"BENTOML_DO_NOT_TRACK": "True", "DVC_NO_ANALYTICS": "true"} | more


def run(*command: str, cwd: Path, **more: str) -> Done:
    """Run a command to its end."""
    done = subprocess.run(command, cwd=cwd, env=environment(PWD=str(cwd), **more), capture_output=True, text=True)
    return Done(done.returncode, done.stdout, done.stderr)


def succeed(*command: str, cwd: Path, **more: str) -> str:
    """Run a command that must succeed; its output."""
    done = run(*command, cwd=cwd, **more)
    assert done.code == 0, f"{' '.join(command)}\n{done.out[-3000:]}\n{done.err[-3000:]}"
    return done.out


def cookiecutter(where: Path, hooks: bool = True, template: Path = TEMPLATE, **answers: str) -> Done:
    """Generate a project below a folder."""
    options = ["--no-input", "--output-dir", str(where), "--accept-hooks", "yes" if hooks else "no"]
    given = [f"{name}={value}" for name, value in answers.items()]
    return run(sys.executable, "-m", "cookiecutter", str(template), *options, *given, cwd=where)


def rendered(where: Path, **answers: str) -> Path:
    """A project as rendered, its hooks not run."""
    done = cookiecutter(where, hooks=False, **answers)
    assert done.code == 0, done.err
    return next(p for p in where.iterdir() if (p / "dvc.yaml").exists())


def generated(where: Path, **answers: str) -> Path:
    """A whole project: environment, data, git and DVC."""
    done = cookiecutter(where, **answers)
    assert done.code == 0 and "later" not in done.out, done.out + done.err
    return next(p for p in where.iterdir() if (p / "dvc.yaml").exists())


def in_project(project: Path, *command: str, **more: str) -> str:
    """Run a command of the project's environment, which must succeed; its output."""
    return succeed("uv", "run", "--no-sync", *command, cwd=project, **more)


def read_json(path: Path) -> dict:
    """A JSON file."""
    return json.loads(path.read_text())


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A generated project on the sample table, its pipeline run."""
    where = tmp_path_factory.mktemp("sample")
    project = generated(where, project="churn")
    succeed("uv", "run", "dvc", "repro", cwd=project)  # as the README says it
    yield project
    shutil.rmtree(project / ".venv")


def figure(what: str, value: str) -> None:
    """Note a measured figure, as a row of Markdown, where LABLINE_FIGURES names a file."""
    if path := os.environ.get("LABLINE_FIGURES"):
        with Path(path).open("a") as file:
            file.write(f"| {what} | {value} |\n")


def require(program: str) -> str:
    """A program's path. A user who lacks it skips the test; CI installs it, so there its absence is a failure."""
    if path := shutil.which(program):
        return path
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{program} is not installed (Debian: apt-get install chromium chromium-driver)")


def table(name: str) -> Path:
    """One of the shared tables; a user's clone has none."""
    if not (DATA / name).exists():
        pytest.skip(f"{name}: the shared tables are not beside this checkout")
    return DATA / name


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the shared environment lies."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def shared_environment(shared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Projects that are only generated share one virtual environment, so that each takes seconds."""
    monkeypatch.setenv("UV_PROJECT_ENVIRONMENT", str(shared_folder))


@contextmanager
def serve(bentoml: Path, cwd: Path, *arguments: str, **env: str) -> Iterator[tuple[httpx.Client, psutil.Process, float]]:
    """A service: a client, its process, the seconds until it was ready."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [str(bentoml), "serve", *arguments, "--host", "127.0.0.1", "--port", str(port)]
    began = time.monotonic()
    with (cwd.parent / f"{cwd.name}.log").open("w") as log:
        server = subprocess.Popen(command, cwd=cwd, env=environment(**env), stdout=log, stderr=log, start_new_session=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            while not ready(client):
                assert server.poll() is None and time.monotonic() - began < 60, (cwd.parent / f"{cwd.name}.log").read_text()
                time.sleep(0.05)
            yield client, psutil.Process(server.pid), time.monotonic() - began
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def ready(client: httpx.Client) -> bool:
    """Whether the service says that it is ready."""
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


SECRET = "hunter2-of-the-day"


class Postgres:
    """A PostgreSQL server of the test's own, on loopback, which wants a password."""

    def __init__(self, bin: Path, folder: Path) -> None:
        self.bin, self.folder, self.port = bin, folder, random.Random(os.getpid()).randint(20000, 40000)
        self.as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        folder.mkdir(mode=0o777)
        folder.chmod(0o777)
        (folder / "password").write_text(SECRET)
        self.do("initdb", "-D", str(folder / "data"), "-U", "me", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}", "--locale=C.UTF-8")
        self.start()

    def start(self) -> None:
        """Start the server; it answers when this returns."""
        self.do("pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", str(self.folder / "log"), "-o", f"-p {self.port} -h 127.0.0.1 -k {self.folder}", "start")

    def kill(self) -> None:
        """End the server at once, in the middle of what it does."""
        self.do("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "stop")

    def do(self, program: str, *arguments: str) -> str:
        """Run one of the server's programs; its output."""
        done = subprocess.run([*self.as_user, str(self.bin / program), *arguments], capture_output=True, text=True, env=environment(PGPASSWORD=SECRET), cwd="/")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def sql(self, text: str) -> str:
        """Run a statement."""
        return self.do("psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "me", "-d", "postgres", "-At", "-c", text)

    def address(self, what: str) -> str:
        """The address of a table or query."""
        return f"postgresql://me@127.0.0.1:{self.port}/postgres?{what}"


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[Postgres]:
    """An empty server."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(p) for p in [shutil.which("initdb")] if p]
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="labline-postgres-"))  # not below pytest's: each session of it shuts that to the server's user
    folder.chmod(0o777)
    server = Postgres(found[-1].parent, folder / "server")
    yield server
    server.kill()
    shutil.rmtree(folder, ignore_errors=True)
