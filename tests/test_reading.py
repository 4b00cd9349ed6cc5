"""Reading: tables of every kind, forty broken ones, and databases that refuse, hang up or hold a secret."""

import bz2
import csv
import gzip
import http.server
import io
import json
import lzma
import os
import random
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SECRET, Done, Postgres, cookiecutter, environment, generated, in_project, run, table

pytestmark = pytest.mark.slow
ROWS = 5000
GOOD = "age,city,left\n" + "".join(f"{20 + i % 50},{'Ulm' if i % 3 else 'Rom'},{'yes' if i % 2 else 'no'}\n" for i in range(ROWS))
FROM_EACH = """
import json, sys
import pandas as pd
from churn.tables import read
for path in sys.argv[1:]:
    try: frame = read(path)
    except ValueError as error: said = {"error": str(error)}
    else: said = {"rows": [[str(None if pd.isna(v) else v) for v in row] for row in frame.head(200).astype(object).values.tolist()], "names": list(frame), "count": len(frame)}
    print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose environment reads tables."""
    return generated(tmp_path_factory.mktemp("reader"), project="churn")


def read_each(project: Path, files: list[Path], tmp: Path) -> list[dict]:
    """What reading each of some files gives, in one process of the project."""
    tmp.mkdir(exist_ok=True)
    out = in_project(project, "python", "-c", FROM_EACH, *map(str, files), TMPDIR=str(tmp))
    assert not [f for f in tmp.iterdir() if not f.name.startswith("uv-")], "temporary files are left"
    return [json.loads(line) for line in out.splitlines()]


def workbook(*sheets: list[list]) -> bytes:
    """An Excel file."""
    book, out = openpyxl.Workbook(), io.BytesIO()
    book.remove(book.active)
    for i, rows in enumerate(sheets):
        sheet = book.create_sheet(f"s{i}")
        for row in rows:
            sheet.append(row)
    book.save(out)
    return out.getvalue()


def protected() -> bytes:
    """An Excel file that wants a password."""
    from msoffcrypto.format.ooxml import OOXMLFile

    out = io.BytesIO()
    OOXMLFile(io.BytesIO(workbook([["a", "b"], [1, 2]]))).encrypt("secret", out)
    return out.getvalue()


def parquet(**columns: list) -> bytes:
    """A Parquet file."""
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


