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


def is_source(path: Path) -> bool:
    """Whether a file belongs into the template. nbdev's index is laid out by the name's length: the hook makes it anew."""
    return path.suffix in {".ipynb", ".py"} and path.name != "_modidx.py" and not {".ipynb_checkpoints", "__pycache__"} & set(path.parts)


def templated(text: str, package: str) -> str:
    """The text with the template's variable for the package's name. Raises ValueError where it holds Jinja of its own."""
    if mark := re.search(r"\{[{%#]", text):
        raise ValueError(f"{mark[0]!r} would be read as Jinja; write it apart")
    return re.sub(rf"(?<![A-Za-z0-9_]){package}(?![A-Za-z0-9_])", VARIABLE, text)


def read(project: Path) -> dict[Path, str]:
    """The project's notebooks, modules and tests as the template holds them, by path below the template."""
    package = tomllib.loads((project / "pyproject.toml").read_text())["tool"]["nbdev"]["lib_path"]
    texts = {}
    for folder in ("nbs", "notebooks", "tests", package):
        for path in sorted(p for p in (project / folder).rglob("*") if is_source(p)):
            try:
                text = templated(path.read_text(), package)
            except ValueError as error:
                raise SystemExit(f"error: {path}: {error}") from error
            texts[Path(VARIABLE if folder == package else folder) / path.relative_to(project / folder)] = text
    return texts


def take(project: Path, template: Path = TEMPLATE) -> list[Path]:
    """Bring every notebook, test and exported module of a project into the template; the files that changed."""
    texts = read(project)
    held = {p.relative_to(template) for p in template.rglob("*") if is_source(p)}
    changed = [path for path, text in texts.items() if path not in held or (template / path).read_text() != text]
    for path in changed:
        (template / path).parent.mkdir(parents=True, exist_ok=True)
        (template / path).write_text(texts[path])
    for path in (gone := sorted(held - texts.keys())):
        (template / path).unlink()
    return [*changed, *gone]


if __name__ == "__main__":
    for path in take(Path(sys.argv[1]).resolve()):
        print(path)
