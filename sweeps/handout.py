"""One round of work on a sweep: record what ended, judge, look whether a seed budget adds seeds, and hand out what is missing.
`run`, `submit` and the follow-up job all do just this, as often as it takes; the journals decide what is left.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_core.attempts import JobTry
from em_core.errors import Fault
from em_core.journal import RunStatus, SweepDir, append_batch
from launchers.base import Launcher
from launchers.causes import HOST_MEMORY
from launchers.halting import halted
from launchers.slurm import SlurmLauncher
from launchers.snapshot import take
from sweeps.budget import affordable
from sweeps.looks import added, look
from sweeps.manifest import SEED_BUDGET, Manifest, extend
from sweeps.observe import Observer
from sweeps.plan import spec_fields, todo_of
from sweeps.reconcile import View
from sweeps.seeds import SeedBudget
from sweeps.site import Site
from sweeps.spec import Spec
from sweeps.submit import expected_seconds, pack, submit

FRUITLESS_ROUNDS = 3
"""Rounds in a row after which jobs that leave no trace of any attempt are not sent again."""


@dataclass(frozen=True)
class Round:
    """What one round did: `jobs` handed out, the runs in them, and how many had to wait (`left`).

    `manifest` is what the sweep wants now: a seed budget may have `grown` it by some runs.
    """

    manifest: Manifest
    view: View
    jobs: tuple[str, ...]
    runs: frozenset[str]
    left: int
    grown: int = 0


def play_round(
    spec: Spec,
    sweep: SweepDir,
    manifest: Manifest,
    observer: Observer,
    launcher: Launcher,
    site: Site,
    *,
    retrain: bool = False,
    without: Collection[str] = (),
    revive: bool = True,
) -> Round:
    """One round; the caller holds the sweep's lock. Raises `Fault` where the sweep was stopped, its budget is used
    up or the scheduler refuses.

    `without`: runs to leave alone. `revive`: hand out again what a person cancelled, and what was trained again in vain.
    """
    refuse_halted(sweep)
    observer.settle(spec.retries.limits())
    view = observer.look(manifest)
    known = len(manifest.runs)
    while isinstance(spec.seeds, SeedBudget):  # again where the runs that a look adds are done already, in another sweep
        more = added(spec.seeds, manifest, look(spec.seeds, manifest, view, sweep), sweep.sweep)
        if not more.runs:
            break
        manifest = extend(sweep, more, SEED_BUDGET, spec_fields(spec))
        view = observer.look(manifest)
    grown = len(manifest.runs) - known
    todo = [(r, need) for r, need in todo_of(view, retrain) if r not in without]
    if not revive:
        todo = [(r, n) for r, n in todo if view.states[r] is not RunStatus.CANCELLED and not (view.again.get(r) and not n)]
    if not todo:
        return Round(manifest, view, (), frozenset(), 0, grown)
    expected = expected_seconds(sweep, manifest.configs, spec, launcher.name, manifest.wanted_evaluations)
    fitting = affordable(spec, launcher.name, sweep, manifest, view, observer.tries(), todo, expected)
    if not fitting:
        return Round(manifest, view, (), frozenset(), len(todo), grown)
    seconds = {c: s.middle for c, s in expected.items()}
    short = {r for r, counts in view.troubles.items() if counts.get(HOST_MEMORY)}
    jobs = pack(manifest, fitting, spec, launcher.name, seconds, more_memory(short, observer.tries()))
    if launcher.name == "local":
        jobs = jobs[:1]  # a job takes the whole machine: those of other resource rules follow when it is done
    names = submit(
        sweep,
        manifest,
        jobs,
        spec,
        site,
        launcher,
        troubles=view.troubles,
        exclude_nodes=observer.bad_nodes(spec.retries.exclude_node_after),
        running=observer.under_way(view.live),
    )
    if not names and not view.live:
        raise Fault(f"{len(todo):,} runs are left, and Slurm takes no more jobs of yours now (MaxSubmitJobs); try again later")
    runs = frozenset(r for job in jobs[: len(names)] for r, _ in job.runs)
    return Round(manifest, view, tuple(names), runs, len(todo) - len(runs), grown)


def more_memory(runs: Collection[str], tries: Iterable[JobTry]) -> dict[str, float]:
    """Host memory (GB per run) for those of the runs that ran out of it: twice what their last job gave, where that is known."""
    given: dict[str, float] = {}
    for t in tries:
        mem, slots = (t.start or {}).get("mem_gb"), (t.start or {}).get("slots")
        if not mem or not slots:
            continue
        for a in t.attempts:
            if a.cause == HOST_MEMORY and a.run_id in runs:
                given[a.run_id] = max(given.get(a.run_id, 0.0), mem / slots)
    return {run_id: 2 * gb for run_id, gb in given.items()}


def refuse_halted(sweep: SweepDir) -> None:
    """Raises `Fault` where the sweep stopped itself."""
    if reason := halted(sweep):
        raise Fault(
            f"sweep {sweep.sweep} stopped itself: {reason}. Mend that, then `emsweep retry {sweep.sweep}` and the same command"
        )


def ensure_follow_up(
    sweep: SweepDir, observer: Observer, view: View, jobs: Collection[str], db: Path, site: Site, fruitless: int
) -> str:
    """Chain a small job to the sweep's living jobs, which goes on when they are over. The caller holds the sweep's lock.

    Only the newest follow-up acts. Returns why there is none, or nothing: no disaster, but somebody must stay awake then.
    """
    slurm = observer.launchers["slurm"]
    alive = [j.id for j in observer.jobs() if j.launcher == "slurm" and j.id and (j.name in view.live or j.name in jobs)]
    if not site.follow_up or not alive or not isinstance(slurm, SlurmLauncher):
        return ""
    command = [
        sys.executable, "-m", "sweeps.cli", "follow-up", sweep.sweep, "--root", str(sweep.root), "--db", str(db),
        "--tried", str(view.tried), "--fruitless", str(fruitless),
    ]  # fmt: skip
    try:
        send_small_job(sweep, slurm, "follow-up", alive, command, site)
    except Fault as fault:
        return f"no follow-up job goes on with {sweep.sweep} by itself: {fault}"
    return ""


def send_small_job(
    sweep: SweepDir, slurm: SlurmLauncher, name: str, after: Sequence[str], command: Sequence[str], site: Site, **words: Any
) -> str:
    """Submit a job of one CPU that runs `command` when the jobs `after` are over, and record it; its id.

    `words`: parameters of submitit, where the site says nothing else. The caller holds the sweep's lock. Raises `Fault`.
    """
    words |= {k: v for k in ("partition", "account", "qos") if (v := getattr(site, k))}
    words |= {k.removeprefix("slurm_"): v for k, v in site.follow_up_resources.items()}
    if site.setup:
        words["setup"] = list(site.setup)
    job = slurm.follow(f"{sweep.sweep}:{name}", after, command, take(sweep.root), words)
    told = {"id": job, "after": list(after), "command": shlex.join(command), "t": time.time()}
    append_batch(sweep.submissions, [("follow_up", told)])
    return job
