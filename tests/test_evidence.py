"""What the report says of luck, against hand-made sweeps and second computations; the edges; the sentences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from analysis.collect import collect
from analysis.evidence import Evidence, weigh
from analysis.luck import luck
from analysis.queries import load
from analysis.stats.compare import compare
from tests.journals import GREEDY, SAMPLED, Journal, Run, Sweep
from tests.test_report import made, rising

pytestmark = pytest.mark.slow

RATES = {"learning_rate": [1e-4, 2e-4, 5e-4]}


def weighed(folder: Path, **said: object) -> Evidence:
    made(folder, **{"grid": RATES, "seeds": 8, "correct": rising} | said)  # type: ignore[arg-type]
    found = weigh(folder / "results.duckdb", "demo")
    assert found is not None
    return found


def test_tables_say_what_the_functions_say(tmp_path: Path) -> None:
    found = weighed(tmp_path)
    assert found.point == 5
    tables = found.tables()
    assert [t.height for t in (tables["spread"], tables["against_best"], tables["ranks"])] == [3, 3, 3]
    third = tables["against_best"].row(2, named=True)
    by_hand = compare(found.values[2], found.values[0], np.random.default_rng(0))
    assert third["learning_rate"] == 5e-4
    assert (third["difference"], third["lo"], third["hi"]) == pytest.approx((by_hand.difference, by_hand.lo, by_hand.hi))
    assert tables["against_best"]["tied"].to_list() == [True, True, False]
    assert tables["against_best"]["lo"][0] is None, "the best is not compared with itself"
    spread = tables["spread"]
    assert spread["mean"].to_list() == pytest.approx([0.8, 0.79, 0.6])
    assert spread["sd"].to_list() == pytest.approx([x.std(ddof=1) for x in found.values])
    assert spread["collapsed"].to_list() == [0, 0, 0], "below the base model's .50"
    assert tables["ranks"]["p_best"].sum() == pytest.approx(1)
    assert tables["variance"]["share"][:-1].sum() == pytest.approx(1)
    assert tables["best_of_k"]["k"].to_list() == [1, 2, 3]
    assert tables["best_of_k"]["configs"][2] == pytest.approx(0.8)
    assert {"missing", "missing_counted", "confirmed"}.isdisjoint(tables)


def test_the_sentences_say_the_numbers(tmp_path: Path) -> None:
    found = weighed(tmp_path)
    said = luck(found)
    assert len(said) == 4
    assert said[0].startswith(f"At step 5, {100 * found.variance.luck.share:.0f}% [")
    assert f"tau-b {found.agreement.tau:.2f}" in said[1]
    curse = found.curse
    assert f"0.800 was selected among 3 and is biased up by about {curse.bias:.3f}: expect {curse.corrected:.3f}" in said[2]
    assert f"must differ by {found.detectable():.3f}" in said[3]
    assert f"(seed sd {found.spread.sd:.3f}, pooled)" in said[3]


def test_lost_runs_are_counted_and_may_flip_the_best(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs", grid=RATES, seeds=range(8))
    sweep.write_manifest()
    with Journal(sweep, "j-0000") as journal:
        for run in sweep.runs:
            lost = run.config.learning_rate == 1e-4 and run.seed >= 4  # half of the best config's runs
            journal.start(run)
            for step in sweep.steps if not lost else (0,):
                right = rising(run, step)
                journal.eval(run, step, GREEDY, bits="1" * right + "0" * (100 - right))
            journal.end(run, "diverged" if lost else "completed")
    collect(sweep.root, tmp_path / "results.duckdb")
    found = weigh(tmp_path / "results.duckdb", "demo")
    assert found is not None
    assert found.grid.lost.sum() == 4
    missing = found.tables()["missing"]
    assert missing.select("learning_rate", "lost", "ended", "share").rows() == [(1e-4, 4, 8, 0.5)]
    assert found.readings.best_flips
    said = luck(found)[-1]
    assert said.startswith("4 runs diverged or failed; that depends on the config (p = 0.0")
    assert "they change which config is best" in said
    counted = found.tables()["missing_counted"]
    assert counted["lost runs"].to_list() == ["left out", "as the base model", "as the worst run"]
    assert counted["best config"].to_list()[:2] == ["learning_rate=0.0001", "learning_rate=0.0002"]


@pytest.mark.parametrize(
    ("grid", "seeds", "correct"),
    [
        pytest.param({"learning_rate": [1e-4, 2e-4]}, 1, lambda run, step: 50 + step, id="one seed"),
        pytest.param({"learning_rate": [1e-4]}, 8, lambda run, step: 50 + step + run.seed, id="one config"),
        pytest.param({"learning_rate": [1e-4]}, 1, lambda run, step: 50 + step, id="one run"),
        pytest.param({"learning_rate": [1e-4, 2e-4]}, 4, lambda run, step: 50, id="all equal"),
        pytest.param({"learning_rate": [1e-4, 2e-4]}, 2, lambda run, step: 50 + step * (1 + run.seed), id="two seeds"),
    ],
)
def test_edges_say_what_they_can(tmp_path: Path, grid: dict[str, list[float]], seeds: int, correct: object) -> None:
    found = weighed(tmp_path, grid=grid, seeds=seeds, correct=correct)
    assert not any("nan" in sentence for sentence in luck(found))
    tables = found.tables()
    assert tables["spread"].height == len(grid["learning_rate"])
    assert not any(t[c].is_nan().any() for t in tables.values() for c in t.columns if t[c].dtype == pl.Float64)
    if seeds == 1 and len(grid["learning_rate"]) > 1:
        assert any("by how much cannot be told from 1 seed:" in sentence for sentence in luck(found))


def test_unequal_seeds_and_negative_scores(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs", grid=RATES, seeds=range(6))
    sweep.write_manifest()
    with Journal(sweep, "j-0000") as journal:
        for i, run in enumerate(sweep.runs):
            if run.seed < 3 or run.config.learning_rate == 1e-4:
                journal.start(run)
                for step in sweep.steps:
                    score(journal, run, step, -1.0 - i / 50 + step / 100)
                journal.end(run)
    collect(sweep.root, tmp_path / "results.duckdb")
    found = weigh(tmp_path / "results.duckdb", "demo")
    assert found is not None
    spread = found.tables()["spread"]
    assert sorted(spread["n"]) == [3, 3, 6]
    assert spread["cv"].null_count() == spread["ratio"].null_count() == 3, "neither is defined below 0"
    assert not any("nan" in sentence for sentence in luck(found))


def score(journal: Journal, run: Run, step: int, accuracy: float) -> None:
    """A score that is no share, as a trainer of one's own may tell."""
    said = {"run_id": run.run_id, "attempt": 0, "step": step, "eval_id": GREEDY.eval_id(), "task": GREEDY.task}
    journal.write("eval", **said, n_questions=1, num_samples=1, accuracy=accuracy, outcomes="", values={})


