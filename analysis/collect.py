"""Journals -> results.duckdb. The only writer of that file; reads only what is new and never blocks a reader.

What is stored is a pure function of the journals: collecting step by step, after a kill, or all at once gives the same
tables. One transaction holds everything that a call adds, the read offsets included.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl

from analysis import store
from analysis.journals import EVAL_VALUES, FIGURES, Manifests, Measurements, Row, States, read_manifests, read_states
from analysis.standing import WINNERS, restate
from em_core.config import Evaluation, TrainingConfig
from em_core.errors import Fault, UserError
from em_core.journal import RunStatus, SweepDir, read_records, sweeps_under

_DAMAGE = (duckdb.IOException, duckdb.InternalException, duckdb.FatalException, duckdb.SerializationException)


@dataclass(frozen=True)
class Collected:
    """What one call did.

    `attempts`: attempts that are new or have ended since the last call. `runs`: runs in the database. `torn`: unreadable
    lines met while reading (never fatal). `seconds`: wall time. `published`: whether a new file was put in place.
    """

    attempts: int
    runs: int
    torn: int
    seconds: float
    published: bool


def collect(root: Path, db: Path) -> Collected:
    """Bring `db` up to date with every sweep under `root`.

    Raises `UserError` where there is no sweep under `root`, or where `db` is not a result database (it is then left
    alone), and `Fault` where another collector is at work or the disk refuses. May be killed at any instant: the next
    call ends with the same tables.
    """
    began = time.monotonic()
    sweeps = sweeps_under(root)
    if not sweeps:
        raise UserError(f"there is no sweep under {root}")
    if not db.parent.is_dir():
        raise UserError(f"there is no folder {db.parent}")
    with store.collector_lock(db):
        if not store.is_published(db):
            store.refuse_foreign(db)
        try:
            attempts, runs, torn = _update(store.open_private(db, root), root, sweeps)
        except (store.Unusable, *_DAMAGE):
            try:
                attempts, runs, torn = _update(store.new_private(db, root), root, sweeps)
            except duckdb.IOException as error:
                raise Fault(f"cannot write {store.private_path(db)}: {' '.join(str(error).split())}") from error
        published = not store.is_published(db)
        if published:
            store.publish(db)
    return Collected(attempts, runs, torn, time.monotonic() - began, published)


@dataclass(frozen=True)
class _File:
    """A manifest or journal as it was when last read. `torn` means: read it again even if it looks the same.

    `head` is a digest of its first line, which says when and by whom it was begun: a file of the same name and another
    beginning is another file (empty: that line is not whole yet).
    """

    size: int = -1
    mtime_ns: int = -1
    offset: int = 0
    torn: int = 0
    head: str = ""


@dataclass(frozen=True)
class _Journal:
    """The new part of one journal. `states` holds only what is not stored yet."""

    sweep: str
    path: Path
    offset: int
    states: States


def _update(con: duckdb.DuckDBPyConnection, root: Path, sweeps: list[SweepDir]) -> tuple[int, int, int]:
    """Add what is new; (attempts added, runs stored, torn lines). Closes `con`. Raises `Unusable` where evidence is gone."""
    with con:
        known = {row[0]: _File(*row[1:]) for row in con.execute("SELECT * FROM collector.files").fetchall()}
        manifests = {f"{s.sweep}/manifest": s.manifest for s in sweeps}
        journals = {f"{s.sweep}/{p.stem}": (s.sweep, p) for s in sweeps for p in s.all_journals()}
        submissions = {f"{s.sweep}/submissions": s.submissions for s in sweeps if s.submissions.is_file()}
        now = {name: _look(path, known.get(name)) for name, path in (manifests | submissions).items()}
        now |= {name: _look(path, known.get(name)) for name, (_, path) in journals.items()}
        if any(name not in now or _is_another(now[name], file) for name, file in known.items()):
            raise store.Unusable
        changed = {name for name, file in now.items() if file != known.get(name) or file.torn}

        torn = 0
        con.execute("BEGIN")
        wanted_is_new = bool(changed & manifests.keys())
        if wanted_is_new:
            torn += _store_manifests(con, sweeps)
            _remember(con, {name: now[name] for name in changed & manifests.keys()})
        ended_is_new = bool(changed & submissions.keys())
        if ended_is_new:
            _store_job_ends(con, sweeps)
            _remember(con, {name: now[name] for name in changed & submissions.keys()})
        new: dict[str, _Journal] = {}
        for name in sorted(changed & journals.keys()):
            sweep, path = journals[name]
            states = read_states(sweep, path, now[name].offset)
            torn += states.torn
            states = _unstored(con, states)
            if states.attempts or states.job:
                new[name] = _Journal(sweep, path, now[name].offset, states)
        if new:
            _store_states(con, list(new.values()))
            _store_measurements(con, list(new.values()))
            _remember(con, {n: replace(now[n], offset=j.states.offset, torn=j.states.tail) for n, j in new.items()})
        if wanted_is_new or ended_is_new or new:
            restate(con)
            con.execute("COMMIT")
            con.execute("CHECKPOINT")
        else:
            con.execute("ROLLBACK")
        [(runs,)] = con.execute("SELECT count(*) FROM runs").fetchall()
        return sum(len(j.states.attempts) for j in new.values()), runs, torn


def _look(path: Path, before: _File | None) -> _File:
    found = path.stat()
    if before and (before.size, before.mtime_ns) == (found.st_size, found.st_mtime_ns):
        return before
    with open(path, "rb") as f:
        line = f.readline(1 << 16)
    head = hashlib.sha256(line).hexdigest()[:16] if line.endswith(b"\n") else ""
    return replace(before or _File(), size=found.st_size, mtime_ns=found.st_mtime_ns, head=head)


def _is_another(now: _File, before: _File) -> bool:
    """Whether what was read is no longer there: the file is shorter, or begins otherwise."""
    return now.size < before.offset or bool(before.head and now.head != before.head)


def _remember(con: duckdb.DuckDBPyConnection, files: Mapping[str, _File]) -> None:
    rows = [{"path": name, **vars(file)} for name, file in files.items()]
    columns: dict[str, Any] = dict.fromkeys(("size", "mtime_ns", "offset", "torn"), pl.Int64)
    columns |= {"head": pl.String}
    _run(con, {"path": pl.String, **columns}, rows, "DELETE FROM collector.files WHERE path IN (SELECT path FROM frame)")
    _run(con, {"path": pl.String, **columns}, rows, "INSERT INTO collector.files BY NAME FROM frame")


_Columns = Mapping[str, pl.DataType | type[pl.DataType]]


def _run(con: duckdb.DuckDBPyConnection, columns: _Columns, rows: list[Row], *statements: str) -> None:
    """Run statements that read the rows, typed by `columns`, under the name `frame`."""
    _run_on(con, pl.DataFrame([{c: r.get(c) for c in columns} for r in rows], schema=dict(columns)), *statements)


def _run_on(con: duckdb.DuckDBPyConnection, frame: pl.DataFrame, *statements: str) -> None:
    con.register("frame", frame)
    for statement in statements:
        con.execute(statement)
    con.unregister("frame")


_POLARS: Mapping[str, pl.DataType | type[pl.DataType]] = {
    "VARCHAR[]": pl.List(pl.String),
    "VARCHAR": pl.String,
    "BIGINT": pl.Int64,
    "DOUBLE": pl.Float64,
    "BOOLEAN": pl.Boolean,
    "JSON": pl.String,
}


def _time(column: str) -> str:
    """SQL: seconds since the epoch -> TIMESTAMP in UTC."""
    return f"make_timestamp(CAST({column} * 1e6 AS BIGINT))"


_STARTED_ENDED = f"{_time('started')} AS started, {_time('ended')} AS ended"


def _store_manifests(con: duckdb.DuckDBPyConnection, sweeps: list[SweepDir]) -> int:
    """Rewrite what is wanted from all manifests (they are small); the number of torn lines."""
    found = read_manifests(sweeps)
    evaluation = {c: _POLARS[t] for c, t in store.sql_columns(Evaluation).items()}
    evaluations = pl.List(pl.Struct({"eval_id": pl.String, **evaluation, "steps": pl.List(pl.String)}))
    strings = dict.fromkeys(("sweep", "spec", "spec_path"), pl.String)
    budget: _Columns = {"seed_looks": pl.List(pl.Int64), "half_width": pl.Float64}
    stages: _Columns = {"stages": pl.List(pl.Struct({"key": pl.String, "value": pl.String}))}
    _run(
        con,
        {**strings, "t": pl.Float64, "overrides": pl.List(pl.String), "evaluations": evaluations, **budget, **stages},
        found.sweeps,
        "DELETE FROM sweeps",
        "INSERT INTO sweeps BY NAME SELECT * EXCLUDE (t) REPLACE (map_from_entries(stages) AS stages), "
        f"{_time('t')} AS created FROM frame",
    )
    strings = dict.fromkeys(("sweep", "run_id", "config_id", "arm", "stage", "why", "exclude_reason"), pl.String)
    _run(
        con,
        {**strings, "seed": pl.Int64, "repeat": pl.Int64, "excluded": pl.Boolean, "forgiven": pl.Int64, "t": pl.Float64},
        found.sweep_runs,
        "DELETE FROM sweep_runs",
        f"INSERT INTO sweep_runs BY NAME SELECT * EXCLUDE (t), {_time('t')} AS added FROM frame",
    )
    training = {c: _POLARS[t] for c, t in store.sql_columns(TrainingConfig).items()}
    _run(
        con,
        {**dict.fromkeys(("config_id", "model", "prompt_name"), pl.String), **training},
        found.configs,
        "DELETE FROM configs",
        "INSERT INTO configs BY NAME FROM frame",
    )
    _store_studies(con, found)
    return found.torn


def _store_studies(con: duckdb.DuckDBPyConnection, found: Manifests) -> None:
    objective = {**dict.fromkeys(("metric", "task", "rule"), pl.String), "step": pl.Int64, "direction": pl.String}
    strings = dict.fromkeys(("sweep", "space", "sampler", "pruner", "within"), pl.String)
    counts = dict.fromkeys(("seeds_per_trial", "n_trials"), pl.Int64)
    _run(
        con,
        {**strings, "objectives": pl.List(pl.Struct(objective)), **counts, "t": pl.Float64},
        found.studies,
        "DELETE FROM studies",
        f"INSERT INTO studies BY NAME SELECT * EXCLUDE (t), {_time('t')} AS created FROM frame",
    )
    strings = dict.fromkeys(("sweep", "config_id", "origin", "params", "state", "why"), pl.String)
    numbers: _Columns = {"number": pl.Int64, "seeds": pl.Int64, "value": pl.Float64, "values": pl.List(pl.Float64)}
    _run(
        con,
        {**strings, **numbers, "asked": pl.Float64, "told": pl.Float64},
        found.trials,
        "DELETE FROM trials",
        f"INSERT INTO trials BY NAME SELECT * REPLACE ({_time('asked')} AS asked, {_time('told')} AS told) FROM frame",
    )


def _store_job_ends(con: duckdb.DuckDBPyConnection, sweeps: list[SweepDir]) -> None:
    """Rewrite how jobs ended from what the submissions say (there are few)."""
    _run(
        con,
        {
            **dict.fromkeys(("sweep", "job", "cause", "state", "node"), pl.String),
            "try": pl.Int64,
            "mem_gb": pl.Float64,
            "given_up": pl.List(pl.String),
            "t": pl.Float64,
        },
        [{"sweep": s.sweep, **r} for s in sweeps for r in read_records(s.submissions, (b'{"kind":"ended"',))],
        "DELETE FROM job_ends",
        f"INSERT INTO job_ends BY NAME SELECT * EXCLUDE (t), {_time('t')} AS recorded FROM frame",
    )


def _unstored(con: duckdb.DuckDBPyConnection, states: States) -> States:
    """Of a journal's job and attempts, those that the database does not have yet, or has as still running."""
    where = "WHERE sweep = ? AND job = ? AND try = ?"
    name = [states.job[c] for c in ("sweep", "job", "try")]
    stored = dict(con.execute(f"SELECT attempt_id, status FROM collector.attempts {where}", name).fetchall())
    job = con.execute(f"SELECT started IS NOT NULL, ended IS NOT NULL FROM jobs {where}", name).fetchall()
    same_job = job == [(states.job["started"] is not None, states.job["ended"] is not None)]
    attempts = {
        key: row
        for key, row in states.attempts.items()
        if stored.get(row["attempt_id"], "") != row["status"] and stored.get(row["attempt_id"]) in (None, RunStatus.RUNNING)
    }
    return replace(states, job={} if same_job else states.job, attempts=attempts)


