"""Planted leaks in real tables. `python planted.py PACKAGE FOLDER` finds each, and finds none of them with its check switched off."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd

PACKAGE, DATA = sys.argv[1], Path(sys.argv[2])
checks, contract, prepare, tables, values = (importlib.import_module(f"{PACKAGE}.{name}") for name in ("checks", "contract", "prepare", "tables", "values"))
BY_TIME = {"task": "regression", "split": {"by": "time", "time": ["year", "month", "day", "hour"], "valid_from": "2013-07-01", "test_from": "2014-04-01"}}
TABLES = {  # target, roles that its types do not tell, what else its contract says
    "adult.csv": ("income", {"fnlwgt": "weight"}, {}),
    "mammography.parquet": ("malignant", {}, {}),
    "german_credit.jsonl": ("risk", {}, {}),
    "penguins.csv": ("species", {}, {}),
    "automobiles.csv": ("price", {}, {"task": "regression"}),
    "diamonds.csv.gz": ("price", {}, {"task": "regression"}),
    "movie_reviews.parquet": ("sentiment", {"review": "text"}, {}),
    "beijing_pm25.csv": ("pm2.5", {"No": "identifier"}, BY_TIME),
}


def frame_of(name: str) -> pd.DataFrame:
    """A table, in memory."""
    with tables.opened(DATA / name) as table:
        return table.frame()


def contract_of(frame: pd.DataFrame, target: str, roles: dict, more: dict) -> "contract.Contract":
    """A contract by the types of the columns."""
    def role(name: str) -> str:
        kind = frame[name].dtype
        return "target" if name == target else "date" if kind.kind == "M" else "boolean" if kind == bool else "number" if kind.kind in "iuf" else "category"

    labels = sorted(frame[target].astype(str).unique()) if more.get("task") != "regression" else []
    columns = {name: {"role": roles.get(name) or role(name)} for name in frame}
    columns[target]["categories"] = labels
    return contract.Contract.model_validate({"target": target, "task": "classification", "columns": columns} | more)


def rows_of(con: duckdb.DuckDBPyConnection, frame: pd.DataFrame, rules: "contract.Contract", parts: np.ndarray | None) -> str:
    """SQL for the rows as `prepare` has them; `parts` overrides their splits."""
    con.register("frame", frame)
    con.execute("CREATE OR REPLACE TEMP TABLE raw AS SELECT * FROM frame")
    found = prepare.split(prepare.conform(tables.Table(con, "SELECT * FROM raw", list(frame.columns), []), rules), rules)
    if parts is None:
        return found
    con.register("parts", pd.DataFrame({"__part": list(parts)}))
    con.execute(f"CREATE OR REPLACE TEMP TABLE split AS SELECT * EXCLUDE (__split, __part), __part AS __split FROM (SELECT * FROM ({found}) POSITIONAL JOIN parts)")
    return "SELECT * FROM split"


def _rng(seed: int = 0) -> np.random.Generator: return np.random.default_rng(seed)


def _with(name: str, make: Callable, roles: dict | None = None, more: dict | None = None, split: Callable | None = None) -> Callable:
    """How to plant a column."""
    return lambda f: (f.assign(**{name: make(f)}), roles or {}, more or {}, split)


def _shuffled(f: pd.DataFrame) -> pd.DataFrame: return f.sample(frac=1, random_state=0).reset_index(drop=True)


def _parts(f: pd.DataFrame) -> np.ndarray: return _rng().choice(["train", "valid", "test"], len(f), p=[0.7, 0.15, 0.15])


def _renumbered(f: pd.DataFrame, target: str) -> pd.DataFrame: return _shuffled(f.sort_values(target, kind="stable").assign(case=range(len(f))))


def _hours(f: pd.DataFrame) -> pd.Series: return pd.to_datetime(f[["year", "month", "day", "hour"]])


def _where(f: pd.DataFrame, mask: pd.Series, values: object) -> pd.Series: return pd.Series(values, index=f.index).where(mask)


RANDOM = {"split": {"by": "random"}}
HOURLY = {"split": {"by": "random", "time": ["year", "month", "day", "hour"]}}


def planted() -> Iterator[tuple[str, str, Callable, str, str]]:
    """Name, table, how (frame -> frame, roles, contract changes, split), the key that must be found, and the check that finds it."""
    a, d, b, g, m, p, c, r = "adult.csv", "diamonds.csv.gz", "beijing_pm25.csv", "german_credit.jsonl", "mammography.parquet", "penguins.csv", "automobiles.csv", "movie_reviews.parquet"
    yes = lambda f: f.income == ">50K"
    yield "target copied", a, _with("copy", lambda f: f.income), "leak: copy", "leaks"
    yield "target renamed", a, _with("grade", lambda f: yes(f).map({True: "A", False: "B"})), "leak: grade", "leaks"
    yield "target as 0 and 1", a, _with("flag", lambda f: yes(f).astype(int)), "leak: flag", "leaks"
    yield "target as boolean", g, _with("bad", lambda f: f.risk == "bad"), "leak: bad", "leaks"
    yield "a score from the target", a, _with("score", lambda f: yes(f) + _rng().normal(0, 0.15, len(f))), "leak: score", "leaks"
    yield "one in 500 flipped", a, _with("nearly", lambda f: yes(f) ^ (_rng().random(len(f)) < 0.002)), "leak: nearly", "leaks"
    yield "missing unless yes", a, _with("bonus", lambda f: _where(f, yes(f), _rng().random(len(f)))), "leak: bonus", "leaks"
    yield "missing if yes", a, _with("reason", lambda f: _where(f, ~yes(f), _rng().choice(list("abc"), len(f)))), "leak: reason", "leaks"
    yield "date only for positives", a, _with("closed", lambda f: _where(f, yes(f), pd.Timestamp("2024-01-01") + pd.to_timedelta(_rng().integers(0, 900, len(f)), "D"))), "leak: closed", "leaks"
    yield "known for half, and tells", a, _with("result", lambda f: _where(f, pd.Series(_rng().random(len(f)) < 0.5), yes(f) + _rng().normal(0, 0.1, len(f)))), "leak: result", "leaks"
    yield "codes of the target, many", a, _with("code", lambda f: [f"{'HL'[int(v)]}{k}" for v, k in zip(yes(f), _rng().integers(0, 40, len(f)), strict=True)]), "leak: code", "leaks"
    yield "in intervals, not in order", m, _with("bin", lambda f: np.where(f.malignant == 1, _rng().choice([2.0, 5.0, 9.0], len(f)), _rng().choice([1.0, 4.0, 7.0], len(f))) + _rng().random(len(f)) / 2), "leak: bin", "leaks"
    yield "three classes renamed", p, _with("latin", lambda f: f.species.map({"Adelie": "adeliae", "Chinstrap": "antarcticus", "Gentoo": "papua"})), "leak: latin", "leaks"
    yield "three classes as number", p, _with("genus", lambda f: f.species.astype("category").cat.codes + _rng().normal(0, 0.05, len(f))), "leak: genus", "leaks"
    yield "label beside the text", r, _with("stars", lambda f: np.where(f.sentiment == "pos", _rng().integers(6, 11, len(f)), _rng().integers(1, 6, len(f)))), "leak: stars", "leaks"
    yield "price times exchange rate", d, _with("euros", lambda f: (f.price * 0.92).round(2)), "leak: euros", "leaks"
    yield "price with a little noise", d, _with("paid", lambda f: f.price * (1 + _rng().normal(0, 0.01, len(f)))), "leak: paid", "leaks"
    yield "rank of the price", d, _with("place", lambda f: f.price.rank()), "leak: place", "leaks"
    yield "falls with the price", d, _with("inverse", lambda f: 1 / f.price), "leak: inverse", "leaks"
    yield "price rounded to hundreds", d, _with("about", lambda f: f.price.round(-2)), "leak: about", "leaks"
    yield "bands of the price, as text", d, _with("band", lambda f: "band " + (f.price // 250).astype(str)), "leak: band", "leaks"
    yield "code of the price, thousands", d, _with("tag", lambda f: "T" + (f.price * 7919 % 104729).astype(str)), "leak: tag", "leaks"
    yield "logarithm of the price, tiny", c, _with("log", lambda f: np.log(f.price)), "leak: log", "leaks"
    yield "price known for one in ten", d, _with("resold", lambda f: _where(f, pd.Series(_rng().random(len(f)) < 0.1), f.price * 1.3)), "leak: resold", "leaks"
    yield "the same hour's other station", b, _with("station2", lambda f: f["pm2.5"] * 1.1 + 3), "leak: station2", "leaks"
    yield "identifier by the target", a, lambda f: (_renumbered(f, "income"), {"case": "identifier"}, {}, None), "leak: case", "numbering"
    yield "text identifier by the target", g, lambda f: (_renumbered(f, "risk").assign(case=lambda x: [f"CR-{v:06}" for v in x.case]), {"case": "identifier"}, {}, None), "leak: case", "numbering"
    yield "row number by the price, learnt", d, lambda f: (_shuffled(_renumbered(f.assign(_k=f.price * _rng().lognormal(0, 0.3, len(f))), "_k").drop(columns="_k")), {}, {}, None), "leak: case", "numbering"
    yield "parts that sum up to the price", d, lambda f: (f.assign(net=f.price / 1.2 - f.depth * 3, extra=f.depth * 3 + _rng().random(len(f)) * 900).assign(price=lambda x: (x.net + x.extra).astype(float)), {}, {}, None), "leak: net, extra", "formula"
    yield "price a carat times carat", d, _with("percarat", lambda f: f.price / f.carat), "leak: carat, percarat", "formula"
    yield "file sorted by the target", a, lambda f: (f.sort_values("income", kind="stable").reset_index(drop=True), {}, {}, None), "order", "numbering"
    yield "equal rows in two splits, together", m, lambda f: (f, {}, {}, _parts), "leak", "shared"
    yield "equal rows in two splits, apart", a, lambda f: (pd.concat([f, f[:3000]], ignore_index=True), {}, {"split": {"duplicates": "apart"}}, _parts), "leak", "shared"
    yield "group in two splits", g, _with("branch", lambda f: _rng().integers(0, 60, len(f)).astype(str), {"branch": "group"}), "leak: branch", "groups"
    yield "group by group, broken", g, _with("branch", lambda f: [f"B{i // 10}" for i in range(len(f))], {"branch": "group"}, {"split": {"by": "group"}}, lambda f: np.r_[["test"], _parts(f)[1:]]), "leak: branch", "groups"
    yield "group that nobody declared", p, _with("patient_id", lambda f: _rng().integers(0, 80, len(f))), "group: patient_id", "groups"
    yield "hours split at random", b, lambda f: (f, {}, HOURLY, None), "leak: year, month, day, hour", "timing"
    yield "one hour trains too early", b, lambda f: (f, {}, {}, lambda k: np.r_[["train"] * 30000, ["valid"] * 5000, ["train"], ["test"] * (len(k) - 35001)]), "leak: year, month, day, hour", "timing"
    yield "test hours before valid hours", b, lambda f: (f, {}, {}, lambda k: np.r_[["train"] * 30000, ["test"] * 5000, ["valid"] * (len(k) - 35000)]), "leak: year, month, day, hour", "timing"
    yield "dates in file order", b, lambda f: (f.assign(at=_hours(f)), {}, RANDOM, None), "order: at", "timing"
    yield "hour number learnt, random split", b, lambda f: (f, {"No": "number"}, RANDOM, None), "leak: No", "numbering"
    yield "education twice", a, lambda f: (f, {}, {}, None), "twins: education, education_num", "twins"
    yield "metres and feet", m, _with("feet", lambda f: f.area * 3.28), "twins: area, feet", "twins"


def found_in(table: str, how: Callable, off: str = "") -> list:
    """What the checks find in a planted table, but for one that is switched off."""
    target, roles, more = TABLES[table]
    frame = frame_of(table)
    frame, more_roles, changes, split = how(frame[frame[target].notna()].reset_index(drop=True))
    rules = contract_of(frame, target, roles | more_roles, more | changes)
    con, kept = duckdb.connect(), list(checks.CHECKS)
    try:
        checks.CHECKS[:] = [check for check in kept if check.__name__ not in (off, "noise")]
        return checks.findings(con, rows_of(con, frame, rules, split(frame) if split else None), rules)
    finally:
        checks.CHECKS[:] = kept
        con.close()


def main() -> int:
    """Say which planted leaks are found, and which are found even with the check off."""
    bad = 0
    for name, table, how, key, check in planted():
        hits = [f for f in found_in(table, how) if f.key == key]
        still = [f for f in found_in(table, how, check) if f.key == key]
        bad += not hits or bool(still)
        print("ok  " if hits and not still else "MISS" if not hits else "STAYS", name.ljust(36), table.ljust(24), hits and f"{hits[0].severity}: {hits[0].what}"[:110])
    print(sum(1 for _ in planted()), "planted,", bad, "not as they should be")
    return bad


if __name__ == "__main__":
    sys.exit(main() > 0)
