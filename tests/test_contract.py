"""Tomorrow's file against schema.yaml: what does not fit, what stays where it was, and what must not matter."""

import html
from pathlib import Path

import pandas as pd
import pytest
from conftest import Done, in_project, read_json, run

pytestmark = pytest.mark.slow
COLUMN = "mean_radius"


@pytest.fixture(scope="module")
def raw(project: Path) -> pd.DataFrame:
    """The sample table."""
    return pd.read_csv(next((project / "data/raw").glob("*.csv")))


def prepare(project: Path, frame: pd.DataFrame, where: Path, contract: str = "schema.yaml") -> Done:
    """Run `prepare` on another table, into build/tomorrow."""
    frame.to_csv(where / "february.csv", index=False)
    return run("uv", "run", "--no-sync", "churn", "run", "prepare", "-p", f"table={where / 'february.csv'}", "-p", f"contract={contract}", "-p", "out=build/tomorrow", cwd=project)


@pytest.mark.parametrize(("change", "said"), [
    (lambda f: f.drop(columns=COLUMN), ["mean_radius", "no such column"]),
    (lambda f: f.drop(columns="diagnosis"), ["diagnosis", "no such column"]),
    (lambda f: f.assign(mean_radius=f[COLUMN].astype(object).where(f.index > 1, "wide")), ["mean_radius", "2 values are not numbers", "'wide'"]),
    (lambda f: f.assign(diagnosis=f["diagnosis"].where(f.index > 2, "unclear")), ["diagnosis", "3 values are not among its classes", "'unclear'"]),
    (lambda f: f.iloc[:0], ["no rows"]),
    (lambda f: f[f["diagnosis"] == "benign"], ["no row of class 'malignant'"]),
])
def test_what_does_not_fit_stops(change: object, said: list[str], project: Path, raw: pd.DataFrame, tmp_path: Path) -> None:
    """One line names the column, how many rows, and a value; nothing is half-written, and the file is as it was."""
    done = prepare(project, change(raw), tmp_path)
    assert done.code == 1 and all(word in done.err for word in said) and len(done.err.strip().splitlines()) <= 2, done.err
    assert "Traceback" not in done.err and not (project / "build/tomorrow").exists()
    assert (tmp_path / "february.csv").read_text() == change(raw).to_csv(index=False)


def test_outcomes(project: Path, raw: pd.DataFrame, tmp_path: Path) -> None:
    """Out of range: taken with a word, imputed, or an error, as schema.yaml says."""
    odd = raw.assign(mean_radius=raw[COLUMN].where(raw.index != 5, 1e6))
    text, found = (project / "schema.yaml").read_text(), {}
    for outcome in ("warn", "impute", "error"):
        (tmp_path / "schema.yaml").write_text(text.replace("out_of_range: warn", f"out_of_range: {outcome}"))
        done = prepare(project, odd, tmp_path, str(tmp_path / "schema.yaml"))
        assert (done.code == 0) == (outcome != "error"), done.err
        if outcome == "error":
            assert "mean_radius: 1 values are out of range" in done.err and "'1000000'" in done.err
            break
        rows = pd.concat([pd.read_parquet(project / f"build/tomorrow/{part}.parquet") for part in ("train", "valid", "test")])
        said = [f for f in read_json(project / "build/tomorrow/data.json") if f["kind"] == "out_of_range"]
        found[outcome] = (rows[COLUMN].max() == 1e6, int(rows[COLUMN].isna().sum()), [(f["severity"], f["rows"]) for f in said])
    assert found == {"warn": (True, 0, [("warning", 1)]), "impute": (False, 1, [("warning", 1)])}


@pytest.mark.parametrize(("old", "new", "said"), [
    ("task: classification", "task: clasification", "line 6: task: 'clasification' is not one of classification, regression; did you mean 'classification'?"),
    ("{role: number", "{role: nubmer", "'nubmer' is not one of number"),
    ("target: diagnosis", "target: diagnosys", "no column is called 'diagnosys'; near: diagnosis"),
    ("columns:", "colums:", "colums: not known here; did you mean 'columns'?"),
    ("by: stratified", "by: group", "group needs a column with the role group"),
])
def test_a_mistake_in_the_contract_is_one_line(old: str, new: str, said: str, project: Path, raw: pd.DataFrame, tmp_path: Path) -> None:
    """It names file, line and what may have been meant."""
    (tmp_path / "schema.yaml").write_text((project / "schema.yaml").read_text().replace(old, new, 1))
    done = prepare(project, raw, tmp_path, str(tmp_path / "schema.yaml"))
    assert done.code == 1 and said in done.err and "Traceback" not in done.err, done.err


@pytest.mark.parametrize("first", [False, True])
def test_a_row_keeps_its_split(first: bool, project: Path, raw: pd.DataFrame, tmp_path: Path) -> None:
    """When the table grows, at its end or its beginning, every row stays in its split; a row that comes twice stays in one."""
    old = {part: pd.read_parquet(project / f"build/prepare/{part}.parquet") for part in ("train", "valid", "test")}
    more = raw.sample(100, random_state=0)
    fresh = more.assign(**{COLUMN: more[COLUMN] * 1.001})
    more = pd.concat([fresh, raw[:50]])
    assert prepare(project, pd.concat([more, raw] if first else [raw, more]), tmp_path).code == 0
    for part, rows in old.items():
        grown = pd.read_parquet(project / f"build/tomorrow/{part}.parquet")
        kept = grown[len(grown) - len(rows):] if first else grown[: len(rows)]
        pd.testing.assert_frame_equal(kept.reset_index(drop=True), rows)
        assert grown["__group"].duplicated().any()


def test_the_test_split_decides_nothing(project: Path, raw: pd.DataFrame, tmp_path: Path) -> None:
    """Without the rows that test, everything that is fitted is the same, byte for byte."""
    tested = pd.read_parquet(project / "build/prepare/test.parquet")
    columns = list(raw.columns[:-1])
    keys = set(map(tuple, tested[columns].to_numpy()[40:]))  # a few must stay: a split needs its classes
    kept = raw[[tuple(row) not in keys for row in raw[columns].to_numpy(dtype=float)]]
    assert len(kept) == len(raw) - len(tested) + 40
    done = prepare(project, kept, tmp_path)
    assert done.code == 0, done.err
    for name in ("schema.json", "train.parquet", "valid.parquet"):
        assert (project / "build/tomorrow" / name).read_bytes() == (project / "build/prepare" / name).read_bytes(), name


def test_the_report_is_read_in_a_browser_alone(project: Path) -> None:
    """The report names every finding, asks nothing of the network, and is the same for the same data."""
    page = (project / "build/prepare/report.html").read_text()
    found = read_json(project / "build/prepare/data.json")
    assert found and all(f"<code>{html.escape(f['key'])}</code>" in page for f in found)
    assert "http://" not in page.replace("http://www.w3.org", "") and "src=\"http" not in page
    assert "TODO" in (project / "build/prepare/datasheet.md").read_text()


def test_settle_leaves_an_edited_contract_alone(project: Path) -> None:
    """The file is a person's: it is made anew only when that is asked for."""
    before = (project / "schema.yaml").read_bytes()
    done = run("uv", "run", "--no-sync", "churn", "settle", cwd=project)
    assert done.code == 1 and "--again" in done.err and (project / "schema.yaml").read_bytes() == before
    in_project(project, "churn", "settle", "--again")
    assert (project / "schema.yaml").read_bytes() == before