def _store_states(con: duckdb.DuckDBPyConnection, journals: list[_Journal]) -> None:
    job_strings = ("sweep", "job", "launcher", "slurm_job_id", "cluster", "partition", "node", "host", "gpu", "driver", "reason")
    code_strings = ("code", "commit", "snapshot", "python", "cuda")
    _run(
        con,
        {
            **dict.fromkeys((*job_strings, *code_strings), pl.String),
            **dict.fromkeys(("try", "cpus", "slots"), pl.Int64),
            "dirty": pl.Boolean,
            "packages": pl.List(pl.Struct({"key": pl.String, "value": pl.String})),
            **dict.fromkeys(("started", "ended"), pl.Float64),
        },
        [j.states.job for j in journals if j.states.job],
        'DELETE FROM jobs USING frame f WHERE jobs.sweep = f.sweep AND jobs.job = f.job AND jobs."try" = f."try"',
        f"INSERT INTO jobs BY NAME SELECT * REPLACE (map_from_entries(packages) AS packages, {_STARTED_ENDED}) FROM frame",
    )
    names = ("attempt_id", "sweep", "run_id", "job")
    strings = (*names, "mode", "status", "cause", "message", "traceback", "device", "dtype", "resumed_device", "trainer")
    _run(
        con,
        {
            **dict.fromkeys(strings, pl.String),
            **dict.fromkeys(("try", "number", "slot", "threads", "steps", "resumed_step"), pl.Int64),
            **dict.fromkeys(("started", "ended", "seconds", *FIGURES), pl.Float64),
        },
        [row for j in journals for row in j.states.attempts.values()],
        "DELETE FROM collector.attempts AS a USING frame f WHERE a.sweep = f.sweep AND a.attempt_id = f.attempt_id",
        f"INSERT INTO collector.attempts BY NAME SELECT * REPLACE ({_STARTED_ENDED}) FROM frame",
    )


