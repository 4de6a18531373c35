"""Results into MLflow: an experiment per sweep, a run per config, and below it a run per seed.

Resumable and idempotent: each of MLflow's runs says in a tag, written last, what it holds. So what is there already is left
alone, what was cut off (or became other numbers) is deleted and made anew, and where only words changed (a status, an
exclusion) the run is edited. Nothing is read back but those tags.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import polars as pl

from analysis.mlflow_records import MEASURED, Config, Metric, Record, Sheet, read_metrics, read_sheet
from analysis.queries import connect, load
from em_core.errors import Fault, UserError
from em_core.lock import locked

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from analysis.mlflow_stores import Known, Store

CHUNK = 32
"""Configs whose curves are in memory at once."""
ORIGIN, LABEL = "emsweep.made", "emsweep.evaluation."
Progress = Callable[[int, int], None]
"""Told how many runs are there, of how many."""


@dataclass(frozen=True)
class Exported:
    """What an export did: runs (of seeds) written anew, edited, and left alone; planned runs that have not started; seconds."""

    sweep: str
    new: int
    edited: int
    unchanged: int
    waiting: int
    seconds: float


@dataclass
class Work:
    """What is to be done for a config. `parent`: MLflow's id of its run, empty where that is to be made; then, and where there
    are several, `adopted` are the runs of seeds that stay, and get below it."""

    config: Config
    parent: str
    new: list[Record] = field(default_factory=list)
    edited: list[tuple[str, Record]] = field(default_factory=list)
    adopted: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)


def tracking_uri(db: Path) -> str:
    """MLFLOW_TRACKING_URI, or a SQLite file beside the results."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{db.resolve().parent / 'mlflow.db'}"


def shown(uri: str) -> str:
    """The URI without a password."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=f"***@{parts.netloc.rpartition('@')[2]}")) if parts.password else uri


def quiet() -> None:
    """Before mlflow is imported: nothing goes out to the network, and it keeps its remarks to itself. A server that is away is
    asked a few times, not for minutes: the same command goes on later."""
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "GIT_PYTHON_REFRESH": "quiet"}
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it would also ask for each run once more
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    for name in ("alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def export(db: Path, sweep: str, uri: str, progress: Progress = lambda done, of: None) -> Exported:
    """Bring what MLflow holds of a sweep up to date with the database.

    Raises `UserError` where the sweep is not in the database, the URI is none that MLflow writes to, or MLflow has an experiment
    of this name that is not this sweep's, and `Fault` where MLflow cannot be reached or refuses: what was written stays, and the
    next export goes on.
    """
    _refuse_unwritable(uri)
    quiet()
    from mlflow import MlflowClient

    from analysis.mlflow_stores import ByClient, BySqlite

    began = time.monotonic()
    load(sweep, db)
    with locked(db.with_name(f".{db.name}.mlflow.lock"), f"{db} is being exported"), _told(uri):
        client = MlflowClient(uri)
        store: Store = BySqlite(uri) if uri.startswith("sqlite:") else ByClient(client)
        experiment, sheet = _experiment(client, db, sweep, uri)
        works = _works(sheet, store.known(experiment))
        runs = sum(len(c.children) for c in sheet.configs)
        new, edited = sum(len(w.new) for w in works), sum(len(w.edited) for w in works)
        done = runs - new - edited
        progress(done, runs)
        for finished in _carry_out(client, store, experiment, db, sheet, works):
            done += len(finished.new) + len(finished.edited)
            progress(done, runs)
        if works:  # The last requests of an export that was killed may have been answered after we looked: nobody else would.
            for _ in _carry_out(client, store, experiment, db, sheet, _works(sheet, store.known(experiment))):
                pass
    return Exported(sweep, new, edited, runs - new - edited, sheet.waiting, time.monotonic() - began)


WRITABLE = "set MLFLOW_TRACKING_URI to sqlite:///FILE or a server"


def _refuse_unwritable(uri: str) -> None:
    """What needs no MLflow to see that it keeps nothing there: each of its connections to a database in memory sees another."""
    try:
        parts = urlsplit(uri)
    except ValueError:  # its text may have the password
        raise UserError(f"the tracking URI is malformed; {WRITABLE}") from None
    if parts.scheme in ("", "file"):
        raise UserError(f"{uri}: MLflow no longer writes into folders; {WRITABLE}")
    if parts.scheme.partition("+")[0] == "sqlite" and parts.path.strip("/") in ("", ":memory:"):
        raise UserError(f"{uri}: that is no file; {WRITABLE}")


def _experiment(client: MlflowClient, db: Path, sweep: str, uri: str) -> tuple[str, Sheet]:
    """The sweep's experiment, made where there is none, and the sweep with its evaluations named as they are there."""
    found = client.get_experiment_by_name(sweep)
    labels = {k.removeprefix(LABEL): v for k, v in (found.tags if found else {}).items() if k.startswith(LABEL)}
    sheet = read_sheet(db, sweep, labels)
    if found is None:
        # On SQLite MLflow would put artifacts below the working folder; over a server, where the server says.
        file = Path(uri.removeprefix("sqlite:///"))
        folder = str(file.resolve().parent / "mlartifacts" / sweep) if uri.startswith("sqlite:///") else None
        experiment = client.create_experiment(sweep, folder, {ORIGIN: sheet.made})
    elif found.lifecycle_stage != "active":
        raise UserError(
            f"experiment {sweep!r} was deleted in MLflow; `mlflow experiments restore -x {found.experiment_id}` first"
        )
    elif found.tags.get(ORIGIN) != sheet.made:
        whose = "another sweep of this name" if ORIGIN in found.tags else "runs that emsweep did not write"
        raise UserError(f"experiment {sweep!r} at {shown(uri)} holds {whose}; rename it there, or set MLFLOW_TRACKING_URI")
    else:
        experiment = found.experiment_id
    for eval_id in sheet.labels.keys() - labels.keys():
        client.set_experiment_tag(experiment, LABEL + eval_id, sheet.labels[eval_id])
    return experiment, sheet


