"""Reading the results: views and macros against numpy and scipy, the documentation's examples, refusals."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest

from analysis.collect import collect
from analysis.queries import connect, load, sql
from analysis.report import build_report
from em_core.errors import UserError
from tests.journals import GREEDY, SAMPLED, Journal, Sweep

pytestmark = pytest.mark.fast

DOCS = (Path(__file__).parents[1] / "docs" / "sql.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```sql\n(.*?)```", DOCS, re.DOTALL)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return Sweep(tmp_path_factory.mktemp("demo") / "runs", evaluations=(GREEDY, SAMPLED), repeats=2).write()


@pytest.fixture(scope="module")
def db(sweep: Sweep) -> Path:
    path = sweep.root.parent / "results.duckdb"
    collect(sweep.root, path)
    return path


@pytest.fixture(scope="module")
def of_everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with something of all that the documentation asks for: also logits, and enough steps for the entropy law."""
    sweep = Sweep(tmp_path_factory.mktemp("all") / "runs", steps=(0, 2, 5, 10), repeats=2).write()
    run, values = sweep.runs[2], {"logit_mean": -2.0, "logit_sd": 3.0, "logit_skewness": 1.5}
    with Journal(sweep, "demo-9999") as journal:
        journal.start(run, mode="eval")
        about = {"run_id": run.run_id, "attempt": 0, "step": 5, "eval_id": "f" * 12, "task": "arithmetic", "n_questions": 9}
        histogram = {"left": -1.0, "width": 0.25, "counts": [3, 0, 1]}
        journal.write("eval", **about, num_samples=1, accuracy=None, outcomes="", values=values, histogram=histogram)
        journal.end(run)
    objective = {"metric": "accuracy", "task": None, "rule": "last", "step": None, "direction": "maximize"}
    sweep.mark("study", objectives=[objective], space={"learning_rate": {"low": 1e-5, "high": 1e-3}}, seeds_per_trial=8)
    for number, of_config in enumerate(sweep.runs[::16]):
        params = {"learning_rate": of_config.config.learning_rate}
        sweep.mark("trial", number=number, config_id=of_config.config_id, params=params, origin="sampled")
        sweep.mark("told", number=number, state="complete", values=[0.5 + number / 100], seeds=8, why="")
    collect(sweep.root, sweep.root.parent / "results.duckdb")
    return sweep.root.parent / "results.duckdb"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.split("FROM ")[-1].split()[0])
def test_documented_examples_run_and_return_rows(of_everything: Path, example: str) -> None:
    assert sql(of_everything, example).height > 0


def test_logits_have_bins_and_no_accuracy(of_everything: Path) -> None:
    assert sql(of_everything, "SELECT bin_left, bin_right, count FROM logit_histograms ORDER BY 1").rows() == [
        (-1.0, -0.75, 3),
        (-0.75, -0.5, 0),
        (-0.5, -0.25, 1),
    ]
    logits = f"eval_id = '{'f' * 12}'"
    assert sql(of_everything, f"SELECT DISTINCT metric FROM cells WHERE {logits} ORDER BY 1")["metric"].to_list() == [
        "logit_mean",
        "logit_sd",
        "logit_skewness",
    ]
    assert sql(of_everything, f"SELECT accuracy FROM scores WHERE {logits}").rows() == [(None,)]
    assert sql(of_everything, f"FROM answers WHERE {logits}").height == 0


def test_every_table_view_macro_and_column_is_documented(db: Path) -> None:
    with connect(db) as con:
        names = con.execute(
            "SELECT table_name, column_name FROM duckdb_columns() WHERE schema_name = 'main' AND NOT internal "
            "AND column_name NOT IN (SELECT column_name FROM duckdb_columns() WHERE table_name = 'configs')"
        ).fetchall()
        macros = con.execute(
            "SELECT function_name FROM duckdb_functions() WHERE function_type = 'macro' AND NOT internal"
        ).fetchall()
    said = set(re.findall(r"`(\w+)(?:\([\w, ]*\))?`", DOCS)) | set(re.findall(r"^### (\w+)", DOCS, re.MULTILINE))
    assert len(EXAMPLES) >= 3
    assert len(macros) >= 12
    assert {name for row in names for name in row} | {name for (name,) in macros} <= said


