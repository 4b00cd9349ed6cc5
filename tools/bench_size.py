"""What a table of ten million rows costs: read, checked and split, beside `pandas.read_csv` alone; then scored. `make bench-size` runs it.

    python tools/bench_size.py PROJECT DOCS      # a generated project, whose environment is used; the file whose table is to be replaced

Each step is a process of its own, whose time and peak memory (`getrusage`) are taken; both ways of reading run on the same file, one after the other.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROWS = 10_000_000
MAKE = """
import duckdb, sys
con = duckdb.connect(config={"threads": 2})
con.execute("SELECT setseed(0.5)")
numbers = ", ".join(f"round((hash(range, {i}) % 1000000) / 1000.0, {1 + i % 3}) AS n{i}" for i in range(14))
con.execute(f'''COPY (SELECT range AS id, {numbers}, ['a', 'b', 'c', 'd'][1 + (hash(range, 20) % 4)::INT] AS c1, 'city ' || (hash(range, 21) % 200) AS c2,
    CASE WHEN hash(range, 22) % 10 = 0 THEN NULL ELSE ['x', 'y'][1 + (hash(range, 22) % 2)::INT] END AS c3, hash(range, 23) % 3 = 0 AS b1,
    CASE WHEN (hash(range, 0) % 1000000) + (hash(range, 24) % 1000000) > 1200000 THEN 'yes' ELSE 'no' END AS y FROM range({sys.argv[2]})) TO '{sys.argv[1]}' (HEADER)''')
"""
PANDAS = """
import json, sys, time
said, began = {}, time.monotonic()
import pandas as pd
said["import"], began = time.monotonic() - began, time.monotonic()
assert len(pd.read_csv(sys.argv[1]))
print(json.dumps({"seconds": said | {"read": time.monotonic() - began}}))
"""
OURS = """
import importlib, json, sys, tempfile, time
from pathlib import Path
said, began = {}, time.monotonic()
def lap(name):
    global began
    said[name], began = time.monotonic() - began, time.monotonic()
checks, contract, prepare, tables = (importlib.import_module(f"{sys.argv[3]}.{name}") for name in ("checks", "contract", "prepare", "tables"))
lap("import")
path, rules = sys.argv[1], Path(sys.argv[2])
if not rules.exists():  # the contract is made once, when the project is
    with tables.opened(path) as table: rules.write_text(contract.dump(importlib.import_module(f"{sys.argv[3]}.settle").draft(table, "y")))
    sys.exit()
rules = contract.read(rules)
with tempfile.TemporaryDirectory() as out, tables.opened(path, rules.reads) as table:
    lap("read")
    rows = prepare.conform(table, rules)
    lap("hold against the contract")
    counts = prepare.write(rows, rules, Path(out))
    lap("split and write")
    prepare.measure(prepare.blank(rules), table.con, f"SELECT * FROM read_parquet('{out}/train.parquet')")
    lap("measure")
    found = checks.findings(table.con, prepare.split(rows, rules), rules)
    lap("check")
print(json.dumps({"seconds": said, "counts": counts, "findings": [str(f) for f in found]}))
"""
MEASURED = "import resource, subprocess, sys, time\nbegan = time.monotonic()\ndone = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, text=True)\n" \
           "print(time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, done.returncode)\nprint(done.stdout)"


def measured(python: str, *command: str) -> tuple[float, float, str]:
    """Seconds, GiB at the peak, and what was said. Raises RuntimeError where it fails."""
    said = subprocess.run([sys.executable, "-c", MEASURED, python, "-c", *command], capture_output=True, text=True)
    seconds, memory, code = said.stdout.splitlines()[0].split()
    if code != "0":
        raise RuntimeError(said.stderr[-2000:])
    return float(seconds), float(memory), said.stdout.partition("\n")[2].strip()


def main(project: Path, docs: Path) -> None:
    """Measure, and write the table."""
    python, work = str(project / ".venv/bin/python"), project / "build/size"
    work.mkdir(parents=True, exist_ok=True)
    table, rules = work / "table.csv", work / "schema.yaml"
    if not table.exists():
        measured(python, MAKE, str(table), str(ROWS))
    if not rules.exists():
        measured(python, OURS, str(table), str(rules), project.name)
    lines = ["| | seconds | GiB at the peak |", "| --- | --- | --- |"]
    ours, memory, said = measured(python, OURS, str(table), str(rules), project.name)
    theirs, more, answer = measured(python, PANDAS, str(table))
    laps = [", ".join(f"{name} {seconds:.1f}" for name, seconds in json.loads(text)["seconds"].items()) for text in (said, answer)]
    lines += [f"| read, checked, split ({laps[0]}) | {ours:.1f} | {memory:.1f} |", f"| `pandas.read_csv` alone ({laps[1]}) | {theirs:.1f} | {more:.1f} |"]
    text = f"<!-- bench_size -->\n{ROWS:,} rows of 20 columns, {table.stat().st_size / 1e9:.1f} GB of CSV, two cores:\n\n" + "\n".join(lines) + "\n<!-- /bench_size -->"
    print(text)
    docs.write_text(re.sub(r"<!-- bench_size -->.*<!-- /bench_size -->", lambda _: text, docs.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]))
