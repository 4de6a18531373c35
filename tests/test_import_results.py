"""`emsweep import`: what other tools recorded comes in with its numbers, seeds and ends, once, and however often it is killed."""

from __future__ import annotations

import hashlib
import math
import os
import random
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from analysis.collect import collect
from analysis.queries import load, sql
from em_core.journal import SweepDir
from sweeps import cli
from sweeps.importing import param_name, typed
from tests.journals import Sweep
from tests.mlflow_server import served

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
WIDE = """lr,width,seed,acc,loss
0.1,8,0,0.71,0.5
0.1,8,1,0.73,0.52
0.1,8,2,NaN,NaN
1e-2,8,0,0.61,0.7
1e-2,8,1,0.60,0.7
1e-2,8,2,,
"""
LONG = """name,lr,epoch,bleu
a,0.1,10,20.5
a,0.1,20,31.25
b,0.1,10,22.0
b,0.1,20,30.0
c,0.2,10,25.0
c,0.2,20,inf
"""
DECODING = ("greedy", "decoding", "temperature")
CELLS = "SELECT params.lr::DOUBLE, metric, step, n, n_planned, n_diverged, n_failed, mean FROM cells ORDER BY ALL"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "wide.csv").write_text(WIDE)
    (tmp_path / "long.csv").write_text(LONG)
    return tmp_path


def call(*args: str) -> int:
    """Exit code of the command line, in this process."""
    try:
        cli.main(args)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def bring(*args: str) -> None:
    assert call("import", *args) == 0


def ask(query: str) -> list[tuple[Any, ...]]:
    return sql("results.duckdb", query).rows()


def scores(sweep: str, db: str = "results.duckdb") -> list[tuple[Any, ...]]:
    """(seed, repeat, step, task, accuracy) of every evaluation, without the params."""
    query = "SELECT seed, step, e.task, accuracy, params FROM scores JOIN evals AS e USING (run_id, step, eval_id, accuracy)"
    return sorted(map(str, sql(db, f"{query} WHERE scores.sweep = '{sweep}'").rows()))  # type: ignore[arg-type]


# -- tables --------------------------------------------------------------------------------------------------------


