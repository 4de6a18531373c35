"""Manifests and journals -> rows. Reads files only; knows nothing of the database."""

from __future__ import annotations

import json
import re
from array import array
from collections import defaultdict
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from em_core.attempts import STATE_PREFIXES, attempt_id
from em_core.config import Evaluation, TrainingConfig
from em_core.journal import Record, RunStatus, SweepDir, decode, journal_order, read_lines

Row = dict[str, Any]
Key = tuple[str, int]
"""(run_id, attempt number): names an attempt within one journal."""

_MEASURED = re.compile(rb'\{"kind":"(?:metrics|eval)","run_id":"([^"\\]*)","attempt":(\d+),')
_ABOUT = ("spec", "spec_path", "overrides", "seed_looks", "half_width", "stages")
EVAL_VALUES = ("completion_length", "truncated", "seconds")
FIGURES = ("rollout_seconds", "train_seconds", "eval_seconds", "peak_memory_mb")


@dataclass
class Manifests:
    """Every manifest under a root as rows of the tables of these names; `torn` lines were unreadable."""

    sweeps: list[Row]
    sweep_runs: list[Row]
    configs: list[Row]
    studies: list[Row]
    trials: list[Row]
    torn: int


def read_manifests(sweeps: list[SweepDir]) -> Manifests:
    """All manifests at once, sweeps by name: of a config in two sweeps the first describes it."""
    configs: dict[str, Row] = {}
    all_sweeps: list[Row] = []
    memberships: list[Row] = []
    studies: list[Row] = []
    trials: list[Row] = []
    torn = 0
    for sweep in sweeps:
        found = read_lines(sweep.manifest)
        torn += found.torn
        about: Row = {"sweep": sweep.sweep}
        evaluations: dict[str, Row] = {}
        measured: list[str] = []  # in the order of the newest spec: the first is what the report is about
        runs: dict[tuple[str, str | None], Row] = {}
        study: Row = {}
        asked: dict[int, Row] = {}
        told: dict[int, Row] = {}
        marks: dict[str, Row] = defaultdict(lambda: {"excluded": False, "exclude_reason": None, "forgiven": 0})
        for _, line in found.lines:
            r = decode(line)
            if r is None:
                torn += 1
                continue
            match r["kind"]:
                case "sweep":
                    about |= {k: r.get(k) for k in _ABOUT} | {"t": about.get("t", r.get("t"))}
                    measured = [eval_id for eval_id, _ in r.get("evaluations", ())]
                case "config":
                    configs.setdefault(r["config_id"], _config_row(r))
                case "evaluation":
                    evaluations[r["eval_id"]] = _evaluation_row(r)
                case "run":
                    runs.setdefault((r["run_id"], r.get("arm")), {"sweep": sweep.sweep, "repeat": 0, **r})
                case "exclude" | "include":
                    excluded = r["kind"] == "exclude"
                    marks[r["run_id"]] |= {"excluded": excluded, "exclude_reason": r.get("reason") if excluded else None}
                case "retry":
                    marks[r["run_id"]]["forgiven"] = r["forgiven"]
                case "study":
                    study = {**r, "t": study.get("t", r.get("t"))}
                case "trial":
                    asked[r["number"]] = r
                case "told":
                    told[r["number"]] = r
        stages = [{"key": k, "value": v} for k, v in (about.get("stages") or {}).items()]
        ordered = [evaluations[i] for i in dict.fromkeys((*measured, *evaluations)) if i in evaluations]
        all_sweeps.append(about | {"evaluations": ordered, "stages": stages or None})
        memberships += [run | marks[run["run_id"]] for run in runs.values()]
        studies += [{**study, "sweep": sweep.sweep, "space": _json(study.get("space") or {})}] if study else []
        trials += [_trial_row(sweep.sweep, asked[n], told.get(n, {})) for n in sorted(asked)]
    return Manifests(all_sweeps, memberships, list(configs.values()), studies, trials, torn)


