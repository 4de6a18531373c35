"""docs/statistics.md, run from top to bottom as a reader would, on a sweep called `demo`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analysis.collect import collect
from analysis.evidence import weigh
from analysis.queries import sql
from analysis.report import ABOUT
from tests.journals import GREEDY, Sweep

PAGE = (Path(__file__).parents[1] / "docs" / "statistics.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    sweep = Sweep(folder / "runs", evaluations=(GREEDY,), repeats=2).write()
    collect(sweep.root, folder / "results.duckdb")
    return folder


def test_the_code_of_the_page_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) >= 9
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/statistics.md", "exec"), names)
    said = capsys.readouterr().out
    assert "luck:" in said
    assert "demo@10 (step 10) has" in said
    assert "nan" not in said.replace("NaN", "")
    for query in re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL):
        assert sql(folder / "results.duckdb", query).height


def test_every_table_of_the_report_is_on_the_page(folder: Path) -> None:
    found = weigh(folder / "results.duckdb", "demo")
    assert found is not None
    assert set(found.tables()) <= set(ABOUT)
    named = set(re.findall(r"`(\w+)`", PAGE))
    assert set(ABOUT) - {"configs", "variance_with_steps"} <= named