PACKED = gzip.compress(GOOD.encode())
BROKEN: dict[str, tuple[bytes | str | Callable[[], bytes], str]] = {
    "cut.csv.gz": (PACKED[: len(PACKED) // 2], "cannot be unpacked, it is cut off"),
    "cut.csv.bz2": (bz2.compress(GOOD.encode())[:300], "cannot be unpacked, it is cut off"),
    "cut.csv.xz": (lzma.compress(GOOD.encode())[:300], "cannot be unpacked, it is cut off"),
    "cut.jsonl.gz": (gzip.compress(b'{"a": 1}\n' * 99999)[:200], "cannot be unpacked, it is cut off"),
    "plain.csv.gz": (GOOD, "cannot be unpacked, it is cut off or not what its name says"),
    "plain.csv.zst": (GOOD, "cannot be unpacked, it is cut off or not what its name says"),
    "flipped.csv.gz": (PACKED[:2000] + b"\0\0\0\0" + PACKED[2004:], "cannot be unpacked"),
    "more.csv": (GOOD + "1,2,3,4\n", f"line {ROWS + 2}: 4 values where the header has 3 names (1,2,3,4…); mend the line"),
    "fewer.csv": (GOOD + "1,2\n" + GOOD, f"line {ROWS + 2}: 2 values where the header has 3 names (1,2…)"),
    "more-at-once.csv": ("a,b\n1,2,3\n4,5,6\n", "line 2: 3 values where the header has 2 names"),
    "fewer-at-once.csv": ("a,b,c\n1,2\n", "line 2: 2 values where the header has 3 names"),
    "open-quote.csv": (GOOD + '1,"x,yes\n' + GOOD, f"line {ROWS + 2}: a quote that is not closed"),
    "bare-quote.csv": (GOOD + '1,"x"y,yes\n', f"line {ROWS + 2}: a quote that is not closed, or not alone"),
    "long-line.csv": (lambda: b"a,b\n1," + b"x" * 200_000_000 + b"\n", "line 2: longer than 16 MB"),
    "zero.csv": (GOOD.encode() + b"1,\0,yes\n", f"byte {len(GOOD) + 2:,} is zero, so it is no text"),
    "zeros.csv": (bytes(4096), "byte 0 is zero"),
    "image.csv": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20, "is no text"),
    "half-utf16.csv": (("a,b\n1,2\n" * 50).encode("utf-16")[:-1], "begins like utf-16"),
    "empty.csv": ("", "empty; it needs a header and rows"),
    "blank.csv": ("\n\n\n", "empty; it needs a header and rows"),
    "header-only.csv": ("a,b\n", "a header but no rows"),
    "header-only.csv.gz": (gzip.compress(b"a,b\n"), "a header but no rows"),
    "twins.csv": ("a,b,a\n1,2,3\n", "more than one column is called 'a'"),
    "twins-by-case.csv": ("Age,age\n1,2\n", "more than one column is called 'Age', 'age'"),
    "twins-by-space.csv": ("a,a \n1,2\n", "more than one column is called 'a'"),
    "no-name.csv": ("a,,b\n1,2,3\n", "column 2 has no name; give it one"),
    "no-header.csv": ("1,2\n3,4\n", "no header, where names should be there is 1, 2"),
    "iris.csv": ("5.1,3.5,setosa\n4.9,3.0,setosa\n", "no header, where names should be there is 5.1, 3.5, setosa"),
    "title.csv": ("Report 2024\n\na,b,c\n1,2,3\n", "the first line has one field and those below it 3; remove what comes before the header"),
    "stray.csv": (("name,b\n" + "Zoë,1\n" * 50).encode() + b"Andr\xe9,2\n", "UTF-8, but for a byte or two"),
    "orders.csv": ("when,b\n13/02/2024,1\n02/13/2024,2\n", "column 'when': dates in two orders, '13/02/2024' and '02/13/2024'"),
    "late-order.csv": ("when,b\n" + "13/02/2024,1\n" * 3000 + "02/13/2024,2\n", "column 'when': dates in two orders"),
    "zones.csv": ("at,b\n2024-01-01T10:00:00+01:00,1\n2024-01-01T10:00:00,2\n", "column 'at': mixed time zones"),
    "text.parquet": ("a,b\n1,2\n", "no whole Parquet file; get it again"),
    "empty.parquet": ("", "no whole Parquet file"),
    "cut.parquet": (lambda: parquet(a=list(range(9999)))[:5000], "no whole Parquet file"),
    "lists.parquet": (lambda: parquet(a=[1, 2], tags=[["x"], ["y", "z"]]), "column 'tags' holds varchar[]; make columns of single values of it"),
    "records.parquet": (lambda: parquet(a=[{"x": 1}]), "column 'a' holds struct(x bigint)"),
    "bytes.parquet": (lambda: parquet(a=[b"\x01"]), "column 'a' holds blob"),
    "no-rows.parquet": (lambda: parquet(a=pa.array([], "int64")), "a header but no rows"),
    "twins.parquet": (lambda: parquet(**{"a": [1], "A": [2]}), "more than one column is called 'A', 'a'"),
    "spans.parquet": (lambda: parquet(a=pa.array([1], pa.duration("s"))), "column 'a' holds duration[s]; write it as a number of seconds"),
    "twins-by-case.jsonl": ('{"name": 1}\n{"Name": 2}\n', "more than one column is called 'Name'"),
    "broken.jsonl": ('{"a": 1}\n{"a": 2\n{"a": 3}\n', "not JSON"),
    "cut.json": ('[{"a": 1}, {"a"', "not JSON"),
    "number.json": ("42", "no JSON records"),
    "empty.jsonl": ("", "no JSON records"),
    "nested.jsonl": ('{"a": {"x": 1}}\n', "column 'a' holds struct"),
    "protected.xlsx": (protected, "protected by a password; save it without one"),
    "text.xlsx": (GOOD, "cannot be read as Excel"),
    "empty.xlsx": (lambda: workbook([]), "no sheet with a header and rows"),
    "twins.xlsx": (lambda: workbook([["a", "b", "a"], [1, 2, 3]]), "more than one column is called 'a'"),
    "no-name.xlsx": (lambda: workbook([["a", None, "b"], [1, 2, 3]]), "column 2 has no name"),
}


def written(folder: Path, files: dict[str, bytes | str | Callable[[], bytes]]) -> list[Path]:
    """Files in a folder, in the order given."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        content = content() if callable(content) else content
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return [folder / name for name in files]


@pytest.fixture(scope="module")
def broken(reader: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict]]:
    """What reading each broken file gives; the files stay as they are."""
    where = tmp_path_factory.mktemp("broken")
    files = written(where / "files", {name: content for name, (content, _) in BROKEN.items()})
    before = [(f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    yield dict(zip(BROKEN, read_each(reader, files, where / "tmp"), strict=True))
    assert [(f.stat().st_size, f.stat().st_mtime_ns) for f in files] == before and len(list((where / "files").iterdir())) == len(files)
    shutil.rmtree(where)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line(name: str, broken: dict[str, dict]) -> None:
    """It names the file, says what is wrong and where, and is no stack trace."""
    said = broken[name].get("error", f"read without a word: {broken[name]}")
    assert BROKEN[name][1] in said and name in said and "\n" not in said and len(said) < 400, said


FINE: dict[str, tuple[bytes | str | Callable[[], bytes], list[list]]] = {
    "semicolons.csv": ("a;b\n1,5;x\n2,5;y\n", [["1.5", "x"], ["2.5", "y"]]),
    "tabs.tsv": ("a\tb\n1\tx y\n", [["1", "x y"]]),
    "pipes.txt": ("a|b\n1|x\n", [["1", "x"]]),
    "carets.csv": ("a^b\n1^2\n3^4\n", [["1", "2"], ["3", "4"]]),
    "single-quotes.csv": ("'a';'b'\n'x;y';1\n'z';2\n", [["x;y", "1"], ["z", "2"]]),
    "late-quotes.csv": ("a,b\n" + "1,x\n" * 150 + '2,"y, ""z"""\n', [["1", "x"]] * 150 + [["2", 'y, "z"']]),
    "lines-in-quotes.csv": ('a,b\n1,"two\nlines"\n2,"one"\n', [["1", "two\nlines"], ["2", "one"]]),
    "one-column.csv": ("text\nhello world\nbye, world\n", [["hello world"], ["bye, world"]]),
    "excel-says.csv": ("sep=;\na;b\n1;2\n", [["1", "2"]]),
    "comments.csv": ("# made on a Monday\n# by hand\na,b\n1,2\n", [["1", "2"]]),
    "header-as-comment.csv": ("# id,name\n1,a\n2,b\n", [["1", "a"], ["2", "b"]]),
    "years.csv": ("country,2019,2020\nPeru,1,2\n", [["Peru", "1", "2"]]),
    "a1.csv": ("a,b\n9,wrong\n", [["9", "wrong"]]),
    "a[1].csv": ("a,b\n1,x\n", [["1", "x"]]),
    "wide.csv": (",".join(f"c{i}" for i in range(400)) + "\n" + ",".join(map(str, range(400))) + "\n", [[str(i) for i in range(400)]]),
    "windows.csv": ("a,b\r\n1,2\r\n3,4\r\n", [["1", "2"], ["3", "4"]]),
    "old-mac.csv": ("a,b\r1,2\r3,4\r", [["1", "2"], ["3", "4"]]),
    "mixed-ends.csv": ("a,b\r\n1,2\r\n3,4\n5,6\n", [["1", "2"], ["3", "4"], ["5", "6"]]),
    "western.csv": ("name,b\nZoë Müller,1\n".encode("cp1252"), [["Zoë Müller", "1"]]),
    "late-western.csv": (b"name,b\n" + b"Ada,1\n" * 199 + "Zoë,2\n".encode("cp1252"), [["Ada", "1"]] * 199 + [["Zoë", "2"]]),
    "russian.csv": (("имя,b\n" + "Мария Ивановна,1\n" * 30).encode("cp1251"), [["Мария Ивановна", "1"]] * 30),
    "utf16.csv": ("näme,b\nZoë,1\n".encode("utf-16"), [["Zoë", "1"]]),
    "marked.csv": ("näme,b\nZoë,1\n".encode("utf-8-sig"), [["Zoë", "1"]]),
    "packed.csv.bz2": (bz2.compress(b"a,b\n1,2\n"), [["1", "2"]]),
    "packed.csv.xz": (lzma.compress(b"a,b\n1,2\n"), [["1", "2"]]),
    "packed.csv.zst": (lambda: pa.compress(b"a,b\n1,2\n", codec="zstd", asbytes=True), [["1", "2"]]),
    "packed.jsonl.gz": (gzip.compress(b'{"a": 1, "b": "x"}\n'), [["1", "x"]]),
    "codes.csv": ("zip,b\n00123,1\n04567,2\n", [["00123", "1"], ["04567", "2"]]),
    "late-code.csv": ("zip,b\n" + "1,1\n" * 199 + "007,2\n", [["1", "1"]] * 199 + [["007", "2"]]),
    "money.csv": ('paid,b\n"$1,200.50",1\n$3,2\n', [["1200.5", "1"], ["3.0", "2"]]),
    "thousands.csv": ('n,b\n"1,234",1\n12,2\n', [["1234", "1"], ["12", "2"]]),
    "dates.csv": ("when,b\n31.12.2024,1\n01.02.2024,2\n", [["2024-12-31 00:00:00", "1"], ["2024-02-01 00:00:00", "2"]]),
    "zones.csv": ("at,b\n2024-01-01T10:00:00+02:00,1\n2024-01-01T10:00:00Z,2\n", [["2024-01-01 08:00:00", "1"], ["2024-01-01 10:00:00", "2"]]),
    "afternoon.csv": ("at,b\n2024-01-02 3:04 PM,1\n2024-01-02 11:00 AM,2\n", [["2024-01-02 15:04:00", "1"], ["2024-01-02 11:00:00", "2"]]),
    "offsets.csv": ("at,b\n2024-01-02 10:00 +01:00,1\n2024-01-02 10:00-05,2\n", [["2024-01-02 09:00:00", "1"], ["2024-01-02 15:00:00", "2"]]),
    "late-offset.csv": ("at,b\n" + "2024-01-02 10:00:00,1\n" * 199 + "2024-01-02 10:00:00 Mars,2\n", [["2024-01-02 10:00:00", "1"]] * 199 + [["2024-01-02 10:00:00 Mars", "2"]]),
    "infinite.csv": ("a,b\n1.5,1\n-inf,2\n", [["1.5", "1"], ["None", "2"]]),
    "spaced-code.csv": ("a, b\n" + "1, 5\n" * 199 + "2, 007\n", [["1", "5"]] * 199 + [["2", "007"]]),
    "one-comma.csv": ("kg;eur\n1,234;1,5\n2,345;2,75\n", [["1.234", "1.5"], ["2.345", "2.75"]]),
    "euros.csv": ("a;b\n1.234,50 €;1\n99 €;2\n", [["1234.5", "1"], ["99.0", "2"]]),
    "markers.csv": ("a,b\n1,?\n-,x\nNA,null\n3,y\n", [["1.0", "None"], ["None", "x"], ["None", "None"], ["3.0", "y"]]),
    "spaces.csv": ("a, b\n1, ?\n2, State\n", [["1", "None"], ["2", "State"]]),
    "big-ids.csv": ("id,b\n12345678901234567890,1\n9007199254740993,2\n", [["12345678901234567890", "1"], ["9007199254740993", "2"]]),
    "big-ids-with-gap.csv": ("id,b\n12345678901234567,1\n12345678901234568,2\n,3\n", [["12345678901234567", "1"], ["12345678901234568", "2"], ["None", "3"]]),
    "list.json": ('[{"a": 1, "b": "007"}, {"a": 2.5, "b": "x"}]', [["1.0", "007"], ["2.5", "x"]]),
    "gaps.jsonl": ('{"a": 1}\n{"b": true}\n', [["1.0", "None"], ["None", "True"]]),
    "nothing.jsonl": ('{"a": 1, "b": null}\n', [["1", "None"]]),
    "keys.jsonl": (json.dumps({f"k{i}": i for i in range(250)}) + "\n", [[str(i) for i in range(250)]]),
    "sparse.jsonl": ("".join(json.dumps({f"k{i}": i}) + "\n" for i in range(30)), [[str(float(i)) if i == j else "None" for j in range(30)] for i in range(30)]),
    "mixed.jsonl": ('{"a": 1}\n{"a": "x"}\n', [["1"], ["x"]]),
    "sheets.xlsx": (lambda: workbook([], [["a", "b"], [1, "x"], [2.5, None]], [["c"], [1]]), [["1.0", "x"], ["2.5", "None"]]),
    "zoned.parquet": (lambda: parquet(at=pa.array([0], pa.timestamp("us", tz="America/New_York"))), [["1970-01-01 00:00:00"]]),
    "nothing.parquet": (lambda: parquet(a=[1], b=[None]), [["1", "None"]]),
    "decimals.parquet": (lambda: parquet(a=pa.array([1, 2], pa.decimal128(9, 2)), b=["?", " x "]), [["1", "None"], ["2", "x"]]),
}


