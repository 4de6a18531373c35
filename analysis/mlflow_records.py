"""A sweep as MLflow is to hold it: a run per config, and below it a run per seed. Reads the database; never imports mlflow.

Metrics, in MLflow, can be added but neither changed nor removed. So a record's digest has two parts: its `identity` (which
numbers it holds) and all else. Where the identity changed a run is written anew, where only the rest did it is edited.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import duckdb

from analysis.grid import show
from analysis.queries import connect
from em_core.config import Evaluation, TrainingConfig

FORMAT = 1
"""Bumped when what is written of a run changes: the next export then writes every run anew."""
MAX_PARAM, MAX_TAG, MAX_NAME = 6000, 8000, 250
"""MLflow's limits (characters)."""
STATUS = {
    "completed": "FINISHED", "diverged": "FAILED", "failed": "FAILED", "interrupted": "KILLED", "cancelled": "KILLED",
    "running": "RUNNING",
}  # fmt: skip
"""A diverged run is FAILED: then `status = 'FINISHED'` keeps its last finite values out of a ranking, as our views do."""

Metric = tuple[str, int, float]
"""Name, step, value; always finite."""


@dataclass(frozen=True)
class Record:
    """One run of MLflow's. `key` is our run_id, or the config_id of a run that stands for a config; times are milliseconds since
    the epoch, `end` None while it runs; `metrics` those of a config (a seed's are read when they are written)."""

    key: str
    status: str
    start: int
    end: int | None
    params: dict[str, str]
    tags: dict[str, str]
    identity: str
    metrics: list[Metric] = field(default_factory=list)

    @property
    def digest(self) -> str:
        return f"{self.identity}.{_digest([self.status, self.end, self.params, self.tags])}"


@dataclass(frozen=True)
class Config:
    """A config's own record, its runs' records in order of seeds, and every training field."""

    parent: Record
    children: list[Record]
    training: dict[str, Any]


@dataclass(frozen=True)
class Sheet:
    """A sweep: its configs, `made` (when its first run was wanted: two sweeps of one name differ here), the names under which its
    evaluations are told (eval_id -> name), and how many runs have not started: all that are in none of the configs."""

    sweep: str
    made: str
    labels: dict[str, str]
    configs: list[Config]
    waiting: int


def read_sheet(db: Path, sweep: str, labels: Mapping[str, str]) -> Sheet:
    """What is to be written of a sweep, without the seeds' metrics. `labels`: names of evaluations that were chosen before.

    Repeats are left out: as runs of their own they would be counted as if they were seeds.
    """
    with connect(db) as con:
        labels = {**_labels(con, sweep), **labels}
        configs = _rows(con, _CONFIGS, sweep)
        runs = _rows(con, _RUNS, sweep)
        cells = _rows(con, _CELLS, sweep)
        odd: dict[str, dict[str, int]] = {}
        for r in _rows(con, _NON_FINITE, sweep):
            name = clean(r["name"]) if r["eval_id"] is None else metric_name(labels[r["eval_id"]], r["name"])
            odd.setdefault(r["run_id"], {})[name] = r["step"]
        [about] = _rows(con, _ABOUT, sweep)
    varied = _varied(configs)
    children: dict[str, list[Record]] = {}
    params = {c["config_id"]: _params(c, varied) for c in configs}
    names = {c["config_id"]: c["prompt_name"] for c in configs}
    for r in runs:
        said = params[r["config_id"]] | {"seed": str(r["seed"])}
        prompt_name = names[r["config_id"]]
        children.setdefault(r["config_id"], []).append(_child(r, sweep, said, prompt_name, odd.get(r["run_id"], {})))
    means: dict[str, list[Metric]] = {}
    for c in cells:
        stage = "" if c["stage"] == "explore" else f"{c['stage']}/"
        name = f"{stage}{metric_name(labels[c['eval_id']], c['metric'])}"
        numbers = {"mean": c["mean"], "sd": c["sd"], "n": c["n"]}
        means.setdefault(c["config_id"], []).extend(
            (clean(f"{name}/{k}"), c["step"], float(v)) for k, v in numbers.items() if v is not None
        )
    found = [
        Config(_parent(c, sweep, varied, params[c["config_id"]], of, thinned(means.get(c["config_id"], ()))), of, c)
        for c in configs
        if (of := children.get(c["config_id"]))
    ]
    return Sheet(sweep, about["made"], labels, found, about["runs"] - len(runs))


