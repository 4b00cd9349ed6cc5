"""The service as a user has it: the client, every kind of body, the prediction log, what can be turned on, and a GPU where there is one."""

import csv
import hashlib
import http.server
import io
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Server, in_project, read_json, serve, succeed, wait

pytestmark = pytest.mark.slow
ARROW, PARQUET = "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"


@pytest.fixture(scope="module")
def golden(project: Path) -> dict:
    """Rows, and the answers expected."""
    return read_json(project / "build/model/golden.json")


def asked(project: Path, code: str, url: str) -> dict:
    """What a script in the project's environment prints, as JSON."""
    head = f"import json, sys\nimport pandas as pd\nfrom churn.client import Client, AsyncClient, ServiceError\nurl = {url!r}\n"
    return json.loads(in_project(project, "python", "-c", head + code).strip().splitlines()[-1])


def predicted(server: Server, rows: list[dict], **headers: str) -> list[dict]:
    """Predictions for rows."""
    return server.client.post("/predict", json={"rows": rows}, headers=headers).json()["predictions"]


def test_the_client(project: Path, server: Server, golden: dict) -> None:
    """pandas in, pandas out: the golden answers, in chunks, as JSON and as Arrow, in step with the frame's index."""
    said = asked(project, """
golden = json.load(open("build/model/golden.json"))
frame = pd.DataFrame(golden["rows"], index=[f"row {i}" for i in range(len(golden["rows"]))])
frame["an identifier"] = range(len(frame))
found = {}
for name, options in {"json": {}, "chunks": {"chunk": 7}, "arrow": {"format": "arrow", "chunk": 10, "bulk": True}}.items():
    with Client(url, **options) as client: table = client.predict(frame)
    assert list(table.index) == list(frame.index) and table["id"].nunique() == len(frame)
    found[name] = [table["prediction"].tolist(), table["probability malignant"].tolist(), table.attrs["model"]]
import asyncio
async def many():
    async with AsyncClient(url, chunk=3) as client: return await client.predict(frame)
found["async"] = [asyncio.run(many())["prediction"].tolist()]
try: Client(url).predict(frame.assign(mean_radius="wide"))
except ServiceError as error: found["error"] = [str(error), error.status]
print(json.dumps(found))
""", server.url)
    for name in ("json", "chunks", "arrow"):
        assert said[name][0] == [a["prediction"] for a in golden["answers"]] and said[name][2] == read_json(project / "build/model/manifest.json")["digest"]
        assert said[name][1] == pytest.approx([a["probabilities"]["malignant"] for a in golden["answers"]], abs=1e-9)
    assert said["async"][0] == said["json"][0]
    assert said["error"][1] == 400 and "mean_radius" in said["error"][0] and "\n" not in said["error"][0]


def test_bentomls_own_client(project: Path, server: Server, golden: dict) -> None:
    """What BentoML gives a user to ask with finds the API, and gets the right answers."""
    code = """
import bentoml
rows = json.load(open("build/model/golden.json"))["rows"]
with bentoml.SyncHTTPClient(url) as client: print(json.dumps(client.predict(rows=rows)))
"""
    for said, want in zip(asked(project, code, server.url)["predictions"], golden["answers"], strict=True):
        assert said["prediction"] == want["prediction"] and said["probabilities"] == pytest.approx(want["probabilities"], abs=1e-9)


def stream(table: pa.Table, **how: str) -> bytes:
    """An Arrow stream."""
    with pa.BufferOutputStream() as sink:
        with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**how)) as writer:
            writer.write_table(table)
        return sink.getvalue().to_pybytes()