@pytest.fixture(scope="module")
def fine(reader: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What reading each odd but sound file gives."""
    where = tmp_path_factory.mktemp("fine")
    files = written(where / "files", {name: content for name, (content, _) in FINE.items()})
    return dict(zip(FINE, read_each(reader, files, where / "tmp"), strict=True))


@pytest.mark.parametrize("name", FINE)
def test_an_odd_file_is_read(name: str, fine: dict[str, dict]) -> None:
    """Whatever its delimiter, quotes, encoding, packing and forms of numbers."""
    assert fine[name].get("rows") == FINE[name][1], fine[name]


KNOWN = """
import json, sys
from churn.tables import opened
from churn.values import FORMS
HELD = {"BIGINT": "DOUBLE", "DOUBLE": "DOUBLE", "VARCHAR": "VARCHAR", "BOOLEAN": "BOOLEAN"}

def taken(path, known):
    with opened(path, known) as table:
        kinds = dict(zip(table.names, map(str, table.con.sql(table.sql).types)))
        odd = {note.partition(": ")[0] for note in table.notes if note.partition(": ")[2] in {*FORMS, "times, in UTC"}}  # written in a form of its own
        rows = table.con.sql(table.sql).fetchall()
        odd |= {name for i, name in enumerate(table.names) if any(isinstance(row[i], int) and abs(row[i]) > 2**53 for row in rows)}  # more digits than a number has
        return rows, table.markers, {name: HELD[kind] for name, kind in kinds.items() if name not in odd and kind in HELD}

def number(text):
    try: return float(text)
    except ValueError: return None

def alike(a, b):  # a text that is a number may have become one
    return a == b or (isinstance(a, str) and isinstance(b, float) and number(a) == b)

for path in sys.argv[1:]:
    rows, markers, known = taken(path, {})
    wrong = {name: "DOUBLE" for name, kind in known.items() if kind == "VARCHAR"}
    believed, contradicted = taken(path, known), taken(path, {**known, **wrong})
    print(json.dumps({"known": [rows == believed[0], markers == believed[1]], "wrong": [bool(wrong), len(rows) == len(contradicted[0]) and all(map(alike, sum(rows, ()), sum(contradicted[0], ()))), markers == contradicted[1]], "shown": str([rows, believed, contradicted, markers])[:1000]}))
"""


def test_what_is_known_is_read_alike(reader: Path, tmp_path: Path) -> None:
    """With a contract a CSV is read in one pass: the same values, and the same markers said aloud, as without; and where a column is not what the contract has it for."""
    rng = random.Random(1)
    odd = {f"odd{i}.csv": "n,b,t\n" + "".join(f"{rng.choice(['1', '2.5', *pool])},{rng.choice(['true', 'FALSE', '?'])},{rng.choice(['a', ' b', 'NA', *pool])}\n" for _ in range(40))
           for i, pool in enumerate([["?"], ["inf"], ["nan"], ["-", "1e400"], ["None"], [" 3"], ["007"], ["1_000"], ["12345678901234567890"], ["x"], ["0x10"]])}
    files = written(tmp_path / "files", {name: content for name, (content, _) in FINE.items()} | {f"{i:02}.csv": random_table(rng)[0] for i in range(30)} | odd)
    said = [json.loads(line) for line in in_project(reader, "python", "-c", KNOWN, *map(str, files)).splitlines()]
    for file, each in zip(files, said, strict=True):
        assert each["known"] == [True, True] and each["wrong"][1:] == [True, True], (file.name, file.read_bytes()[:200], each)
    assert sum(each["wrong"][0] for each in said) > 40


def test_a_killed_run_leaves_nothing_for_long(reader: Path, tmp_path: Path) -> None:
    """The rows of a run that was killed lie in the temporary folder until the next one reads a table; those of a run that goes on stay."""
    (tmp_path / "a.csv").write_text(GOOD)
    hold = "import sys, time; from churn.tables import opened\nwith opened(sys.argv[1]): print('open', flush=True); time.sleep(600)"
    holders = [subprocess.Popen([reader / ".venv/bin/python", "-c", hold, tmp_path / "a.csv"], stdout=subprocess.PIPE, env=environment(TMPDIR=str(tmp_path))) for _ in range(2)]
    for holder in holders:
        assert holder.stdout.readline() == b"open\n"
    folders = {f for f in tmp_path.iterdir() if f.is_dir()}
    holders[0].kill()
    holders[0].wait()
    for folder in folders:
        os.utime(folder, (0, 0))
    in_project(reader, "python", "-c", f"from churn.tables import read; read({str(tmp_path / 'a.csv')!r})", TMPDIR=str(tmp_path))
    left = {f for f in tmp_path.iterdir() if f.is_dir() and not f.name.startswith("uv-")}
    holders[1].kill()
    holders[1].wait()
    assert len(folders) == 2 and len(left) == 1 and left < folders


def random_table(rng: random.Random) -> tuple[bytes, list[list[str]]]:
    """A CSV of a random dialect, as Python's csv module writes it, and its rows."""
    texts = ["x", "a b", "3", "3.5", "two\nlines", 'say "hi"', "a,b", "c;d", "Zoë", "tab\there", "'", "it's", "#1", "-"]
    width = rng.randint(2, 6)
    rows = [[rng.choice(texts[:2])] + [rng.choice(texts) for _ in range(width - 1)] for _ in range(rng.choice([3, 40, 3000]))]
    out = io.StringIO()
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    writer = csv.writer(out, delimiter=rng.choice(",;\t|"), quoting=quoting, lineterminator=rng.choice(["\n", "\r\n"]))
    writer.writerow([f"c{i}" for i in range(width)])
    writer.writerows(rows)
    return out.getvalue().encode(rng.choice(["utf-8", "utf-8-sig", "utf-16", "cp1252"])), rows


def test_no_row_is_lost(reader: Path, tmp_path: Path) -> None:
    """Sixty random tables come back with every row and every value that Python's own csv module wrote."""
    rng = random.Random(0)
    made = [random_table(rng) for _ in range(60)]
    files = written(tmp_path / "files", {f"{i:02}.csv": content for i, (content, _) in enumerate(made)})
    for file, (_, rows), said in zip(files, made, read_each(reader, files, tmp_path / "tmp"), strict=True):
        assert said.get("count") == len(rows), (file.read_bytes()[:300], said)
        wanted = [["None" if v == "-" else v for v in row] for row in rows[:200]]
        assert [[v.removesuffix(".0") for v in row] for row in said["rows"]] == wanted, (file.read_bytes()[:300], said["rows"][:3])


# Several files, as one table


def test_a_folder_is_one_table(reader: Path, tmp_path: Path) -> None:
    """Files of one table follow each other by name, whatever the order of their columns; a note beside them is none; others must fit."""
    months = tmp_path / "months"
    written(months, {"1.csv": "a,b\n1,x\n", "2.csv.gz": gzip.compress(b"b;a\ny;2,5\n"), "readme.txt": "mine"})
    written(tmp_path, {"p1.parquet": parquet(a=[1, 2]), "p2.parquet": parquet(a=[2.5])})
    written(tmp_path / "odd", {"1.csv": "a,b\n1,x\n", "2.csv": "a,c\n1,x\n"})
    (tmp_path / "none").mkdir()
    files = [months, tmp_path / "p*.parquet", tmp_path / "odd", tmp_path / "none", tmp_path / "none/x*.csv", tmp_path / "nowhere.csv"]
    both, parquets, odd, none, pattern, nowhere = read_each(reader, files, tmp_path / "tmp")
    assert both["rows"] == [["1.0", "x"], ["2.5", "y"]] and parquets["rows"] == [["1.0"], ["2.0"], ["2.5"]]
    assert "2.csv: its columns are not those of 1.csv: it lacks 'b', it has 'c' more; give all files of a table the same columns" in odd["error"]
    assert all("no table here; put one there that ends in .csv" in said["error"] for said in (none, pattern, nowhere))


@pytest.mark.parametrize("name", ["german_credit.jsonl", "months", "sheet.xlsx", "semicolons.csv"])
def test_generation_takes_it(name: str, tmp_path: Path, shared_environment: None) -> None:
    """A project on JSON lines, a folder of files, Excel and a German CSV; what was assumed is said aloud; the original stays as it was."""
    source = tmp_path / name
    if name == "german_credit.jsonl":
        source = table(name)
    elif name == "months":
        written(source, {f"{m}.csv": "age,left\n" + "".join(f"{m * 10 + i * i},{'yes' if i % 3 else 'no'}\n" for i in range(9)) for m in (1, 2)})
    elif name == "sheet.xlsx":
        source.write_bytes(workbook([["age", "left"], *[[20 + i * i, "yes" if i % 3 else "no"] for i in range(30)]]))
    else:
        source.write_bytes(("größe;paid;left\n" + "".join(f"{i * i};{i * i},5;{'ja' if i % 3 else 'nein'}\n" for i in range(30))).encode("cp1252"))
    (tmp_path / "out").mkdir()
    done = cookiecutter(tmp_path / "out", data=str(source), project="churn")
    assert done.code == 0 and "later" not in done.out, done.out + done.err
    raw = {f.name for f in (tmp_path / "out/churn/data/raw").iterdir() if not f.name.startswith(".")}
    assert raw == ({"1.csv", "2.csv"} if name == "months" else {name})
    said = {"german_credit.jsonl": "1,000 rows, 20 columns", "months": "18 rows, 1 columns", "sheet.xlsx": "30 rows, 1 columns", "semicolons.csv": "30 rows, 2 columns"}
    assert said[name] in done.out, done.out
    if name == "semicolons.csv":
        assert "paid: decimal commas" in done.out and "semicolons.csv is read as cp1252" in done.out


def test_generation_refuses_twins(tmp_path: Path) -> None:
    """Files of one name from two folders would overwrite each other in data/raw."""
    for month in ("jan", "feb"):
        written(tmp_path / month, {"sales.csv": "a,b\n1,2\n"})
    done = cookiecutter(tmp_path, data=f"{tmp_path}/*/sales.csv", project="churn")
    assert done.code != 0 and "matches more than one file called 'sales.csv'" in done.err and not (tmp_path / "churn").exists()


@pytest.mark.parametrize("address", ["postgresql://me:{}@h/db?table=x", "postgresql://me:a/{}@h/db?table=x", "postgresql://me@h/db?password={}&table=x", "mysql://me:{}@h/db?table=x",
                                     "https://me:{}@h/x.csv", "https://h/x.csv?token={}"])
def test_an_address_with_a_secret_is_refused(address: str, tmp_path: Path) -> None:
    """Wherever it stands in the address; the message does not repeat it."""
    done = cookiecutter(tmp_path, data=address.format(SECRET), project="churn")
    assert done.code != 0 and "the address holds a password or token, which would be written down" in done.err and SECRET not in done.out + done.err


def test_a_cut_download_is_refused(tmp_path: Path, shared_environment: None) -> None:
    """Fewer bytes than the server announced: no project."""
    class Cut(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"a,b\n1,2\n")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cut) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = cookiecutter(tmp_path, data=f"http://127.0.0.1:{server.server_port}/x.csv", project="churn")
        server.shutdown()
    assert done.code != 0 and "cannot be read" in done.err and list(tmp_path.iterdir()) == [], done.out + done.err


