"""What `emsweep import` writes: journals as a supervisor would have written them, then a manifest that names their runs.

`collect` makes tables of them as of any other. What was imported stays; a later import adds the runs that are new.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from em_core.attempts import Attempt, read_job_try
from em_core.config import Evaluation, TrainingConfig, reads
from em_core.errors import UserError
from em_core.journal import Record, RunStatus, SweepDir, append_batch, write_whole
from em_core.known_methods import IMPORTED
from em_core.lock import locked
from launchers.causes import CANCELLED, NON_FINITE
from sweeps.importing import Choice, Curves, Found, Placed, configs_of, doubts, place, with_seeds
from sweeps.manifest import Manifest, read_manifest
from sweeps.merge import is_foreign

JOB = re.compile(r"import-\d{4,}")


@dataclass(frozen=True)
class Imported:
    """What an import brought. `notes` are what a person should know, a sentence each."""

    sweep: str
    runs: int
    known: int
    statuses: Mapping[str, int]
    configs: int
    notes: list[str]


def bring(
    sweep: SweepDir,
    choice: Choice,
    origin: Mapping[str, str],
    found: Sequence[Found],
    curves_of: Callable[[Sequence[Found]], Iterable[Curves]],
) -> Imported:
    """Import the runs that are new. `curves_of` yields the curves of the runs it is given, in their order; `origin` says, for
    people, where they come from.

    Journals are written whole before the manifest names their runs, and a journal that none names is written anew: a kill at any
    moment leaves nothing half. Raises `UserError` where the sweep is none that was imported, or was imported in another way.
    """
    _check(read_manifest(sweep), choice, sweep)
    found, notes = with_seeds(found, choice.seed)
    configs = configs_of(found, choice, sweep.sweep)
    with locked(sweep.lock, f"sweep {sweep.sweep} is being changed"):
        manifest = read_manifest(sweep)
        known, next_job = _known(sweep, manifest)
        new = [f for f in found if f.source not in known]
        placed = list(place(sorted(new, key=lambda f: f.started or 0.0), configs, choice, known.values()))
        zero = _write_journals(sweep, choice, placed, curves_of, next_job)
        append_batch(sweep.manifest, _wanted(manifest, sweep, choice, origin, placed))
    if zero and not choice.step_offset:
        notes.append(
            f"step 0 of `{choice.metrics[0]}` is taken for the score before training; where your script counts from 0, "
            "--step-offset 1 says so"
        )
    notes += doubts(placed, choice)
    statuses = Counter(str(_status(p.found, choice)) for p in placed)
    return Imported(sweep.sweep, len(placed), len(known), statuses, len({p.config.config_id for p in placed}), notes)


def refuse_other_experiment(sweep: SweepDir, experiment: str) -> None:
    """Two experiments may come to one name, as all but letters, digits, `_`, `.` and `-` is left out of it: they become one sweep
    only where a person names it. Raises `UserError`."""
    before = read_manifest(sweep).spec.get("imported")
    if before is not None and before.get("experiment") != experiment:
        other = before.get("experiment") or before["from"]
        raise UserError(f"{sweep.sweep} holds what was imported from {other!r}, not {experiment!r}: give a --name")


def _check(manifest: Manifest, choice: Choice, sweep: SweepDir) -> None:
    before = manifest.spec.get("imported")
    anew = f"give another --name, or remove {sweep.path} to begin anew"
    if manifest.spec and before is None:
        raise UserError(f"{sweep.sweep} is a sweep that was run here: {anew.split(',')[0]}")
    for what, now in json.loads(json.dumps(asdict(choice))).items():
        if before is not None and before[what] != now:
            raise UserError(f"{sweep.sweep} was imported with {what} {before[what]!r}, not {now!r}: {anew}")


def _known(sweep: SweepDir, manifest: Manifest) -> tuple[dict[str, Attempt], int]:
    """(source -> its attempt, number of the next job). A journal that the manifest does not name whole was never finished: it is
    removed, and its runs come again."""
    known: dict[str, Attempt] = {}
    numbers = [-1]
    for path in sweep.all_journals():
        told = read_job_try(path)
        if not is_foreign(told.job) and not all(a.run_id in manifest.runs for a in told.attempts):
            path.unlink()
            continue
        known |= {a.start["source"]: a for a in told.attempts if "source" in a.start}
        numbers += [int(told.job.split("-")[1])] if JOB.fullmatch(told.job) else []
    return known, max(numbers) + 1


def _evaluations(choice: Choice) -> dict[str, Evaluation]:
    """Metric -> the measurement it is."""
    tasks = {name: f"-{name}" if name in choice.minimized else name for name in choice.metrics}
    return {name: Evaluation(task=task, task_key=f"{IMPORTED}:{task}") for name, task in tasks.items()}


def _wanted(
    manifest: Manifest, sweep: SweepDir, choice: Choice, origin: Mapping[str, str], placed: Sequence[Placed]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What the manifest does not name yet."""
    now = time.time()
    for evaluation in _evaluations(choice).values():
        if (eval_id := evaluation.eval_id()) not in manifest.evaluations:
            yield "evaluation", {"eval_id": eval_id, "evaluation": evaluation.model_dump(), "steps": "last"}
    if not manifest.spec:
        spec = f"# Brought by `emsweep import` from {', '.join(f'{k} {v}' for k, v in origin.items())}\n"
        spec += f"name: {sweep.sweep}\nbase: {{method: {IMPORTED}}}\nseeds: 1\n"
        about = {
            "sweep": sweep.sweep,
            "t": now,
            "spec": spec,
            "spec_path": "",
            "overrides": [],
            "keep": "none",
            "evaluations": [],
        }
        yield "sweep", {**about, "imported": json.loads(json.dumps(asdict(choice))) | dict(origin)}
    configs = {p.config.config_id: p.config for p in placed}
    for c in configs.values():
        if c.config_id not in manifest.configs:
            fields = {"config_id": c.config_id, "model": c.model, "prompt_name": c.prompt_name}
            yield "config", {**fields, "training": _told(c.training)}
    runs = {p.run_id: p for p in placed if p.run_id not in manifest.runs}
    for p in runs.values():
        who = {"run_id": p.run_id, "config_id": p.config.config_id, "seed": p.seed, "repeat": p.repeat, "arm": None}
        yield "run", {**who, "stage": p.found.stage, "why": "import", "t": now}


