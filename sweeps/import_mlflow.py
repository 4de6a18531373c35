"""An experiment of MLflow as runs: from a tracking server, a database, or a folder `mlruns`. Nothing there is changed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from analysis.mlflow_export import DRIVERS
from em_core.errors import Fault, UserError
from em_core.journal import RunStatus
from sweeps.complaints import unknown
from sweeps.importing import Curves, Found, counted, typed
from sweeps.manifest import EXPLORE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Metric, Run

T = TypeVar("T")

PAGE = 1000
"""Runs that are asked for at once."""
TOGETHER = 200
"""Runs whose curves are asked for at once."""
REQUESTS = 8
"""Requests to a server at the same time."""
LARGEST = 1.7976931348623157e308
"""How MLflow's databases write infinity."""
STATUSES = {"FINISHED": RunStatus.COMPLETED, "FAILED": RunStatus.FAILED, "KILLED": RunStatus.CANCELLED}
"""What ended; all else is still running."""
SYSTEM = "system/"
"""How names of MLflow's system metrics begin."""


def open_tracking(uri: str | None) -> MlflowClient:
    """A client of the store at `uri`, else at $MLFLOW_TRACKING_URI, else where MLflow looks by itself.

    Raises `UserError` for a local store that is not there, which MLflow would make, and for a database of another version, which
    it would change.
    """
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # it refuses to write there; here nothing is written
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # with its own 7, a wrong address takes four minutes to say so
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    from mlflow import MlflowClient, get_tracking_uri
    from mlflow.store.db.db_types import DATABASE_ENGINES
    from mlflow.version import VERSION

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    uri = uri or get_tracking_uri()
    if Path(uri).is_file():
        uri = f"sqlite:///{Path(uri).resolve()}"
    parts = urlsplit(uri)
    path = Path(
        unquote(uri.removeprefix("sqlite:///") if parts.scheme == "sqlite" else parts.path if parts.scheme == "file" else uri)
    )
    if parts.scheme in ("", "file", "sqlite") and not path.exists():
        raise UserError(f"there are no runs of MLflow at {uri}: --tracking-uri or MLFLOW_TRACKING_URI says where they are")
    if parts.scheme.partition("+")[0] in DATABASE_ENGINES and not asked(uri, partial(_is_complete, uri)):
        raise UserError(
            f"MLflow {VERSION} would change the database {without_password(uri)}, which is of another version: import from the "
            "server that uses it, or from a copy after `mlflow db upgrade`"
        )
    return asked(uri, lambda: MlflowClient(tracking_uri=uri))


def _is_complete(uri: str) -> bool:
    """Whether a database has every table of this version of MLflow; where not, opening it as a store would migrate it."""
    from mlflow.store.db.utils import _all_tables_exist, create_sqlalchemy_engine

    return bool(_all_tables_exist(create_sqlalchemy_engine(uri)))  # type: ignore[no-untyped-call]


def without_password(uri: str) -> str:
    """The address as it may be written down."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.netloc else uri


def asked(uri: str, question: Callable[[], T]) -> T:
    """The answer of the store at `uri`. What goes wrong is one line without the password: `UserError` where the question is wrong
    or a database's driver is missing, `Fault` where nobody answers."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    where = without_password(uri)
    try:
        return question()
    except ModuleNotFoundError as error:
        driver = DRIVERS.get(str(error.name), error.name)
        raise UserError(f"MLflow at {where}: the Python package {driver} is missing: `pip install '{driver}'`") from None
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        said = " ".join(str(error).replace(uri, where).split())
        if "API request" in said or isinstance(error, OSError):
            raise Fault(f"MLflow at {where} does not answer: {_short(said)}") from None
        raise UserError(f"MLflow at {where}: {_short(said)}") from None


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:297]}..."


def find_experiment(client: MlflowClient, said: str) -> Experiment:
    """The experiment of that name, or of that id. Raises `UserError` with the nearest name."""
    found = asked(client.tracking_uri, lambda: client.get_experiment_by_name(said))
    if found is None:
        known = asked(client.tracking_uri, lambda: list(_pages(partial(client.search_experiments, max_results=PAGE))))
        found = next((e for e in known if e.experiment_id == said), None)
        if found is None:
            raise UserError(unknown("experiment", said, [e.name for e in known]))
    return found


def _pages(search: Callable[..., Any]) -> Iterator[Any]:
    """Everything that a search finds, page by page."""
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def read_runs(client: MlflowClient, experiment: Experiment, only: str) -> list[Run]:
    """Its runs that `only` (MLflow's filter; "": all) lets pass. Raises `UserError` where there are none."""
    search = partial(client.search_runs, [experiment.experiment_id], filter_string=only, max_results=PAGE)
    runs = asked(client.tracking_uri, lambda: list(_pages(search)))
    if not runs:
        raise UserError(f"the experiment {experiment.name} has no runs" + (f" with {only}" if only else ""))
    return runs


def metrics_of(runs: Sequence[Run]) -> set[str]:
    """Names of what the runs logged, without MLflow's own measurements of the machine."""
    return {name for run in runs for name in run.data.metrics if not name.startswith(SYSTEM)}