@pytest.mark.parametrize("name", ["cut.csv.gz", "protected.xlsx", "lists.parquet"])
def test_generation_refuses_a_broken_file(name: str, tmp_path: Path, shared_environment: None) -> None:
    """One line, an exit code, and no folder."""
    source, = written(tmp_path, {name: BROKEN[name][0]})
    done = cookiecutter(tmp_path, data=str(source), project="churn")
    assert done.code != 0 and BROKEN[name][1] in done.err and "Traceback" not in done.err, done.err
    assert list(tmp_path.iterdir()) == [source]


# Databases

@pytest.fixture(scope="module")
def postgres(postgres_server: Postgres) -> Postgres:
    """A server with a table of customers and a large one."""
    server = postgres_server
    server.sql("CREATE TABLE customers AS SELECT i AS id, 20 + i % 50 AS age, (i * 1.5)::numeric(9, 2) AS paid, CASE WHEN i % 7 = 0 THEN NULL ELSE 'city ' || i % 5 END AS city,"
               " date '2024-01-01' + i AS since, i % 3 = 0 AS churned FROM generate_series(1, 300) i")
    server.sql("CREATE TABLE large AS SELECT i, md5(i::text) AS t FROM generate_series(1, 400000) i")
    server.sql("CREATE SEQUENCE visitors")
    return server


