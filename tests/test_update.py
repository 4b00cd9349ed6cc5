"""A project made with cruft follows the template: what changed there arrives, what the user changed stays."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TEMPLATE, run, succeed

pytestmark = pytest.mark.slow
PACKAGE = "{{cookiecutter.__package}}"


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A clone of the template, to change."""
    subprocess.run(["git", "clone", "--quiet", TEMPLATE, tmp_path / "template"], check=True)
    return tmp_path / "template"


def commit(where: Path, message: str) -> None:
    """Commit everything, as somebody."""
    succeed("git", "add", "--all", cwd=where)
    succeed("git", "-c", "user.name=A", "-c", "user.email=a@b", "commit", "--quiet", "--no-verify", "-m", message, cwd=where)


def test_update(template: Path, tmp_path: Path, shared_environment: None) -> None:
    """`cruft create`, a change in the template, `cruft update`: no conflict, no reject file, the user's table and parameters untouched."""
    (tmp_path / "shop.csv").write_text("age,plan,left\n" + "".join(f"{20 + i},{'ab'[i % 2]},{i % 3 // 2}\n" for i in range(90)))
    (tmp_path / "work").mkdir()
    cruft = (sys.executable, "-m", "cruft")
    done = run(*cruft, "create", str(template), "--no-input", "--output-dir", str(tmp_path / "work"),
               "--extra-context", '{"project": "shop", "data": "../shop.csv"}', cwd=tmp_path / "work")
    project = tmp_path / "work/shop"
    assert done.code == 0 and (project / ".cruft.json").exists(), done.out + done.err
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("family: boosting", "family: linear"))
    commit(project, "Use a linear model")
    readme = template / PACKAGE / "README.md"
    readme.write_text(readme.read_text().replace("## Start", "## Begin"))
    commit(template, "Another title")
    (tmp_path / "shop.csv").unlink()
    done = run(*cruft, "update", "--skip-apply-ask", cwd=project, LABLINE_RENDER_ONLY="1")
    assert done.code == 0, done.out + done.err
    assert "## Begin" in (project / "README.md").read_text() and "family: linear" in params.read_text()
    assert "target: left" in (project / "schema.yaml").read_text() and (project / "data/raw/shop.csv").exists()
    assert not list(project.rglob("*.rej"))
    changed = subprocess.check_output(["git", "diff", "--name-only", "HEAD"], cwd=project, text=True).split()
    assert sorted(changed) == [".cruft.json", "README.md"]
    shutil.rmtree(project)
