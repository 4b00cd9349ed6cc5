"""Leaks planted in the real tables are found, each by its own check."""

import re
from pathlib import Path

import pytest
from conftest import DATA, figure, in_project, table

pytestmark = pytest.mark.slow


@pytest.mark.timeout(1200)
def test_planted_leaks_are_found(project: Path) -> None:
    """Forty and more, of every kind; with its check switched off none is found, so each test can fail."""
    table("adult.csv")
    said = in_project(project, "python", str(Path(__file__).with_name("planted.py")), "churn", str(DATA))
    found = re.findall(r"^ok ", said, re.MULTILINE)
    figure("leaks planted in the shared tables; found", f"{len(said.splitlines()) - 1}; {len(found)}")
    assert len(found) >= 40 and "MISS" not in said and "STAYS" not in said, said