def _trial_row(sweep: str, asked: Record, told: Record) -> Row:
    values = [_number(v) for v in told.get("values") or ()]
    return {
        "sweep": sweep,
        **{k: asked.get(k) for k in ("number", "config_id", "origin")},
        "params": _json(asked.get("params") or {}),
        "state": told.get("state") or "running",
        "value": values[0] if values else None,
        "values": values or None,
        "seeds": told.get("seeds"),
        "why": told.get("why") or None,
        "asked": asked.get("t"),
        "told": told.get("t"),
    }


def _config_row(r: Record) -> Row:
    fields = _fields(TrainingConfig, r["training"])
    fields["params"] = _json(fields["params"]) if fields["params"] else None
    return {"config_id": r["config_id"], "model": r.get("model"), "prompt_name": r.get("prompt_name"), **fields}


def _json(value: Row) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _evaluation_row(r: Record) -> Row:
    steps = r.get("steps")
    fields = _fields(Evaluation, r["evaluation"])
    return {"eval_id": r["eval_id"], **fields, "steps": [str(s) for s in steps] if isinstance(steps, list) else None}


def _fields(model: type[BaseModel], said: Row) -> Row:
    """Column -> value. A field that an older manifest does not know has its default: that is what adding a field means."""
    fields = model.model_fields.items()
    return {name.replace(".", "_"): said.get(name, None if f.is_required() else f.default) for name, f in fields}


@dataclass(frozen=True)
class States:
    """What a journal says about its job and its attempts, from an offset on.

    `attempts` are rows by key. `offset` is where to go on next time: before the first attempt that is still open, and
    before the job's end. `torn` counts unreadable lines; `tail` is 1 where the file ends in an unfinished one.
    """

    job: Row
    attempts: dict[Key, Row]
    offset: int
    torn: int
    tail: int


def read_states(sweep: str, path: Path, offset: int) -> States:
    try_, job = journal_order(path)
    found = read_lines(path, offset)
    torn = found.torn
    starts: dict[Key, tuple[int, Record]] = {}
    ends: dict[Key, Record] = {}
    job_end: Record | None = None
    go_on = found.end
    for at, line in found.lines:
        if not line.startswith(STATE_PREFIXES):
            torn += not (line.startswith(b'{"kind":"') and line.endswith(b"}"))
            continue
        r = decode(line)
        if r is None:
            torn += 1
        elif r["kind"] == "run_start":
            starts.setdefault((r["run_id"], r["attempt"]), (at, r))
        elif r["kind"] == "run_end":
            ends.setdefault((r["run_id"], r["attempt"]), r)
        elif r["kind"] == "job_end":
            job_end = r
            go_on = min(go_on, at)

    attempts: dict[Key, Row] = {}
    for key in starts.keys() | ends.keys():
        end = ends.get(key)
        at, start = starts.get(key, (found.end, end or {}))
        if end is None and job_end is None:
            go_on = min(go_on, at)
        attempts[key] = _attempt_row(sweep, job, try_, key, start, end, job_end)
    job_row = _job_row(sweep, job, try_, _first_record(path), job_end)
    return States(job_row, attempts, go_on, torn, found.torn)


def _attempt_row(sweep: str, job: str, try_: int, key: Key, start: Record, end: Record | None, job_end: Record | None) -> Row:
    if end:
        said = end
    elif job_end:  # the supervisor has had its last word, and this attempt was not in it
        said = {"status": RunStatus.INTERRUPTED, "message": f"its job ended: {job_end.get('reason')}", "t": job_end.get("t")}
    else:
        said = {"status": RunStatus.RUNNING}
    figures = said.get("figures") or {}
    return {
        "attempt_id": attempt_id(job, try_, *key),
        "sweep": sweep,
        "run_id": key[0],
        "job": job,
        "try": try_,
        "number": key[1],
        **{k: start.get(k) for k in ("slot", "device", "dtype", "threads", "resumed_step", "resumed_device", "trainer")},
        "mode": start.get("mode") or "train",
        **{k: said.get(k) for k in ("status", "cause", "message", "traceback", "steps")},
        "started": start.get("t") if start is not end else None,
        "ended": said.get("t"),
        "seconds": _number(said.get("seconds")),
        **{k: _number(figures.get(k)) for k in FIGURES},
    }