def test_what_drawing_answers_adds_is_told_apart(tmp_path: Path) -> None:
    """Two sampled answers per question: their luck is a component of its own, and what it takes is missing elsewhere."""
    sweep = Sweep(tmp_path / "runs", grid=RATES, seeds=range(8), evaluations=(SAMPLED,)).write(jobs=1)
    collect(sweep.root, tmp_path / "results.duckdb")
    found = weigh(tmp_path / "results.duckdb", "demo")
    assert found is not None
    table = found.tables()["variance"]
    decoding = table.filter(pl.col("name") == "decoding")["variance"][0]
    answers = load("demo", tmp_path / "results.duckdb").answers.filter(step=found.point, status="completed")
    p = answers.group_by("run_id", "question").agg(p=pl.mean("correct"))
    by_hand = p.group_by("run_id").agg(v=(pl.col("p") * (1 - pl.col("p"))).sum() / 50**2)["v"].mean()
    assert decoding == pytest.approx(by_hand)
    assert "decoding" not in weighed(tmp_path / "greedy").tables()["variance"]["name"].to_list()


def test_a_sweep_without_results_has_no_evidence(tmp_path: Path) -> None:
    made(tmp_path, RATES, 2, rising, "failed")
    assert weigh(tmp_path / "results.duckdb", "demo") is None


def test_the_same_results_give_the_same_evidence(tmp_path: Path) -> None:
    found = weighed(tmp_path)
    again = weigh(tmp_path / "results.duckdb", "demo")
    assert again is not None
    assert luck(again) == luck(found)
    assert all(again.tables()[name].equals(table) for name, table in found.tables().items())
