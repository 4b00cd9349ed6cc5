"""Refuse answers that cannot become a working project, before anything is written."""

import glob
import http.client
import json
import keyword
import os
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

# Answers come as one JSON literal: whatever is in them stays data.
ANSWERS = json.loads(r'''{{ cookiecutter | tojson }}''')

TEXT = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json")
TABLES = (*TEXT, *(text + packed for text in TEXT for packed in (".gz", ".bz2", ".xz", ".zst")), ".parquet", ".pq", ".xlsx", ".xlsm", ".xls", ".xlsb", ".ods")
KINDS = "a CSV, TSV, JSON lines (also packed with gzip, bzip2, xz or zstd), Parquet or Excel file"
DATABASES = ("sqlite", "postgresql")
SCHEMES = ("s3", "gs", "azure", "ssh")
# What a project's own folders, tools and imports are called; a package of that name would hide them.
TAKEN = {"test", "tests", "data", "build", "notebooks", "nbs", "runs", "models", "wandb", "dvc", "nbdev", "papermill",
         "bentoml", "jupyter", "ipykernel", "numpy", "pandas", "torch", "lightning", "sklearn", "onnx", "onnxruntime",
         "skl2onnx", "skops", "matplotlib", "pyarrow", "pydantic", "typer", "pytest", "yaml", "scipy", "fastcore"}


def check_text(answers: dict) -> list[str]:
    """Every answer is one line; the project's name is a name."""
    wrong = [f"{name}: {value!r} has a line break or control character; use one line"
             for name, value in answers.items()
             if isinstance(value, str) and any(ord(c) < 32 or ord(c) == 127 for c in value)]
    if odd := sorted(set(re.findall(r"[^\w\s.-]", answers["project"])) | set(re.findall(r"\.\.", answers["project"]))):
        wrong.append(f"project: {answers['project']!r} has {' '.join(odd)} in it; use letters, digits, spaces and hyphens")
    if not re.fullmatch(r"[^@\s<>\"]+@[^@\s<>\"]+", answers["email"]):
        wrong.append(f"email: {answers['email']!r} is not an e-mail address")
    return wrong


def check_package(package: str, project: str) -> list[str]:
    """The name that Python will import."""
    if not package.isidentifier():
        return [f"project: {project!r} gives the package name {package!r}, which Python cannot import; begin with a letter"]
    if keyword.iskeyword(package) or keyword.issoftkeyword(package):
        return [f"project: {package!r} is a word of the Python language; choose another name"]
    if package in sys.stdlib_module_names:
        return [f"project: {package!r} is a module of Python's standard library; choose another name"]
    if package in TAKEN:
        return [f"project: {package!r} would hide a package or folder that the project uses; choose another name"]
    return []


def find_files(data: str) -> list[Path]:
    """The user's files, relative to where cookiecutter was called, or to the folder that the project goes to: a file, a folder, or what a pattern matches."""
    for place in (Path(os.environ.get("PWD", ".")), Path.cwd().parent):
        path = place / Path(data).expanduser()
        if found := sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else sorted(map(Path, glob.glob(str(path)))):
            return found
    return []


def check_data(data: str) -> list[str]:
    """The user's table exists and is of a kind that can be read. Its address holds no password: cookiecutter keeps answers in its replay file, and cruft in git."""
    if data == "sample":
        return []
    if "://" in data and holds_secret(data):
        return ["data: the address holds a password or token, which would be written down; leave it out, and for a database set PGPASSWORD, ~/.pgpass or DATABASE_PASSWORD"]
    if re.match(r"https?://", data):
        return check_url(data)
    if "://" in data:
        return check_database(data)
    if not (files := find_files(data)):
        return [f"data: there is no file {data!r}; give the path of a table, a folder of tables, or 'sample'"]
    if not any(is_table(path.name) for path in files):
        return [f"data: {data!r} is of a kind that cannot be read; give {KINDS}, or a folder of them"]
    names = [path.name for path in files]
    if twins := sorted({name for name in names if names.count(name) > 1}):
        return [f"data: {data!r} matches more than one file called {twins[0]!r}; rename them, since all go into one folder"]
    return []


def is_table(name: str) -> bool:
    """A file's name ends as a table's does."""
    return name.lower().endswith(TABLES)


def holds_secret(address: str) -> bool:
    """Whether an address has a password, or a setting that is one."""
    where = re.split(r"[?&](?:table|query)=", address)[0]
    return bool(re.search(r"://[^/?:@]*:[^@]*@", where) or re.search(r"(?i)[?&](password|passwd|pwd|passfile|sslpassword|token|sig(nature)?|x-amz-[^=]*)=", address))


def check_database(address: str) -> list[str]:
    """An address says what to read from which database."""
    if address.partition("://")[0] not in DATABASES:
        return [f"data: {address!r} is no address that can be read; give a file, http://, https://, {' or '.join(d + '://' for d in DATABASES)}"]
    if not re.search(r"[?&](table|query)=.", address):
        return ["data: say what to read from the database: ?table=customers or ?query=SELECT …"]
    return []


def check_url(url: str) -> list[str]:
    """The address answers. Nothing is kept of it yet."""
    if not is_table(url.partition("?")[0]):
        return [f"data: {url!r} is of a kind that cannot be read; give {KINDS}"]
    try:
        with urllib.request.urlopen(url, timeout=20):
            return []
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        return [f"data: {url!r} cannot be read ({getattr(error, 'reason', error)}); check the address"]


def check_remote(remote: str) -> list[str]:
    """DVC storage is a folder, or an address of a kind that is offered."""
    scheme, separator, rest = remote.partition("://")
    if not remote.strip() or (separator and not rest):
        return [f"remote: {remote!r} names no place; give a folder or an address"]
    if separator and scheme not in SCHEMES:
        return [f"remote: {scheme!r} is not offered; use a folder, {', '.join(s + '://' for s in SCHEMES)}"]
    if "@" in rest and ":" in rest.split("@")[0]:
        return ["remote: it holds a password, which would end up in git; leave it out and use `dvc remote modify --local`"]
    return []


def main() -> None:
    """Say everything that is wrong, one line each. An update renders answers that were checked when the project was made."""
    if os.environ.get("LABLINE_RENDER_ONLY"):
        return
    wrong = check_text(ANSWERS)
    wrong += [] if wrong else check_package(ANSWERS["__package"], ANSWERS["project"])
    wrong += check_data(ANSWERS["data"]) + check_remote(ANSWERS["remote"])
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
