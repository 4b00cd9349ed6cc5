"""Take the notebooks edited in a baked project back into the template.

    make bake                 # a project in baked/labproject
    uv run jupyter lab        # in it: edit notebooks, run them
    make take                 # the edits, back in the template

The package's name becomes the template's variable again; that is the only Jinja a notebook carries.
"""

import re
import sys
import tomllib
from pathlib import Path

TEMPLATE = Path(__file__).parents[1] / "{{cookiecutter.__package}}"
VARIABLE = "{{cookiecutter.__package}}"
FOLDERS = ("nbs", "notebooks", "tests", "{package}")


def is_source(path: Path) -> bool:
    """Whether a file belongs into the template. nbdev's index is laid out by the name's length: the hook makes it anew."""
    return path.suffix in {".ipynb", ".py"} and path.name != "_modidx.py" and not {".ipynb_checkpoints", "__pycache__"} & set(path.parts)


def templated(text: str, package: str) -> str:
    """The text with the template's variable for the package's name. Raises ValueError where it holds Jinja of its own."""
    if mark := re.search(r"\{[{%#]", text):
        raise ValueError(f"{mark[0]!r} would be read as Jinja; write it apart")
    return re.sub(rf"(?<![A-Za-z0-9_]){package}(?![A-Za-z0-9_])", VARIABLE, text)


def take(project: Path, template: Path = TEMPLATE) -> list[Path]:
    """Bring every notebook, test and exported module of a project into the template; the files that changed."""
    package = tomllib.loads((project / "pyproject.toml").read_text())["tool"]["nbdev"]["lib_path"]
    changed = []
    for name in FOLDERS:
        source, target = project / name.format(package=package), template / name.format(package=VARIABLE)
        texts = {p.relative_to(source): p.read_text() for p in source.rglob("*") if is_source(p)}
        for gone in [p for p in target.rglob("*") if is_source(p) and p.relative_to(target) not in texts]:
            gone.unlink()
            changed.append(gone)
        for path, text in texts.items():
            try:
                text = templated(text, package)
            except ValueError as error:
                raise SystemExit(f"error: {source / path}: {error}") from error
            if not (target / path).exists() or (target / path).read_text() != text:
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                (target / path).write_text(text)
                changed.append(target / path)
    return changed


if __name__ == "__main__":
    for path in take(Path(sys.argv[1]).resolve()):
        print(path.relative_to(TEMPLATE.parent))
