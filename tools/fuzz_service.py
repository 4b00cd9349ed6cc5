"""Many bodies at a running service: valid ones, odd ones, broken ones, and noise. It ends with 0 where each got a proper answer.

    python tools/fuzz_service.py http://127.0.0.1:3000 [--cases 100000] [--seed 0] [--only 4711]

A case is made from the seed and its number alone, so `--only` repeats it, and shows it. Nothing that is sent may give a 5xx but the 504 of a
short deadline, leave a connection waiting for 10 seconds, or end the worker; an error names a field that is there or was sent; what is accepted as
rows is accepted as columns, with the same answers, and as an Arrow stream, where its types allow one.
"""

import argparse
import asyncio
import io
import json
import math
import random
import re
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

JSON, ARROW, PARQUET = "application/json", "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"
WITHIN = 10.0  # seconds for an answer
ODD_NUMBERS = [0, -0.0, 1, -1, 0.1, 1e-320, 5e-324, 1.7976931348623157e308, -1.7976931348623157e308, 1e16, 2**53 + 1, 2**63, -(2**63), 2**64, 1e200, 3.141592653589793]
ODD_TEXT = ["", " ", "?", "NA", "nan", "null", "None", "-", "\0", "\ud83d\ude00", "ünï", "a" * 5000, "large", " small ", "low", "true", "1", "1.5", "-1", "2024-12-31", "2024-12-31T23:59:59.999999-12:00", "0001-01-01T00:00:00+23:59",
            "9999-12-31T23:59:59-23:59", "2024-W53-7", "2024-02-30", "20240101T000000Z", "late good", "rows", "columns", "</script>", "'; --", "%s%n", "__class__", "\u202e", "\ufeff"]
ODD = [None, True, False, [], {}, [1], {"a": 1}, *ODD_NUMBERS, *ODD_TEXT]
SPELT = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "7" * 400, "7" * 5000, "0." + "0" * 400 + "1", "1E5", "-0", "01", "1.", "+1", "0x1", "tru", "[", "{", '"', '"\\ud800"', '"\\u0000"', "\\", "'x'", "1,2", "null", "[" * 200 + "]" * 200, '{"a":' * 200 + "1" + "}" * 200, "//x", "1 2"]
HEADERS = {"content-type": [JSON, ARROW, PARQUET, "application/json; charset=utf-16", "APPLICATION/JSON", "application/jsonx", "text/plain", "", ";", "application/vnd.bentoml+pickle", "multipart/form-data", "é"],
           "accept": ["*/*", JSON, ARROW, "text/html", "", ";;", "application/json;q=0"], "x-timeout-ms": ["1", "50", "10000", "0", "-1", "1e3", "9" * 30, "", "x", "00", "0" * 300 + "5000"], "x-priority": ["bulk", "interactive", "", "BULK", "x"],
           "authorization": ["Bearer x", "", "Basic eDp5", "Bearer " + "x" * 3000], "content-encoding": ["gzip", "zstd"], "origin": ["https://elsewhere.example", "null"], "x-forwarded-for": ["1.1.1.1"], "cookie": ["a=b"], "traceparent": ["00-x-y-01", ""],
           "host": ["", "[::1"], "expect": ["x"], "range": ["bytes=0-1"], "x-http-method-override": ["DELETE"]}


class Case:
    """A request, and what may be said to it."""

    def __init__(self, what: str, body: bytes, kind: str = JSON, rows: list[dict] | None = None, path: str = "/predict", **headers: str) -> None:
        self.what, self.body, self.rows, self.path = what, body, rows, path
        self.headers = {"content-type": kind} | headers

    def head(self) -> bytes:
        lines = "".join(f"{name}: {value}\r\n" for name, value in ({"host": "x"} | self.headers).items())
        return f"POST {self.path} HTTP/1.1\r\n{lines}content-length: {len(self.body)}\r\n\r\n".encode("latin-1", "replace")