def _store_measurements(con: duckdb.DuckDBPyConnection, journals: list[_Journal]) -> None:
    """Metrics and evaluations of the attempts that have just ended with an outcome, where they count.

    The set of finished attempts only grows, so the first of them in winning order only ever moves to the front: an
    attempt that is beaten once never counts again, and what is stored need not be read twice.
    """
    winners = set(con.execute(f"SELECT sweep, attempt_id FROM ({WINNERS})").fetchall())
    found = Measurements()
    for j in journals:
        ended = {key: row for key, row in j.states.attempts.items() if RunStatus(row["status"]).is_outcome()}
        trained = {key for key, row in ended.items() if (j.sweep, row["attempt_id"]) in winners}
        if ended:
            found.read(j.sweep, j.path, j.offset, trained, ended.keys())
    _store_metrics(con, found)
    _store_evals(con, found.evals)


def _store_metrics(con: duckdb.DuckDBPyConnection, found: Measurements) -> None:
    """In (name, run, step) order: half the size, and a query for one metric reads little else."""
    replaced = pl.DataFrame({"run_id": found.runs}, schema={"run_id": pl.String})
    _run_on(con, replaced, "DELETE FROM metrics WHERE run_id IN (SELECT run_id FROM frame)")
    # The position of each run in run_id order, so that sorting is on integers.
    order = np.argsort(np.argsort(np.array(found.runs, dtype=str)))
    names = pl.Series("run_id", sorted(found.runs), dtype=pl.String)
    for together, (runs, steps, values) in found.metrics.items():
        run, step = order[np.frombuffer(runs, np.int64)], np.frombuffer(steps, np.int64)
        rows = np.lexsort((step, run))
        run_id = names.gather(run[rows])
        table = np.frombuffer(values, np.float64).reshape(len(runs), len(together))
        for column, name in enumerate(together):
            frame = pl.DataFrame({"run_id": run_id, "step": step[rows], "value": table[rows, column]})
            escaped = name.replace("'", "''")
            _run_on(con, frame, f"INSERT INTO metrics BY NAME SELECT *, '{escaped}' AS name FROM frame")


