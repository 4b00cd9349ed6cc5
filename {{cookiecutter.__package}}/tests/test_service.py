"""The served model over real HTTP: what it answers, what it refuses, and when it is not ready."""

import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

MODEL = Path(__file__).parents[1] / "build/model"
HEAVY = ("torch", "lightning", "pytorch_lightning", "sklearn", "pandas")
JSON = {"content-type": "application/json"}

pytestmark = pytest.mark.skipif(not MODEL.is_dir(), reason="build/model does not exist: run `uv run dvc repro` first")


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A `bentoml serve` in a process group of its own."""

    def __init__(self, project: Path, home: Path):
        self.url, self.output = f"http://127.0.0.1:{(port := free_port())}", home / "serve.log"
        command = [sys.executable, "-m", "bentoml", "serve", "--host", "127.0.0.1", "--port", str(port)]
        environment = os.environ | {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
        with self.output.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=project, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self, path: str, seconds: float = 30) -> None:
        """Return when `path` answers 200. Raises TimeoutError with the server's log."""
        start = time.monotonic()
        while time.monotonic() - start < seconds and self.process.poll() is None:
            try:
                if httpx.get(self.url + path, timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(0.05)
        raise TimeoutError(self.output.read_text())

    def processes(self) -> list[psutil.Process]:
        """The supervisor and its worker."""
        supervisor = psutil.Process(self.process.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def stop(self) -> None:
        """End the whole group."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Server]]:
    """Start servers; all are stopped at the end."""
    started: list[Server] = []

    def start(project: Path) -> Server:
        started.append(Server(project, tmp_path_factory.mktemp("bentoml")))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Callable[[str], Path]:
    """Make a folder that holds what the service needs, all but the model."""

    def copy(name: str) -> Path:
        target = tmp_path_factory.mktemp(name)
        shutil.copy(root / "pyproject.toml", target)
        shutil.copytree(root / "{{cookiecutter.__package}}", target / "{{cookiecutter.__package}}")
        return target

    return copy


@pytest.fixture(scope="module")
def servers(serve, project, root: Path) -> dict[str, Server]:
    """Three servers, started at once: the project's own, one with a changed byte, and one without a model."""
    changed = project("changed")
    graph = Path(shutil.copytree(MODEL, changed / "build/model")) / "model.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    return {"own": serve(root), "changed": serve(changed), "without": serve(project("without"))}


@pytest.fixture(scope="module")
def server(servers) -> Server:
    """The project's own service, ready."""
    servers["own"].wait("/readyz")
    return servers["own"]


@pytest.fixture(scope="module")
def golden() -> dict:
    """The rows and the answers that the model was packaged with."""
    return json.loads((MODEL / "golden.json").read_text())


def same(got: dict, want: dict) -> bool:
    """Equal labels, and numbers within 1e-5."""
    if isinstance(want["prediction"], float):
        return got["prediction"] == pytest.approx(want["prediction"], rel=1e-5, abs=1e-5)
    close = pytest.approx(want["probabilities"], rel=1e-5, abs=1e-5)
    return got["prediction"] == want["prediction"] and got["probabilities"] == close


def test_every_golden_row_is_answered_as_packaged(server: Server, golden: dict) -> None:
    answer = httpx.post(f"{server.url}/predict", json={"rows": golden["rows"]})
    manifest = json.loads((MODEL / "manifest.json").read_text())
    assert answer.status_code == 200
    body = answer.json()
    assert (body["model"], body["run"]) == (manifest["digest"], manifest["run"])
    assert all(same(got, want) for got, want in zip(body["predictions"], golden["answers"], strict=True))
    assert len({p["id"] for p in body["predictions"]}) == len(golden["rows"])


def test_one_row_needs_no_list(server: Server, golden: dict) -> None:
    body = httpx.post(f"{server.url}/predict", json={"rows": golden["rows"][0]}).json()
    assert len(body["predictions"]) == 1
    assert same(body["predictions"][0], golden["answers"][0])


def test_info_says_what_is_served(server: Server) -> None:
    info = httpx.get(f"{server.url}/info").json()
    assert info["digest"] == json.loads((MODEL / "manifest.json").read_text())["digest"]
    assert info["provider"] in ("CPUExecutionProvider", "CUDAExecutionProvider")
    assert [c["name"] for c in info["columns"]] == [c["name"] for c in json.loads((MODEL / "schema.json").read_text())["columns"]]
    assert info["metrics"] == json.loads((MODEL / "metrics.json").read_text())


VALUES = {  # what stands where a column's value should, and whether the answer can name the column
    "[]": True, "{}": True, "1" + "0" * 5000: True, "[" * 9000 + "]" * 9000: True, "NaN": False, "Infinity": False, "-Infinity": False, '"\\ud800"': False, "": False,
}  # fmt: skip
WRONG = {"number": ['"1.5"', "true", "1e999", "1" + "0" * 400], "category": ["1", "true"], "boolean": ["1", '"true"'],
         "ordered": ["1"], "date": ["1", '"31.12.2024"'], "text": ["1", "[]"]}


@pytest.fixture(scope="module")
def columns() -> list[dict]:
    """The model's input columns."""
    return json.loads((MODEL / "schema.json").read_text())["columns"]


def body_with(row: dict, column: str, value: str) -> str:
    """A body whose one row holds the JSON text `value` in `column`."""
    return json.dumps({"rows": row | {column: "@@"} }).replace('"@@"', value)


def refuse(server: Server, body: bytes | str, status: int, field: str | None = None, headers: dict = JSON) -> None:
    """Send a body, and find it refused in a short sentence that names the field."""
    answer = httpx.post(f"{server.url}/predict", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error", "field"}
    assert len(answer.content) < 500
    assert field is None or answer.json()["field"] == field


def test_a_value_of_the_wrong_type_is_named(server: Server, golden: dict, columns: list[dict]) -> None:
    row = golden["rows"][0]
    for column in {c["type"]: c for c in columns}.values():
        for value in WRONG[column["type"]]:
            refuse(server, body_with(row, column["name"], value), 400, f"rows.0.{column['name']}")
    for value, is_named in VALUES.items():
        refuse(server, body_with(row, columns[0]["name"], value), 400, f"rows.0.{columns[0]['name']}" if is_named else "body")


def test_what_is_out_of_range_is_answered_with_a_word(server: Server, golden: dict, columns: list[dict]) -> None:
    """As schema.yaml says of a new project: the value is taken as it is, and the answer says what is odd about it."""
    column = next(c["name"] for c in columns if c["type"] == "number" and None not in c.get("valid", [None]))
    usual = httpx.post(f"{server.url}/predict", json={"rows": golden["rows"][0]}).json()
    odd = httpx.post(f"{server.url}/predict", json={"rows": golden["rows"][0] | {column: 1e9} })
    assert odd.status_code == 200 and f"rows.0.{column}: 1e+09 is out of range" in odd.json()["warnings"][0]
    assert not [said for said in usual.get("warnings", []) if said.startswith(f"rows.0.{column}:")]


def test_a_body_of_the_wrong_shape_is_named(server: Server, golden: dict) -> None:
    row = golden["rows"][0]
    first = next(iter(row))
    without = {k: v for k, v in row.items() if k != first}
    for body, field in (
        ({"rows": without}, f"rows.0.{first}"),
        ({"rows": [row, without]}, f"rows.1.{first}"),
        ({"rows": row | {"no such column": 1} }, "rows.0.no such column"),
        ({"rows": row, "more": 1}, "more"),
        ({"rows": []}, "rows"),
        ({"rows": None}, "rows"),
        ({"rows": "text"}, "rows"),
        ({"rows": [[1]]}, "rows.0"),
        ({}, "rows"),
        ([row], "body"),
        (None, "body"),
    ):
        refuse(server, json.dumps(body), 400, field)
    refuse(server, body_with(row, first, f"null, {json.dumps(first)}: null"), 400, first)  # a key twice


def test_what_is_not_json_is_refused(server: Server, golden: dict) -> None:
    body = json.dumps({"rows": golden["rows"][0]}).encode()
    for content in (b"", b"hello", b"\xff\xfe", body[:-1], body + b"x", body.decode().encode("utf-16"), b"[" * 10**5):
        refuse(server, content, 400, "body")
    for kind in ("application/vnd.bentoml+pickle", "application/x-msgpack", "multipart/form-data; boundary=x",
                 "application/x-www-form-urlencoded", "text/plain", ""):  # fmt: skip
        refuse(server, pickle.dumps({}), 415, "content-type", {"content-type": kind})
    refuse(server, body, 415, "content-type", {"content-type": b"\xff"})


def test_a_large_body_costs_little(server: Server, golden: dict) -> None:
    worker = server.processes()[-1]
    httpx.post(f"{server.url}/predict", json={"rows": golden["rows"]})
    before = worker.memory_info().rss
    refuse(server, b" " * 5 * 2**20, 413, "body")
    refuse(server, (b" " * 2**16 for _ in range(100)), 413, "body")
    for filler in (b"{}", b"[]"):  # each would be an error of its own for every column
        refuse(server, b'{"rows":[' + b",".join([filler] * 300_000) + b"]}", 400)
    assert worker.memory_info().rss - before < 150 * 2**20


def test_it_is_light(server: Server) -> None:
    processes = server.processes()
    assert sum(p.memory_info().rss for p in processes) < 400 * 2**20
    loaded = {m.path for p in processes for m in p.memory_maps()}
    assert not [path for path in loaded for name in HEAVY if f"/site-packages/{name}/" in path]


def test_the_module_imports_nothing_heavy(root: Path) -> None:
    code = f"import sys, {{cookiecutter.__package}}.service; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_wrong_body_left_a_stack_trace(server: Server) -> None:
    assert "Traceback" not in server.output.read_text()


def test_a_changed_byte_is_never_ready(servers, golden: dict) -> None:
    changed = servers["changed"]
    changed.wait("/livez")
    assert httpx.get(f"{changed.url}/readyz").status_code == 503
    answer = httpx.post(f"{changed.url}/predict", json={"rows": golden["rows"]})
    assert answer.status_code == 503
    assert "model.onnx" in answer.json()["error"]
    said = [line for line in changed.output.read_text().splitlines() if "not ready" in line]
    assert len(said) == 1


def test_without_a_model_one_line_says_what_to_run(servers) -> None:
    assert servers["without"].process.wait(20) == 1
    said = servers["without"].output.read_text()
    assert said == "build/model does not exist: there is no model yet. Run `uv run dvc repro`.\n"