def as_json(value: Any) -> bytes:
    """JSON, which Python's own NaN is not."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass")


class Maker:
    """Makes cases."""

    def __init__(self, info: dict, seed: int) -> None:
        self.columns, self.examples, self.seed = info["columns"], info["examples"], seed
        self.names = [column["name"] for column in self.columns]
        self.valid = [self.stream(self.examples[:3]), self.parquet(self.examples[:3])]

    def case(self, number: int) -> Case:
        """One, from its number alone."""
        draw = random.Random(f"{self.seed} {number}")
        make = draw.choices([self.rows, self.columns_of, self.shape, self.spelt, self.broken, self.noise, self.table, self.broken_table, self.headed, self.explained], [30, 8, 10, 10, 14, 4, 8, 8, 5, 3])[0]
        return make(draw)

    # what is sent -----------------------------------------------------------------------------
    def value(self, draw: random.Random, column: dict) -> Any:
        """A value that mostly fits."""
        if draw.random() < 0.08:
            return None
        if column["type"] == "number":
            low, high = column["minimum"], column["maximum"]
            near = [v for v in (low, high, *column["valid"]) if v is not None] or [0.0]
            return draw.choice([lambda: draw.uniform(low or 0, high or 1), lambda: draw.choice(near), lambda: math.nextafter(draw.choice(near), draw.choice([-math.inf, math.inf])), lambda: draw.choice(ODD_NUMBERS), lambda: int(draw.choice(near)), lambda: draw.choice(near) * 10 ** draw.randint(-20, 20)])()
        if column["type"] in ("category", "ordered"):
            return draw.choice([*column["categories"], *column["known"], draw.choice(ODD_TEXT)])
        if column["type"] == "boolean":
            return draw.random() < 0.5
        if column["type"] == "date":
            return f"{draw.randint(1, 9999):04}-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}" + draw.choice(["", "T12:00:00", "T23:59:59.5Z", "T00:00:00+14:00", " 10:00"]) if draw.random() < 0.8 else draw.choice(ODD_TEXT)
        return " ".join(draw.choices(["late", "good", "very", *ODD_TEXT[:12]], k=draw.randint(0, 30)))

    def row(self, draw: random.Random, odd: float) -> dict:
        """A row; some values are odd."""
        if draw.random() < 0.5:
            row = dict(draw.choice(self.examples))
            for column in draw.sample(self.columns, k=min(len(self.columns), draw.randint(0, 3))):
                row[column["name"]] = self.value(draw, column)
        else:
            row = {column["name"]: self.value(draw, column) for column in self.columns}
        if draw.random() < odd:
            row[draw.choice(self.names)] = draw.choice(ODD)
        return row

    def some(self, draw: random.Random) -> list[dict]:
        odd = draw.choice([0, 0, 0.1, 0.5])
        return [self.row(draw, odd) for _ in range(draw.choice([1, 1, 1, 2, 3, 7, 40]))]

    def rows(self, draw: random.Random) -> Case:
        rows = self.some(draw)
        return Case("rows", as_json({"rows": rows if len(rows) > 1 or draw.random() < 0.7 else rows[0]}), rows=rows)

    def columns_of(self, draw: random.Random) -> Case:
        columns = {name: [row[name] for row in self.some(draw)[:1] * 3] for name in self.names}
        if draw.random() < 0.5:
            name = draw.choice(self.names)
            columns[name] = draw.choice([columns[name][:-1], [], None, 1, {}, columns[name] * 2, [columns[name]]])
        return Case("columns", as_json({"columns": columns}))

    def shape(self, draw: random.Random) -> Case:
        """Something else than rows of columns."""
        row, rest = self.row(draw, 0.3), draw.choice(ODD)
        name = draw.choice(self.names)
        less = {k: v for k, v in row.items() if k != name}
        made = [{"rows": [row, rest]}, {"rows": rest}, {"columns": rest}, rest, [row], row, {"rows": [row], "columns": {}}, {"rows": [row], "more": rest}, {"rows": [less]}, {"columns": {k: [v] for k, v in less.items()}}, {"rows": [row | {str(rest): 1}]},
                {"rows": [row | {name + " ": 1}]}, {"rows": [row | {name: {name: rest}}]}, {"rows": [[*row.values()]]}, {"ROWS": [row]}, {"rows": [row] * 3 + [less]}, {"": rest}, {"rows": {"0": row}}, {}, {"columns": {name: rest}}]
        return Case("shape", as_json(draw.choice(made)))

    def spelt(self, draw: random.Random) -> Case:
        """A value in a spelling that Python would not write."""
        row = self.row(draw, 0) | {(name := draw.choice(self.names)): "HERE"}
        body = as_json({"rows": [row]} if draw.random() < 0.7 else {"columns": {k: [v] for k, v in row.items()}}).replace(b'"HERE"', draw.choice(SPELT).encode())
        if draw.random() < 0.2:
            body = body.replace(f'"{name}"'.encode(), json.dumps("".join(f"\\u{ord(c):04x}" for c in name)).replace("\\\\", "\\").encode())
        if draw.random() < 0.15:
            body = body.replace(b"}]", b"," + json.dumps(name).encode() + b":1}]")
        return Case("spelt", body)

    def broken(self, draw: random.Random) -> Case:
        return Case("broken", self.spoil(draw, draw.choice([self.rows, self.columns_of, self.shape])(draw).body[:4000]))

    def noise(self, draw: random.Random) -> Case:
        size = draw.choice([0, 1, 5, 50, 1000])
        made = [lambda: draw.randbytes(size), lambda: "".join(draw.choices('{}[]",:\\ 0123456789.eE+-truefalsn rows columns', k=size)).encode(), lambda: b"\xff\xfe" + draw.randbytes(size), lambda: bytes([draw.randrange(256)]) * size * 20]
        return Case("noise", draw.choice(made)(), draw.choice([JSON, JSON, ARROW, PARQUET]))

    def spoil(self, draw: random.Random, body: bytes) -> bytes:
        """A few bytes are not what they were."""
        spoilt = bytearray(body)
        for _ in range(draw.choice([1, 1, 2, 4, 16])):
            if not spoilt:
                break
            at, size = draw.randrange(len(spoilt)), draw.choice([1, 1, 4, 8, 64])
            what = draw.randrange(8)
            if what == 0: spoilt[at] ^= 1 << draw.randrange(8)
            elif what == 1: spoilt[at:at + size] = draw.randbytes(size)
            elif what == 2: del spoilt[at:at + size]
            elif what == 3: spoilt[at:at] = draw.randbytes(size)
            elif what == 4: spoilt[at:at + size] = draw.choice([b"\0", b"\xff", b"\x7f", b"\x80"]) * size
            elif what == 5: del spoilt[at:]
            elif what == 6: spoilt[at:at] = spoilt[(other := draw.randrange(len(spoilt))):other + size]
            else: spoilt[at:at + 4] = draw.choice([0, 1, -1, 2**31 - 1, -(2**31), 2**16, 255]).to_bytes(4, "little", signed=True)
        return bytes(spoilt)

    def array(self, values: list) -> pa.Array:
        return pa.array(values)

    def frame(self, rows: list[dict]) -> pa.Table:
        return pa.table({name: pa.array([row[name] for row in rows]) for name in self.names})

    def stream(self, rows: list[dict] | pa.Table, **how: Any) -> bytes:
        table, sink = rows if isinstance(rows, pa.Table) else self.frame(rows), io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**how)) as writer:
            writer.write_table(table)
        return sink.getvalue()

    def parquet(self, rows: list[dict] | pa.Table, **how: Any) -> bytes:
        sink = io.BytesIO()
        pq.write_table(rows if isinstance(rows, pa.Table) else self.frame(rows), sink, **how)
        return sink.getvalue()

    def table(self, draw: random.Random) -> Case:
        """A table, perhaps of other types, lengths and names."""
        table = self.frame(draw.sample(self.examples, k=min(len(self.examples), draw.choice([1, 3, 20]))))
        at, n = draw.randrange(len(self.names)), len(table)
        odd: list[Callable[[], Any]] = [lambda: table, lambda: table.drop([self.names[at]]), lambda: table.append_column(draw.choice([self.names[at], "more", ""]), pa.nulls(n)), lambda: table.slice(0, 0), lambda: table.select(draw.sample(self.names, k=len(self.names)))]
        kinds = [pa.float32(), pa.float16(), pa.int8(), pa.int64(), pa.uint64(), pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.bool_(), pa.date32(), pa.date64(), pa.timestamp("s"), pa.timestamp("ns", "Asia/Tokyo"), pa.duration("us"), pa.time64("us"), pa.decimal128(38, 3), pa.null(), pa.list_(pa.int8()),
                 pa.struct([("a", pa.int8())]), pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.float64()), pa.run_end_encoded(pa.int32(), pa.float64())]
        values: list[Callable[[], list]] = [lambda: [None] * n, lambda: [draw.randint(0, 100) for _ in range(n)], lambda: [draw.choice(ODD_NUMBERS + [math.nan, math.inf]) for _ in range(n)], lambda: [draw.choice(ODD_TEXT) for _ in range(n)], lambda: [draw.randint(-2**62, 2**62) for _ in range(n)]]
        try:
            if draw.random() < 0.5:
                made = draw.choice(odd)()
            else:
                kind, data = draw.choice(kinds), draw.choice(values)()
                plain = pa.array(data, pa.int64()).cast(kind) if all(isinstance(v, int) for v in data) and not pa.types.is_run_end_encoded(kind) else pa.array(data, kind)
                made = table.set_column(at, self.names[at], plain)
            if draw.random() < 0.5:
                return Case("table", self.stream(made, compression=draw.choice([None, None, "zstd", "lz4"])), ARROW, accept=draw.choice([JSON, ARROW]))
            return Case("table", self.parquet(made, compression=draw.choice(["none", "snappy", "zstd"]), use_dictionary=draw.random() < 0.5, data_page_version=draw.choice(["1.0", "2.0"])), PARQUET)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            return Case("table", self.valid[0], ARROW)

    def broken_table(self, draw: random.Random) -> Case:
        place = draw.randrange(2)
        body = self.valid[place] if draw.random() < 0.6 else (self.stream if not place else self.parquet)(self.examples[:draw.randint(1, 5)], compression=["zstd", "snappy"][place] if draw.random() < 0.5 else [None, "none"][place])
        return Case("broken table", self.spoil(draw, body), [ARROW, PARQUET][place if draw.random() < 0.95 else 1 - place])

    def headed(self, draw: random.Random) -> Case:
        """Odd headers."""
        case = draw.choice([self.rows, self.table, self.noise])(draw)
        for name in draw.sample(list(HEADERS), k=draw.randint(1, 4)):
            case.headers[name] = draw.choice(HEADERS[name])
        case.what, case.rows = "headers", None
        return case

    def explained(self, draw: random.Random) -> Case:
        case = draw.choice([self.rows, self.shape, self.spelt, self.broken, self.columns_of])(draw)
        case.path, case.rows = "/explain", None
        return case


# what comes back ---------------------------------------------------------------------------------

class Wrong(Exception):
    """An answer that should not be."""


class Asker:
    """A connection, kept alive."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port, self.writer = host, port, None

    async def ask(self, case: Case) -> tuple[int, dict[str, str], bytes]:
        """Send, and read the answer. Raises Wrong where none comes."""
        for again in (False, True):
            try:
                if self.writer is None:
                    self.reader, self.writer = await asyncio.open_connection(self.host, self.port, limit=2**20)
                async with asyncio.timeout(WITHIN):
                    self.writer.write(case.head() + case.body)
                    head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
                    headers = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
                    body = await self.reader.readexactly(int(headers["content-length"]))
                if headers.get("connection") == "close":
                    self.writer.close()
                    self.writer = None
                return int(head[0].split()[1]), headers, body
            except TimeoutError:
                raise Wrong(f"no answer within {WITHIN} seconds") from None
            except (ConnectionError, asyncio.IncompleteReadError) as error:  # an idle connection may have been closed meanwhile
                self.writer = None
                if again:
                    raise Wrong(f"the connection broke: {error}") from None
        raise AssertionError


