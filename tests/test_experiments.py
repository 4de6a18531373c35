"""The shipped specs: each expands here and for a large model, is rehearsed through the plant, and says what it is for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analysis.collect import collect
from analysis.queries import sql
from em_core import tables
from sweeps.expand import expand
from sweeps.spec import load_spec
from tests.conftest import Emsweep
from tests.experiments import BLOCK, FIGURE, PAGE
from tests.journals import Sweep

SPECS = Path(__file__).parent.parent / "sweeps" / "specs"
OTHERS = {"miniature", "thousand", "external", "study-em"}
EXPERIMENTS = sorted(p.stem for p in SPECS.glob("*.yaml") if p.stem not in OTHERS)
LARGE = "base-model-large"
"""Names its models itself."""


@pytest.fixture
def benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the Hub are one small file here. (What brings the real ones is tested in test_fetch.)"""
    path = tmp_path / "one.jsonl"
    path.write_text(r'{"problem": "What is 1+1?", "solution": "It is \\boxed{2}.", "answer": "2"}' + "\n", encoding="utf-8")
    monkeypatch.setattr(tables, "from_hub", lambda said: path)
    monkeypatch.setattr("sweeps.rows.from_hub", lambda said: path)
    monkeypatch.setattr("em_core.tasks.from_hub", lambda said: path)


@pytest.mark.fast
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_spec_says_what_it_repeats_expects_costs_and_what_to_look_at(name: str) -> None:
    text = (SPECS / f"{name}.yaml").read_text(encoding="utf-8")
    head = re.sub(r"\n# ?", " ", text[: text.index("\nname:")])
    assert f"\nname: {name}\n" in text
    for part in (
        r"^# (Repeats|Asks|Controls|Every|Which)",
        r"Expected shape|The paper:",
        r"emsweep \w+",
        r"Cost: |minutes|minute",
    ):
        assert re.search(part, head), part


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in EXPERIMENTS if n != LARGE])
def test_a_spec_expands_on_the_miniature_and_with_another_model(name: str, benchmarks: None) -> None:
    path = SPECS / f"{name}.yaml"
    here = expand(load_spec(path))
    assert {c.training.model_name_or_path for c in here.configs} == {"miniature"}
    if load_spec(path).models:
        there = expand(load_spec(path, ["model_name_or_path=Qwen/Qwen2.5-Math-7B"]))
        assert {c.training.model_name_or_path for c in there.configs} == {"Qwen/Qwen2.5-Math-7B"}
        assert {e.task.startswith("hf://") for _, e, _ in there.evaluations} == {True}
        assert not {c.config_id for c in here.configs} & {c.config_id for c in there.configs}


@pytest.mark.slow
def test_the_large_spec_expands(benchmarks: None) -> None:
    assert len({c.model for c in expand(load_spec(SPECS / f"{LARGE}.yaml")).configs}) == 4


@pytest.mark.slow
@pytest.mark.long
def test_a_spec_is_rehearsed_through_the_plant(emsweep: Emsweep) -> None:
    """The one with the most arms; the miniature trains all of them for docs/experiments.md."""
    emsweep("run", str(SPECS / "method-zoo.yaml"), "--set", "method=noop", "--set", "seeds=2", "-y")
    rows = emsweep("sql", "SELECT count(*) AS n FROM scores WHERE sweep LIKE 'method-zoo%'", "--format", "csv").stdout.split()
    assert int(rows[1]) >= 20


@pytest.mark.fast
def test_the_page_tells_of_every_experiment() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in EXPERIMENTS:
        assert f"`{name}`" in text, name
    for sweep, figure in FIGURE.findall(text):
        assert (PAGE.parent / "experiments" / f"{sweep}-{figure}.png").is_file()


@pytest.mark.slow
def test_every_query_of_the_page_is_one(tmp_path: Path) -> None:
    """On the results of another sweep: names of views and columns are right."""
    Sweep(tmp_path / "runs", seeds=range(2)).write()
    db = tmp_path / "results.duckdb"
    collect(tmp_path / "runs", db)
    queries = [query for _, query in BLOCK.findall(PAGE.read_text(encoding="utf-8"))]
    assert len(queries) > 10
    for query in queries:
        sql(db, query)