def _told(training: TrainingConfig) -> dict[str, Any]:
    """The fields of an imported run; all others are null in the results, not at the defaults of a training here."""
    has = {"model_name_or_path", "parent", "from_step", "prompt"} | reads(IMPORTED)
    return {name: value if name in has else None for name, value in training.model_dump().items()}


def _write_journals(
    sweep: SweepDir,
    choice: Choice,
    placed: Sequence[Placed],
    curves_of: Callable[[Sequence[Found]], Iterable[Curves]],
    first: int,
) -> bool:
    """A journal for each commit that runs were made with; whether some curve begins at step 0."""
    by_commit: dict[str | None, list[Placed]] = {}
    for p in placed:
        by_commit.setdefault(p.found.commit, []).append(p)
    zero = False

    def records(job: str, commit: str | None, runs: Sequence[Placed]) -> Iterator[tuple[str, Record]]:
        nonlocal zero
        about = {"job": job, "try": 0, "t": time.time(), "sweep": sweep.sweep, "launcher": "import", "slurm_job_id": None}
        yield "job_start", {**about, "node": None, "pid": os.getpid(), "gpu": None, "commit": commit, "packages": {}}
        for p, curves in zip(runs, curves_of([p.found for p in runs]), strict=True):
            zero = zero or any(0 in curve and len(curve) > 1 for m in choice.metrics[:1] if (curve := curves.get(m)))
            yield from _records(p, curves, choice)
        yield "job_end", {"reason": "done", "t": time.time()}

    for number, (commit, runs) in enumerate(by_commit.items(), first):
        job = f"import-{number:04d}"
        write_whole(sweep.journal(job, 0), records(job, commit, runs))
    return zero


def _status(f: Found, choice: Choice) -> RunStatus:
    """As it was recorded; completed with a metric that ended non-finite is diverged."""
    ends = [f.last[m][1] for m in choice.metrics if m in f.last]
    diverged = f.status is RunStatus.COMPLETED and not all(map(math.isfinite, ends))
    return RunStatus.DIVERGED if diverged else f.status


CAUSES = {RunStatus.DIVERGED: NON_FINITE, RunStatus.CANCELLED: CANCELLED}


def _records(p: Placed, curves: Curves, choice: Choice) -> Iterator[tuple[str, Record]]:
    """A run as a supervisor would have told it.

    Each of `choice.metrics` is an evaluation, with the last values of all other metrics beside the last of the first one; the
    curves of the others are training metrics.
    """
    f, who = p.found, {"run_id": p.run_id, "attempt": p.attempt}
    curves = {name: _placed_steps(curve, choice.step_offset) for name, curve in curves.items()}
    evaluations = _evaluations(choice)
    judged = {m: curves[m] for m in choice.metrics if curves.get(m)}
    others = {name: curve for name, curve in curves.items() if curve and (name not in judged or name in choice.minimized)}
    measures = [[evaluations[m].eval_id(), sorted(curve)] for m, curve in judged.items()]
    about = {"config_id": p.config.config_id, "seed": p.seed, "mode": "train", "slot": 0, "t": f.started, "device": IMPORTED}
    yield "run_start", {**who, **about, "source": f.source, "measures": measures}
    by_step: dict[int, dict[str, float]] = defaultdict(dict)
    for name, curve in others.items():
        for step, value in curve.items():
            by_step[step][name] = value
    for step in sorted(by_step):
        yield "metrics", {**who, "step": step, "values": by_step[step]}
    for m, curve in judged.items():
        sign = -1.0 if m in choice.minimized else 1.0
        task = {"eval_id": evaluations[m].eval_id(), "task": evaluations[m].task, "grader": "external"}
        for step in sorted(curve):
            with_others = m == choice.metrics[0] and step == max(curve)
            values = {name: other[max(other)] for name, other in others.items()} if with_others else {}
            score = {"n_questions": None, "num_samples": 1, "accuracy": sign * curve[step], "outcomes": "", "values": values}
            yield "eval", {**who, "step": step, **task, **score}
    status = _status(f, choice)
    seconds = f.ended - f.started if f.started is not None and f.ended is not None else None
    end = {"status": str(status), "cause": CAUSES.get(status, ""), "message": f.message, "traceback": "", "t": f.ended}
    steps = max((max(curve) for curve in curves.values() if curve), default=0)
    yield "run_end", {**who, **end, "seconds": seconds, "steps": steps, "figures": {}}


def _placed_steps(curve: Mapping[int, float], offset: int) -> Mapping[int, float]:
    """The curve at the steps of the results. A single value at step 0 was recorded without a step: it is the end, step 1."""
    return {1: curve[0]} if set(curve) == {0} else {step + offset: value for step, value in curve.items()}
