"""JupyterLab, in a real browser: a run notebook opens, runs from top to bottom, and shows its metric."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import chromium, environment, free_port, stop, wait
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

pytestmark = pytest.mark.slow
# JupyterLab asks for news, and draws only the cells in view; neither helps here.
SETTINGS = {"apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
            "notebook-extension/tracker": {"windowingMode": "none"}}


@contextmanager
def jupyter_lab(project: Path, environment_of: Path, folder: Path) -> Iterator[str]:
    """`jupyter lab` in a project; its address. What it keeps goes to a folder of its own."""
    for name, values in SETTINGS.items():
        path = folder / "settings/@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    port = free_port()
    kept = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "RUNTIME")}
    kept |= {f"JUPYTERLAB_{name}_DIR": str(folder / name.lower()) for name in ("SETTINGS", "WORKSPACES")}
    command = [str(environment_of / ".venv/bin/jupyter"), "lab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
               f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=token"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=project, env=environment(**kept), stdout=log, stderr=log, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        wait(lambda: answers(f"{address}/api?token=token"), 60, "JupyterLab does not answer")
        yield address
    finally:
        stop(server)


def answers(url: str) -> bool:
    """Whether somebody answers there."""
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """Headless Chromium with a profile of its own."""
    with chromium(tmp_path / "profile") as driver:
        yield driver


def connected(address: str) -> bool:
    """Whether the page is connected to its kernel: before, JupyterLab answers "Run All" by asking which kernel."""
    kernels = httpx.get(f"{address}/api/kernels?token=token").json()
    return any(kernel["connections"] and kernel["execution_state"] == "idle" for kernel in kernels)


def click(browser: webdriver.Chrome, label: str, text: str) -> None:
    """Click the menu entry with this text."""
    path = f"//div[contains(@class, '{label}') and normalize-space()='{text}']"
    wait(lambda: [e.click() or True for e in browser.find_elements(By.XPATH, path)[:1] if e.is_displayed()], 30, f"no menu entry {text}")


def cells(browser: webdriver.Chrome) -> list[WebElement]:
    """The notebook's code cells."""
    return browser.find_elements(By.CSS_SELECTOR, ".jp-Notebook .jp-CodeCell")


def prompts(browser: webdriver.Chrome) -> list[str]:
    """What stands before each code cell: `[ ]:`, `[*]:` or a number."""
    return [e.text for e in browser.find_elements(By.CSS_SELECTOR, ".jp-Notebook .jp-CodeCell .jp-InputPrompt")]


def restarted_warm(kernel: str, folder: Path) -> bool:
    """Restart a kernel; whether it is a forked one, as it is once the imports are done in the background."""
    httpx.post(f"{kernel}/restart?token=token", timeout=60).raise_for_status()
    zygotes = [p for p in psutil.process_iter(["cmdline", "cwd"]) if "warm import main" in " ".join(p.info["cmdline"] or [])]
    return any(p.info["cwd"] == str(folder / "notebooks") and p.ppid() in {z.pid for z in zygotes} for p in zygotes)


def test_train_in_jupyter_lab(project: Path, browser: webdriver.Chrome, tmp_path: Path) -> None:
    """`train.ipynb` opens, all its cells run, none fails, and the score is on the page. A warm kernel, restarted, is a forked one."""
    copy, kept = tmp_path / "churn", tmp_path / "jupyter"
    shutil.copytree(project, copy, ignore=shutil.ignore_patterns(".venv", ".git", "wandb", ".dvc"))
    code = [c for c in json.loads((copy / "notebooks/train.ipynb").read_text())["cells"] if c["cell_type"] == "code"]
    with jupyter_lab(copy, project, kept) as address:
        browser.get(f"{address}/lab/tree/notebooks/train.ipynb?token=token")
        wait(lambda: len(cells(browser)) == len(code), 60, "the notebook did not open")
        wait(lambda: connected(address), 60, "no kernel")
        wait(lambda: browser.find_elements(By.CSS_SELECTOR, ".jp-Notebook-ExecutionIndicator[data-status='idle']"), 60, "the kernel is not idle")
        click(browser, "lm-MenuBar-itemLabel", "Run")
        click(browser, "lm-Menu-itemLabel", "Run All Cells")
        wait(lambda: all(re.fullmatch(r"\[\d+\]:", text) for text in prompts(browser)), 180, f"cells did not end: {prompts(browser)}")
        outputs = browser.find_elements(By.CSS_SELECTOR, ".jp-OutputArea-output")
        assert not [e.text for e in outputs if e.get_attribute("data-mime-type") == "application/vnd.jupyter.error"]
        score = next(e for e in outputs if "roc_auc" in e.text)
        browser.execute_script("arguments[0].scrollIntoView({block: 'end'})", score)
        assert score.is_displayed() and re.search(r"roc_auc\s+0\.9\d+", score.text), score.text
        if folder := os.environ.get("LABLINE_SCREENSHOTS"):
            browser.save_screenshot(str(Path(folder) / "train.png"))
        session = {"path": "notebooks/explore.ipynb", "name": "explore", "type": "notebook", "kernel": {"name": "churn-warm"}}
        kernel = httpx.post(f"{address}/api/sessions?token=token", json=session, timeout=60).json()["kernel"]
        wait(lambda: restarted_warm(f"{address}/api/kernels/{kernel['id']}", copy), 60, "no warm kernel")
    assert json.loads((copy / "build/train/metrics.json").read_text())["valid"]["roc_auc"] > 0.9
