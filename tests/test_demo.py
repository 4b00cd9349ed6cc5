"""`make demo`, as a new user calls it: a fresh clone, an empty home folder."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest
from conftest import TEMPLATE, environment, figure

pytestmark = pytest.mark.slow


@pytest.mark.timeout(1200)
def test_demo(tmp_path: Path) -> None:
    """It ends well within six minutes with few lines, having served a prediction that equals the notebook's."""
    clone, home = tmp_path / "labline", tmp_path / "home"
    home.mkdir()
    subprocess.run(["git", "clone", "--quiet", TEMPLATE, clone], check=True)
    cache = subprocess.check_output(["uv", "cache", "dir"], text=True).strip()
    began = time.monotonic()
    done = subprocess.run(["make", "demo"], cwd=clone, env=environment(HOME=str(home), UV_CACHE_DIR=cache),
                          capture_output=True, text=True)
    seconds, lines = time.monotonic() - began, (done.stdout + done.stderr).splitlines()
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    figure("`make demo` from a fresh clone, empty home, downloads cached; lines of output", f"{seconds:.0f} s; {len(lines)}")
    assert seconds <= 360 and len(lines) <= 250, (seconds, len(lines))
    assert "the evaluate notebook said the same for that row" in done.stdout
    for step in ("generate", "run", "measure", "build", "serve"):
        assert f"==> {step}:" in done.stdout
    for name in ("nbs", "notebooks", "build/model/model.onnx", "build/evaluate/metrics.json", "build/train/notebook.ipynb"):
        assert (clone / "demo/tumours" / name).exists()
    (clone / "demo/tumours/notes.md").write_text("mine")
    again = subprocess.run(["make", "demo"], cwd=clone, env=environment(HOME=str(home), UV_CACHE_DIR=cache), capture_output=True, text=True)
    assert again.returncode != 0 and "holds edits of yours (notes.md)" in again.stderr and (clone / "demo/tumours/notes.md").exists()
    shutil.rmtree(clone)
