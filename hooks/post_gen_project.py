"""Turn the rendered files into a working project: data, environment, git, DVC. Safe to run twice."""

import glob
import http.client
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

# Answers come as one JSON literal: whatever is in them stays data.
ANSWERS = json.loads(r'''{{ cookiecutter | tojson }}''')
PACKAGE = ANSWERS["__package"]

# What is taken out of a folder.
TEXT = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json")
TABLES = (*TEXT, *(text + packed for text in TEXT for packed in (".gz", ".bz2", ".xz", ".zst")), ".parquet", ".pq", ".xlsx", ".xlsm", ".xls", ".xlsb", ".ods")
REQUIREMENTS = ("uv", "export", "--quiet", "--frozen", "--no-default-groups", "--no-emit-project", "--no-hashes", "--no-header",
                "--no-annotate", "--output-file", "requirements.txt")
SETTLE = ["settle", f"--target={ANSWERS['target']}", f"--task={ANSWERS['task']}", *(["--sample"] if ANSWERS["data"] == "sample" else [])]


class Unusable(Exception):
    """The answers cannot become a project; nothing is kept."""


class Later(Exception):
    """A step could not be done here; its message says what to run."""


def run(*command: str) -> str:
    """A command's output. Raises Later where it is missing or fails, with its own last line."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
    except FileNotFoundError:
        raise Later(f"{command[0]} is not installed") from None
    if done.returncode:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise Later(said[-1] if said else f"{command[0]} ended with {done.returncode}")
    return done.stdout


def succeeds(*command: str) -> bool:
    """Whether a command is there and ends well."""
    try:
        run(*command)
    except Later:
        return False
    return True


def environment() -> dict[str, str]:
    """This process's environment, less a virtual environment that is not the project's, and with pip's wheelhouse for uv."""
    clean = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    return clean | ({"UV_FIND_LINKS": links} if (links := find_links()) else {})


def find_links() -> str:
    """The folder of wheels that pip is set up with; uv does not look there by itself."""
    if links := os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS"):
        return links
    pip = [shutil.which("python3") or sys.executable, "-m", "pip", "config", "get", "global.find-links"]
    return subprocess.run(pip, capture_output=True, text=True).stdout.strip()


def bring_data() -> str:
    """Copy or download the user's table, as it is."""
    data = ANSWERS["data"]
    Path("data/raw").mkdir(parents=True, exist_ok=True)
    if data == "sample":
        return "a sample, which comes with scikit-learn"
    if from_database(data):
        return "read from the database below"
    url = bool(re.match(r"https?://", data))
    sources = [Path(data.partition("?")[0])] if url else find_files(data)
    if kept := [name for name in (source.name for source in sources) if (Path("data/raw") / name).exists()]:
        return f"{', '.join(kept)}: there already"
    for source in sources:
        target = Path("data/raw") / source.name
        try:
            fetch(data, target) if url else shutil.copyfile(source, target)
        except (OSError, ValueError, http.client.HTTPException) as error:
            target.unlink(missing_ok=True)
            raise Unusable(f"data: {data!r} cannot be read ({getattr(error, 'reason', error)})") from error
    return f"{', '.join(source.name for source in sources)}, {sum(f.stat().st_size for f in Path('data/raw').iterdir()):,} bytes"


def from_database(data: str) -> bool:
    """Whether the data are in a database."""
    return "://" in data and not re.match(r"https?://", data)


def fetch(url: str, target: Path) -> None:
    """Download an address into a file. Raises OSError where less comes than was announced."""
    with urllib.request.urlopen(url, timeout=60) as response, target.open("wb") as file:
        shutil.copyfileobj(response, file)
    announced = response.headers.get("Content-Length")
    if announced and announced.isdecimal() and target.stat().st_size != int(announced):
        raise OSError(f"{target.stat().st_size:,} of {int(announced):,} bytes came")


