"""A developer bakes a project, edits its notebooks and takes the edits back: a round trip."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from conftest import TEMPLATE, rendered

sys.path.insert(0, str(TEMPLATE / "tools"))
from take import VARIABLE, note, take


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A copy of the template to take into."""
    return shutil.copytree(TEMPLATE / VARIABLE, tmp_path / "template" / VARIABLE)


def sources(folder: Path) -> dict[str, bytes]:
    """The notebooks, modules and tests of a template or a project."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*")
            if p.suffix in {".ipynb", ".py"} and "__pycache__" not in p.parts}


def baked(tmp_path: Path, template: Path) -> Path:
    """A project made from the template as it is."""
    (tmp_path / "baked").mkdir()
    project = rendered(tmp_path / "baked", project="labproject")
    note(project, template)
    return project


def test_round_trip(template: Path, tmp_path: Path) -> None:
    """Baking and taking back, with no edit, changes no byte of the template."""
    before = sources(template)
    assert take(baked(tmp_path, template), template) == []
    assert sources(template) == before


def test_an_edit_comes_back(template: Path, tmp_path: Path) -> None:
    """An edited cell comes back with the variable in the place of the name; a deleted notebook goes."""
    project = baked(tmp_path, template)
    notebook = project / "notebooks/train.ipynb"
    content = json.loads(notebook.read_text())
    content["cells"][0]["source"] = "# from labproject.data import read"
    notebook.write_text(json.dumps(content))
    (project / "notebooks/explore.ipynb").unlink()
    assert {p.name for p in take(project, template)} == {"train.ipynb", "explore.ipynb"}
    assert f"# from {VARIABLE}.data import read" in (template / "notebooks/train.ipynb").read_text()
    assert not (template / "notebooks/explore.ipynb").exists()


def test_what_is_newer_in_the_template_stays(template: Path, tmp_path: Path) -> None:
    """A file that changed in the template after the bake is not overwritten by the older one."""
    project = baked(tmp_path, template)
    newer = template / "tests/conftest.py"
    newer.write_text(newer.read_text() + "# mended\n")
    with pytest.raises(SystemExit, match="changed in the template since the project was baked: tests/conftest.py"):
        take(project, template)
    assert newer.read_text().endswith("# mended\n")


def test_jinja_in_a_notebook_is_refused(template: Path, tmp_path: Path) -> None:
    """Braces that cookiecutter would read stop the taking, with the notebook's name."""
    project = baked(tmp_path, template)
    (project / "tests/test_more.py").write_text("BRACES = '{{ no }}'\n")
    with pytest.raises(SystemExit, match="test_more.py: '{{' would be read as Jinja"):
        take(project, template)


def test_the_variable_is_the_only_jinja() -> None:
    """Notebooks, modules and tests of the template carry Jinja in one form."""
    for name, content in sources(TEMPLATE / VARIABLE).items():
        rest = content.decode().replace(VARIABLE, "")
        assert not any(mark in rest for mark in ("{{", "{%", "{#")), name