def _works(sheet: Sheet, known: Known) -> list[Work]:
    return [work for config in sheet.configs if (work := _work(config, known))]


def _work(config: Config, known: Known) -> Work | None:
    """What is to be done for a config, or None."""
    parents = known.get(config.parent.key, {})
    work = Work(config, _whole(parents, config.parent))
    work.deleted = [run for run in parents if run != work.parent]
    for record in config.children:
        there = known.get(record.key, {})
        same = _whole(there, record)
        work.deleted += [run for run in there if run != same]
        if not same:
            work.new.append(record)
        elif there[same] != record.digest:
            work.edited.append((same, record))
        if same and list(parents) != [work.parent]:  # an export that was killed may have put it below another
            work.adopted.append(same)
    # The digest of a config's own run holds those of its seeds: where it is right and nothing is to be made, all is well.
    right = config.parent.digest in parents.values()
    return None if right and not (work.new or work.edited or work.deleted) else work


def _whole(there: dict[str, str], record: Record) -> str:
    """MLflow's id of the run that holds the record's numbers, or nothing."""
    return next((run for run, digest in there.items() if digest.partition(".")[0] == record.identity), "")


def _carry_out(
    client: MlflowClient, store: Store, experiment: str, db: Path, sheet: Sheet, works: Sequence[Work]
) -> Iterator[Work]:
    """Do all of it, yielding what is finished. Numbers are read a chunk of configs at a time, while the last is being written."""
    waiting: dict[Future[None], Work] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(store.workers) as pool, connect(db) as con:
        try:
            for at in range(0, len(works), CHUNK):
                chunk = works[at : at + CHUNK]
                metrics = read_metrics(con, [r.key for w in chunk for r in w.new], sheet.labels)
                curves = _curves(con, sheet.sweep, [w.config.parent.key for w in chunk])
                while len(waiting) >= CHUNK:
                    yield from _finished(waiting)
                for work in chunk:
                    told = Path(folder) / work.config.parent.key
                    numbers = [(r, metrics[r.key]) for r in work.new]
                    job = pool.submit(_write, client, store, experiment, work, numbers, curves.get(work.config.parent.key), told)
                    waiting[job] = work
            while waiting:
                yield from _finished(waiting)
        finally:
            pool.shutdown(cancel_futures=True)


