"""The entropy law of a sweep: which figures are paired, what the tables say, and the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis.collect import collect
from analysis.grid import read_grid
from analysis.law import sweep_law
from analysis.report import build_report
from em_core.errors import UserError
from tests.journals import GREEDY, Journal, Sweep
from tests.test_cli import call

pytestmark = pytest.mark.slow

STEPS = (0, 4, 8, 12, 16, 20)


def entropy_after(updates: float, seed: int) -> float:
    """Nats, of the weights after so many updates."""
    return float((1.0 + 0.05 * seed) * np.exp(-updates / 8))


def made(folder: Path, steps: tuple[int, ...] = STEPS) -> Path:
    """Two configs whose accuracy is .9 - a e^H, a = .1 and .2, exactly: H is told by the metrics of the *next* step."""
    sweep = Sweep(folder / "runs", grid={"learning_rate": [1e-4, 2e-4]}, seeds=range(3), steps=steps)
    sweep.write_manifest()
    with Journal(sweep, "j-0000") as journal:
        for run in sweep.runs:
            a = 0.1 if run.config.learning_rate == 1e-4 else 0.2
            journal.start(run)
            for step in range(1, 21):
                about = {"run_id": run.run_id, "attempt": 0, "step": step}
                journal.write("metrics", **about, values={"loss": 1.0, "entropy": entropy_after(step - 1, run.seed)})
            for step in steps:
                accuracy = 0.9 - a * np.exp(entropy_after(step, run.seed))
                about = {"run_id": run.run_id, "attempt": 0, "step": step, "eval_id": GREEDY.eval_id(), "task": GREEDY.task}
                journal.write("eval", **about, n_questions=50, num_samples=2, accuracy=accuracy, outcomes="", values={})
            journal.end(run, "diverged" if run.seed == 2 and a == 0.2 else "completed")
    collect(sweep.root, folder / "results.duckdb")
    return folder / "results.duckdb"


def test_accuracy_is_paired_with_the_entropy_of_the_same_weights(tmp_path: Path) -> None:
    db = made(tmp_path)
    found = sweep_law(db, read_grid(db, "demo"))
    assert found is not None
    assert [r.steps.tolist() for r in found.runs] == [[0, 4, 8, 12, 16]] * 5, "the last evaluation has no partner"
    for run in found.runs:
        assert run.law.r2 == pytest.approx(1.0)
        assert run.entropy[1] == pytest.approx(entropy_after(4, run.seed))
        assert run.fit_until == 8
        assert run.prediction is not None
        assert run.prediction.max < 1e-9
    table = found.tables()["entropy_law"]
    assert table["a"].to_list() == pytest.approx([0.1, 0.2])
    assert table["ceiling"].to_list() == pytest.approx([0.8, 0.7])
    assert table["n"].to_list() == [3, 2], "a diverged run has no law"
    assert table["ceiling_hi"].to_list() == pytest.approx([0.8, 0.7])
    assert (table["carried"] > 0.01).all()
    by_run = found.tables()["entropy_law_runs"]
    assert by_run["seed"].to_list() == [0, 1, 2, 0, 1]
    assert (by_run["a_se"] < 1e-9).all()


def test_where_the_fit_ends_can_be_said(tmp_path: Path) -> None:
    db = made(tmp_path)
    found = sweep_law(db, read_grid(db, "demo"), fit_steps=13)
    assert found is not None
    assert {(r.fit_until, r.prediction.n if r.prediction else 0) for r in found.runs} == {(12, 1)}
    for wrong in (5, 16):
        with pytest.raises(UserError, match=f"--fit-steps {wrong}: .* there are 0, 4, 8, 12, 16$"):
            sweep_law(db, read_grid(db, "demo"), fit_steps=wrong)
    assert sweep_law(made(tmp_path / "few", steps=(0, 5, 10, 20)), read_grid(tmp_path / "few/results.duckdb", "demo")) is None


def test_the_report_and_the_command_tell_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = build_report(made(tmp_path), "demo", tmp_path / "report").html.read_text()
    assert "The entropy law by run" in page
    assert 'id="figure-entropy_law"' in page
    monkeypatch.chdir(tmp_path)
    assert call("law", "demo", "--format", "csv") == 0
    assert capsys.readouterr().out == (tmp_path / "report" / "tables" / "entropy_law.csv").read_text()
    assert call("law", "demo", "--runs", "--format", "csv") == 0
    assert capsys.readouterr().out == (tmp_path / "report" / "tables" / "entropy_law_runs.csv").read_text()
    assert call("law", "demo", "--eval", "nonsense") == 2
    said = f"emsweep: demo has no accuracy by evaluation 'nonsense'; it has: {GREEDY.eval_id()}\n"
    assert capsys.readouterr().err == said
    made(tmp_path / "few", steps=(0, 5, 10, 20))
    assert call("law", "demo", "--db", "few/results.duckdb") == 2
    said = "emsweep: demo: the law needs runs with the metric `entropy` and accuracy at five steps or more\n"
    assert capsys.readouterr().err == said