def parquet(table: pa.Table, **how: str | int) -> bytes:
    """A Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **how)
    return sink.getvalue()


def test_every_shape_says_the_same(project: Path, server: Server, golden: dict) -> None:
    """Rows, columns, Arrow and Parquet, packed and in pieces: the same answers, as JSON and as a table that names its model."""
    first = predicted(server, golden["rows"])
    columns = {name: [row[name] for row in golden["rows"]] for name in golden["rows"][0]}
    said, table = [server.client.post("/predict", json={"columns": columns}).json()["predictions"]], pa.table(columns)
    pieces = pa.concat_tables([table.slice(0, 7), table.slice(7)])
    for kind, content in ((ARROW, stream(table)), (ARROW, stream(table, compression="zstd")), (ARROW, stream(pieces)), (PARQUET, parquet(table)), (PARQUET, parquet(table, compression="zstd", row_group_size=5))):
        said.append(server.client.post("/predict", content=content, headers={"content-type": kind, "accept": "application/json"}).json()["predictions"])
        answer = server.client.post("/predict", content=content, headers={"content-type": kind})
        assert (answer.status_code, answer.headers["content-type"]) == (200, ARROW), answer.text
        found = pa.ipc.open_stream(answer.content).read_all()
        assert found["prediction"].to_pylist() == [p["prediction"] for p in first]
        assert found["probability malignant"].to_pylist() == pytest.approx([p["probabilities"]["malignant"] for p in first], abs=1e-12)
        assert found.schema.metadata[b"model"].decode() == read_json(project / "build/model/manifest.json")["digest"]
    for each in said:
        assert [p["prediction"] for p in each] == [p["prediction"] for p in first]
        assert [p["probabilities"]["malignant"] for p in each] == pytest.approx([p["probabilities"]["malignant"] for p in first], abs=1e-12)


def test_an_explanation_adds_up(server: Server, golden: dict) -> None:
    """From the average of made-up rows to the answer, column by column; the same for the same row."""
    row = golden["rows"][0]
    said, again = (server.client.post("/explain", json={"rows": row}).json() for _ in range(2))
    answer = predicted(server, [row])[0]
    assert said["base"] + sum(each["effect"] for each in said["effects"]) == pytest.approx(said["answer"], abs=1e-9)
    assert said["answer"] == pytest.approx(answer["probabilities"][said["of"]], abs=1e-12) and said["effects"] == again["effects"]
    assert server.client.post("/explain", json={"rows": [row, row]}).status_code == 400


def test_usual_rows(project: Path, server: Server, golden: dict) -> None:
    """They are the first examples, lie within the table's range and are no rows of it; explanations begin from their average, which is near the table's."""
    usual, said = golden["usual"], server.client.get("/info").json()
    assert len(usual) == 16 and said["examples"] == usual + golden["rows"]
    with (project / "data/raw/breast_cancer.csv").open() as file:
        table = list(csv.DictReader(file))
    malignant = sum(row.pop("diagnosis") == "malignant" for row in table) / len(table)
    assert not any({name: float(value) for name, value in row.items()} in usual for row in table)
    for column in said["columns"]:
        assert column["clock"] is False and all(column["minimum"] <= row[column["name"]] <= column["maximum"] for row in usual), column
    answers = server.client.post("/predict", json={"rows": usual}).json()
    why = server.client.post("/explain", json={"rows": golden["rows"][0]}).json()
    assert "warnings" not in answers and why["of"] == "malignant"
    assert why["base"] == pytest.approx(sum(p["probabilities"]["malignant"] for p in answers["predictions"]) / 16, abs=1e-9)
    assert abs(why["base"] - malignant) < 0.2


def test_a_model_folder_without_usual_rows(project: Path, golden: dict, tmp_path: Path) -> None:
    """An older one is served as it was: the golden rows are the examples, and explanations begin from those drawn at random."""
    model = tmp_path / "build/model"
    shutil.copytree(project / "build/model", model)
    shutil.copy(project / "pyproject.toml", tmp_path)
    (model / "golden.json").write_text(json.dumps({name: golden[name] for name in ("rows", "answers")}))
    manifest = {name: value for name, value in read_json(model / "manifest.json").items() if name != "digest"}
    manifest["files"]["golden.json"] = hashlib.sha256((model / "golden.json").read_bytes()).hexdigest()
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (model / "manifest.json").write_text(json.dumps(manifest | {"digest": digest}))
    with serve(project / ".venv/bin/bentoml", tmp_path) as server:
        assert server.client.get("/info").json()["examples"] == golden["rows"]
        why = server.client.post("/explain", json={"rows": golden["rows"][-1]}).json()
    drawn = [answer["probabilities"]["malignant"] for answer in golden["answers"][:16]]
    assert why["of"] == "malignant" and why["base"] == pytest.approx(sum(drawn) / 16, abs=1e-9)


def test_what_was_asked_is_kept(project: Path, golden: dict, tmp_path: Path) -> None:
    """Every row and its answer, under the id that was answered, as Parquet when the service ends."""
    with serve(project / ".venv/bin/bentoml", project, SERVE_JOURNAL=str(tmp_path)) as server:
        ids = [p["id"] for row in golden["rows"] for p in predicted(server, [row])]
        ids += [p["id"] for p in predicted(server, golden["rows"])]
        assert "service_journal_rows_total" in server.client.get("/metrics").text
    wait(lambda: list(tmp_path.glob("*/*.parquet")), 20, "no file was written")
    code = f"from churn.journal import read; t = read({str(tmp_path)!r}); print(json.dumps([t['id'].to_pylist(), t['prediction'].to_pylist(), t['mean_radius'].to_pylist(), t['probability malignant'].to_pylist()]))"
    kept, answers, values, p = asked(project, code, "")
    assert sorted(kept) == sorted(ids) and len(kept) == 2 * len(golden["rows"])
    by_id = dict(zip(kept, zip(answers, values, p)))
    for i, want in zip(ids, golden["answers"] * 2, strict=True):
        assert by_id[i][0] == want["prediction"] and by_id[i][2] == pytest.approx(want["probabilities"]["malignant"], abs=1e-9)
    assert [by_id[i][1] for i in ids] == [row["mean_radius"] for row in golden["rows"]] * 2


def test_a_full_disk_costs_the_log_and_no_answer(project: Path, golden: dict, tmp_path: Path) -> None:
    """Where the prediction log finds no room, rows are answered, dropped and counted, and one line says why."""
    folder = tmp_path / "log"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    try:
        with serve(project / ".venv/bin/bentoml", project, SERVE_JOURNAL=str(folder)) as server:
            def dropped() -> float:
                for _ in range(20):
                    assert len(predicted(server, golden["rows"])) == len(golden["rows"])
                found = re.search(r'^service_journal_rows_total{result="dropped"} (\S+)', server.client.get("/metrics").text, re.MULTILINE)
                return float(found[1])
            wait(dropped, 30, "nothing was dropped, though there is no room")
            assert server.client.get("/readyz").status_code == 200
            assert "No space left" in server.log and "Traceback" not in server.log, server.log[-3000:]
    finally:
        subprocess.run(["umount", folder], check=True)


# what is off until it is asked for


@pytest.fixture(scope="module")
def spans() -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """A collector of traces: its address, and the path and the bytes of what it got."""
    got: list[tuple[str, int]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, len(self.rfile.read(int(self.headers["content-length"])))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{collector.server_port}", got
        collector.shutdown()


@pytest.fixture(scope="module")
def dressed(project: Path, spans: tuple[str, list]) -> Iterator[Server]:
    """A service that remembers answers, writes a log, lets others' pages in, and sends traces."""
    settings = {"SERVE_CACHE": "1000", "SERVE_LOG": "true", "SERVE_CORS": "https://ours.example, https://also.example", "OTEL_EXPORTER_OTLP_ENDPOINT": spans[0], "OTEL_BSP_SCHEDULE_DELAY": "200"}
    with serve(project / ".venv/bin/bentoml", project, **settings) as server:
        yield server
        assert "Traceback" not in server.log