def check(case: Case, status: int, headers: dict[str, str], body: bytes, names: list[str]) -> None:
    """Whether an answer is a proper one. Raises Wrong."""
    if status not in (200, 400, 401, 413, 415, 429) and not (status == 504 and "x-timeout-ms" in case.headers):
        raise Wrong(f"status {status}: {body[:300]!r}")
    if "x-content-type-options" not in headers:
        raise Wrong("no security headers")
    if status == 200:
        if headers["content-type"] == JSON:
            answer = json.loads(body, parse_constant=lambda text: (_ for _ in ()).throw(Wrong(f"{text} in an answer")))
            if case.path == "/predict" and not all(0 <= p <= 1 for each in answer["predictions"] for p in each.get("probabilities", {}).values()):
                raise Wrong("a probability that is none")
        else:
            pa.ipc.open_stream(body).read_all()
        return
    if headers["content-type"] != JSON:
        raise Wrong(f"an error of type {headers['content-type']}")
    said = json.loads(body)
    if not isinstance(said.get("error"), str) or not said["error"] or set(said) - {"error", "field"} or "\n" in said["error"].strip():
        raise Wrong(f"an error that is none: {body[:300]!r}")
    if status == 400 and (field := said.get("field")):
        part = re.fullmatch(r"(?:rows|columns)\.(?:\d+\.)?(.*)", field, re.DOTALL)
        name = part[1] if part else field
        if name in ("body", "rows", "columns") or name in names or name in case.headers or name.isdigit():
            return
        spelt = case.body.decode("utf-8", "replace")
        if name[:60] not in spelt and json.dumps(name[:60])[1:-1] not in spelt and name[:60] not in re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), spelt) and not _sent(case.body, name):
            raise Wrong(f"the field {field[:100]!r} neither exists nor was sent")


