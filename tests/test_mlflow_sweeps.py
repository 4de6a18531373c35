"""Sweeps of other kinds in MLflow: of an own trainer, imported, with forgiven failures; and where it cannot write."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from analysis.collect import collect
from analysis.mlflow_export import Exported, export
from analysis.queries import sql
from tests.journals import Sweep
from tests.test_import_results import bring, call
from tests.test_mlflow_export import client_of, held

pytestmark = pytest.mark.slow
OWN = {"method": ["external"], "command": ["python train.py"]}
TABLE = "lr,opt,seed,acc\n0.1,adam,0,0.71\n0.1,adam,1,0.73\n0.2,,0,0.61\n0.2,,1,\n"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all: a sweep is an experiment of its own."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return tmp_path


def names(uri: str, sweep: str) -> list[str]:
    """What the runs of configs are called."""
    return sorted(run["name"] for run in held(uri, sweep).values() if "mlflow.parentRunId" not in run["tags"])


def counts(done: Exported) -> tuple[int, int, int, int]:
    return done.new, done.edited, done.unchanged, done.waiting


def test_params_of_an_own_trainer_name_a_config(here: Path, uri: str) -> None:
    """Also those that only some configs have."""
    points = [{"width": 8, "optim.lr": 0.1}, {"width": 16, "optim.lr": 0.1}, {"width": 16, "optim.lr": 0.1, "deep": True}]
    Sweep(here / "runs", "own", OWN | {"params": points}, range(2)).write(jobs=1)
    collect(here / "runs", here / "results.duckdb")
    assert export(here / "results.duckdb", "own", uri).new == 6
    assert names(uri, "own") == [
        "params.width=16, params.deep=-", "params.width=16, params.deep=True", "params.width=8, params.deep=-",
    ]  # fmt: skip
    params = [run["params"] for run in held(uri, "own").values()]
    assert {(p["params.width"], p["params.optim.lr"]) for p in params} == {("8", "0.1"), ("16", "0.1")}


def test_a_table_has_no_times(here: Path, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its runs stand at the time of their import, and are there once. A further import brings its own."""
    (here / "plain.csv").write_text(TABLE)
    bring("table", "plain.csv", "--metric", "acc")
    for said in ("exported 4 runs (0 unchanged)", "exported 0 runs (4 unchanged)"):
        capsys.readouterr()
        assert call("export", "mlflow", "plain") == 0
        assert f"plain: {said}" in capsys.readouterr().out
    assert names(uri, "plain") == ["params.lr=0.1, params.opt=adam", "params.lr=0.2, params.opt=-"]
    [(added,)] = sql("results.duckdb", "SELECT DISTINCT epoch_ms(added) FROM sweep_runs").rows()
    there = held(uri, "plain").values()
    assert {run["times"] for run in there} == {(added, added)}
    assert sorted(run["status"] for run in there if "mlflow.parentRunId" in run["tags"]) == ["FAILED"] + ["FINISHED"] * 3
    assert {v for run in there for k, v in run["last"].items() if k == "eval/acc/accuracy"} == {0.71, 0.73, 0.61}

    (here / "plain.csv").write_text(TABLE + "0.1,adam,2,0.75\n")
    bring("table", "plain.csv", "--metric", "acc")
    assert counts(export(here / "results.duckdb", "plain", uri)) == (1, 0, 4, 0)


def test_fields_that_an_imported_run_has_not(here: Path, uri: str) -> None:
    """Its params are those that were logged; a null among them is said where it varies."""
    client = client_of(uri)
    logged = client.create_experiment("logged", str(here / "artifacts"))
    for lr, opt, seed in ((0.1, "adam", 0), (0.1, "adam", 1), (0.2, None, 0)):
        run = client.create_run(logged).info.run_id
        for name, value in (("lr", lr), ("opt", opt), ("clip", None), ("seed", seed)):
            client.log_param(run, name, value)
        client.log_metric(run, "val/acc", 0.5 + lr, step=10)
        client.set_terminated(run)
    bring("mlflow", "logged", "--metric", "val/acc", "--name", "brought")
    assert counts(export(here / "results.duckdb", "brought", uri)) == (3, 0, 0, 0)
    params = [run["params"] for run in held(uri, "brought").values()]
    assert {name for p in params for name in p} == {
        "model_name_or_path", "prompt", "method", "params.lr", "params.opt", "seed",
    }  # fmt: skip
    assert {(p["params.lr"], p["params.opt"]) for p in params} == {("0.1", "adam"), ("0.2", "None")}
    assert names(uri, "brought") == ["params.lr=0.1, params.opt=adam", "params.lr=0.2, params.opt=-"]