def find_files(data: str) -> list[Path]:
    """The user's tables, relative to where cookiecutter was called, or to the folder that the project went to: a file, a folder, or what a pattern matches."""
    for place in (Path(os.environ.get("PWD", ".")), Path.cwd().parent):
        path = place / Path(data).expanduser()
        if found := sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else sorted(map(Path, glob.glob(str(path)))):
            found = [file for file in found if file.name.lower().endswith(TABLES) and file.is_file() and not file.name.startswith(".")]
            return [file for file in found if not re.search(r"\.txt(\.\w+)?$", file.name.lower())] or found  # beside other tables a .txt is a note
    return []


def lock() -> str:
    """Make `uv.lock`, with torch's CPU wheel where the wheelhouse has one and no GPU wants the other; and what the bento installs."""
    if Path("uv.lock").exists() and Path("requirements.txt").exists():
        run("uv", "lock", "--check")
        for_gpus()
        return "uv.lock is there already"
    wheel = cpu_torch()
    run("uv", "lock", *(["--upgrade-package", f"torch=={wheel}"] if wheel else []))
    run(*REQUIREMENTS)
    for_gpus()
    if find_links() and f'registry = "{find_links()}"' in Path("uv.lock").read_text():
        return (f"uv.lock, requirements.txt{', torch ' + wheel if wheel else ''}\nsome packages come from {find_links()};"
                " on a machine without that folder (and in CI), run first: uv lock --upgrade-package torch")
    return "uv.lock, requirements.txt"


def for_gpus() -> None:
    """What the CUDA bento installs: the same, with the other ONNX Runtime."""
    Path("deploy/requirements-cuda.txt").write_text(re.sub(r"(?m)^onnxruntime==", "onnxruntime-gpu==", Path("requirements.txt").read_text()))


def cpu_torch() -> str:
    """The version of a CPU wheel of torch in the wheelhouse, or nothing where a GPU build is wanted."""
    if ANSWERS["accelerator"] == "cuda" or (ANSWERS["accelerator"] == "auto" and shutil.which("nvidia-smi")):
        return ""
    links = Path(find_links().split()[0]) if find_links() else None
    wheels = sorted(links.glob("torch-2.13.*+cpu-*.whl")) if links and links.is_dir() else []
    return wheels[-1].name.split("-")[1] if wheels else ""


def sync() -> str:
    """Install the environment."""
    run("uv", "sync", "--locked", "--quiet")
    return ".venv"


def export() -> str:
    """Export the notebooks once: nbdev's index of names is laid out by the package's name."""
    run("uv", "run", "--no-sync", "nbdev-export")
    return f"{PACKAGE}/, from nbs/"


def read_database() -> str:
    """Read the table from its database, once, into data/raw."""
    if not from_database(ANSWERS["data"]):
        return ""
    return own(["fetch", absolute(ANSWERS["data"])], "it cannot be read before the package is installed")


def absolute(address: str) -> str:
    """An address whose SQLite file is found from anywhere: a relative one is meant from where cookiecutter was called."""
    scheme, _, rest = address.partition("://")
    path, mark, what = rest.removeprefix("/").partition("?")
    return f"sqlite:///{Path(os.environ.get('PWD', '.')) / path}{mark}{what}" if scheme == "sqlite" else address


def understand() -> str:
    """Write what the table is taken for into `schema.yaml`; what is said is for the user to contradict."""
    if Path("schema.yaml").exists():
        return "schema.yaml is there already"
    return own(SETTLE, "it cannot be read before the package is installed")


def own(command: list[str], otherwise: str) -> str:
    """What a command of the project says. Its one-line errors end the generation."""
    if not succeeds("uv", "run", "--no-sync", PACKAGE, "--help"):
        raise Later(otherwise)
    try:
        return run("uv", "run", "--no-sync", PACKAGE, *command)
    except Later as failure:
        if str(failure).startswith("error: "):
            raise Unusable(str(failure).removeprefix("error: ")) from failure
        raise


def start_git() -> str:
    """A repository of the project's own."""
    if Path(".git").exists():
        return "a repository already"
    run("git", "init", "--quiet", "--initial-branch", "main")
    return "a new repository"