def fetch(project: Path, address: str, **more: str) -> Done:
    """Read from a database into a project."""
    return run("uv", "run", "--no-sync", "churn", "fetch", address, cwd=project, **more)


@pytest.fixture
def with_driver(reader: Path) -> Path:
    """A project whose environment has PostgreSQL's driver."""
    run("uv", "pip", "install", "--quiet", "psycopg[binary]>=3.2", cwd=reader, VIRTUAL_ENV=str(reader / ".venv"))
    return reader


def test_postgres(postgres: Postgres, with_driver: Path, tmp_path: Path) -> None:
    """A table and a query are read with their types; the file knows where it came from; the password is nowhere."""
    project = with_driver
    done = fetch(project, postgres.address("table=customers"), PGPASSWORD=SECRET)
    assert done.code == 0 and "data/raw/customers.parquet: 300 rows" in done.out, done.err
    file = project / "data/raw/customers.parquet"
    frame = pq.read_table(file)
    assert frame["paid"][1].as_py() == 3.0 and frame["churned"][2].as_py() is True and str(frame["since"][0]) == "2024-01-02" and frame["city"].null_count == 42
    assert json.loads(json.dumps(pq.read_metadata(file).metadata[b"origin"].decode())).startswith("postgresql://me@127.0.0.1")
    assert SECRET.encode() not in file.read_bytes()
    file.unlink()
    done = fetch(project, postgres.address("query=SELECT age, churned FROM customers ORDER BY id LIMIT 7"), DATABASE_PASSWORD=SECRET)
    assert done.code == 0 and "data/raw/query.parquet: 7 rows" in done.out, done.err
    (project / "data/raw/query.parquet").unlink()