def test_forgiven_and_excluded_runs(here: Path, uri: str) -> None:
    """A failed run that may be tried again stays as its last attempt ended, and says that it was excluded since; every run but
    repeats is counted."""
    sweep = Sweep(here / "runs", "forgiven", {"learning_rate": [1e-4, 5e-4]}, range(4), repeats=2)
    once = [r for r in sweep.runs if r.repeat == 0]
    failed, other, left, excluded = once[0], once[1], once[6], once[7]
    sweep.write_manifest()
    begun = [r for r in sweep.runs if r not in (left, excluded)]
    sweep.job("forgiven-0000", begun, statuses={failed.run_id: "failed", other.run_id: "failed"})
    sweep.mark("exclude", run_id=excluded.run_id, reason="not wanted")
    db = here / "results.duckdb"
    collect(sweep.root, db)
    assert counts(export(db, "forgiven", uri)) == (6, 0, 0, 2)
    before = held(uri, "forgiven")

    for run in (failed, other):
        sweep.mark("retry", run_id=run.run_id, forgiven=1)
    sweep.mark("exclude", run_id=failed.run_id, reason="trial 0 was over")
    collect(sweep.root, db)
    assert dict(sql(db, "SELECT run_id, status FROM runs WHERE failures > 0").rows()) == dict.fromkeys(
        (failed.run_id, other.run_id), "queued"
    )
    assert counts(export(db, "forgiven", uri)) == (0, 2, 4, 2)
    there = held(uri, "forgiven")
    assert there.keys() == before.keys()
    run = there[failed.run_id]
    assert (run["status"], run["tags"]["emsweep.excluded"]) == ("FAILED", "trial 0 was over")
    assert run["times"] == before[failed.run_id]["times"]
    assert [there[r.run_id]["tags"]["emsweep.status"] for r in (failed, other, once[2])] == ["queued", "queued", "completed"]
    assert counts(export(db, "forgiven", uri)) == (0, 0, 6, 2)

    sweep.job("forgiven-0001", [other])
    collect(sweep.root, db)
    assert counts(export(db, "forgiven", uri)) == (1, 0, 5, 2)
    assert held(uri, "forgiven")[other.run_id]["status"] == "FINISHED"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("postgresql+psycopg2://u:secret@h/db", "MLflow needs the Python package psycopg2-binary: "),
        ("mysql://u:secret@h/db", "for mysql://***@h/db MLflow needs the Python package mysqlclient: "),
        ("postgresql+none://u:secret@h/db", "postgresql+none://***@h/db: MLflow cannot write there; set MLFLOW_TRACKING_URI to"),
        ("ftp://u:secret@x", "ftp://***@x: MLflow cannot write there"),
        ("http:/x", "http:/x: MLflow cannot write there"),
        ("http://[x", "the tracking URI is malformed"),
        ("sqlite://", "sqlite://: that is no file"),
        ("sqlite:///:memory:", "sqlite:///:memory:: that is no file"),
        ("sqlite://results.db", "sqlite://results.db: that is no file"),
    ],
)  # fmt: skip
def test_where_mlflow_cannot_write(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: str, said: str
) -> None:
    """One line, without the password; not that the same command goes on. A driver that is not installed is named."""
    for module in ("psycopg2", "MySQLdb"):
        monkeypatch.setitem(sys.modules, module, None)
    Sweep(here / "runs", "own", {"learning_rate": [1e-4]}, range(1)).write(jobs=1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", wrong)
    assert call("export", "mlflow", "own") == 2
    told = capsys.readouterr().err
    assert said in told
    assert "secret" not in told
    assert told.count("\n") == 1