def start_dvc() -> str:
    """DVC with its storage, and the table tracked."""
    dvc = ("uv", "run", "--no-sync", "dvc")
    if not Path(".dvc/config").exists():
        run(*dvc, "init", "--quiet", *([] if Path(".git").exists() else ["--no-scm"]))
        run(*dvc, "config", "core.analytics", "false")
        run(*dvc, "config", "core.autostage", "true")
        run(*dvc, "remote", "add", "--quiet", "--default", "storage", ANSWERS["remote"])
    if not any(Path("data/raw").glob("*")):
        raise Later("there is no table in data/raw yet")
    run(*dvc, "add", "--quiet", "data/raw")
    tracked = Path("data/raw.dvc")
    if "\ndesc:" not in tracked.read_text():  # DVC keeps it when the data change
        tracked.write_text(tracked.read_text() + f"desc: {json.dumps('from ' + origin())}\n")
        run(*dvc, "add", "--quiet", "data/raw")  # in DVC's own spelling, so that the next time changes nothing
    said = f"storage {ANSWERS['remote']}, data/raw tracked"
    return said if Path(".git").exists() else said + "\nwithout git; once there is some: uv run dvc config core.no_scm false"


def origin() -> str:
    """Where the table came from. What follows the question mark of a web address may be a secret."""
    data = ANSWERS["data"]
    return "scikit-learn's samples" if data == "sample" else data.partition("?")[0] if re.match(r"https?://", data) else data


def install_hooks() -> str:
    """nbdev's merge driver, which keeps notebooks mergeable, and the pre-commit checks."""
    uv = ("uv", "run", "--no-sync")
    run(*uv, "nbdev-install-hooks")
    run(*uv, "pre-commit", "install")
    return "nbdev and pre-commit"


def commit() -> str:
    """The first commit, by the author named in the answers where git knows nobody."""
    if succeeds("git", "rev-parse", "--quiet", "--verify", "HEAD"):
        return "there are commits already"
    run("git", "add", "--all")
    who = [] if succeeds("git", "config", "user.email") else ["-c", f"user.name={ANSWERS['author']}", "-c", f"user.email={ANSWERS['email']}"]
    run("git", *who, "commit", "--quiet", "--no-verify", "--message", f"Start {PACKAGE}")
    return "the first one"


# What to do, and what to run later, in this order, where it could not be done.
STEPS = [
    (bring_data, "data", "put your table into data/raw"),
    (lock, "lock", f"uv lock && {' '.join(REQUIREMENTS)}"),
    (sync, "environment", "uv sync"),
    (export, "package", "uv run nbdev-export"),
    (read_database, "database", shlex.join(["uv", "run", PACKAGE, "fetch", ANSWERS["data"]])),
    (understand, "table", shlex.join(["uv", "run", PACKAGE, *SETTLE])),
    (start_git, "git", "git init --initial-branch main"),
    (start_dvc, "dvc", "uv run dvc init && uv run dvc config core.autostage true && uv run dvc config core.analytics false && uv run dvc remote add --default storage"
                       f" {shlex.quote(ANSWERS['remote'])} && uv run dvc add data/raw"),
    (install_hooks, "hooks", "uv run nbdev-install-hooks && uv run pre-commit install"),
    (commit, "commit", "git add --all && git commit --message Start"),
]


def main() -> None:
    """Take the steps; each says how it went. An update wants the rendered files and nothing else."""
    if os.environ.get("LABLINE_RENDER_ONLY"):
        return
    for step, name, later in STEPS:
        try:
            if not (said := step().splitlines()):
                continue
            first, *more = said
            print(f"  ok     {name:<12} {first}", *(f"         {'':<12} {line}" for line in more), sep="\n", flush=True)
        except Later as reason:
            print(f"  later  {name:<12} {reason}; run: {later}", flush=True)
        except Unusable as reason:
            sys.exit(f"error: {reason}")
    print(f"\nNext:\n  cd {PACKAGE}\n  uv run dvc repro          # prepare, train, evaluate, package\n"
          "  uv run jupyter lab        # the same notebooks, interactively", flush=True)


if __name__ == "__main__":
    main()