def _child(r: dict[str, Any], sweep: str, params: dict[str, str], prompt_name: str | None, odd: dict[str, int]) -> Record:
    """The record of one seed's run."""
    tags = {
        "mlflow.runName": r["run_id"], "mlflow.source.git.commit": r["commit"],
        "emsweep.run_id": r["run_id"], "emsweep.config_id": r["config_id"], "emsweep.sweep": sweep, "emsweep.arm": r["arm"],
        "emsweep.seed": r["seed"], "emsweep.stage": r["stage"], "emsweep.prompt_name": prompt_name,
        "emsweep.status": r["status"], "emsweep.cause": r["cause"], "emsweep.message": r["message"],
        "emsweep.attempts": r["attempts"], "emsweep.attempt_id": r["attempt_id"], "emsweep.steps": r["steps"],
        "emsweep.commit": r["commit"], "emsweep.code": r["code"], "emsweep.node": r["node"], "emsweep.gpu": r["gpu"],
        "emsweep.device": r["device"], "emsweep.cluster": r["cluster"], "emsweep.slurm_job_id": r["slurm_job_id"],
        "emsweep.diverged": "true" if r["status"] == "diverged" else None,
        "emsweep.non_finite": json.dumps(odd) if odd else None,
        "emsweep.excluded": (r["exclude_reason"] or "true") if r["excluded"] else None,
    }  # fmt: skip
    identity = _digest([FORMAT, r["attempt_id"], r["started"], r["n_metrics"], r["last_metric"], r["measured"]])
    return Record(r["run_id"], STATUS[r["ended_as"]], r["started"], r["ended"], params, _tags(tags), identity)


def _parent(
    c: dict[str, Any], sweep: str, varied: Sequence[str], params: dict[str, str], children: Sequence[Record], means: list[Metric]
) -> Record:
    """The record of a config, with means over its seeds. Its digest holds those of its runs: where it is right, all are."""
    fields = _fields(c) | ({"prompt_name": c["prompt_name"]} if c["prompt_name"] else {})
    at = ("prompt_name" if v == "prompt" and "prompt_name" in fields else v for v in varied)
    name = ", ".join(f"{v}={show(fields.get(v))}" for v in at) or c["config_id"]
    ends = [r.end for r in children]
    running = any(r.status == "RUNNING" for r in children)
    tags = {
        "mlflow.runName": name[:MAX_NAME], "emsweep.config_id": c["config_id"], "emsweep.sweep": sweep,
        "emsweep.model": c["model"], "emsweep.prompt_name": c["prompt_name"], "emsweep.runs": len(children),
        "emsweep.children": _digest([(r.key, r.digest) for r in children]),
    }  # fmt: skip
    end = None if running else max((e for e in ends if e is not None), default=None)
    status = "RUNNING" if running else "FINISHED"
    start = min(r.start for r in children)
    return Record(c["config_id"], status, start, end, params, _tags(tags), _digest([FORMAT, means]), means)


def _tags(said: Mapping[str, object]) -> dict[str, str]:
    return {k: str(v)[:MAX_TAG] for k, v in said.items() if v not in (None, "")}


# Parameters


