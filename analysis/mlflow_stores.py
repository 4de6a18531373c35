"""How new runs get into MLflow: over its client to any tracking server, or on SQLite in one transaction per config.

MLflow's client makes a run in four requests, and on SQLite in as many commits with an object per metric. On SQLite we insert the
same rows through MLflow's own store and table definitions, a config's runs at once: a seventh of the time (docs/mlflow.md).
A test compares what the two leave behind, row by row.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Protocol

import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Metric as Logged
from mlflow.entities import Param, RunTag
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlParam, SqlRun, SqlTag
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from analysis.mlflow_records import Metric, Record

DIGEST = "emsweep.digest"
"""The tag that is written last: a run without it was cut off."""
RUN, CONFIG, PARENT = "emsweep.run_id", "emsweep.config_id", "mlflow.parentRunId"
BATCH = 1000
"""MLflow's limit of metrics, params and tags in one request; of params and of tags 100 each."""

Known = dict[str, dict[str, str]]
"""Our key -> MLflow's run id -> its digest (empty: cut off)."""
New = tuple[Record, list[Metric]]


class Store(Protocol):
    """Where runs are made. `workers`: how many configs it may be asked to make at once."""

    workers: int

    def known(self, experiment: str) -> Known:
        """What the experiment holds of ours, deleted runs left out."""
        ...

    def create(self, experiment: str, parent: Record | str, children: Sequence[New]) -> str:
        """Make the runs of one config; `parent` is MLflow's id where that one exists. Returns its id. A new parent has no digest
        yet, because its artifacts are still to come."""
        ...


def log(client: MlflowClient, run: str, record: Record, metrics: Sequence[Metric], digest: bool = True) -> None:
    """Write everything of a record into a run that exists; its digest last. What is there already stays once."""
    t = record.end or record.start
    entities = [Logged(name, value, t, step) for name, step, value in metrics]
    params = [Param(k, v) for k, v in record.params.items()]
    tags = [RunTag(k, v) for k, v in record.tags.items()]
    while entities or params or tags:
        room = BATCH - len(params[:100]) - len(tags[:100])
        client.log_batch(run, entities[:room], params[:100], tags[:100])
        entities, params, tags = entities[room:], params[100:], tags[100:]
    if record.end is None:
        client.update_run(run, record.status)
    else:
        client.set_terminated(run, record.status, record.end)
    if digest:
        client.set_tag(run, DIGEST, record.digest)


class ByClient:
    """Any tracking server, through MLflow's public client."""

    workers = 8

    def __init__(self, client: MlflowClient) -> None:
        self.client = client

    def known(self, experiment: str) -> Known:
        found: Known = {}
        token: str | None = None
        while True:
            page = self.client.search_runs([experiment], max_results=1000, page_token=token)
            for run in page:
                _remember(found, run.info.run_id, run.data.tags)
            token = page.token
            if not token:
                return found

    def create(self, experiment: str, parent: Record | str, children: Sequence[New]) -> str:
        if isinstance(parent, Record):
            return self.create(experiment, self._made(experiment, parent, parent.metrics, {}), children)
        for record, metrics in children:
            self._made(experiment, record, metrics, {PARENT: parent}, digest=True)
        return parent

    def _made(
        self, experiment: str, record: Record, metrics: Sequence[Metric], tags: dict[str, str], digest: bool = False
    ) -> str:
        """A run that says from the beginning whose it is."""
        tags |= {k: record.tags[k] for k in ("mlflow.runName", RUN, CONFIG) if k in record.tags}
        run: str = self.client.create_run(experiment, record.start, tags).info.run_id
        log(self.client, run, record, metrics, digest)
        return run


class BySqlite:
    """A SQLite file: rows of MLflow's own tables, all of a config's or none."""

    workers = 1

    def __init__(self, uri: str) -> None:
        self.store: Any = SqlAlchemyStore(uri, "mlruns")  # type: ignore[no-untyped-call]  # the folder is for experiments that have none; ours have

    def known(self, experiment: str) -> Known:
        tags: dict[str, dict[str, str]] = {}
        query: Any = (
            sqlalchemy.select(SqlTag.run_uuid, SqlTag.key, SqlTag.value)
            .join(SqlRun, SqlRun.run_uuid == SqlTag.run_uuid)
            .where(
                SqlRun.experiment_id == int(experiment), SqlRun.lifecycle_stage == "active", SqlTag.key.in_([RUN, CONFIG, DIGEST])
            )
        )
        with self.store.ManagedSessionMaker() as session:
            for run, key, value in session.execute(query):
                tags.setdefault(run, {})[key] = value
        found: Known = {}
        for run, said in tags.items():
            _remember(found, run, said)
        return found

    def create(self, experiment: str, parent: Record | str, children: Sequence[New]) -> str:
        folder = self.store.get_experiment(experiment).artifact_location
        rows: dict[Any, list[dict[str, Any]]] = {t: [] for t in (SqlRun, SqlTag, SqlParam, SqlMetric, SqlLatestMetric)}

        def add(record: Record, metrics: Sequence[Metric], more: dict[str, str]) -> str:
            run, t = uuid.uuid4().hex, record.end or record.start
            rows[SqlRun].append({
                "run_uuid": run, "experiment_id": int(experiment), "name": record.tags["mlflow.runName"], "user_id": "unknown",
                "status": record.status, "start_time": record.start, "end_time": record.end, "lifecycle_stage": "active",
                "source_type": "UNKNOWN", "source_name": "", "entry_point_name": "", "source_version": "",
                "artifact_uri": f"{folder}/{run}/artifacts",
            })  # fmt: skip
            rows[SqlTag] += [{"run_uuid": run, "key": k, "value": v} for k, v in (record.tags | more).items()]
            rows[SqlParam] += [{"run_uuid": run, "key": k, "value": v} for k, v in record.params.items()]
            told: list[dict[str, Any]] = [
                {"run_uuid": run, "key": name, "value": value, "timestamp": t, "step": step, "is_nan": False}
                for name, step, value in metrics
            ]
            rows[SqlMetric] += told
            last: dict[str, dict[str, Any]] = {}
            for row in told:
                if row["key"] not in last or row["step"] > last[row["key"]]["step"]:
                    last[row["key"]] = row
            rows[SqlLatestMetric] += last.values()
            return run

        if isinstance(parent, Record):
            parent = add(parent, parent.metrics, {})
        for record, metrics in children:
            add(record, metrics, {PARENT: parent, DIGEST: record.digest})
        with self.store.ManagedSessionMaker(read_only=False) as session:
            session.execute(sqlalchemy.text("PRAGMA cache_size = -262144"))  # 256 MB: else one transaction is synced many times
            for model, inserted in rows.items():
                if inserted:
                    session.execute(sqlalchemy.insert(model.__table__), inserted)
        return parent


def _remember(found: Known, run: str, tags: dict[str, str]) -> None:
    key = tags.get(RUN) or tags.get(CONFIG)
    if key:
        found.setdefault(key, {})[run] = tags.get(DIGEST, "")
