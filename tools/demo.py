"""`make demo`: from nothing to a served prediction, one line a step."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "demo"
PROJECT = DEMO / "tumours"
# Nothing of the demo leaves its folder, and nobody is told of it.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"} | {
    "BENTOML_HOME": str(DEMO / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}

# A row of the test split, and what the evaluate notebook predicted for it.
ROW = """
import json, pandas as pd
from tumours.schema import Schema
rows, schema = pd.read_parquet("build/evaluate/predictions.parquet"), Schema.load("build/model/schema.json")
row = rows.iloc[0].astype(object).where(rows.iloc[0].notna(), None)
print(json.dumps({"row": {n: row[n] for n in schema.names}, "prediction": row["__prediction"],
                  "probabilities": {str(c): row[f"__p{i}"] for i, c in enumerate(schema.target.classes)}}))
"""


class Failed(Exception):
    """A step went wrong; the message says which and why."""


@contextmanager
def step(text: str) -> Iterator[None]:
    """Say what is being done, and how long it took."""
    began = time.monotonic()
    print(f"==> {text}", flush=True)
    yield
    print(f"    {time.monotonic() - began:.0f} s", flush=True)


def run(*command: str, cwd: Path = PROJECT, quiet: bool = False) -> str:
    """Run a command; its output is shown, or kept and returned. Raises Failed."""
    output = subprocess.PIPE if quiet else None
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, text=True, stdout=output, stderr=output)
    if done.returncode:
        raise Failed(f"{' '.join(command[:6])} ended with {done.returncode}\n{done.stderr or ''}")
    return done.stdout or ""


def in_project(*command: str, quiet: bool = False) -> str:
    """Run a command of the project's environment, in the project."""
    return run("uv", "run", "--no-sync", *command, quiet=quiet)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def is_ready(address: str) -> bool:
    """Whether the service says that it is ready."""
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=10) as response:
            return response.status == 200
    except OSError:
        return False


def ask(url: str, body: dict) -> dict:
    """The answer to a JSON body. Raises Failed."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise Failed(f"{url} answered {error.code}: {error.read().decode()[:300]}") from error


@contextmanager
def served(bento: str) -> Iterator[str]:
    """The bento, served from an empty folder with nothing else of the project in it; its address."""
    port, empty = free_port(), DEMO / "empty"
    empty.mkdir()
    command = [str(PROJECT / ".venv/bin/bentoml"), "serve", bento, "--host", "127.0.0.1", "--port", str(port)]
    with (DEMO / "service.log").open("w") as log:
        server = subprocess.Popen(command, cwd=empty, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while not is_ready(address):
            if server.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"the service did not get ready; read {DEMO / 'service.log'}")
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def compare(answer: dict, expected: dict) -> None:
    """Raise Failed where the service and the notebook disagree."""
    if answer["prediction"] != expected["prediction"]:
        raise Failed(f"the service says {answer['prediction']!r}, the notebook {expected['prediction']!r}")
    for name, share in expected["probabilities"].items():
        if not math.isclose(answer["probabilities"][name], share, abs_tol=1e-5):
            raise Failed(f"{name}: the service says {answer['probabilities'][name]}, the notebook {share}")


def edited() -> list[str]:
    """What somebody has changed in the last demo's project; the pipeline itself changes `dvc.lock`."""
    command = ["git", "-C", str(PROJECT), "status", "--porcelain", "--", ".", ":!dvc.lock"]
    return [line[3:] for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines()] if PROJECT.exists() else []


def main() -> None:
    """The steps, in order."""
    if edits := edited():
        raise Failed(f"{PROJECT.relative_to(ROOT)} holds edits of yours ({', '.join(edits[:3])}); move it away, or remove it")
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.mkdir()
    with step("generate: cookiecutter makes a project on a real table (breast cancer, 569 rows)"):
        run(sys.executable, "-m", "cookiecutter", str(ROOT), "--no-input", "--output-dir", str(DEMO), "project=tumours",
            "remote=../storage", cwd=ROOT)
    with step("run: dvc repro takes the table through prepare, train, evaluate and package"):
        in_project("dvc", "repro", "--quiet")
    with step("measure: dvc metrics show"):
        in_project("dvc", "metrics", "show")
    with step("build: bentoml build packs the model and its service"):
        tag = in_project("bentoml", "build", "--output", "tag", quiet=True).strip().removeprefix("__tag__:")
        print(f"    {tag}", flush=True)
    with step("serve: bentoml serve, in an empty folder, and one prediction over HTTP"), served(tag) as address:
        expected = json.loads(in_project("python", "-c", ROW, quiet=True))
        answer = ask(f"{address}/predict", {"rows": [expected["row"]]})
        compare(answer["predictions"][0], expected)
        print(f"    asked: a row of the test split ({len(expected['row'])} columns)\n    answer: {json.dumps(answer)}\n"
              f"    the evaluate notebook said the same for that row: {expected['prediction']!r}", flush=True)
    where = PROJECT.relative_to(ROOT)
    print(f"""
All done. Where everything is:
  {where}/nbs                          source notebooks, exported to {where}/tumours
  {where}/notebooks                    run notebooks
  {where}/build/*/notebook.ipynb       the same, executed, with their plots
  {where}/build/evaluate/metrics.json  metrics with confidence intervals
  {where}/build/model                  the model folder
  {where}/wandb                        W&B's offline runs
Go on:
  cd {where} && uv run jupyter lab
  cd {where} && uv run bentoml serve""")


if __name__ == "__main__":
    try:
        main()
    except Failed as failure:
        sys.exit(f"error: {failure}")
