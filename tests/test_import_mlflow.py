"""`emsweep import mlflow`: which params nested runs have, and what it says where it cannot read a store."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis.queries import sql
from tests.mlflow_server import served
from tests.test_import_results import ask, call

IMPORT = ("import", "mlflow", "nested", "--metric", "acc")
FOUND = "SELECT params->>'data', params->>'model', seed, accuracy FROM scores ORDER BY ALL"
LOGGED = [("wiki", model, seed, score + seed / 8) for model, score in (("bert", 0.25), ("gpt", 0.5)) for seed in (0, 1)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def mlflow_at(uri: str) -> Any:
    return pytest.importorskip("mlflow").MlflowClient(uri)


def log(client: Any, experiment: str, params: dict[str, Any], tags: dict[str, str], acc: float | None = None) -> str:
    run: str = client.create_run(experiment, tags=tags).info.run_id
    for name, value in params.items():
        client.log_param(run, name, value)
    if acc is not None:
        client.log_metric(run, "acc", acc)
    client.set_terminated(run)
    return run


def nest(uri: str) -> tuple[Any, list[str]]:
    """A client, and the runs of the experiment that others are nested in: one of the data, and below it one of each model, which
    has the runs of its seeds below it."""
    client = mlflow_at(uri)
    experiment = client.create_experiment("nested")
    above = [log(client, experiment, {"data": "wiki"}, {})]
    for model, score in (("bert", 0.25), ("gpt", 0.5)):
        above.append(log(client, experiment, {"model": model}, {"mlflow.parentRunId": above[0]}))
        for seed in (0, 1):
            log(client, experiment, {"seed": seed}, {"mlflow.parentRunId": above[-1], "is": "seed"}, score + seed / 8)
    return client, above


@pytest.mark.long
@pytest.mark.parametrize("store", ["sqlite:///{}/ml.db", "file://{}/mlruns", ""])
def test_params_of_runs_that_the_filter_leaves_out_or_that_were_deleted(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: str
) -> None:
    """In a database, a folder and on a server."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with contextlib.nullcontext(store.format(here)) if store else served(here / "server") as uri:
        client, above = nest(uri)
        assert call(*IMPORT, "--tracking-uri", uri, "--filter", "tags.is = 'seed'") == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "4 runs of 2 configs imported" in said
        assert "no replicates" not in said
        assert "no longer has" not in said
        assert ask(FOUND) == LOGGED
        for run in above[:2]:
            client.delete_run(run)
        assert call(*IMPORT, "--tracking-uri", uri, "--root", "deleted", "--db", "deleted.duckdb") == 0
    assert sql("deleted.duckdb", FOUND).rows() == LOGGED


@pytest.mark.long
def test_a_parent_that_is_gone_for_good_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether `mlflow gc` removed it, or whoever set the tag made its id up."""
    client, above = nest(f"sqlite:///{here}/ml.db")
    client.delete_run(above[1])
    client._tracking_client.store._hard_delete_run(above[1])
    experiment = client.get_experiment_by_name("nested").experiment_id
    log(client, experiment, {"seed": 0, "model": "own"}, {"mlflow.parentRunId": "no id!"}, 0.75)
    assert call(*IMPORT, "--tracking-uri", "ml.db") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "- MLflow no longer has 2 parent runs: runs nested there lack the params" in said
    assert set(ask(FOUND)) == {*LOGGED[2:], (None, None, 0, 0.25), (None, None, 1, 0.375), (None, "own", 0, 0.75)}


def test_a_name_of_which_no_sweeps_name_can_be_made(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mlflow_at(f"sqlite:///{here}/ml.db").create_experiment("実験")
    capsys.readouterr()  # what MLflow logs of a new database
    assert call("import", "mlflow", "実験", "--metric", "acc", "--tracking-uri", "ml.db") == 2
    told = capsys.readouterr().err
    assert told.startswith("emsweep: no sweep's name can be made of '実験': give one with --name")
    assert told.count("\n") == 1


def test_two_experiments_do_not_become_one_sweep_unasked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = mlflow_at(f"sqlite:///{here}/ml.db")
    for name in ("lr & seeds", "lr + seeds"):
        log(client, client.create_experiment(name), {"seed": 0, "lr": 0.1}, {}, 0.75)
    command = ("--metric", "acc", "--tracking-uri", "ml.db")
    assert call("import", "mlflow", "lr & seeds", *command) == 0
    assert call("import", "mlflow", "lr + seeds", *command) == 2
    told = capsys.readouterr().err
    assert told == "emsweep: lr-seeds holds what was imported from 'lr & seeds', not 'lr + seeds': give a --name\n"
    assert call("import", "mlflow", "lr & seeds", *command) == 0, "again"
    assert call("import", "mlflow", "lr + seeds", *command, "--name", "lr-seeds") == 0, "a person says so"


@pytest.mark.parametrize(
    ("scheme", "module", "package"),
    [("postgresql", "psycopg", "psycopg[binary]"), ("mysql", "MySQLdb", "mysqlclient"), ("mysql+pymysql", "pymysql", "pymysql")],
)
def test_a_database_whose_driver_is_missing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scheme: str, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert call("import", "mlflow", "E", "--metric", "acc", "--tracking-uri", f"{scheme}://u:secret@127.0.0.1:1/db") == 2
    said = f"MLflow at {scheme}://127.0.0.1:1/db: the Python package {package} is missing: `pip install '{package}'`"
    assert capsys.readouterr().err == f"emsweep: {said}\n"


@pytest.mark.long
def test_no_password_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not where MLflow says the address itself, nor where a server is asked that is not there."""
    for address, code in (("nonsense://u:secret@127.0.0.1:1", 2), ("http://u:secret@127.0.0.1:1", 1)):
        assert call("import", "mlflow", "E", "--metric", "acc", "--tracking-uri", address) == code
        told = capsys.readouterr().err
        assert "127.0.0.1" in told
        assert "secret" not in told
        assert told.count("\n") == 1