def test_cells_are_the_statistics_of_completed_runs(db: Path, sweep: Sweep) -> None:
    cells = load("demo", db).cells.filter((pl.col("metric") == "accuracy") & (pl.col("step") == 10))
    scores = load("demo", db).scores.filter((pl.col("step") == 10) & (pl.col("status") == "completed"))
    assert cells.height == 18 * 2
    assert cells["n_planned"].unique().to_list() == [8]
    for key in ("n_diverged", "n_failed"):
        assert cells.filter(pl.col("eval_id") == GREEDY.eval_id())[key].sum() == 1
    for cell in cells.rows(named=True):
        x = scores.filter((pl.col("config_id") == cell["config_id"]) & (pl.col("eval_id") == cell["eval_id"]))[
            "accuracy"
        ].to_numpy()
        assert cell["n"] == len(x) == cell["n_completed"]
        assert cell["mean"] == pytest.approx(x.mean())
        assert cell["sd"] == pytest.approx(x.std(ddof=1))
        assert (cell["min"], cell["max"]) == (x.min(), x.max())
        assert cell["max_over_min"] == pytest.approx(x.max() / x.min())


def test_intervals_are_scipys(db: Path) -> None:
    from scipy.stats import t

    with connect(db) as con:
        found = con.execute("SELECT df, t_quantile(df) FROM (SELECT unnest(range(1, 400)) AS df)").fetchall()
        assert [q for _, q in found] == pytest.approx([t.ppf(0.975, df) for df, _ in found], rel=2e-6)
        [(lo, hi, sem)] = con.execute(
            "SELECT t_lo(x), t_hi(x), finite_sem(x) FROM (VALUES (1.0), (2.0), (4.0)) AS v(x)"
        ).fetchall()
        x = np.array([1.0, 2.0, 4.0])
        assert (lo, hi) == pytest.approx(t.interval(0.95, 2, x.mean(), x.std(ddof=1) / 3**0.5), rel=1e-6)
        assert sem == pytest.approx(x.std(ddof=1) / 3**0.5)
        assert con.execute("SELECT wilson_lo(3, 10), wilson_hi(3, 10), wilson_lo(0, 0)").fetchall()[0] == pytest.approx(
            (0.107791, 0.603222, None), abs=1e-6
        )


def test_nan_is_never_best_and_one_value_has_no_spread(db: Path) -> None:
    nan = "(VALUES ('a', 0.3), ('b', 'NaN'::DOUBLE), ('c', 0.6), ('d', 'Infinity'::DOUBLE), ('e', NULL)) AS v(name, x)"
    found = sql(db, f"SELECT finite_arg_max(name, x), finite_max(x), finite_min(x), finite_mean(x), finite_count(x) FROM {nan}")
    assert found.row(0) == ("c", 0.6, 0.3, pytest.approx(0.45), 2)
    one = sql(db, "SELECT finite_sd(x), finite_sem(x), t_lo(x), finite_mean(x) FROM (VALUES (0.5), ('NaN'::DOUBLE)) AS v(x)")
    assert one.row(0) == (None, None, None, 0.5)
    assert sql(db, "SELECT max_over_min(x) FROM (VALUES (0.0), (0.5)) AS v(x)").row(0) == (None,)