@pytest.mark.parametrize(("what", "password", "said"), [
    ("table=customers", "wrong", "password authentication failed"),
    ("table=nowhere", SECRET, 'relation "nowhere" does not exist'),
    ("query=SELEC 1", SECRET, "syntax error"),
    ("query=SELECT ARRAY[1,2] AS both", SECRET, "column 'both' holds bigint[]"),
    ("query=SELECT 1 AS a, 2 AS a", SECRET, "more than one column is called 'a'"),
    ("query=SELECT 1 AS a WHERE false", SECRET, "no rows"),
    ("query=DROP TABLE customers", SECRET, "syntax error"),
    ("query=SELECT nextval('visitors')", SECRET, "read-only transaction"),
    ("", SECRET, "say what to read, with ?table="),
])
def test_postgres_refuses(what: str, password: str, said: str, postgres: Postgres, with_driver: Path) -> None:
    """One line without the password, an exit code, and no file."""
    done = fetch(with_driver, postgres.address(what), PGPASSWORD=password)
    assert done.code == 1 and said in done.err and len(done.err.splitlines()) == 1 and password not in done.err, done.err
    assert not list((with_driver / "data/raw").glob("*.parquet")) and not list((with_driver / "data/raw").glob(".*.part"))
    assert postgres.sql("SELECT count(*) FROM customers").strip() == "300"