def looked_up(server: Server) -> dict[str, float]:
    """Rows that were looked up among remembered answers, by what came of it."""
    counted = dict(line.rsplit(" ", 1) for line in server.client.get("/metrics").text.splitlines() if line.startswith("service_cache_total"))
    return {name: float(counted[f'service_cache_total{{result="{name}"}}']) for name in ("hit", "miss")}


def test_cache(dressed: Server, golden: dict) -> None:
    """Answers that were remembered are the same, with other ids; hits are counted; an explanation does not push them out."""
    rows, before = golden["rows"], looked_up(dressed)
    first, second = (predicted(dressed, rows) for _ in range(2))
    dressed.client.post("/explain", json={"rows": rows[:1]})
    third = predicted(dressed, rows)
    for said, want in zip(first, golden["answers"], strict=True):
        assert said["prediction"] == want["prediction"] and said["probabilities"] == pytest.approx(want["probabilities"], abs=1e-9)
    assert [p["probabilities"] for p in first] == [p["probabilities"] for p in second] == [p["probabilities"] for p in third]
    assert len({p["id"] for p in first + second + third}) == 3 * len(rows)
    counted = {name: count - before[name] for name, count in looked_up(dressed).items()}
    assert counted["hit"] >= 2 * len(rows) - 8 and counted["miss"] <= len(rows) + 8, counted