def _varied(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Fields in which the sweep's configs differ."""
    names = list(dict.fromkeys(name for c in configs for name in _fields(c)))
    return [n for n in names if len({json.dumps(_fields(c).get(n)) for c in configs}) > 1]


_DEFAULTS = {name.replace(".", "_"): f.default for name, f in TrainingConfig.model_fields.items()}


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Training fields by name, each of an own trainer's as `params.NAME`."""
    own = json.loads(config["params"] or "{}")
    return {k: v for k, v in config.items() if k in _DEFAULTS and k != "params"} | {f"params.{k}": v for k, v in own.items()}


def _params(config: Mapping[str, Any], varied: Sequence[str]) -> dict[str, str]:
    """What is varied or not the default, as text. A long text is cut, and says its digest; `config.json` has all of it.

    Nothing that may change without the config's id: MLflow refuses another value of a param. Nor a field that is null in all
    configs, which says nothing: of imported ones that is every field of a training here.
    """
    fields = {k: v for k, v in _fields(config).items() if k in varied or v not in (None, _plain(_DEFAULTS.get(k)))}
    said = {}
    for name, value in fields.items():
        text = json.dumps(value) if isinstance(value, list | dict) else str(value)
        if len(text) > MAX_PARAM:
            mark = f"... sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"
            text = text[: MAX_PARAM - len(mark)] + mark
        said[clean(name)] = text
    return said


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# Names


def clean(name: str) -> str:
    """A name as MLflow allows it: `pass@8` becomes `pass_at_8`; any other that had to be changed ends in a digest, so that
    different names stay different."""
    told = name.replace("@", "_at_")
    allowed = re.sub(r"[^/\w.\- ]", "_", told, flags=re.ASCII)
    if posixpath.normpath(allowed) != allowed or allowed.startswith(("/", "..")) or allowed == ".":
        allowed = re.sub(r"[/.]", "_", allowed)
    if allowed == told and len(told) <= MAX_NAME:
        return told
    return f"{allowed[: MAX_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def metric_name(label: str, metric: str) -> str:
    return clean(f"eval/{label}/{metric}")


def evaluation_label(evaluation: Mapping[str, Any]) -> str:
    """The task, then what is not the default: `two_step_sums`, `two_step_sums-temperature_0.7-num_samples_4`."""
    task = PurePosixPath(evaluation["task"]).stem if "/" in evaluation["task"] else evaluation["task"]
    fields = {k: f.default for k, f in Evaluation.model_fields.items() if k not in ("task", "task_key")}
    said = {k: evaluation[k] for k, default in fields.items() if _plain(evaluation[k]) not in (_plain(default), None)}
    texts = (f"{k}_{v if isinstance(v, int | float) else _short(v)}" for k, v in said.items())
    return re.sub(r"[^\w.\-]", "_", "-".join([task, *texts]), flags=re.ASCII)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if re.fullmatch(r"[\w.\-]{1,24}", text, re.ASCII) else hashlib.sha256(text.encode()).hexdigest()[:8]


def _labels(con: duckdb.DuckDBPyConnection, sweep: str) -> dict[str, str]:
    """Names of the evaluations that this sweep has results of; those of equal looks, or no longer wanted, say their id."""
    wanted = {
        e["eval_id"]: e
        for e in _rows(con, "SELECT unnest(evaluations, recursive := true) FROM sweeps WHERE sweep = $sweep", sweep)
    }
    labels: dict[str, str] = {}
    for r in _rows(con, _EVALUATIONS, sweep):
        e = r["eval_id"]
        label = evaluation_label(wanted[e]) if e in wanted else evaluation_label(_BARE | {"task": r["task"]}) + f"-{e}"
        labels[e] = f"{label}-{e}" if label in labels.values() else label
    return labels


_BARE = {name: _plain(f.default) for name, f in Evaluation.model_fields.items()}


# Numbers

POINTS = 50
"""Points of a curve in MLflow; the whole curve is in the config's `curves.parquet`."""


def thinned(metrics: Sequence[Metric] | tuple[()], points: int = POINTS) -> list[Metric]:
    """Of each name `points` at most: the first, the last, and steps evenly between."""
    by_name: dict[str, list[Metric]] = {}
    for m in sorted(metrics):
        by_name.setdefault(m[0], []).append(m)
    kept = []
    for curve in by_name.values():
        n = len(curve)
        kept += curve if n <= points else [curve[i * (n - 1) // (points - 1)] for i in range(points)]
    return kept


def read_metrics(
    con: duckdb.DuckDBPyConnection, runs: Sequence[str], labels: Mapping[str, str], points: int = POINTS
) -> dict[str, list[Metric]]:
    """Run -> its finite training metrics, thinned, and its evaluations."""
    found: dict[str, list[Metric]] = {r: [] for r in runs}
    names: dict[str, str] = {}
    for run, name, step, value in con.execute(_THINNED, {"runs": list(runs), "points": points}).fetchall():
        found[run].append((names.get(name) or names.setdefault(name, clean(name)), step, value))
    measured: dict[str, list[Metric]] = {}
    told: dict[tuple[str, str], str] = {}
    for run, eval_id, name, step, value in con.execute(_MEASURED_OF, {"runs": list(runs)}).fetchall():
        key = (eval_id, name)
        measured.setdefault(run, []).append(
            (told.get(key) or told.setdefault(key, metric_name(labels[eval_id], name)), step, value)
        )
    for run, metrics in measured.items():
        found[run] += thinned(metrics, points)
    return found


def _rows(con: duckdb.DuckDBPyConnection, query: str, sweep: str) -> list[dict[str, Any]]:
    cursor = con.execute(query, {"sweep": sweep})
    names = [d[0] for d in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


_MINE = "(SELECT DISTINCT run_id FROM sweep_runs WHERE sweep = $sweep AND repeat = 0)"
MEASURED = """(
    SELECT run_id, step, eval_id, x.name AS name, x.value AS value FROM (
        SELECT run_id, step, eval_id, unnest(list_concat(
            [{'name': 'accuracy', 'value': accuracy}, {'name': 'completion_length', 'value': completion_length},
             {'name': 'truncated', 'value': truncated}],
            coalesce(list_transform(map_entries(other), lambda e: {'name': e.key, 'value': e.value}), []))) AS x
        FROM evals) WHERE x.value IS NOT NULL)"""
"""What evaluations tell, a row per value; not how long they took."""
_ABOUT = """SELECT epoch_ms(coalesce(min(m.added) FILTER (WHERE m.why <> 'merge'), min(m.added)))::VARCHAR AS made,
    count(DISTINCT m.run_id) AS runs FROM sweep_runs AS m WHERE m.sweep = $sweep AND m.repeat = 0"""
_CONFIGS = """FROM configs WHERE config_id IN (SELECT config_id FROM sweep_runs WHERE sweep = $sweep AND repeat = 0)
    ORDER BY config_id"""
_DECIDES = f"""SELECT t.* FROM attempts AS t JOIN runs AS r ON r.run_id = t.run_id
    WHERE t.mode = 'train' AND t.run_id IN {_MINE}
        AND (r.attempt_id IS NULL OR (t.sweep = r.sweep AND t.attempt_id = r.attempt_id))
    QUALIFY row_number() OVER (PARTITION BY t.run_id ORDER BY t."try" DESC, t.job DESC, t.sweep DESC, t.number DESC) = 1"""
"""A run's attempt that decides; where its failures were forgiven none does, and its last one is what MLflow holds of it."""
_RUNS = f"""SELECT r.run_id, r.config_id, r.seed, r.status, r.attempts, a.status AS ended_as,
        a.attempt_id, a.cause, a.message, a.steps, a.device, j.node, j.gpu, j."commit", j.slurm_job_id, j.cluster, j.code,
        epoch_ms(coalesce(a.started, a.ended, m.added)) AS started,
        epoch_ms(coalesce(a.ended, CASE WHEN a.started IS NULL THEN m.added END)) AS ended, -- a row of a table has no times
        m.arm, m.stage, m.excluded, m.exclude_reason, coalesce(t.n, 0) AS n_metrics, t.last AS last_metric, v.measured
    FROM (SELECT run_id, string_agg(DISTINCT arm, ', ' ORDER BY arm) AS arm, min(stage) AS stage, min(added) AS added,
            bool_and(excluded) AS excluded, max(exclude_reason) AS exclude_reason
        FROM sweep_runs WHERE sweep = $sweep AND repeat = 0 GROUP BY run_id) AS m
    JOIN runs AS r ON r.run_id = m.run_id
    JOIN ({_DECIDES}) AS a ON a.run_id = r.run_id
    LEFT JOIN jobs AS j ON j.sweep = a.sweep AND j.job = a.job AND j."try" = a."try"
    LEFT JOIN (SELECT run_id, count(*) AS n, max(step) AS last FROM metrics WHERE run_id IN {_MINE} GROUP BY run_id) AS t
        ON t.run_id = r.run_id
    LEFT JOIN (SELECT run_id, md5(string_agg(concat_ws('/', eval_id, step, attempt_id), ',' ORDER BY eval_id, step)) AS measured
        FROM evals GROUP BY run_id) AS v ON v.run_id = r.run_id
    ORDER BY r.config_id, r.seed"""
_CELLS = """SELECT config_id, stage, step, eval_id, metric, n, mean, sd FROM cells
    WHERE sweep = $sweep AND n > 0 AND metric <> 'seconds' AND stage IN ('explore', 'confirm')
    QUALIFY row_number() OVER (PARTITION BY config_id, stage, step, eval_id, metric ORDER BY n DESC, arm) = 1"""
_NON_FINITE = f"""SELECT run_id, NULL AS eval_id, name, min(step) AS step FROM metrics
    WHERE NOT isfinite(value) AND run_id IN {_MINE} GROUP BY ALL
    UNION ALL SELECT run_id, eval_id, name, min(step) FROM {MEASURED}
    WHERE NOT isfinite(value) AND run_id IN {_MINE} GROUP BY ALL ORDER BY ALL"""
_EVALUATIONS = f"SELECT eval_id, min(task) AS task FROM evals WHERE run_id IN {_MINE} GROUP BY eval_id ORDER BY eval_id"
_THINNED = """WITH counted AS (
        SELECT run_id, name, step, value, row_number() OVER curve - 1 AS i, count(*) OVER (PARTITION BY run_id, name) AS n
        FROM metrics WHERE isfinite(value) AND run_id IN (SELECT unnest($runs))
        WINDOW curve AS (PARTITION BY run_id, name ORDER BY step))
    SELECT run_id, name, step, value FROM counted
    WHERE n <= $points OR i = 0 OR i * ($points - 1) // (n - 1) > (i - 1) * ($points - 1) // (n - 1)
    ORDER BY run_id, name, step"""
_MEASURED_OF = f"""SELECT run_id, eval_id, name, step, value FROM {MEASURED}
    WHERE isfinite(value) AND name <> 'seconds' AND run_id IN (SELECT unnest($runs)) ORDER BY ALL"""