def test_a_table_row_by_row(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers, ends and seeds; a further import brings the rows that are new and changes nothing else."""
    bring("table", "wide.csv", "--metric", "acc", "--minimize", "loss")
    assert "6 runs of 2 configs imported (4 completed, 1 diverged, 1 failed)" in capsys.readouterr().out
    first = ask(CELLS)
    assert [row for row in first if row[1] == "accuracy" and row[-1] > 0] == [
        (0.01, "accuracy", 1, 2, 3, 0, 1, pytest.approx(0.605)),
        (0.1, "accuracy", 1, 2, 3, 1, 0, pytest.approx(0.72)),
    ]
    tasks = ask("SELECT task, round(avg(accuracy), 4) FROM scores WHERE status = 'completed' GROUP BY ALL ORDER BY ALL")
    assert tasks == [("-loss", -0.605), ("acc", 0.6625)], "more is better, also of what is to be small"
    assert [row[-1] for row in first if row[1] == "loss"] == pytest.approx([0.7, 0.51])
    assert ask("SELECT seed, status FROM runs ORDER BY status, seed")[-2:] == [(2, "diverged"), (2, "failed")]
    said = ask("SELECT message, cause FROM attempts WHERE status <> 'completed' ORDER BY ALL")
    assert said == [("row 3 of wide.csv", "non-finite"), ("row 6 of wide.csv, without `acc`", "")]

    bring("table", "wide.csv", "--metric", "acc", "--minimize", "loss")
    assert "nothing new; 6 were there before" in capsys.readouterr().out
    (here / "wide.csv").write_text(WIDE.replace("0.71", "0.99") + "0.1,8,3,0.75,0.5\n0.3,8,0,0.5,1\n")
    bring("table", "wide.csv", "--metric", "acc", "--minimize", "loss")
    assert "2 runs of 2 configs imported" in capsys.readouterr().out
    assert ask("SELECT round(avg(accuracy), 4), count(*) FROM scores WHERE task = 'acc' AND isfinite(accuracy)") == [(0.65, 6)]


def test_steps_runs_and_no_seed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of a run are its curve; runs of equal params are numbered; the scores may be of any size."""
    bring("table", "long.csv", "--metric", "bleu", "--step", "epoch", "--run", "name", "--name", "mt")
    said = " ".join(capsys.readouterr().out.split())
    assert "no param is a seed: runs of equal params are numbered" in said
    assert "bleu is highest at the end, 30.625 [22.684, 38.566] at step 20" in said
    assert ask("SELECT params.lr::DOUBLE, seed, step, accuracy FROM scores WHERE status = 'completed' ORDER BY ALL") == [
        (0.1, 0, 10, 20.5), (0.1, 0, 20, 31.25), (0.1, 1, 10, 22.0), (0.1, 1, 20, 30.0),
    ]  # fmt: skip
    assert ask("SELECT params.lr::DOUBLE FROM scores WHERE status = 'diverged' AND step = 20") == [(0.2,)]
    (here / "long.csv").write_text(LONG + "d,0.1,20,33.0\n")
    bring("table", "long.csv", "--metric", "bleu", "--step", "epoch", "--run", "name", "--name", "mt")
    assert ask("SELECT seed, accuracy FROM scores WHERE seed = 2") == [(2, 33.0)]


def test_parquet_keeps_its_types_and_json_lines_do(here: Path) -> None:
    frame = pl.DataFrame({"lr": [0.1, 0.1], "tag": ["1e-3", "1e-3"], "seed": [0, 1], "on": [True, True], "acc": [0.5, 0.75]})
    frame.write_parquet("t.parquet")
    frame.write_ndjson("t.jsonl")
    bring("table", "t.parquet", "--metric", "acc")
    bring("table", "t.jsonl", "--metric", "acc", "--name", "u")
    [a, b] = ask("SELECT params::VARCHAR FROM configs ORDER BY model")
    assert a == b == ('{"lr": 0.1, "on": true, "tag": "1e-3"}',)
    assert ask("SELECT DISTINCT learning_rate, max_steps FROM configs") == [(None, None)], "no defaults of a training here"
    frames = load("t", "results.duckdb")
    assert frames.cells["params_on"].to_list() == [True]


def test_the_same_seed_again_is_a_repeat_and_a_failure_an_attempt(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "r.csv").write_text("lr,seed,acc\n1,0,\n1,0,0.5\n1,0,0.75\n1,1,0.25\n")
    bring("table", "r.csv", "--metric", "acc")
    said = " ".join(capsys.readouterr().out.split())
    assert "1 run with the params and the seed of another: repeats of it" in said
    assert ask("SELECT seed, repeat, status, attempts FROM runs ORDER BY ALL") == [
        (0, 0, "completed", 2), (0, 1, "completed", 1), (1, 0, "completed", 1),
    ]  # fmt: skip
    assert ask("SELECT n, mean FROM cells WHERE metric = 'accuracy'") == [(2, 0.375)]


def test_nothing_is_said_of_decoding_where_there_was_none(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bring("table", "wide.csv", "--metric", "acc", "--ignore", "loss")
    [(a,), (b,)] = ask("SELECT config_id FROM configs ORDER BY params.lr::DOUBLE DESC")
    capsys.readouterr()
    assert call("compare", a, b) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "(acc): a difference of +0.115" in said
    assert not [word for word in DECODING if word in said]


def test_a_param_of_every_run_is_pointed_at(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "o.csv").write_text("lr,seed,out,acc\n1,0,a,0.5\n1,1,b,0.75\n")
    bring("table", "o.csv", "--metric", "acc")
    assert "every run is a config of its own, so there are no replicates; different in every run: out (--ignore" in " ".join(
        capsys.readouterr().out.split()
    )
    bring("table", "o.csv", "--metric", "acc", "--ignore", "out", "--name", "p")
    assert ask("SELECT n FROM cells WHERE sweep = 'p' AND metric = 'accuracy'") == [(2,)]


@pytest.mark.parametrize("header", [",lr,seed,acc", "\ufeff,lr,seed,acc", "lr,seed,acc, ,"])
def test_a_column_without_a_name_is_no_param(here: Path, capsys: pytest.CaptureFixture[str], header: str) -> None:
    """What pandas writes by default numbers its rows in one; what spreadsheets leave at the end is none."""
    rows = ["0,0.1,0,0.5", "1,0.1,1,0.75"] if header.endswith("acc") else ["0.1,0,0.5,0,", "0.1,1,0.75,1,"]
    (here / "pandas.csv").write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    bring("table", "pandas.csv", "--metric", "acc")
    said = " ".join(capsys.readouterr().out.split())
    assert "2 runs of 1 config imported" in said
    assert "- left out: a column without a name, as pandas writes its index" in said
    assert "different in every run" not in said
    assert ask("SELECT params::VARCHAR FROM configs") == [('{"lr": 0.1}',)]
    assert ask("SELECT seed, accuracy FROM scores ORDER BY ALL") == [(0, 0.5), (1, 0.75)]


def test_what_was_imported_is_reported_and_never_trained(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bring("table", "wide.csv", "--metric", "acc")
    assert call("report", "wide") == 0
    page = (here / "runs/wide/report/index.html").read_text()
    assert "acc, imported" in page
    assert not [word for word in DECODING if word in page]
    assert "base model)" not in page, "no score is from before training"
    said = capsys.readouterr().out
    assert "emsweep confirm" not in said
    assert call("status", "wide") == 0
    assert call("show", ask("SELECT min(run_id) FROM runs")[0][0]) == 0
    spec = here / "spec.yaml"
    spec.write_text("name: wide\nbase: {model_name_or_path: miniature, prompt: plus}\nseeds: 1\n")
    capsys.readouterr()
    before = tree(here / "runs")
    for args in (
        ["run", "spec.yaml", "-y", "--launcher", "local"],
        ["plan", "spec.yaml"],
        ["confirm", "wide"],
        ["retry", "wide"],
    ):
        assert call(*args) == 2, args
        assert "wide holds imported results, which cannot be trained here" in capsys.readouterr().err
    spec.write_text("name: other\nbase: {model_name_or_path: miniature, prompt: plus, method: imported}\nseeds: 1\n")
    assert call("plan", "spec.yaml") == 2
    assert "it cannot be trained" in capsys.readouterr().err
    assert tree(here / "runs") == before


def tree(folder: Path) -> dict[str, str]:
    """Every file with a digest of its content, but locks, and what reports and databases are."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and "lock" not in p.name)
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.fast
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["wide.csv"], "which columns are results?"),
        (["wide.csv", "--metric", "ac"], "--metric: unknown column `ac`; did you mean `acc`?"),
        (["wide.csv", "--metric", "acc", "--seed", "sed"], "--seed: unknown param `sed`; did you mean `seed`?"),
        (["wide.csv", "--metric", "acc", "--ignore", "widht"], "--ignore: unknown column `widht`; did you mean `width`?"),
        (["wide.csv", "--metric", "acc", "--minimize", "acc"], "`acc` is to be high (--metric) and low (--minimize)"),
        (["wide.csv", "--metric", "acc", "--seed", "lr"], "row 1 of wide.csv: `lr` is 0.1, not a whole number"),
        (["wide.csv", "--metric", "acc", "--name", "a/b"], "--name: 'a/b' cannot be a sweep's name"),
        (["実験.csv", "--metric", "acc"], "no sweep's name can be made of '実験': give one with --name (letters,"),
        (["long.csv", "--metric", "bleu", "--run", "lr"], "row 2: `epoch` differs from that of row 1, which is the same run"),
        (["long.csv", "--metric", "name"], "`name` is 'a', not a number"),
        (["long.csv", "--metric", "bleu", "--step", "bleu"], "is 20.5, not a whole number"),
        (["none.csv", "--metric", "acc"], "none.csv: no such file"),
        (["notes.txt", "--metric", "acc"], "a table is a .parquet, .jsonl, .csv file"),
        (["empty.csv", "--metric", "acc"], "the table has no rows"),
        (["twice.csv", "--metric", "acc", "--step", "s"], "step 1 of this run was told before; --run COLUMN says"),
        (["ragged.csv", "--metric", "acc"], "row 2: has more cells than the table has columns"),
        (["same.csv", "--metric", "acc"], "same.csv cannot be read: two columns are called `acc`"),
        (["clash.csv", "--metric", "acc"], "two of its params would be `params.a_b`"),
    ],
)
def test_mistakes_in_one_line(here: Path, capsys: pytest.CaptureFixture[str], args: list[str], said: str) -> None:
    (here / "notes.txt").write_text("hi")
    (here / "empty.csv").write_text("lr,acc\n")
    (here / "twice.csv").write_text("lr,s,acc\n1,1,0.5\n1,1,0.75\n")
    (here / "ragged.csv").write_text("lr,acc\n1,0.5\n1,0.5,2\n")
    (here / "same.csv").write_text("lr,seed,acc,acc,,\n1,0,0.5,0.25,,\n")
    (here / "clash.csv").write_text("a/b,a b,acc\n1,1,0.5\n")
    assert call("import", "table", *args) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not (here / "runs").exists()


def test_a_sweep_keeps_the_way_it_was_imported(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bring("table", "wide.csv", "--metric", "acc")
    capsys.readouterr()
    assert call("import", "table", "wide.csv", "--metric", "acc", "--ignore", "loss") == 2
    assert "wide was imported with ignored [], not ['loss']" in capsys.readouterr().err
    SweepDir(here / "runs", "own").path.mkdir()
    (here / "runs/own/manifest.jsonl").write_text(
        '{"kind":"sweep","t":1,"sweep":"own","spec":"","spec_path":"x","overrides":[],"evaluations":[]}\n'
    )
    assert call("import", "table", "wide.csv", "--metric", "acc", "--name", "own") == 2
    assert "own is a sweep that was run here" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.slow
def test_killed_while_the_manifest_is_written(here: Path) -> None:
    """Journals are whole before the manifest names their runs; what it does not name comes again, once."""
    bring("table", "wide.csv", "--metric", "acc")
    whole = scores("wide")
    (here / "wide.csv").write_text(WIDE + "0.1,8,3,0.75,0.5\n0.3,8,0,0.5,1\n")
    manifest = here / "runs/wide/manifest.jsonl"
    before = manifest.read_bytes()
    bring("table", "wide.csv", "--metric", "acc")
    after, full = manifest.read_bytes(), scores("wide")
    assert len(full) == len(whole) + 2
    middle = (len(before) + len(after)) // 2
    for cut in (len(before), middle, len(after) - 9, 0, len(before) // 2):  # the last two: in the first import
        manifest.write_bytes(after[:cut])
        bring("table", "wide.csv", "--metric", "acc")
        assert len(list(SweepDir(here / "runs", "wide").all_journals())) == (2 if cut >= len(before) else 1)
    assert scores("wide") == full
    assert ask("SELECT count(*), max(attempts) FROM runs") == [(8, 1)]
    collect(here / "runs", here / "anew.duckdb")
    assert scores("wide", "anew.duckdb") == full


@pytest.mark.fast
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-6", 5e-6), ("1", 1), ("1.0", 1.0), ("true", True), ("False", False), ("no", "no"), ("None", None), ("", None),
        ("null", None), ("nan", "nan"), (".nan", ".nan"), ("1e999", "1e999"), ("[1, 2]", "[1, 2]"), ("a: b", "a: b"),
        ("# x", "# x"), ("'7'", "'7'"), ("2026-01-01", "2026-01-01"), ("9" * 20, "9" * 20), ("a\tb", "a\tb"),
    ],
)  # fmt: skip
def test_texts_get_their_types_back(text: str, value: Any) -> None:
    assert typed(text) == value
    assert type(typed(text)) is type(value)


@pytest.mark.fast
def test_names_of_params_are_those_a_spec_could_write() -> None:
    assert [param_name(n) for n in ("lr", "params.lr", "optim.lr", "model/dim", "a b", "1st", "a..b", "é")] == [
        "lr", "lr", "optim.lr", "model_dim", "a_b", "_1st", "a__b", "_",
    ]  # fmt: skip


# -- MLflow --------------------------------------------------------------------------------------------------------

LOGGED: dict[tuple[float, str | None, int], list[float]] = {}


def curve(lr: float, opt: str | None, seed: int) -> list[float]:
    """What the user's script logs at steps 0, 10, ..., 40."""
    draw = random.Random(f"{lr} {opt} {seed}")
    return [0.5 + 0.05 * i + 0.1 * draw.random() + 5 * lr for i in range(5)]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment as people log it: a parent per config with the params, its runs below with their seeds; and accidents."""
    mlflow = pytest.importorskip("mlflow")
    path = tmp_path_factory.mktemp("mlflow") / "ml.db"
    client = mlflow.MlflowClient(f"sqlite:///{path}")
    of = mlflow.entities
    experiment = client.create_experiment("bert tuning", artifact_location=str(path.parent / "artifacts"))
    client.create_experiment("empty")

    def log(params: dict[str, Any], parent: str | None = None, end: str | None = "FINISHED", at: int = 0) -> str:
        tags = {"mlflow.parentRunId": parent} if parent else {}
        run: str = client.create_run(experiment, start_time=1_700_000_000_000 + at, tags=tags).info.run_id
        client.log_batch(
            run, params=[of.Param(k, str(v)) for k, v in params.items()], tags=[of.RunTag("mlflow.source.git.commit", "abc")]
        )
        if end:
            client.set_terminated(run, end, 1_700_000_060_000 + at)
        return run

    for lr in (1e-3, 1e-2):
        for opt in ("adam", None):
            parent = log({"lr": lr, "opt": opt, "model/dim": 64})
            for seed in (2, 0, 1):
                run = log({"seed": seed}, parent, at=seed)
                values = curve(lr, opt, seed)
                points = [of.Metric("val/acc", v, 5 + i, 10 * i) for i, v in enumerate(values)]
                points += [of.Metric("val/acc", 0.0, 1, 40), of.Metric("loss", 1.5, 5, 10), of.Metric("test_time", 3.5, 5, 0)]
                if (lr, opt, seed) == (1e-2, None, 2):
                    points += [of.Metric("val/acc", math.nan, 99, 50)]
                client.log_batch(run, metrics=points)
    log({"lr": 1e-2, "opt": "adam", "model/dim": 64, "seed": 9}, end="FAILED")
    log({"lr": 1e-2, "opt": "adam", "model/dim": 64, "seed": 10}, end="KILLED")
    log({"lr": 1e-2, "opt": "adam", "model/dim": 64, "seed": 11}, end="FINISHED")
    log({"lr": 1e-2, "opt": "adam", "model/dim": 64, "seed": 12}, end=None)
    log({}, end="FAILED")
    return path


def uri(database: Path) -> list[str]:
    return ["--tracking-uri", f"sqlite:///{database}"]


EXPECTED = sorted(
    (lr, opt, seed, 10 * i, value)
    for lr in (1e-3, 1e-2)
    for opt in ("adam", "-")
    for seed in range(3)
    if (lr, opt, seed) != (1e-2, "-", 2)
    for i, value in enumerate(curve(lr, None if opt == "-" else opt, seed))
)
STORED = (
    "SELECT params.lr::DOUBLE, coalesce(params->>'opt', '-'), seed, step, accuracy FROM scores "
    "WHERE status = 'completed' AND task = 'val/acc' ORDER BY ALL"
)


@pytest.mark.slow
def test_an_experiment_of_mlflow(here: Path, database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every number that was logged, under its seed and params; how runs ended; what is left out is said."""
    bring("mlflow", "bert tuning", *uri(database), "--metric", "val/acc")
    said = " ".join(capsys.readouterr().out.split())
    assert "bert-tuning: 14 runs of 4 configs imported (1 cancelled, 11 completed, 1 diverged, 1 failed)" in said
    assert "left out: 1 run still running, 1 run without `val/acc`" in said
    assert "left out: 1 run that ended before telling it" in said
    assert "step 0 of `val/acc` is taken for the score before training" in said
    assert ask(STORED) == EXPECTED, "of two values at one step the one logged later counts"
    assert ask("SELECT DISTINCT params.model_dim::INT FROM configs") == [(64,)], "the params of the run above"
    assert ask("SELECT seed, status FROM runs WHERE seed > 8 ORDER BY ALL") == [(9, "failed"), (10, "cancelled")]
    assert ask("SELECT DISTINCT commit, seconds, epoch_ms(started) - 1700000000000 < 5 FROM runs") == [("abc", 60.0, True)]
    assert ask("SELECT name, step, count(*) FROM metrics GROUP BY ALL ORDER BY ALL") == [("loss", 10, 12), ("test_time", 1, 12)]
    assert ask("SELECT DISTINCT step, mean FROM cells WHERE metric = 'loss'") == [(40, 1.5)]
    assert ask("SELECT message[-8:] FROM attempts WHERE status = 'failed'") == [("(FAILED)",)]

    bring("mlflow", "bert tuning", *uri(database), "--metric", "val/acc")
    assert "nothing new; 14 were there before" in capsys.readouterr().out
    copy = here / "copy.db"
    shutil.copy(database, copy)
    client = pytest.importorskip("mlflow").MlflowClient(f"sqlite:///{copy}")
    experiment = client.get_experiment_by_name("bert tuning").experiment_id
    run = client.create_run(experiment).info.run_id
    for key, value in {"lr": 1e-2, "opt": "adam", "model/dim": 64, "seed": 9}.items():
        client.log_param(run, key, value)
    client.log_metric(run, "val/acc", 0.875, step=40)
    client.set_terminated(run)
    bring("mlflow", experiment, "--tracking-uri", str(copy), "--metric", "val/acc")
    assert "1 run of 1 config imported" in capsys.readouterr().out
    assert ask("SELECT status, attempts, repeat FROM runs WHERE seed = 9") == [("completed", 2, 0)], "the failed run, tried again"


@pytest.mark.slow
def test_steps_that_count_from_0(here: Path, database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bring("mlflow", "bert tuning", *uri(database), "--metric", "val/acc", "--step-offset", "1", "--ignore", "seed", "--name", "n")
    said = " ".join(capsys.readouterr().out.split())
    assert "before training" not in said
    assert ask("SELECT min(step), max(step) FROM scores WHERE status = 'completed'") == [(1, 41)]
    assert ask("SELECT DISTINCT seed FROM runs JOIN configs USING (config_id) WHERE params.lr = 1e-3 ORDER BY ALL") == [
        (0,),
        (1,),
        (2,),
    ]
    parents = "SELECT params.lr::DOUBLE, params->>'opt', list(accuracy ORDER BY seed) FROM scores WHERE step = 41 GROUP BY ALL"
    found = {(lr, opt): values for lr, opt, values in ask(parents)}
    assert found[1e-3, "adam"] == [curve(1e-3, "adam", seed)[-1] for seed in range(3)], "in the order in which they began"


@pytest.mark.long
@pytest.mark.slow
def test_mistakes_with_mlflow_in_one_line(here: Path, database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "text.db").write_text("hi")
    shutil.copy(database, here / "old.db")
    with sqlite3.connect(here / "old.db") as con:
        con.execute("DROP TABLE trace_metrics")
    old = hashlib.sha256((here / "old.db").read_bytes()).hexdigest()
    cases = [
        (["bert tunin", *uri(database)], 2, "unknown experiment `bert tunin`; did you mean `bert tuning`?"),
        (["empty", *uri(database)], 2, "the experiment empty has no runs"),
        (
            ["bert tuning", *uri(database)],
            2,
            "by which metric? --metric NAME (higher is better) or --minimize NAME; there are: loss",
        ),
        (["bert tuning", *uri(database), "--metric", "val/ac"], 2, "unknown metric `val/ac`; did you mean `val/acc`?"),
        (["bert tuning", *uri(database), "--metric", "loss", "--filter", "x y"], 2, "Invalid"),
        (
            ["bert tuning", *uri(database), "--metric", "loss", "--seed", "lr"],
            2,
            "not a whole number of at least 0; name the seed's param (--seed)",
        ),
        (["bert tuning"], 2, "there are no runs of MLflow at sqlite:"),
        (["bert tuning", "--tracking-uri", "nowhere.db"], 2, "there are no runs of MLflow at nowhere.db"),
        (["bert tuning", "--tracking-uri", "text.db"], 2, "file is not a database"),
        (["bert tuning", "--tracking-uri", "old.db"], 2, "would change the database"),
    ]
    for args, code, said in cases:
        assert call("import", "mlflow", *args) == code, args
        told = capsys.readouterr().err
        assert said in told, args
        assert told.count("\n") == 1, args
    assert hashlib.sha256((here / "old.db").read_bytes()).hexdigest() == old
    assert {p.name for p in here.iterdir()} == {"wide.csv", "long.csv", "text.db", "old.db"}


@pytest.mark.long
def test_from_a_server(here: Path, database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same runs from a tracking server as from its database; a server that is gone is one line."""
    (here / "server").mkdir()
    shutil.copy(database, here / "server" / "mlflow.db")
    with served(here / "server") as address:
        bring("mlflow", "bert tuning", "--tracking-uri", address, "--metric", "val/acc")
    assert ask(STORED) == EXPECTED
    capsys.readouterr()
    assert call("import", "mlflow", "bert tuning", "--tracking-uri", address, "--metric", "val/acc") == 1
    told = capsys.readouterr().err
    assert "does not answer" in told
    assert told.count("\n") == 1


@pytest.mark.long
def test_what_we_exported_comes_back(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Params, seeds, stages, ends and scores of every run, by way of MLflow."""
    pytest.importorskip("analysis.mlflow_export")
    demo = Sweep(here / "runs", seeds=range(4), fresh=(3,)).write()
    demo.mark("exclude", run_id=demo.runs[-1].run_id, reason="a test")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{here / 'ml.db'}")
    assert call("export", "mlflow", "demo") == 0
    bring("mlflow", "demo", "--name", "back", "--metric", "eval/arithmetic-num_samples_2/accuracy")
    told = "stage, seed, step, accuracy FROM scores WHERE NOT excluded AND status = 'completed' AND sweep"
    ours = ask(f"SELECT learning_rate, temperature, prompt, {told} = 'demo' ORDER BY ALL")
    assert len(ours) > 100
    assert (
        ask(f"SELECT params.learning_rate::DOUBLE, params.temperature::DOUBLE, params->>'prompt', {told} = 'back' ORDER BY ALL")
        == ours
    )
    ends = (
        "SELECT status, count(*) FROM runs JOIN sweep_runs AS m USING (run_id) WHERE NOT excluded AND m.sweep = '{}' GROUP BY ALL"
    )
    assert dict(ask(ends.format("back"))) == {("cancelled" if k == "interrupted" else k): n for k, n in ask(ends.format("demo"))}