def test_log(dressed: Server, golden: dict) -> None:
    """A line in JSON for each request: ids, status, route, and nothing of the rows."""
    answer = dressed.client.post("/predict", json={"rows": golden["rows"][:3]}).json()
    dressed.client.post("/predict", json={"rows": [{"x": 1}]})
    dressed.client.get("/nowhere")
    lines = lambda: [json.loads(line) for line in dressed.log.splitlines() if line.startswith("{") and line.endswith("}")]
    wait(lambda: {(line["route"], line["status"]) for line in lines()} >= {("/predict", 200), ("/predict", 400), ("other", 404)}, 10, "a request is missing")
    mine = next(line for line in lines() if line.get("ids") == [p["id"] for p in answer["predictions"]])
    assert (mine["status"], mine["route"], mine["rows"], mine["model"]) == (200, "/predict", 3, answer["model"])
    assert all({"time", "method", "seconds"} <= set(line) for line in lines())
    assert next(iter(golden["rows"][0])) not in dressed.log


def test_traces(dressed: Server, spans: tuple[str, list[tuple[str, int]]]) -> None:
    """Where an endpoint is set, spans arrive there."""
    assert dressed.client.get("/info").status_code == 200
    wait(lambda: spans[1], 15, "no span came")
    assert spans[1][0][0] == "/v1/traces" and spans[1][0][1] > 0


@pytest.mark.parametrize(("origin", "allowed"), [("https://ours.example", True), ("https://also.example", True), ("https://theirs.example", False), ("null", False)])
def test_origins(origin: str, allowed: bool, dressed: Server, golden: dict) -> None:
    """A listed origin's page may ask; another's may not."""
    answer = dressed.client.post("/predict", json={"rows": golden["rows"][:1]}, headers={"origin": origin})
    assert answer.status_code == 200 and (answer.headers.get("access-control-allow-origin") == origin) == allowed
    first = dressed.client.options("/predict", headers={"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": "content-type,authorization"})
    assert (first.status_code == 200 and first.headers.get("access-control-allow-origin") == origin) == allowed
    assert "access-control-allow-credentials" not in answer.headers


# where it runs


def test_a_gpu_says_the_same(project: Path) -> None:
    """The script chooses what there is, says so, and compares."""
    said = in_project(project, "python", "tests/gpu.py")
    assert ("ran on CUDAExecutionProvider" in said) != ("ran on the CPU" in said) and "allowed 1e-05" in said


def test_nothing_is_written_to_the_home_folder(project: Path, tmp_path: Path) -> None:
    """ONNX Runtime would leave an id of the machine there."""
    code = "from churn.release import Release; r = Release('build/model'); r.start(); assert r.why is None"
    succeed(str(project / ".venv/bin/python"), "-c", code, cwd=project, HOME=str(tmp_path))
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