def test_diverged_runs_are_counted_but_never_best(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs", grid={"learning_rate": [1e-4]}, seeds=range(3))
    sweep.write_manifest()
    sweep.job("j-0000", sweep.runs[:2])
    with Journal(sweep, "j-0001") as journal:
        journal.start(sweep.runs[2])
        journal.metrics(sweep.runs[2], range(1, 11), nan_from=3)
        journal.eval(sweep.runs[2], 10, GREEDY, bits="1" * 100)  # perfect, and yet diverged
        journal.end(sweep.runs[2], "diverged")
    db = tmp_path / "results.duckdb"
    collect(sweep.root, db)
    [cell] = sql(db, "FROM cells WHERE step = 10 AND metric = 'accuracy'").rows(named=True)
    assert (cell["n_planned"], cell["n_completed"], cell["n_diverged"], cell["n"]) == (3, 2, 1, 2)
    assert cell["max"] < 1
    assert sql(db, "SELECT count(*) FROM metrics WHERE isnan(value)").item() == 16


def test_a_config_without_results_has_one_row(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs", grid={"learning_rate": [1e-4]}, seeds=range(2))
    sweep.write_manifest()
    collect(sweep.root, tmp_path / "results.duckdb")
    [cell] = load("demo", tmp_path / "results.duckdb").cells.rows(named=True)
    assert (cell["n_planned"], cell["n"], cell["mean"], cell["step"]) == (2, 0, None, None)


def test_answers_unpack_the_outcomes(db: Path, sweep: Sweep) -> None:
    run = next(r.run_id for r in reversed(sweep.runs) if not r.repeat)
    found = sql(
        db, f"FROM answers WHERE run_id = '{run}' AND step = 10 AND eval_id = '{GREEDY.eval_id()}' ORDER BY question, sample"
    )
    [bits] = sql(
        db, f"SELECT outcomes::VARCHAR FROM evals WHERE run_id = '{run}' AND step = 10 AND eval_id = '{GREEDY.eval_id()}'"
    )[:, 0]
    assert found.select("question", "sample").rows()[:3] == [(0, 0), (0, 1), (1, 0)]
    assert "".join("01"[c] for c in found["correct"]) == bits


def test_load_gives_frames(db: Path) -> None:
    frames = load("demo", str(db))
    assert frames.runs.height == 144
    assert frames.metrics.columns == ["run_id", "step", "name", "value"]
    assert frames.answers["correct"].mean() == pytest.approx(frames.scores["accuracy"].mean())
    assert frames.cells is frames.cells


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("DROP TABLE runs", "read-only: DROP is refused"),
        ("COPY runs TO 'x.csv'", "COPY is refused"),
        ("ATTACH 'x.duckdb'", "ATTACH is refused"),
        ("EXPORT DATABASE 'x'", "EXPORT is refused"),
        ("INSTALL httpfs", "is refused"),
        ("SET enable_external_access = true", "SET is refused"),
        ("CREATE TEMP TABLE x (i INT)", "CREATE is refused"),
        ("EXPLAIN ANALYZE DELETE FROM runs", "SQL"),
        ("SELECT * FROM read_csv('/etc/hostname')", "Permission"),
        ("SELECT 1; SELECT 2", "one query at a time"),
        ("", "one query at a time"),
        ("SELECT accurcy FROM scores", 'Candidate bindings: "accuracy"'),
        ("SELEC 1", "syntax error"),
    ],
)
def test_anything_but_reading_is_refused_in_one_line(db: Path, query: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        sql(db, query)
    assert "\n" not in str(caught.value)


def test_show_describe_and_pivot_are_reading(db: Path) -> None:
    assert sql(db, "SHOW TABLES")["name"].to_list() == [
        *(
            "answers",
            "attempts",
            "cells",
            "chains",
            "configs",
            "evals",
            "job_ends",
            "jobs",
            "logit_histograms",
            "metrics",
            "repeats",
            "runs",
            "scores",
            "studies",
            "sweep_runs",
            "sweeps",
            "trials",
        )
    ]
    assert sql(db, "DESCRIBE cells").height > 20
    assert sql(db, "PIVOT (SELECT status, seed FROM runs) ON status USING count(*)").height == 8
    assert sql(db, "FROM runs WHERE false").shape == (0, 18)


def test_what_is_not_there_is_named(db: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean demo\?.*it has: demo"):
        load("dmo", db)
    with pytest.raises(UserError, match="there is no database"):
        sql(tmp_path / "nothing.duckdb", "SELECT 1")
    (tmp_path / "notes.duckdb").write_text("notes")
    with pytest.raises(UserError, match="not a DuckDB file"):
        sql(tmp_path / "notes.duckdb", "SELECT 1")
    duckdb.connect(str(tmp_path / "mine.duckdb")).close()
    with pytest.raises(UserError):
        load("demo", tmp_path / "mine.duckdb")


def test_a_metric_that_only_some_runs_have_counts_those(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "runs", grid={"learning_rate": [1e-4, 2e-4]}, seeds=range(4))
    sweep.write_manifest()
    with Journal(sweep, "j-0000") as journal:
        for run in sweep.runs:
            journal.start(run)
            for step in sweep.steps:
                journal.eval(run, step, GREEDY)
            if run.seed < 3 and run.config.learning_rate == 1e-4:
                about = {"run_id": run.run_id, "attempt": 0, "step": 10, "eval_id": SAMPLED.eval_id(), "task": SAMPLED.task}
                values = {"unparsable": 0.1 * run.seed, "completion_length": 9.0}
                journal.write("eval", **about, n_questions=1, num_samples=1, accuracy=float("nan"), outcomes="", values=values)
            journal.end(run)
    collect(sweep.root, tmp_path / "results.duckdb")
    [cell] = sql(tmp_path / "results.duckdb", "FROM cells WHERE metric = 'unparsable'").rows(named=True)
    assert (cell["n"], cell["n_planned"], cell["mean"], cell["learning_rate"]) == (3, 4, pytest.approx(0.1), 1e-4)
    nothing = sql(tmp_path / "results.duckdb", f"FROM cells WHERE metric = 'accuracy' AND eval_id = '{SAMPLED.eval_id()}'")
    assert nothing["mean"].null_count() == nothing.height, "a NaN is no score"
    assert len(build_report(tmp_path / "results.duckdb", "demo", tmp_path / "report").sentences) == 3
