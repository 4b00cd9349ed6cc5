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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException

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


def require(program: str, package: str) -> str:
    """A program's path. A user who lacks it skips the test; CI installs it, so there its absence is a failure."""
    if path := shutil.which(program):
        return path
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{program} is not installed ({package})")


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


def wait(condition: Callable[[], Any], seconds: float, otherwise: str) -> Any:
    """What the condition gives once it holds; elements that the page has just replaced are looked for again."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except StaleElementReferenceException:
            continue
        time.sleep(0.1)
    raise AssertionError(otherwise)


def free_port() -> int:
    """A loopback port that nothing listens on, below those that outgoing connections get: none can take it meanwhile."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port := random.SystemRandom().randint(20_000, 32_000)))
            return port


@dataclass
class Server:
    """A service that runs."""

    client: httpx.Client
    process: psutil.Process  # the one that was started, which looks after the workers
    seconds: float  # until it was ready
    output: Path  # the file that it writes to

    @property
    def url(self) -> str:
        return str(self.client.base_url).rstrip("/")

    @property
    def port(self) -> int:
        return self.client.base_url.port

    @property
    def log(self) -> str:
        """What it has said."""
        return self.output.read_text()

    @property
    def workers(self) -> list[psutil.Process]:
        """The processes that answer."""
        found = []
        for process in self.process.children(recursive=True):
            with suppress(psutil.Error):
                if "_bentoml_impl.worker.service" in " ".join(process.cmdline()):
                    found.append(process)
        return found


@contextmanager
def serve(bentoml: Path, cwd: Path, *arguments: str, **env: str) -> Iterator[Server]:
    """A service. It has a home of its own: of services that share one, the second begins the counters of the first anew."""
    port = free_port()
    command = [str(bentoml), "serve", *arguments, "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryDirectory(prefix="labline-service-", ignore_cleanup_errors=True) as home:
        output, began = Path(home) / "log", time.monotonic()
        with output.open("w") as log:
            process = subprocess.Popen(command, cwd=cwd, env=environment(**{"BENTOML_HOME": home} | env), stdout=log, stderr=log, start_new_session=True)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
                while not ready(client):
                    assert process.poll() is None and time.monotonic() - began < 60, output.read_text()
                    time.sleep(0.05)
                yield Server(client, psutil.Process(process.pid), time.monotonic() - began, output)
        finally:
            stop(process)


def stop(process: subprocess.Popen) -> None:
    """End a process that leads a group, and the group, unless a test has done so."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def ready(client: httpx.Client) -> bool:
    """Whether the service says that it is ready."""
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def server(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The sample project's service, which keeps what it is asked."""
    with serve(project / ".venv/bin/bentoml", project, SERVE_JOURNAL=str(tmp_path_factory.mktemp("journal"))) as server:
        yield server


@contextmanager
def chromium(folder: Path) -> Iterator[webdriver.Chrome]:
    """A headless Chromium that keeps what it keeps in a folder, fetches nothing by itself, and hands on what the page complains of."""
    options = webdriver.ChromeOptions()
    options.binary_location = require("chromium", "Debian: apt-get install chromium")
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "window-size=1400,1600", "disable-background-networking",
                     "disable-component-update", "disable-sync", "disable-dev-shm-usage", f"user-data-dir={folder}"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(require("chromedriver", "Debian: apt-get install chromium-driver")))
    try:
        yield driver
    finally:
        driver.quit()


PRIVATE = {".env": "TOKEN=hush", "server.pem": "hush", "build/model/secret.key": "hush", "deploy/keys": "me:hush", "data/raw/more.csv": "hush"}


@contextmanager
def private_files(project: Path) -> Iterator[None]:
    """Files that must not get into an image, lying about."""
    for name, text in PRIVATE.items():
        assert not (project / name).exists(), name
        (project / name).write_text(text)
    try:
        yield
    finally:
        for name in PRIVATE:
            (project / name).unlink()


def build(project: Path, home: Path, bentoml: Path, *options: str) -> Path:
    """Build a bento; its folder."""
    before = set((home / "bentos").glob("*/*"))
    done = run(str(bentoml), "build", *options, cwd=project, BENTOML_HOME=str(home), PATH=f"{bentoml.parent}:{os.environ['PATH']}")
    assert done.code == 0, done.out + done.err
    return next(path for path in (home / "bentos").glob("*/*") if path.is_dir() and path not in before)


SECRET = "hunter2-of-the-day"


class Postgres:
    """A PostgreSQL server of the test's own, on loopback, which wants a password."""

    def __init__(self, bin: Path, folder: Path) -> None:
        self.bin, self.folder, self.port = bin, folder, free_port()
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
