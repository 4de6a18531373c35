"""What a person does to a sweep that exists: cancel, retry, exclude. All of it is appended, nothing removed."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from em_core.attempts import Attempt
from em_core.errors import UserError
from em_core.journal import FINAL, Appender, RunStatus, append_batch
from em_core.lock import locked
from launchers.causes import CANCELLED_BY_A_PERSON, CAUSES
from launchers.halting import halted
from sweeps.chains import start_of
from sweeps.choose import choose
from sweeps.complaints import unknown
from sweeps.leading import controller_jobs
from sweeps.manifest import CONFIRM, Manifest, read_manifest, refuse_imported
from sweeps.observe import Observer
from sweeps.reconcile import SubmittedJob

ASK_ABOVE = 10
"""Active runs above which `cancel` is not to be done unasked."""


def too_many(root: Path, target: str, where: Sequence[str] = ()) -> int:
    """How many runs `cancel` would stop, where they are more than `ASK_ABOVE`; else 0."""
    chosen = choose(root, target, where)
    if sum(len(c.runs) for c in chosen) <= ASK_ABOVE:
        return 0
    runs = sum(len(left & c.runs) for c in chosen for _, left in _unfinished(Observer(c.sweep), c.manifest))
    return runs if runs > ASK_ABOVE else 0


def cancel(root: Path, target: str, where: Sequence[str] = ()) -> int:
    """Stop what is queued or running of a sweep, config or run; returns how many runs. `run` starts them again."""
    stopped = 0
    for chosen in choose(root, target, where):
        sweep = chosen.sweep
        with locked(sweep.lock, f"sweep {sweep.sweep} is being changed"):
            observer = Observer(sweep)
            all_of_it = chosen.runs >= chosen.manifest.runs.keys()
            unfinished = _unfinished(observer, chosen.manifest)
            ours = [(j, left) for j, left in unfinished if left & chosen.runs or (j.open and all_of_it)]
            # A job of which nothing else is left is stopped as a whole; an open one, which would get other runs, with its study.
            whole = [j for j, left in ours if left <= chosen.runs and (all_of_it or not j.open)]
            for job, left in ours:
                stopped += len(left & chosen.runs)
                with Appender(sweep.assignment(job.name)) as out:
                    if job in whole:
                        out.append("stop", reason=CANCELLED_BY_A_PERSON)
                    else:
                        for run_id in sorted(left & chosen.runs):
                            out.append("cancel", run_id=run_id)
                    out.sync()
            ids = [j.id for j in whole if j.launcher == "slurm" and j.id]
            if all_of_it and chosen.manifest.study:
                append_batch(sweep.submissions, [("cancelled", {"t": time.time()})])  # a controller elsewhere reads it
                ids += controller_jobs(observer)
            elif ids and all_of_it and (follow_up := observer.follow_up()):
                ids.append(follow_up)  # or it would hand out what was not in any job yet
            observer.launchers["slurm"].cancel(ids)
    return stopped


def _unfinished(observer: Observer, manifest: Manifest) -> list[tuple[SubmittedJob, set[str]]]:
    """The jobs that may still do something, each with the runs that it has not ended."""
    view = observer.look(manifest)
    over = {(t.job, a.run_id) for t in observer.tries() for a in t.attempts if a.status in FINAL}
    live = [j for j in observer.jobs() if j.name in view.live]
    return [(j, {r for r in j.runs if (j.name, r) not in over}) for j in live]


@dataclass(frozen=True)
class Retried:
    """What a `retry` did to one sweep: failed runs forgiven, and why the sweep had stopped itself (None: it had not).

    `command` tries them again, but for `told` runs of a study, whose trials were told and stay so.
    """

    sweep: str
    runs: int
    halted: str | None
    command: str
    told: int


def retry(root: Path, target: str, where: Sequence[str] = (), causes: Collection[str] = ()) -> list[Retried]:
    """Forgive the failures of a sweep, config or run, so that the next `run` tries again.

    With `causes`, only of runs whose last failure has one of them. A sweep that had stopped itself goes on.
    """
    for cause in causes:
        if cause not in CAUSES:
            raise UserError(f"--cause: {unknown('cause', cause, CAUSES)}")
    done = []
    for chosen in choose(root, target, where):
        sweep = chosen.sweep
        with locked(sweep.lock, f"sweep {sweep.sweep} is being changed"):
            observer = Observer(sweep)
            manifest = read_manifest(sweep)
            refuse_imported(manifest)
            view = observer.look(manifest)
            failures: dict[str, list[Attempt]] = {}
            for t in observer.tries():
                for a in t.attempts:
                    if a.status is RunStatus.FAILED:
                        failures.setdefault(a.run_id, []).append(a)
            forgiven = manifest.forgiven
            # Evaluations that failed, and trainings again for a checkpoint, are failures of runs that are done.
            parents = {start[0] for r in view.blocked if (start := start_of(manifest, r))}
            again = {r for r in (*view.unmeasured, *parents) if len(failures.get(r, ())) > forgiven.get(r, 0)}
            failed = [r for r in manifest.runs if r in chosen.runs and (view.states[r] is RunStatus.FAILED or r in again)]
            if causes:
                failed = [r for r in failed if _last(failures[r]).cause in causes]
            told = _of_told_trials(manifest, failed) if manifest.study else set()
            now = time.time()
            marks = [("retry", {"run_id": r, "forgiven": len(failures[r]), "t": now}) for r in failed]
            append_batch(sweep.manifest, marks)
            reason = halted(sweep)
            sweep.halted.unlink(missing_ok=True)
            done.append(Retried(sweep.sweep, len(failed), reason, "study" if manifest.study else "run", len(told)))
    return done


def _of_told_trials(manifest: Manifest, runs: Collection[str]) -> set[str]:
    """Those of these runs that nobody waits for any more: of trials of a study that were told as failed, which stays so."""
    waited_for = {t["config_id"] for n, t in manifest.trials.items() if n not in manifest.told}
    return {r for r in runs if manifest.runs[r].stage != CONFIRM and manifest.runs[r].config_id not in waited_for}


def _last(failures: Sequence[Attempt]) -> Attempt:
    return max(failures, key=lambda a: ((a.end or {}).get("t") or 0.0, a.job, a.try_, a.number))


def exclude(root: Path, target: str, reason: str, undo: bool, where: Sequence[str] = ()) -> dict[str, int]:
    """Mark runs as not wanted (or, with `undo`, wanted again), with a reason; returns counts by sweep."""
    if not undo and not reason.strip():
        raise UserError("exclude needs a --reason: whoever reads the results will ask")
    marked = {}
    for chosen in choose(root, target, where):
        sweep = chosen.sweep
        with locked(sweep.lock, f"sweep {sweep.sweep} is being changed"):
            manifest = read_manifest(sweep)
            runs = [r for r in manifest.runs if r in chosen.runs and (r in manifest.excluded) == undo]
            kind, now = ("include" if undo else "exclude"), time.time()
            append_batch(sweep.manifest, [(kind, {"run_id": r, "reason": reason, "t": now}) for r in runs])
            marked[sweep.sweep] = len(runs)
    return marked
