"""The real trainer through the real plant: how runs end, and that their numbers depend on nothing but the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from em_core.journal import RunStatus, SweepDir
from sweeps.observe import Observer
from tests.conftest import Emsweep
from tests.test_kill import numbers

pytestmark = pytest.mark.slow

SPEC = """
name: plant
base: {model_name_or_path: miniature, max_steps: 3, num_generations: 4, max_completion_length: 16, temperature: 0.7}
"""
OUTCOMES = (
    SPEC
    + """
arms:
  fine: {prompt: plus}
  diverges: {prompt: plus, learning_rate: 1.0e+30}
  raises: {prompt: {text: "€€€"}}
seeds: 2
evaluate:
  - {tasks: [two_step_sums], steps: [0, 3], limit: 40}
"""
)
SMALL = (
    SPEC
    + """
axes: {learning_rate: [1.0e-4, 5.0e-4], prompt: [plus, minus]}
seeds: 2
evaluate:
  - {tasks: [two_step_sums], steps: [0, 3], limit: 40}
"""
)


def test_nan_is_an_outcome_an_exception_a_failure_and_neighbours_go_on(tmp_path: Path, emsweep: Emsweep) -> None:
    (tmp_path / "plant.yaml").write_text(OUTCOMES)
    said = emsweep("run", "plant.yaml", "--launcher", "local", check=1)
    assert "2 runs failed" in said.stdout
    view = Observer(SweepDir(tmp_path / "runs", "plant")).look()
    assert [view.count(s) for s in (RunStatus.COMPLETED, RunStatus.DIVERGED, RunStatus.FAILED)] == [2, 2, 2]
    by_arm = "SELECT arm, status, count(*) AS n FROM runs JOIN sweep_runs USING (run_id) GROUP BY ALL ORDER BY ALL"
    rows = emsweep("sql", by_arm, "--format", "csv", check=0).stdout.split()
    assert rows == ["arm,status,n", "diverges,diverged,2", "fine,completed,2", "raises,failed,2"]
    tails = emsweep("sql", "SELECT message, traceback FROM attempts WHERE status = 'failed'", "--format", "json", check=0).stdout
    for row in json.loads(tails):
        assert "has no tokens" in row["message"]
        assert "Traceback" in row["traceback"]
    nan = "SELECT count(*) AS n FROM metrics WHERE name = 'loss' AND isnan(value)"
    assert emsweep("sql", nan, "--format", "csv", check=0).stdout.split() == ["n", "2"]
    top = "SELECT arm FROM cells WHERE step = 3 ORDER BY mean DESC NULLS LAST LIMIT 1"
    best = emsweep("sql", top, "--format", "csv", check=0)
    assert best.stdout.split() == ["arm", "fine"]


@pytest.mark.long
def test_a_run_is_the_same_alone_packed_cold_and_warm(tmp_path: Path, emsweep: Emsweep) -> None:
    """Packed: eight runs share two warm workers. Alone: one cold process for one run."""
    (tmp_path / "plant.yaml").write_text(SMALL)
    emsweep("run", "plant.yaml", "--launcher", "local", check=0)
    packed = numbers(tmp_path / "runs")
    assert len(packed) == 8
    (tmp_path / "plant.yaml").write_text(SMALL.replace("[1.0e-4, 5.0e-4]", "[5.0e-4]").replace("[plus, minus]", "[minus]"))
    emsweep("run", "plant.yaml", "--launcher", "local", "--root", "alone", "--db", "alone.duckdb", check=0)
    alone = numbers(tmp_path / "alone")
    assert len(alone) == 2
    assert alone == {r: packed[r] for r in alone}


@pytest.mark.long
def test_a_new_measurement_uses_kept_checkpoints_and_equals_the_one_made_in_training(tmp_path: Path, emsweep: Emsweep) -> None:
    both = SMALL + "  - {tasks: [two_step_sums], steps: [3], temperature: 0.7, limit: 40}\n"
    (tmp_path / "plant.yaml").write_text(both)
    emsweep("run", "plant.yaml", "--launcher", "local", "--root", "at_once", "--db", "once.duckdb", check=0)
    (tmp_path / "plant.yaml").write_text(SMALL + "keep: last\n")
    emsweep("run", "plant.yaml", "--launcher", "local", check=0)
    (tmp_path / "plant.yaml").write_text(both + "keep: last\n")
    assert "evaluate 8 checkpoints" in emsweep("plan", "plant.yaml", "--launcher", "local", check=0).stdout
    emsweep("run", "plant.yaml", "--launcher", "local", check=0)
    query = "SELECT run_id, step, eval_id, accuracy FROM evals ORDER BY ALL"
    later = emsweep("sql", query, "--format", "csv", check=0).stdout
    assert later == emsweep("sql", query, "--format", "csv", "--db", "once.duckdb", check=0).stdout
    assert len(later.split()) == 1 + 24
    trained = [a for t in Observer(SweepDir(tmp_path / "runs", "plant")).tries() for a in t.attempts if a.mode == "train"]
    assert len(trained) == 8, "nothing was trained again"


@pytest.mark.long
def test_without_checkpoints_a_new_measurement_is_priced_and_needs_a_word(tmp_path: Path, emsweep: Emsweep) -> None:
    (tmp_path / "plant.yaml").write_text(SMALL)
    emsweep("run", "plant.yaml", "--launcher", "local", check=0)
    (tmp_path / "plant.yaml").write_text(SMALL.replace("steps: [0, 3]", "steps: [0, 1, 3]"))
    plan = emsweep("plan", "plant.yaml", "--launcher", "local", check=0).stdout
    assert "8 done runs lack a measurement and kept no checkpoint" in plan
    assert "train 0 runs" in plan
    emsweep("run", "plant.yaml", "--launcher", "local", "--retrain", check=0)
    rows = emsweep("sql", "SELECT count(*) AS n, count(DISTINCT step) AS s FROM evals", "--format", "csv", check=0).stdout
    assert rows.split() == ["n,s", "24,3"]
