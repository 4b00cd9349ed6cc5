"""Take the notebooks edited in a baked project back into the template.

    make bake                 # a project in baked/labproject; an edited one is not overwritten
    uv run jupyter lab        # in it: edit notebooks, run them
    make take                 # the edits, back in the template

The package's name becomes the template's variable again; that is the only Jinja a notebook carries. What the template held when the project was
baked is noted beside it: a file that has changed in the template since then is not overwritten.
"""

import hashlib
import json
import re
import sys
import tomllib
from pathlib import Path

TEMPLATE = Path(__file__).parents[1] / "{{cookiecutter.__package}}"
VARIABLE = "{{cookiecutter.__package}}"


def is_source(path: Path) -> bool:
    """Whether a file belongs into the template. nbdev's index is laid out by the name's length: the hook makes it anew."""
    return path.suffix in {".ipynb", ".py", ".html"} and path.name != "_modidx.py" and not {".ipynb_checkpoints", "__pycache__"} & set(path.parts)


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


def held(template: Path) -> dict[str, str]:
    """The template's notebooks, modules and tests, as hashes."""
    return {p.relative_to(template).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in template.rglob("*") if is_source(p)}


def note(project: Path, template: Path = TEMPLATE) -> None:
    """Note what the template holds, beside a project that was made from it just now."""
    project.with_name(f"{project.name}.json").write_text(json.dumps(held(template), indent=1))


def take(project: Path, template: Path = TEMPLATE) -> list[Path]:
    """Bring every notebook, test and exported module of a project into the template; the files that changed."""
    texts, now = read(project), held(template)
    baked = json.loads(project.with_name(f"{project.name}.json").read_text())
    changed = [path for path, text in texts.items() if path.as_posix() not in now or (template / path).read_text() != text]
    gone = [Path(name) for name in sorted(now.keys() - {path.as_posix() for path in texts})]
    if newer := [p.as_posix() for p in (*changed, *gone) if now.get(p.as_posix()) != baked.get(p.as_posix())]:
        raise SystemExit(f"error: changed in the template since the project was baked: {', '.join(newer)}; bake anew and make your edits there")
    for path in changed:
        (template / path).parent.mkdir(parents=True, exist_ok=True)
        (template / path).write_text(texts[path])
    for path in gone:
        (template / path).unlink()
    note(project, template)
    return [*changed, *gone]


if __name__ == "__main__":
    command, project = sys.argv[1], Path(sys.argv[2]).resolve()
    print(*(take(project) if command == "take" else [note(project) or project]), sep="\n")