def test_nobody_answers(with_driver: Path) -> None:
    """A port where no server is."""
    done = fetch(with_driver, "postgresql://me@127.0.0.1:9/db?table=x", PGPASSWORD=SECRET)
    assert done.code == 1 and "refused" in done.err and len(done.err.splitlines()) == 1, done.err


def test_a_server_that_vanishes(postgres: Postgres, with_driver: Path) -> None:
    """The connection ends while rows are read: one line, and no file, nor half of one."""
    slow = postgres.address("query=SELECT i, t, pg_sleep(0.00002) IS NULL AS s FROM large")
    command = ["uv", "run", "--no-sync", "churn", "fetch", slow]
    reading = subprocess.Popen(command, cwd=with_driver, env=environment(PGPASSWORD=SECRET), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(200):
        time.sleep(0.1)
        if postgres.sql("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()").strip() != "0":
            break
    time.sleep(1)
    assert "t" in postgres.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()")
    out, err = reading.communicate(timeout=60)
    assert reading.returncode == 1 and len(err.splitlines()) == 1 and "postgresql://me@127.0.0.1" in err, out + err
    assert not list((with_driver / "data/raw").glob("*.parquet")) and not list((with_driver / "data/raw").glob(".*.part"))


def shop(path: Path) -> Path:
    """An SQLite database."""
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE customers (age INTEGER, paid REAL, odd, left TEXT)")
        database.executemany("INSERT INTO customers VALUES (?, ?, ?, ?)", [(20 + i * i, i * i / 2, i if i % 2 else f"x{i}", "yes" if i % 3 else "no") for i in range(60)])
    database.close()
    return path


def test_generation_from_sqlite(tmp_path: Path, shared_environment: None) -> None:
    """A project on a database's table, named relative to where the user is."""
    before = shop(tmp_path / "shop.db").read_bytes()
    (tmp_path / "out").mkdir()
    done = cookiecutter(tmp_path / "out", data="sqlite:///../shop.db?table=customers", project="churn")
    assert done.code == 0 and "later" not in done.out and "data/raw/customers.parquet: 60 rows" in done.out and "60 rows, 2 columns" in done.out, done.out + done.err
    assert (tmp_path / "shop.db").read_bytes() == before


@pytest.mark.parametrize(("address", "said"), [
    ("sqlite:///none.db?table=x", "there is no file"),
    ("sqlite:///shop.db?table=nowhere", "no such table: nowhere"),
    ("sqlite:///shop.db?query=DELETE FROM customers", "readonly"),
    ("sqlite:///text.db?table=x", "not a database"),
])
def test_generation_from_a_bad_database(address: str, said: str, tmp_path: Path, shared_environment: None) -> None:
    """One line, no folder, and the database as it was."""
    before = shop(tmp_path / "shop.db").read_bytes()
    (tmp_path / "text.db").write_text("hello " * 999)
    done = cookiecutter(tmp_path, data=address, project="churn")
    assert done.code != 0 and said in done.err and "Traceback" not in done.err, done.out + done.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shop.db", "text.db"] and (tmp_path / "shop.db").read_bytes() == before


def test_a_password_is_written_nowhere(postgres: Postgres, tmp_path: Path, shared_environment: None) -> None:
    """An address with a password is refused; with the password in the environment, a project is made, run and tracked, and no file of it, of git's or of cookiecutter's holds it."""
    with_password = postgres.address("table=customers").replace("me@", f"me:{SECRET}@")
    (tmp_path / "out").mkdir()
    done = cookiecutter(tmp_path / "out", data=with_password, project="churn")
    assert done.code != 0 and "the address holds a password or token, which would be written down" in done.err and SECRET not in done.err
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSWORD", SECRET)
        project = generated(tmp_path / "out", data=postgres.address("table=customers"), target="churned", project="churn")
        in_project(project, "dvc", "repro", "prepare")
    for file in (f for f in project.rglob("*") if f.is_file() and ".venv" not in f.parts):
        assert SECRET.encode() not in file.read_bytes(), file
    assert SECRET not in subprocess.run(["git", "log", "-p", "--all"], cwd=project, capture_output=True, text=True).stdout