def _sent(body: bytes, name: str) -> bool:
    """Whether a key was sent, in whatever spelling."""
    found: list[str] = []
    try:
        json.loads(body, object_pairs_hook=lambda pairs: found.extend(key for key, _ in pairs))
    except (ValueError, RecursionError):
        return any(re.sub(rb"[^ -~]", b"", name.encode())[i:i + 8] in body for i in range(max(1, len(name) - 8)))
    return any(key.startswith(name[:60]) for key in found)


def said(body: bytes) -> tuple:
    """What an answer holds, without its ids."""
    answer = json.loads(body)
    return [(each["prediction"], each.get("probabilities")) for each in answer["predictions"]], sorted(answer.get("warnings", []))


def equal(one: tuple, other: tuple) -> bool:
    """Whether two answers are the same."""
    close = lambda a, b: a == b or isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    return one[1] == other[1] and len(one[0]) == len(other[0]) and all(close(p, q) and (a is None and b is None or all(close(a[k], b[k]) for k in a)) for (p, a), (q, b) in zip(one[0], other[0], strict=True))


async def equivalent(asker: Asker, case: Case, status: int, body: bytes, names: list[str], arrow: bool) -> int:
    """Ask the same as columns, and as a table where that can be. Raises Wrong where the answers differ."""
    columns = {name: [row.get(name) for row in case.rows] for name in names}
    other = Case("the same as columns", as_json({"columns": columns}))
    found, headers, answer = await asker.ask(other)
    check(other, found, headers, answer, names)
    if found != status or status == 200 and not equal(said(body), said(answer)):
        raise Wrong(f"rows: {status} {body[:300]!r}, columns: {found} {answer[:300]!r}")
    mixed = any(len({isinstance(v, bool) for v in values if v is not None}) > 1 for values in columns.values())
    if status != 200 or not arrow or mixed:  # beside numbers Arrow would make true a 1
        return 1
    try:
        table = pa.table({name: pa.array([float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in values]) for name, values in columns.items()})
    except (pa.ArrowException, TypeError, UnicodeError, OverflowError):
        return 1
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    other = Case("the same as a table", sink.getvalue(), ARROW, accept=JSON)
    found, headers, answer = await asker.ask(other)
    check(other, found, headers, answer, names)
    if found == 200 and not equal(said(body), said(answer)) or found not in (200, 400):
        raise Wrong(f"rows: {status} {body[:300]!r}, table: {found} {answer[:300]!r}")
    return 2