def _store_evals(con: duckdb.DuckDBPyConnection, rows: list[Row]) -> None:
    """Of everything stored and found for the same run, step and evaluation, the first attempt's row stays."""
    strings = ("sweep", "attempt_id", "run_id", "eval_id", "task", "outcomes")
    _run(
        con,
        {
            **dict.fromkeys(strings, pl.String),
            **dict.fromkeys(("step", "n_questions", "num_samples"), pl.Int64),
            **dict.fromkeys(("accuracy", *EVAL_VALUES), pl.Float64),
            "other": pl.List(pl.Struct({"key": pl.String, "value": pl.Float64})),
            "histogram": pl.Struct({"left": pl.Float64, "width": pl.Float64, "counts": pl.List(pl.Int64)}),
        },
        rows,
        """
        CREATE TEMP TABLE merged AS
        SELECT e.* FROM (
            SELECT * FROM evals WHERE run_id IN (SELECT run_id FROM frame)
            UNION ALL BY NAME
            SELECT * REPLACE (map_from_entries(other) AS other, CAST(outcomes AS BIT) AS outcomes) FROM frame
        ) AS e
        JOIN collector.attempts AS a ON a.sweep = e.sweep AND a.attempt_id = e.attempt_id
        QUALIFY row_number() OVER (PARTITION BY e.run_id, e.step, e.eval_id ORDER BY a."try", a.job, a.sweep, a.number) = 1
        """,
        "DELETE FROM evals WHERE run_id IN (SELECT run_id FROM frame)",
        "INSERT INTO evals BY NAME SELECT * FROM merged ORDER BY run_id, eval_id, step",
        "DROP TABLE merged",
    )