def _job_row(sweep: str, job: str, try_: int, start: Record, end: Record | None) -> Row:
    packages = [{"key": k, "value": str(v)} for k, v in (start.get("packages") or {}).items()]
    place = ("launcher", "cluster", "partition", "node", "host", "gpu", "driver", "cpus", "slots")
    code = ("code", "commit", "dirty", "snapshot", "python", "cuda")
    return {
        "sweep": sweep,
        "job": job,
        "try": try_,
        **{k: start.get(k) for k in (*place, *code)},
        "slurm_job_id": str(start["slurm_job_id"]) if start.get("slurm_job_id") is not None else None,
        "packages": packages,
        "started": start.get("t"),
        "ended": end.get("t") if end else None,
        "reason": end.get("reason") if end else None,
    }


def _first_record(path: Path) -> Record:
    """The job's start. Always the first line, so it is at hand however far the journal has been read."""
    with open(path, "rb") as f:
        line = f.readline()
    r = decode(line) if line.endswith(b"\n") else None
    return r if r and r["kind"] == "job_start" else {}


class Measurements:
    """Metrics and evaluations of chosen attempts, gathered journal by journal into compact columns."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.metrics: dict[tuple[str, ...], tuple[array[int], array[int], array[float]]] = {}
        """By the names that come together: index into `runs`, step, and the values, row after row."""
        self.evals: list[Row] = []

    def read(self, sweep: str, path: Path, offset: int, trained: AbstractSet[Key], evaluated: AbstractSet[Key]) -> None:
        """Add metrics of the attempts `trained` and evaluations of the attempts `evaluated`."""
        try_, job = journal_order(path)
        index: dict[str, int] = {}
        seen: set[tuple[Key, int, str]] = set()
        for r in _records_of(path, offset, trained | evaluated):
            key = (r["run_id"], r["attempt"])
            if r["kind"] == "metrics" and key in trained:
                run = index.get(key[0])
                if run is None:
                    run = index[key[0]] = len(self.runs)
                    self.runs.append(key[0])
                values = r["values"]
                names = tuple(values)
                if names not in self.metrics:
                    self.metrics[names] = (array("q"), array("q"), array("d"))
                runs, steps, numbers = self.metrics[names]
                runs.append(run)
                steps.append(r["step"])
                try:
                    numbers.fromlist(list(values.values()))
                except TypeError:  # a non-finite number is a string
                    numbers.fromlist([float("nan") if v is None else float(v) for v in values.values()])
            elif r["kind"] == "eval" and key in evaluated and (key, r["step"], r["eval_id"]) not in seen:
                seen.add((key, r["step"], r["eval_id"]))
                self.evals.append(_eval_row(sweep, attempt_id(job, try_, *key), r))


def _records_of(path: Path, offset: int, wanted: AbstractSet[Key]) -> Iterator[Record]:
    """Measurements of the wanted attempts; the lines of others are passed over unparsed.

    Many lines are parsed as one JSON array, which takes half the time; where one is damaged, line by line.
    """
    names = {(run.encode(), b"%d" % number) for run, number in wanted}
    lines = []
    for _, line in read_lines(path, offset, (b'{"kind":"metrics"', b'{"kind":"eval"')).lines:
        address = _MEASURED.match(line)
        if address is None or address.groups() in names:
            lines.append(line)
    for at in range(0, len(lines), 1000):
        some = lines[at : at + 1000]
        try:
            yield from json.loads(b"[" + b",".join(some) + b"]")
        except ValueError:
            yield from (r for r in map(decode, some) if r is not None)


def _eval_row(sweep: str, attempt: str, r: Record) -> Row:
    values = r.get("values") or {}
    return {
        "sweep": sweep,
        "attempt_id": attempt,
        **{k: r.get(k) for k in ("run_id", "step", "eval_id", "task", "n_questions", "num_samples")},
        "accuracy": _number(r.get("accuracy")),
        **{k: _number(values.get(k)) for k in EVAL_VALUES},
        "other": [{"key": k, "value": _number(v)} for k, v in values.items() if k not in EVAL_VALUES],
        "outcomes": r.get("outcomes") or None,
        "histogram": r.get("histogram"),
    }


def _number(value: Any) -> float | None:
    """A number as written: "NaN" and "Infinity" are numbers, null is none."""
    return None if value is None else float(value)