def read_above(client: MlflowClient, runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs that `runs` are nested in, at any depth, and that are not among them; what is to be said of those that are gone.

    Without their params, runs that differ in them would be one config. A filter may not let them pass, they may be deleted (which
    MLflow still has, until `mlflow gc`), or be of another experiment.
    """
    known = {run.info.run_id for run in runs}
    above: list[Run] = []
    gone = 0
    nested = runs
    with ThreadPoolExecutor(REQUESTS) as pool:
        while ids := {_parent(run) for run in nested} - known - {""}:
            known |= ids
            got = list(pool.map(lambda i: asked(client.tracking_uri, partial(_run_or_none, client, i)), sorted(ids)))
            nested = [run for run in got if run is not None]
            above += nested
            gone += len(got) - len(nested)
    lost = f"MLflow no longer has {counted(gone, 'parent run')}: runs nested there lack the params"
    return above, [lost] if gone else []


def _parent(run: Run) -> str:
    """The id of the run that a run is nested in; empty where there is none."""
    return str(run.data.tags.get("mlflow.parentRunId", ""))


def _run_or_none(client: MlflowClient, run_id: str) -> Run | None:
    """A run, a deleted one too; None where there is none, or can be none, of this id."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def as_found(runs: Sequence[Run], above: Sequence[Run], metric: str) -> tuple[list[Found], list[str]]:
    """The runs that are results, and what is to be said of the others.

    A nested run has the params of those above it, unless it logged others; `above` are those that are not among `runs`. Left out
    are runs that have not ended, those that finished without the metric, those that only hold others together, and what `emsweep
    export` says was excluded.
    """
    by_id = {run.info.run_id: run for run in (*runs, *above)}
    parents = {_parent(run) for run in runs}
    found, running, without = [], 0, 0
    for run in runs:
        tags = run.data.tags
        status = RunStatus.DIVERGED if tags.get("emsweep.diverged") else STATUSES.get(run.info.status)
        has = metric in run.data.metrics
        if (not has and run.info.run_id in parents) or "emsweep.excluded" in tags:
            continue
        if status is None or (status is RunStatus.COMPLETED and not has):
            running, without = running + (status is None), without + (status is not None)
            continue
        found.append(
            Found(
                f"mlflow:{run.info.run_id}",
                {name: typed(value) for name, value in _params(run, by_id).items()},
                status,
                {m.key: (m.step, _finite(m.value)) for m in run.data._metric_objs if not m.key.startswith(SYSTEM)},
                f"MLflow run {run.info.run_id}" + (f" ({run.info.status})" if status is not RunStatus.COMPLETED else ""),
                _seconds(run.info.start_time),
                _seconds(run.info.end_time),
                tags.get("mlflow.source.git.commit"),
                tags.get("emsweep.stage", EXPLORE),
            )
        )
    if not found:
        raise UserError(f"of {counted(len(runs), 'run')} none has ended with `{metric}`, or failed")
    left_out = [f"{counted(n, 'run')} {why}" for n, why in ((running, "still running"), (without, f"without `{metric}`")) if n]
    return found, [f"left out: {', '.join(left_out)}"] if left_out else []


def _params(run: Run, by_id: dict[str, Run]) -> dict[str, str]:
    """The params of a run, over those of the runs above it."""
    parent = by_id.get(_parent(run))
    return (_params(parent, by_id) if parent is not None and parent is not run else {}) | dict(run.data.params)


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _finite(value: float) -> float:
    return value if abs(value) < LARGEST else float("inf") if value > 0 else float("-inf") if value < 0 else value


def curves_of(client: MlflowClient, found: Sequence[Found]) -> Iterator[Curves]:
    """Every metric's curve of each run, in order. What was last logged at step 0 has no further one to ask for."""
    store = client._tracking_client.store
    bulk = getattr(store, "get_metric_history_bulk", None)
    with ThreadPoolExecutor(REQUESTS) as pool:
        for at in range(0, len(found), TOGETHER):
            some = found[at : at + TOGETHER]
            ids = [f.source.removeprefix("mlflow:") for f in some]
            curves: dict[str, dict[str, dict[int, float]]] = {
                i: {name: {0: value} for name, (step, value) in f.last.items() if step == 0}
                for i, f in zip(ids, some, strict=True)
            }
            wanted = [(i, name) for i, f in zip(ids, some, strict=True) for name, (step, _) in f.last.items() if step != 0]
            if bulk is not None:
                for name in dict.fromkeys(name for _, name in wanted):
                    of = [i for i, n in wanted if n == name]
                    for entry in asked(client.tracking_uri, partial(bulk, of, name, 2**31)):
                        _take(curves[entry.run_id], name, [entry])
            else:
                ask = lambda pair: asked(client.tracking_uri, partial(client.get_metric_history, *pair))  # noqa: E731
                for (i, name), history in zip(wanted, pool.map(ask, wanted), strict=True):
                    _take(curves[i], name, sorted(history, key=lambda m: m.timestamp))
            yield from (curves[i] for i in ids)


def _take(curves: dict[str, dict[int, float]], name: str, history: Sequence[Metric]) -> None:
    """Add values in the order in which they were logged: of two at one step the later counts."""
    curve = curves.setdefault(name, {})
    for m in history:
        curve[m.step] = _finite(m.value)
