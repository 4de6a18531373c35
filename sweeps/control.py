"""What a person does to a sweep that exists: cancel, retry, exclude. All of it is appended, nothing removed."""

from __future__ import annotations

import time
from pathlib import Path

from em_core.errors import UserError
from em_core.journal import Appender, RunStatus, SweepDir, append_batch
from em_core.lock import locked
from sweeps.manifest import Manifest, find_run, find_sweep, read_manifest
from sweeps.observe import Observer

ENDED = (RunStatus.COMPLETED, RunStatus.DIVERGED, RunStatus.FAILED, RunStatus.CANCELLED)
"""Ends after which a job does not come back to a run."""


def matching(root: Path, target: str) -> list[tuple[SweepDir, Manifest, set[str]]]:
    """The runs that a person names: a sweep, a config id, or a run id. Raises `UserError` when there are none."""
    sweep = SweepDir(root, target)
    if sweep.manifest.is_file():
        manifest = read_manifest(sweep)
        return [(sweep, manifest, set(manifest.runs))]
    if "-s" in target and target.rsplit("-s", 1)[1].isdigit() and len(target.split("-s")[0]) == 12:
        return [(s, read_manifest(s), {target}) for s in find_run(root, target)]
    found = []
    for path in sorted(root.glob("*/manifest.jsonl")):
        manifest = read_manifest(SweepDir(root, path.parent.name))
        runs = {r.run_id for r in manifest.runs.values() if r.config_id == target}
        if runs:
            found.append((SweepDir(root, path.parent.name), manifest, runs))
    if not found:
        find_sweep(root, target)
    return found


def cancel(root: Path, target: str) -> int:
    """Stop what is queued or running of a sweep, config or run; returns how many runs. `run` starts them again."""
    stopped = 0
    for sweep, manifest, runs in matching(root, target):
        with locked(sweep.lock, f"sweep {sweep.sweep} is being changed"):
            observer = Observer(sweep)
            view = observer.look(manifest)
            over = {(t.job, a.run_id) for t in observer.tries() for a in t.attempts if a.status in ENDED}
            live = [j for j in observer.jobs() if j.name in view.live]
            active = {r for j in live for r in j.runs & runs if (j.name, r) not in over}
            stopped += len(active)
            jobs = [j for j in live if j.runs & active]
            whole = [j for j in jobs if j.runs <= runs]
            for job in jobs:
                with Appender(sweep.assignment(job.name)) as out:
                    if job in whole:
                        out.append("stop", reason="cancelled by a person")
                    else:
                        for run_id in sorted(job.runs & active):
                            out.append("cancel", run_id=run_id)
                    out.sync()
            observer.launchers["slurm"].cancel([j.id for j in whole if j.launcher == "slurm" and j.id])
    return stopped


def retry(root: Path, target: str) -> dict[str, int]:
    """Forgive the failures of a sweep, config or run, so that the next `run` tries again; returns counts by sweep."""
    marked = {}
    for sweep, manifest, runs in matching(root, target):
        with locked(sweep.lock, f"sweep {sweep.sweep} is being changed"):
            observer = Observer(sweep)
            view = observer.look(manifest)
            failures: dict[str, int] = {}
            for t in observer.tries():
                for a in t.attempts:
                    failures[a.run_id] = failures.get(a.run_id, 0) + (a.status is RunStatus.FAILED)
            again = {r for r in view.unmeasured if failures.get(r, 0) > manifest.forgiven.get(r, 0)}
            failed = [r for r in manifest.runs if r in runs and (view.states[r] is RunStatus.FAILED or r in again)]
            now = time.time()
            append_batch(sweep.manifest, [("retry", {"run_id": r, "forgiven": failures[r], "t": now}) for r in failed])
            marked[sweep.sweep] = len(failed)
    return marked


def exclude(root: Path, target: str, reason: str, undo: bool) -> dict[str, int]:
    """Mark runs as not wanted (or, with `undo`, wanted again), with a reason; returns counts by sweep."""
    if not undo and not reason.strip():
        raise UserError("exclude needs a --reason: whoever reads the results will ask")
    marked = {}
    for sweep, _, runs in matching(root, target):
        with locked(sweep.lock, f"sweep {sweep.sweep} is being changed"):
            manifest = read_manifest(sweep)
            chosen = [r for r in manifest.runs if r in runs and (r in manifest.excluded) == undo]
            kind, now = ("include" if undo else "exclude"), time.time()
            append_batch(sweep.manifest, [(kind, {"run_id": r, "reason": reason, "t": now}) for r in chosen])
            marked[sweep.sweep] = len(chosen)
    return marked