def show(maker: Maker, number: int, case: Case, why: str) -> None:
    """Print a case that failed."""
    print(f"case {number} (seed {maker.seed}; again: --seed {maker.seed} --only {number}): {case.what}: {why}", file=sys.stderr)
    print(f"  {case.head()!r}\n  {case.body[:3000]!r}{' …' if len(case.body) > 3000 else ''}", file=sys.stderr)


async def run(options: argparse.Namespace) -> int:
    """Try all cases; how many failed."""
    where = urlsplit(options.url)
    info = json.load(urllib.request.urlopen(f"{options.url}/info"))
    maker, failed, counts, asked = Maker(info, options.seed), 0, Counter(), 0
    numbers = iter([options.only] if options.only is not None else range(options.cases))
    began = time.monotonic()

    async def worker() -> None:
        nonlocal failed, asked
        asker = Asker(where.hostname, where.port)
        for number in numbers:
            case = maker.case(number)
            try:
                status, headers, body = await asker.ask(case)
                asked += 1
                check(case, status, headers, body, maker.names)
                counts[f"{case.what} {status}"] += 1
                if case.rows:
                    more = await equivalent(asker, case, status, body, maker.names, number % 4 == 0)
                    asked += more
                if options.only is not None:
                    show(maker, number, case, f"{status} {body[:1000]!r}")
            except Exception as error:
                failed, asker.writer = failed + 1, None
                if failed <= 10:
                    show(maker, number, case, f"{type(error).__name__}: {error}")
            if asked % 10_000 < 2 and sys.stderr.isatty():
                print(f"\r{asked} asked, {failed} failed", end="", file=sys.stderr)

    await asyncio.gather(*(worker() for _ in range(1 if options.only is not None else options.connections)))
    assert json.load(urllib.request.urlopen(f"{options.url}/info"))["digest"] == info["digest"]
    seconds = time.monotonic() - began
    print("\n".join(f"{count:8} {what}" for what, count in sorted(counts.items())))
    print(f"{sum(counts.values()) + failed} cases, {asked} requests in {seconds:.0f} s, {failed} failed; seed {options.seed}")
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="repeat this case, and show it")
    parser.add_argument("--connections", type=int, default=8)
    sys.exit(bool(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