def _finished(waiting: dict[Future[None], Work]) -> Iterator[Work]:
    for job in wait(waiting, return_when=FIRST_COMPLETED).done:
        work = waiting.pop(job)
        job.result()
        yield work


def _write(
    client: MlflowClient, store: Store, experiment: str, work: Work, new: list[tuple[Record, list[Metric]]],
    curves: pl.DataFrame | None, folder: Path,
) -> None:  # fmt: skip
    """Bring one config up to date: its runs, its artifacts, and last of all the digest of its own run."""
    from analysis.mlflow_stores import DIGEST, PARENT

    parent = work.config.parent
    for run, record in work.edited:
        _edit(client, run, record)
    if work.parent:
        _edit(client, work.parent, parent, digest=False)
    run = store.create(experiment, work.parent or parent, new) if new or not work.parent else work.parent
    for child in work.adopted:
        client.set_tag(child, PARENT, run)
    for child in work.deleted:
        client.delete_run(child)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(work.config.training, indent=2, default=str))
    if curves is not None:
        curves.write_parquet(folder / "curves.parquet")
    client.log_artifacts(run, str(folder))
    client.set_tag(run, DIGEST, parent.digest)


def _edit(client: MlflowClient, run: str, record: Record, digest: bool = True) -> None:
    """Make a run of before say what it should now, tags that no longer hold taken away."""
    from analysis.mlflow_stores import DIGEST, log

    there = client.get_run(run).data
    for tag in there.tags:
        if tag.startswith("emsweep.") and tag != DIGEST and tag not in record.tags:
            client.delete_tag(run, tag)
    # MLflow refuses another value of a param, and the same model may lie in another folder by now.
    new = {name: value for name, value in record.params.items() if name not in there.params}
    log(client, run, replace(record, params=new), (), digest=False)
    if digest:
        client.set_tag(run, DIGEST, record.digest)


def _curves(con: Any, sweep: str, configs: Sequence[str]) -> dict[str, pl.DataFrame]:
    """Config -> every number of its runs: run_id, seed, step, eval_id (null: of the training), name, value."""
    query = f"""WITH mine AS (SELECT DISTINCT run_id, config_id, seed FROM sweep_runs
            WHERE sweep = $sweep AND repeat = 0 AND config_id IN (SELECT unnest($configs)))
        SELECT config_id, run_id, seed, step, NULL::VARCHAR AS eval_id, name, value FROM metrics JOIN mine USING (run_id)
        UNION ALL SELECT config_id, run_id, seed, step, eval_id, name, value FROM {MEASURED} JOIN mine USING (run_id)
        ORDER BY config_id, run_id, eval_id NULLS FIRST, name, step"""
    frame: pl.DataFrame = con.sql(query, params={"sweep": sweep, "configs": list(configs)}).pl()
    return {str(key[0]): part.drop("config_id") for key, part in frame.partition_by("config_id", as_dict=True).items()}


DRIVERS = {"MySQLdb": "mysqlclient", "psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary"}
"""Packages of databases' drivers that are called otherwise than what is imported."""


@contextlib.contextmanager
def _told(uri: str) -> Iterator[None]:
    """Turn what MLflow raises into one line."""
    from mlflow.exceptions import InvalidUrlException, MlflowException
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        yield
    except ImportError as error:
        package, why = DRIVERS.get(error.name or "", error.name), " ".join(str(error).split())
        lacking = f"the Python package {package}: `pip install '{package}'`" if package else f"more: {why[:300]}"
        raise UserError(f"for {shown(uri)} MLflow needs {lacking}") from None
    except (UnsupportedModelRegistryStoreURIException, InvalidUrlException, ArgumentError):
        raise UserError(f"{shown(uri)}: MLflow cannot write there; {WRITABLE}") from None
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).replace(uri, shown(uri))
        if "Max retries exceeded" in why or "Connection" in why:
            raise Fault(f"cannot reach MLflow at {shown(uri)}; nothing is lost, the same command goes on") from None
        raise Fault(f"MLflow at {shown(uri)}: {why[:300]}; nothing is lost, the same command goes on") from None
